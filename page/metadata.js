// What belongs to a photo beside its pixels: read from JPEG, PNG, WebP and AVIF files, and written into JPEG and PNG files.

const text = (bytes, start, length) => String.fromCharCode(...bytes.subarray(start, start + length));
const bytesOf = string => Uint8Array.from(string, character => character.charCodeAt(0));
const joined = parts => {
  const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) { result.set(part, place); place += part.length; }
  return result;
};
const view = bytes => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const through = async (bytes, stream) => new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());

const INCH = 1, CENTIMETRE = 2, METRE = 3;  // of resolutions; the first two as JFIF has them
const EXIF = "Exif\0\0", XMP = "http://ns.adobe.com/xap/1.0/\0", ICC = "ICC_PROFILE\0", PNG_XMP = "XML:com.adobe.xmp";

// Name of a file's format by its first bytes; null for what is no picture that browsers know.
export const formatOf = bytes => {
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return "JPEG";
  if (text(bytes, 1, 3) === "PNG") return "PNG";
  if (text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 4) === "WEBP") return "WebP";
  if (text(bytes, 0, 3) === "GIF") return "GIF";
  if (text(bytes, 0, 2) === "BM") return "BMP";
  if (["II*\0", "MM\0*"].includes(text(bytes, 0, 4))) return "TIFF";
  if (text(bytes, 4, 4) === "ftyp") {
    const brands = text(bytes, 8, Math.min(view(bytes).getUint32(0) - 8, 64));
    return /avif|avis/.test(brands) ? "AVIF" : /heic|heix|hevc|mif1|msf1/.test(brands) ? "HEIC" : null;
  }
  return null;
};

const SEVERAL = "holds several pictures: save the one to correct on its own";
const hdrProblem = transfer => ({16: "HDR colours (PQ): save it as sRGB or Display P3", 18: "HDR colours (HLG): save it as sRGB or Display P3"}[transfer] ?? "");

// Everything to keep: {format, exif, exifPlace, xmp, icc, resolution, extra, chunks, isGrey, isDeep, isWide}, and the problem of a
// file that cannot be corrected. Resolution is {unit, across, down}, without a unit only a ratio. Damaged parts are left out.
export const readMetadata = async bytes => {
  const found = {format: formatOf(bytes), problem: "", exif: null, exifPlace: 0, xmp: null, icc: null, resolution: null, extra: [], chunks: [],
    isGrey: false, isDeep: false, isWide: false};
  try {
    await ({JPEG: readJpeg, PNG: readPng, WebP: readWebp, GIF: readGif, AVIF: readBoxes, HEIC: readBoxes}[found.format] ?? (() => {}))(bytes, found);
  } catch (error) {
    console.warn("metadata is damaged and is kept as far as it could be read", error);
  }
  return found;
};

// Segments of a JPEG file before its first scan: [marker, start of the contents, end].
function* jpegSegments(bytes) {
  for (let place = 2; place + 4 <= bytes.length;) {
    if (bytes[place] !== 0xff) return;
    const marker = bytes[place + 1];
    if (marker === 0xff) { place++; continue; }
    const length = view(bytes).getUint16(place + 2);
    yield [marker, place + 4, Math.min(place + 2 + length, bytes.length)];
    if (marker === 0xda) return;
    place += 2 + length;
  }
}

const readJpeg = (bytes, found) => {
  const icc = [];
  for (const [marker, start, end] of jpegSegments(bytes)) {
    const content = bytes.subarray(start, end);
    const is = name => text(content, 0, name.length) === name;
    if (marker === 0xe0 && is("JFIF\0") && content.length >= 12) {
      found.resolution = {unit: content[7], across: view(content).getUint16(8), down: view(content).getUint16(10)};
    }
    else if (marker === 0xe1 && is(EXIF)) found.exif ??= content.slice(EXIF.length);
    else if (marker === 0xe1 && is(XMP)) found.xmp ??= content.slice(XMP.length);
    else if (marker === 0xe2 && is(ICC)) icc[content[12]] = content.slice(14);
    else if ((marker === 0xe1 && is("http://ns.adobe.com/xmp/extension/")) || marker === 0xed || marker === 0xfe) {
      found.extra.push(bytes.slice(start - 4, end));
    } else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      found.isGrey = content[5] === 1;
      found.isDeep = content[0] > 8;
    }
  }
  if (icc.length) found.icc = joined(icc.filter(Boolean));
};

function* pngChunks(bytes) {
  for (let place = 8; place + 12 <= bytes.length;) {
    const length = view(bytes).getUint32(place);
    yield [text(bytes, place + 4, 4), bytes.subarray(place + 8, place + 8 + length), bytes.subarray(place, place + 12 + length)];
    place += 12 + length;
  }
}

const readPng = async (bytes, found) => {
  let place = 8;
  for (const [name, content, whole] of pngChunks(bytes)) {
    if (name === "eXIf") found.exifPlace = place + 4;
    place += whole.length;
    if (name === "IHDR") {
      found.isDeep = content[8] > 8;
      found.isGrey = [0, 4].includes(content[9]);
    } else if (name === "acTL") found.problem ||= SEVERAL;
    else if (name === "eXIf") found.exif = content.slice();
    else if (name === "iCCP") found.icc = await through(content.slice(content.indexOf(0) + 2), new DecompressionStream("deflate"));
    else if (name === "cICP") {
      found.isWide = [9, 12].includes(content[0]);
      found.problem ||= hdrProblem(content[1]);
    } else if (name === "pHYs") {
      found.resolution = {unit: content[8] && METRE, across: view(content).getUint32(0), down: view(content).getUint32(4)};
    }
    else if (name === "iTXt" && text(content, 0, PNG_XMP.length) === PNG_XMP) {
      let start = PNG_XMP.length + 3;  // its end, and whether and how it is compressed
      for (let zeros = 0; zeros < 2; start++) zeros += content[start] === 0;  // language, translated name
      const body = content.slice(start);
      found.xmp = content[PNG_XMP.length + 1] ? await through(body, new DecompressionStream("deflate")) : body;
    } else if (["tEXt", "zTXt", "iTXt", "tIME"].includes(name)) found.chunks.push(whole.slice());
  }
};

const readWebp = (bytes, found) => {
  let frames = 0;
  for (let place = 12; place + 8 <= bytes.length;) {
    const name = text(bytes, place, 4), length = view(bytes).getUint32(place + 4, true);
    const content = bytes.slice(place + 8, place + 8 + length);
    if (name === "EXIF") {
      found.exif = text(content, 0, 6) === EXIF ? content.slice(6) : content;
      found.exifPlace = place;
    }
    if (name === "ANMF" && ++frames === 2) found.problem ||= SEVERAL;
    if (name === "XMP ") found.xmp = content;
    if (name === "ICCP") found.icc = content;
    place += 8 + length + length % 2;
  }
};

const readGif = (bytes, found) => {
  const table = (flags, place) => flags & 128 ? place + (6 << (flags & 7)) : place;  // after a table of colours
  const blocks = place => {
    while (bytes[place]) place += 1 + bytes[place];
    return place + 1;
  };
  for (let place = table(bytes[10], 13), count = 0; place < bytes.length;) {
    if (bytes[place] === 0x2c) {
      if (++count === 2) { found.problem ||= SEVERAL; return; }
      place = blocks(table(bytes[place + 9], place + 10) + 1);
    } else if (bytes[place] === 0x21) place = blocks(place + 2);
    else return;
  }
};

// AVIF and HEIC: the colours of the first picture, and EXIF and XMP by the table of items (ISO/IEC 23008-12).
const readBoxes = (bytes, found) => {
  if (text(bytes, 8, 4) === "avis") found.problem ||= SEVERAL;
  const boxes = (start, end) => {
    const list = [];
    for (let place = start; place + 8 <= end;) {
      let length = view(bytes).getUint32(place), head = 8;
      if (length === 1) { length = Number(view(bytes).getBigUint64(place + 8)); head = 16; }
      if (length === 0) length = end - place;
      if (length < head) break;
      list.push({name: text(bytes, place + 4, 4), start: place + head, end: Math.min(place + length, end)});
      place += length;
    }
    return list;
  };
  const meta = boxes(0, bytes.length).find(box => box.name === "meta");
  if (!meta) return;
  const inside = boxes(meta.start + 4, meta.end), data = view(bytes);
  const properties = inside.filter(box => box.name === "iprp").flatMap(box => boxes(box.start, box.end))
    .filter(box => box.name === "ipco").flatMap(box => boxes(box.start, box.end));
  let transfer = null;
  for (const {start, end} of properties.filter(box => box.name === "colr")) {
    const kind = text(bytes, start, 4);
    if (kind === "prof" || kind === "rICC") found.icc ??= bytes.slice(start + 4, end);
    if (kind === "nclx") {
      found.isWide ||= [9, 12].includes(data.getUint16(start + 4));
      transfer ??= data.getUint16(start + 6);
    }
  }
  found.problem ||= hdrProblem(transfer);
  found.isDeep = properties.some(box => box.name === "pixi" && bytes[box.start + 5] > 8);
  const kinds = {}, table = inside.find(box => box.name === "iinf"), places = inside.find(box => box.name === "iloc");
  if (!table || !places) return;
  for (const {name, start} of boxes(table.start + (bytes[table.start] ? 8 : 6), table.end)) {
    if (name !== "infe" || bytes[start] < 2) continue;
    const wide = bytes[start] > 2, id = wide ? data.getUint32(start + 4) : data.getUint16(start + 4), after = start + (wide ? 10 : 8);
    const type = bytes.indexOf(0, after + 4) + 1;  // after the item's name
    kinds[id] = {kind: text(bytes, after, 4), type: text(bytes, type, 19)};
  }
  const version = bytes[places.start], sizes = data.getUint16(places.start + 4);
  const lengths = {offset: sizes >> 12, length: sizes >> 8 & 15, base: sizes >> 4 & 15, index: version ? sizes & 15 : 0};
  let place = places.start + 6;
  const number = length => {
    let value = 0;
    for (let i = 0; i < length; i++) value = value * 256 + bytes[place++];
    return value;
  };
  for (let items = number(version < 2 ? 2 : 4); items > 0; items--) {
    const id = number(version < 2 ? 2 : 4), method = version ? number(2) & 15 : 0;
    number(2);
    const base = number(lengths.base), parts = [];
    for (let extents = number(2); extents > 0; extents--) {
      number(lengths.index);
      const offset = base + number(lengths.offset), length = number(lengths.length);
      parts.push(bytes.slice(offset, offset + length));
    }
    if (method !== 0) continue;
    const content = joined(parts);
    if (kinds[id]?.kind === "Exif") found.exif = content.slice(4 + view(content).getUint32(0));
    if (kinds[id]?.kind === "mime" && kinds[id].type.startsWith("application/rdf+xml")) found.xmp = content;
  }
};

// The orientation that EXIF names, 1 where it names none.
export const orientationOf = exif => {
  if (!exif) return 1;
  try {
    const data = view(exif), little = text(exif, 0, 2) === "II", start = data.getUint32(4, little);
    for (let entry = start + 2, end = entry + 12 * data.getUint16(start, little); entry < end; entry += 12) {
      const value = data.getUint16(entry + 8, little);
      if (data.getUint16(entry, little) === 0x0112) return value > 0 && value < 9 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;  // damaged
  }
  return 1;
};

// Hide a photo's EXIF in its file, of WebP or PNG, in place: browsers do not agree on whether they turn these.
export const hideExif = (bytes, {format, exifPlace: place}) => {
  bytes.set(bytesOf(format === "PNG" ? "exIf" : "XXXX"), place);  // names that nobody knows
  if (format !== "PNG") return;
  const end = place + 4 + view(bytes).getUint32(place - 4);
  view(bytes).setUint32(end, crc32(bytes.subarray(place, end)));
};

// EXIF of a photo that is upright now and of a size: without orientation, and without a thumbnail that is no longer true.
export const uprightExif = (exif, width, height) => {
  const bytes = exif.slice(), data = view(bytes), little = text(bytes, 0, 2) === "II";
  if (!little && text(bytes, 0, 2) !== "MM") return null;
  let end = bytes.length;
  const folder = (start, visit) => {
    const count = data.getUint16(start, little);
    for (let entry = start + 2; entry < start + 2 + 12 * count; entry += 12) visit(data.getUint16(entry, little), entry);
    return start + 2 + 12 * count;
  };
  const set = (entry, value) => data.getUint16(entry + 2, little) === 3
    ? data.setUint16(entry + 8, value, little) : data.setUint32(entry + 8, value, little);
  try {
    let details = 0, place = 0, length = 0;
    const next = folder(data.getUint32(4, little), (tag, entry) => {
      if (tag === 0x0112) set(entry, 1);
      if (tag === 0x8769) details = data.getUint32(entry + 8, little);
    });
    if (details) folder(details, (tag, entry) => {
      if (tag === 0xa002) set(entry, width);
      if (tag === 0xa003) set(entry, height);
    });
    const second = data.getUint32(next, little);
    data.setUint32(next, 0, little);
    if (second) folder(second, (tag, entry) => {
      if (tag === 0x0201) place = data.getUint32(entry + 8, little);
      if (tag === 0x0202) length = data.getUint32(entry + 8, little);
    });
    if (place && place + length <= end) {
      bytes.fill(0, place, place + length);
      if (place + length === end) end = place;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;  // a folder that ends too early: what came before it is right
  }
  return bytes.slice(0, end);
};

// XMP of it, likewise, and without the parts of the file that are not kept: gain maps and films.
const uprightXmp = xmp => bytesOf(Array.from(xmp, byte => String.fromCharCode(byte)).join("")
  .replace(/(tiff:Orientation=["'])\d/g, "$11").replace(/(<tiff:Orientation>)\d/g, "$11")
  .replace(/<(G?Container):Directory>(?:(?!<\1:Directory>).)*?<\/\1:Directory>/gs, "")
  .replace(/<(hdrgm:Version|G?Camera:(?:MicroVideo|MotionPhoto)\w*)>[^<]*<\/\1>/g, "")
  .replace(/\s(?:hdrgm:Version|G?Camera:(?:MicroVideo|MotionPhoto)\w*)=(["'])[^<]*?\1/g, ""));

// "srgb" or "display-p3" where a profile says no more than that; "" for other colours; null if it is not one of RGB.
export const spaceOf = icc => {
  try {
    if (text(icc, 16, 4) !== "RGB ") return null;
    const data = view(icc), tags = {};
    for (let i = 0, count = data.getUint32(128); i < count; i++) {
      tags[text(icc, 132 + 12 * i, 4)] = data.getUint32(136 + 12 * i);
    }
    if (tags.A2B0 !== undefined) return "";
    const curve = (place, x) => {
      const kind = text(icc, place, 4), fixed = i => data.getInt32(place + 12 + 4 * i) / 65536;
      if (kind === "para") {
        const type = data.getUint16(place + 8), g = fixed(0);
        if (type === 0) return x ** g;
        const [a, b, c, d] = [1, 2, 3, 4].map(i => i <= [0, 2, 3, 4, 6][type] ? fixed(i) : 0);
        if (type < 3) return (x >= -b / a ? (a * x + b) ** g : 0) + (type === 2 ? c : 0);
        return x >= d ? (a * x + b) ** g + (type === 4 ? fixed(5) : 0) : c * x + (type === 4 ? fixed(6) : 0);
      }
      const count = data.getUint32(place + 8);
      if (count === 0) return x;
      if (count === 1) return x ** (data.getUint16(place + 12) / 256);
      const at = x * (count - 1), low = Math.floor(at), value = i => data.getUint16(place + 12 + 2 * Math.min(i, count - 1)) / 65535;
      return value(low) + (at - low) * (value(low + 1) - value(low));
    };
    for (const tag of ["rTRC", "gTRC", "bTRC"]) {
      for (const [x, y] of [[0.1, 0.01002], [0.5, 0.21404], [0.8, 0.60383]]) {
        if (Math.abs(curve(tags[tag], x) - y) > 0.0015) return "";
      }
    }
    const primaries = ["rXYZ", "gXYZ", "bXYZ"].flatMap(tag => [8, 12, 16].map(i => data.getInt32(tags[tag] + i) / 65536));
    const is = expected => primaries.every((value, i) => Math.abs(value - expected[i]) < 0.003);
    if (is([0.436, 0.2225, 0.0139, 0.3851, 0.7169, 0.0971, 0.1431, 0.0606, 0.7141])) return "srgb";
    if (is([0.5151, 0.2412, -0.0011, 0.292, 0.6922, 0.0419, 0.1572, 0.0666, 0.7841])) return "display-p3";
    return "";
  } catch (error) {
    if (error instanceof RangeError || error instanceof TypeError) return null;  // broken
    throw error;
  }
};

const segment = (marker, content) => {
  const head = new Uint8Array([0xff, marker, 0, 0]);
  view(head).setUint16(2, content.length + 2);
  return joined([head, content]);
};
const LARGEST = 65533;

const jpegWith = (encoded, found, exif, xmp, icc) => {
  const parts = [encoded.subarray(0, 2)];
  if (found.resolution) {
    const jfif = joined([bytesOf("JFIF\0\x01\x01"), new Uint8Array(7)]), {unit, across, down} = found.resolution;
    const scale = unit === METRE ? 0.0254 : 1;  // which JPEG does not have
    jfif[7] = unit === METRE ? INCH : unit;
    view(jfif).setUint16(8, Math.round(across * scale));
    view(jfif).setUint16(10, Math.round(down * scale));
    parts.push(segment(0xe0, jfif));
  }
  if (exif && exif.length + EXIF.length <= LARGEST) parts.push(segment(0xe1, joined([bytesOf(EXIF), exif])));
  if (xmp && xmp.length + XMP.length <= LARGEST) parts.push(segment(0xe1, joined([bytesOf(XMP), xmp])));
  if (icc) {
    const step = LARGEST - 14, count = Math.ceil(icc.length / step);
    for (let i = 0; i < count; i++) {
      const head = joined([bytesOf(ICC), new Uint8Array([i + 1, count])]);
      parts.push(segment(0xe2, joined([head, icc.subarray(i * step, (i + 1) * step)])));
    }
  }
  parts.push(...found.extra);
  for (const [marker, start, end] of jpegSegments(encoded)) {
    if (marker === 0xda) { parts.push(encoded.subarray(start - 4)); break; }
    const isOld = marker === 0xe1 || (marker === 0xe2 && icc) || (marker === 0xe0 && found.resolution);
    if (!isOld) parts.push(encoded.subarray(start - 4, end));
  }
  return parts;
};

let table = null;
export const crc32 = (bytes, before = 0) => {
  table ??= Uint32Array.from({length: 256}, (_, n) => {
    for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ n >>> 1 : n >>> 1;
    return n >>> 0;
  });
  let crc = ~before;
  for (let i = 0; i < bytes.length; i++) crc = table[(crc ^ bytes[i]) & 255] ^ crc >>> 8;
  return ~crc >>> 0;
};

const chunk = (name, content) => {
  const whole = joined([new Uint8Array(4), bytesOf(name), content, new Uint8Array(4)]);
  view(whole).setUint32(0, content.length);
  view(whole).setUint32(whole.length - 4, crc32(whole.subarray(4, whole.length - 4)));
  return whole;
};

const pngWith = async (encoded, found, exif, xmp, icc) => {
  const parts = [encoded.subarray(0, 8)];
  const isOld = name => ["eXIf", "pHYs", "tEXt", "iTXt"].includes(name) || (icc?.length && ["iCCP", "sRGB", "gAMA", "cHRM", "cICP"].includes(name));
  for (const [name, , whole] of pngChunks(encoded)) {
    if (!isOld(name)) parts.push(whole);
    if (name !== "IHDR") continue;
    if (icc?.length) parts.push(chunk("iCCP", joined([bytesOf("ICC profile\0\0"), await through(icc, new CompressionStream("deflate"))])));
    if (exif) parts.push(chunk("eXIf", exif));
    if (xmp) parts.push(chunk("iTXt", joined([bytesOf(PNG_XMP + "\0\0\0\0\0"), xmp])));
    if (found.resolution && (found.resolution.unit || found.format === "PNG")) {
      const {unit, across, down} = found.resolution, perMetre = {[INCH]: 1 / 0.0254, [CENTIMETRE]: 100}[unit] ?? 1, size = new Uint8Array(9);
      view(size).setUint32(0, Math.round(across * perMetre));
      view(size).setUint32(4, Math.round(down * perMetre));
      size[8] = unit ? 1 : 0;
      parts.push(chunk("pHYs", size));
    }
    parts.push(...found.chunks);
  }
  return parts;
};

// A JPEG or PNG file that the browser encoded, with a photo's metadata; `icc` is its profile, empty
// for none; null keeps what the browser says of its colours.
export const withMetadata = async (encoded, format, found, width, height, icc) => {
  const exif = found.exif && uprightExif(found.exif, width, height), xmp = found.xmp && uprightXmp(found.xmp);
  if (found.resolution && orientationOf(found.exif) > 4) {  // turned, unlike its resolution
    const {unit, across, down} = found.resolution;
    found = {...found, resolution: {unit, across: down, down: across}};
  }
  return joined(await (format === "JPEG" ? jpegWith : pngWith)(encoded, found, exif, xmp, icc));
};
