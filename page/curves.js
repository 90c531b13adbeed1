// Local curves in JavaScript: what models/curves.py, models/grain.py and utils/photos/full_size.py do, and the small copy of
// predictor.py.

const GREY = 0.18;
export const SHARED_FALL = 0.3, LIFT = 1, NOISE = 1.5 / 255, BLACK = 0.3 / 255, COLOURED = 24 / 255;  // as the models have

// ln(x / (1 - x)) of a grey card in sRGB, exposed by so many stops; from two on, ln 2 for each.
const logOddsOfGrey = stops => {
  const x = 1.055 * (GREY * 2 ** Math.min(stops, 2)) ** (1 / 2.4) - 0.055;
  return Math.log(x / (1 - x)) + Math.LN2 * Math.max(stops - 2, 0);
};

// Slopes at black and at white of curves of a strength in [0, 1] and an exposure in stops, and the gain that levels the photo.
// maps: {values: (3, 3, height, width) logarithms, height, width}. Returns {black, white, gain}: (height, width, 4) twice; the
// last of black is by how much grain is to be reduced, the last of white is unused; and a number.
export const slopes = (maps, strength, exposure) => {
  const count = maps.height * maps.width, shift = logOddsOfGrey(exposure) - logOddsOfGrey(0);
  const black = new Float32Array(4 * count).fill(1), white = new Float32Array(4 * count).fill(1);
  const gain = strength * maps.values[6 * count];
  for (let i = 0; i < count; i++) {
    let stops = gain / Math.LN2;
    for (let channel = 0; channel < 3; channel++) {
      const atBlack = strength * maps.values[channel * count + i] + shift;
      const atWhite = strength * maps.values[(channel + 3) * count + i] - shift;
      black[4 * i + channel] = Math.exp(atBlack);
      white[4 * i + channel] = Math.exp(atWhite);
      stops += (atBlack - atWhite) / (6 * Math.LN2);
    }
    black[4 * i + 3] = Math.min(Math.max(stops - LIFT, 0), 1);
  }
  return {black, white, gain: Math.exp(gain)};
};

// Where a row or column of a picture lies between two of its maps: bilinear interpolation, pixel centres at halves.
const between = (index, length, count) => {
  const position = Math.min(Math.max((index + 0.5) * count / length - 0.5, 0), count - 1);
  const low = Math.floor(position);
  return [low, Math.min(low + 1, count - 1), position - low];
};

// Correct RGBA pixels of 8 bits in place; transparency stays.
export const applyCurves = (pixels, width, height, maps, strength, exposure) => {
  const {black, white, gain} = slopes(maps, strength, exposure);
  // With X = 255 x and P = X (255 - T):  255 x r(t) = (X + P (s - 1) / 255) / (1 + T (255 - T) (s + w - 2) / 255²)
  const row = 7 * width, wide = new Float32Array(maps.height * row);
  for (let x = 0; x < width; x++) {
    const [left, right, share] = between(x, width, maps.width);
    for (let y = 0; y < maps.height; y++) {
      const a = 4 * (y * maps.width + left), b = 4 * (y * maps.width + right), to = y * row + 7 * x;
      for (let c = 0; c < 3; c++) {
        const s = black[a + c] + share * (black[b + c] - black[a + c]);
        const w = white[a + c] + share * (white[b + c] - white[a + c]);
        wide[to + c] = (s - 1) / 255;
        wide[to + 3 + c] = (s + w - 2) / 65025;
      }
      wide[to + 6] = black[a + 3] + share * (black[b + 3] - black[a + 3]);
    }
  }
  const noise = 255 * NOISE, line = 4 * width, x = new Float32Array(3), curves = new Float32Array(7);
  let before = pixels.slice(0, line), own = before;  // the row above and this one, as they were
  for (let y = 0, i = 0; y < height; y++, before = own) {
    const [above, below, share] = between(y, height, maps.height);
    own = pixels.slice(i, i + line);
    const after = y + 1 < height ? pixels.subarray(i + line, i + 2 * line) : own;
    for (let j = 0, upper = above * row, lower = below * row; j < line; j += 4, i += 4, upper += 7, lower += 7) {
      for (let k = 0; k < 7; k++) curves[k] = wide[upper + k] + share * (wide[lower + k] - wide[upper + k]);
      const lift = curves[6], left = j && j - 4, right = j + 4 < line ? j + 4 : j;
      for (let c = 0; c < 3; c++) {
        x[c] = own[j + c];
        if (lift > 0) {
          const sum = before[left + c] + after[left + c] + before[right + c] + after[right + c]
            + 2 * (before[j + c] + after[j + c] + own[left + c] + own[right + c]) + 4 * x[c];
          const difference = Math.abs(x[c] - sum / 16), isBlack = Math.max(x[c], sum / 16) < 255 * BLACK;
          if (difference < 2 * noise && x[c] < 255 && !isBlack) x[c] -= lift * Math.sign(x[c] - sum / 16) * Math.min(difference, 2 * noise - difference);
        }
      }
      const fading = lift * Math.max(1 - Math.max(x[0], x[1], x[2]) / (255 * COLOURED), 0) ** 2 / 2;
      const median = Math.max(Math.min(x[0], x[1]), Math.min(Math.max(x[0], x[1]), x[2]));
      x[0] += fading * (2 * x[1] - x[0] - median);
      x[2] += fading * (2 * x[1] - x[2] - median);
      if (gain > 1) for (let c = 0; c < 3; c++) x[c] *= gain / Math.sqrt(1 + (gain * gain - 1) * x[c] * x[c] / 65025);
      const darkest = Math.min(x[0], x[1], x[2]);
      for (let c = 0; c < 3; c++) {
        const X = x[c], T = X - SHARED_FALL * (X - darkest), s = curves[c], w = curves[3 + c];
        const alone = (1 + s * (255 - X)) / (1 + w * X * (255 - X)), shared = (1 + s * (255 - T)) / (1 + w * T * (255 - T));
        pixels[i + c] = (X * Math.min(alone, shared) + 0.5) | 0;
      }
    }
  }
};

// What can be seen decides: give wholly transparent pixels of RGBA the mean colour of the others, in place.
export const fillUnseen = pixels => {
  const sums = [0, 0, 0];
  let count = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i + 3] === 0) continue;
    count++;
    for (let c = 0; c < 3; c++) sums[c] += pixels[i + c];
  }
  if (count === 0 || 4 * count === pixels.length) return;
  const mean = sums.map(sum => Math.round(sum / count));
  for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] === 0) for (let c = 0; c < 3; c++) pixels[i + c] = mean[c];
};

// Means over blocks of step x step pixels, of RGBA without A; blocks at the border may be smaller.
const reduced = (pixels, width, height, step) => {
  const across = Math.ceil(width / step), down = Math.ceil(height / step);
  const data = new Uint8Array(3 * across * down), sums = new Float64Array(3 * across);
  for (let row = 0; row < down; row++) {
    const last = Math.min((row + 1) * step, height);
    sums.fill(0);
    for (let y = row * step; y < last; y++) {
      for (let column = 0, i = 4 * y * width; column < across; column++) {
        let red = 0, green = 0, blue = 0;
        for (const end = i + 4 * Math.min(step, width - column * step); i < end; i += 4) {
          red += pixels[i]; green += pixels[i + 1]; blue += pixels[i + 2];
        }
        sums[3 * column] += red; sums[3 * column + 1] += green; sums[3 * column + 2] += blue;
      }
    }
    for (let column = 0; column < across; column++) {
      const count = (last - row * step) * Math.min(step, width - column * step), to = 3 * (row * across + column);
      for (let c = 0; c < 3; c++) data[to + c] = (sums[3 * column + c] / count + 0.5) | 0;
    }
  }
  return {data, width: across, height: down};
};

// How many rows at the top and at the bottom are of a frame, by the share of frame in each row: as _bars in predictor.py.
const bars = (shares, mixed) => {
  const start = shares.findIndex(share => share < 1), end = shares.findLastIndex(share => share < 1);
  if (start <= 0 || end === shares.length - 1) return [0, 0];
  const [first, last] = [start + mixed, end - mixed];
  return last <= first || Math.max(shares[first], shares[last]) > 0.5 ? [0, 0] : [first, shares.length - 1 - last];
};

// Give a black or white frame of a small copy the mean colour of what is inside, in place: as without_frame in predictor.py.
const fillFrame = ({data, width, height}, mixed) => {
  let [top, left, bottom, right] = [0, 0, height, width];
  const FRAME = 6, values = (y, x) => data.subarray(3 * (y * width + x), 3 * (y * width + x) + 3);
  const isBlack = ([r, g, b]) => Math.max(r, g, b) <= FRAME, isWhite = ([r, g, b]) => Math.min(r, g, b) >= 255 - FRAME;
  const count = length => Array.from({length}, (_, i) => i);
  for (const is of [isBlack, isWhite, isBlack, isWhite]) {
    const rows = count(bottom - top).map(y => count(right - left).filter(x => is(values(top + y, left + x))).length / (right - left));
    const [above, below] = bars(rows, mixed ? 1 : 0);
    [top, bottom] = [top + above, bottom - below];
    const columns = count(right - left).map(x => count(bottom - top).filter(y => is(values(top + y, left + x))).length / (bottom - top));
    const [before, after] = bars(columns, mixed ? 1 : 0);
    [left, right] = [left + before, right - after];
  }
  if (bottom - top === height && right - left === width) return;
  const sums = [0, 0, 0], area = (bottom - top) * (right - left), isInside = (y, x) => y >= top && y < bottom && x >= left && x < right;
  for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) values(y, x).forEach((value, c) => { sums[c] += value; });
  const mean = sums.map(sum => Math.round(sum / area));
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) if (!isInside(y, x)) values(y, x).set(mean);
};

const lanczos = x => {
  if (x === 0) return 1;
  if (x <= -3 || x >= 3) return 0;
  const t = Math.PI * x;
  return Math.sin(t) / t * Math.sin(t / 3) / (t / 3);
};

// Lanczos along lines of RGB: `count` lines that start `stride` apart, samples `pitch` apart, `length` of them to `target`.
const resizedLines = (data, result, length, target, count, stride, pitch, toStride, toPitch) => {
  const scale = length / target, reach = 3 * Math.max(scale, 1);
  for (let place = 0; place < target; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0), last = Math.min(Math.trunc(centre + reach + 0.5), length);
    const weights = [];
    for (let i = first; i < last; i++) weights.push(lanczos((i - centre + 0.5) / Math.max(scale, 1)));
    const total = weights.reduce((a, b) => a + b, 0);
    for (let line = 0; line < count; line++) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let i = first; i < last; i++) sum += weights[i - first] * data[line * stride + i * pitch + c];
        result[line * toStride + place * toPitch + c] = Math.min(Math.max(sum / total + 0.5, 0), 255) | 0;
      }
    }
  }
  return result;
};

const withAspect = (number, error) => Math.max([Math.floor(number), Math.ceil(number)].reduce((a, b) => error(b) < error(a) ? b : a), 1);

// A copy in RGB whose longest side is at most `size`, made as predict.py makes its own: means, then Lanczos.
export const smallCopy = (pixels, width, height, size) => {
  const step = Math.max(Math.floor(Math.max(width, height) / (2 * size)), 1), copy = reduced(pixels, width, height, step);
  fillFrame(copy, step > 1);
  if (Math.max(copy.width, copy.height) <= size) return copy;
  const aspect = copy.width / copy.height;
  let across = size, down = size;
  if (aspect <= 1) across = withAspect(size * aspect, n => Math.abs(aspect - n / size));
  else down = withAspect(size / aspect, n => n === 0 ? 0 : Math.abs(aspect - size / n));
  const narrow = resizedLines(copy.data, new Uint8Array(3 * across * copy.height), copy.width, across, copy.height,
    3 * copy.width, 3, 3 * across, 3);
  const data = resizedLines(narrow, new Uint8Array(3 * across * down), copy.height, down, across, 3, 3 * across, 3, 3 * across);
  return {data, width: across, height: down};
};

// RGBA of at most about `size` pixels on its longest side, for thumbnails and where a screen's memory ends.
export const reducedTo = (pixels, width, height, size) => {
  const step = Math.ceil(Math.max(width, height) / size);
  if (step <= 1) return {data: pixels, width, height};
  const copy = reduced(pixels, width, height, step), data = new Uint8ClampedArray(4 * copy.width * copy.height);
  const middle = (block, length) => Math.min(block * step + (step >> 1), length - 1);
  for (let i = 0, j = 0, y = 0; y < copy.height; y++) {
    for (let x = 0; x < copy.width; x++, i += 3, j += 4) {
      data[j] = copy.data[i]; data[j + 1] = copy.data[i + 1]; data[j + 2] = copy.data[i + 2];
      data[j + 3] = pixels[4 * (middle(y, height) * width + middle(x, width)) + 3];
    }
  }
  return {data, width: copy.width, height: copy.height};
};
