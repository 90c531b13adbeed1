// Decodes photos, runs the network on their small copies, applies the curves and encodes, away from the page itself.

import {applyCurves, fillUnseen, reducedTo, smallCopy} from "./curves.js";
import {crc32, formatOf, hideExif, orientationOf, readMetadata, spaceOf, withMetadata} from "./metadata.js";

const LARGEST = 178956970;  // pixels, as predict.py
const THUMBNAIL = 200;
const ROWS = 256;  // read at a time, as some systems bound the area of a canvas
const NONE = new Uint8Array();
const TURNS = [null, [1, 0, 0, 1], [-1, 0, 0, 1], [-1, 0, 0, -1], [1, 0, 0, -1], [0, 1, 1, 0], [0, 1, -1, 0], [0, -1, -1, 0], [0, -1, 1, 0]];
const UNIT = [1, 0, 0, 0, 1, 0, 0, 0, 1];
const P3_TO_SRGB = [1.2249401, -0.2249402, 0, -0.0420569, 1.0420571, 0, -0.0196376, -0.0786361, 1.0982735];  // linear light

let ort = null, session = null, runtime = "", facts = null;

// Whether there is a graphics processor for WebGPU, and WebAssembly that can wait for it; `?webgpu` takes one in software.
const hasGpu = async () => {
  const adapter = "Suspending" in WebAssembly ? await navigator.gpu?.requestAdapter().catch(() => null) : null;
  return Boolean(adapter) && (!adapter.info.isFallbackAdapter || new URLSearchParams(location.search).has("webgpu"));
};

// Load one of onnxruntime's builds, "jspi" for WebGPU or "wasm", and try the network; `failure` says why not the other one.
const open = async (name, failure) => {
  const isGpu = name === "jspi", threads = self.crossOriginIsolated && !isGpu ? Math.min(navigator.hardwareConcurrency ?? 1, 4) : 1;
  ort = await import(`./ort.${name}.min.mjs`);
  ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  // Optimisations take longer than they save on a network that is run once for a photo. The basic ones widen the weights,
  // which not every graphics processor can.
  const options = {executionProviders: [isGpu ? "webgpu" : "wasm"], graphOptimizationLevel: isGpu ? "basic" : "disabled", logSeverityLevel: 3};
  session = await ort.InferenceSession.create(new URL("model.onnx", import.meta.url).href, options);
  const {height, width, means} = facts.trial, count = height * width;
  const maps = await run(Float32Array.from({length: 3 * count}, (_, i) => 37 * i % 256 / 255), height, width, UNIT);  // as `trial` in site.py
  const mean = map => maps.subarray(map * count, (map + 1) * count).reduce((sum, value) => sum + value, 0) / count;
  if (!means.every((value, map) => Math.abs(mean(map) - value) < 0.01)) throw new Error("the network's output is wrong");
  runtime = name;
  const engine = isGpu ? "WebGPU" : `WebAssembly, ${threads === 1 ? "one thread" : `${threads} threads`}`;
  postMessage({started: {runtime, engine: failure ? `${engine}, as WebGPU failed (${failure})` : engine, facts}});
};

const start = async () => {
  facts = await (await fetch("model.json")).json();
  if (!await hasGpu()) return open("wasm");
  return open("jspi").catch(error => open("wasm", error.message));
};

const canvasOf = (width, height, space) => {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", {colorSpace: space, willReadFrequently: true});
  if (!context) throw new Error(`this browser has no canvas of ${width} × ${height} pixels`);
  return [canvas, context];
};

const knowsWideColours = () => canvasOf(1, 1, "display-p3")[1].getContextAttributes?.().colorSpace === "display-p3";

// How a photo's colours are worked on: {space, icc}, icc empty for sRGB, null where the browser is to say what it wrote.
const coloursOf = found => {
  const said = found.icc ? spaceOf(found.icc) : "srgb";
  if (said === "srgb" && !found.isWide) return {space: "srgb", icc: found.icc ?? NONE};
  if (said === null || !knowsWideColours()) return {space: "srgb", icc: NONE};
  return {space: "display-p3", icc: said === "display-p3" ? found.icc : null};
};

const decode = async file => {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (bytes.length === 0) throw new Error("the file is empty");
  const found = await readMetadata(bytes), colours = coloursOf(found);
  if (found.problem) throw new Error(found.problem);
  const turn = found.exifPlace ? orientationOf(found.exif) : 1;
  if (turn > 1) hideExif(bytes, found);
  let bitmap;
  try {
    bitmap = await createImageBitmap(turn > 1 ? new Blob([bytes]) : file, {imageOrientation: "from-image", premultiplyAlpha: "none"});
  } catch {
    throw new Error({HEIC: "this browser does not decode HEIC (Safari does): save it as JPEG",
      TIFF: "browsers do not decode TIFF nor most raw files: save it as PNG or JPEG, or use predict.py",
    }[found.format] ?? (found.format ? `the ${found.format} file is damaged, or this browser cannot decode it`
      : "not a photo that this browser can read"));
  }
  const [width, height] = turn < 5 ? [bitmap.width, bitmap.height] : [bitmap.height, bitmap.width];
  const [a, b, c, d] = TURNS[turn], left = a + c < 0 ? width : 0, up = b + d < 0 ? height : 0;
  if (width * height > LARGEST) throw new Error(`${width} × ${height} pixels: more than ${LARGEST} are not taken`);
  const pixels = new Uint8ClampedArray(4 * width * height);
  const [, context] = canvasOf(width, Math.min(ROWS, height), colours.space);
  for (let top = 0; top < height; top += ROWS) {
    const rows = Math.min(ROWS, height - top);
    context.clearRect(0, 0, width, ROWS);
    if (turn === 1) context.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
    else {
      context.setTransform(a, b, c, d, left, up - top);
      context.drawImage(bitmap, 0, 0);
      context.resetTransform();
    }
    pixels.set(context.getImageData(0, 0, width, rows, {colorSpace: colours.space}).data, 4 * top * width);
  }
  bitmap.close();
  if (found.format !== "JPEG") fillUnseen(pixels);
  return {found, colours, pixels, width, height};
};

// The curves of a small copy (3, height, width) in [0, 1]: logarithms (3, 3, height, width).
const run = async (values, height, width, toSrgb) => {
  const {curves} = await session.run({
    small: new ort.Tensor("float32", values, [1, 3, height, width]),
    to_srgb: new ort.Tensor("float32", Float32Array.from(toSrgb), [3, 3]),
  });
  const logarithms = curves.data.slice();
  curves.dispose();
  if (!logarithms.every(Number.isFinite)) throw new Error("the network's output is not finite");
  return logarithms;
};

const curvesOf = async (pixels, width, height, space) => {
  const {working_size: size, least_size: least} = facts;  // as Corrector.longest_side
  const needed = Math.floor(least * Math.max(width, height) / Math.min(width, height));
  const small = smallCopy(pixels, width, height, Math.max(size, Math.min(needed, 2 * least))), count = small.width * small.height;
  const values = new Float32Array(3 * count);
  for (let i = 0; i < count; i++) {
    const [red, green, blue] = [small.data[3 * i], small.data[3 * i + 1], small.data[3 * i + 2]];
    values[i] = red / 255; values[count + i] = green / 255; values[2 * count + i] = blue / 255;
  }
  const inputs = [values, small.height, small.width, space === "display-p3" ? P3_TO_SRGB : UNIT];
  const maps = await run(...inputs).catch(async error => {
    if (runtime === "wasm") throw error;
    await open("wasm", error.message);  // a graphics processor can get lost
    return run(...inputs);
  });
  return {values: maps, height: small.height, width: small.width};
};

// The curves of a photo, its thumbnail and, if `largest` is given, its pixels, reduced to that many on a side.
const correct = async ({file, largest}) => {
  const {found, colours, pixels, width, height} = await decode(file);
  const maps = await curvesOf(pixels, width, height, colours.space);
  const thumbnail = reducedTo(pixels, width, height, THUMBNAIL);
  thumbnail.data = thumbnail.data.slice();
  const shown = largest ? reducedTo(pixels, width, height, largest) : null;
  const facts = {width, height, space: colours.space, format: found.format, isDeep: found.isDeep};
  return [{...facts, maps, thumbnail, shown}, [maps.values.buffer, thumbnail.data.buffer, ...(shown ? [shown.data.buffer] : [])]];
};

const show = async ({file, largest}) => {
  const {pixels, width, height} = await decode(file), shown = reducedTo(pixels, width, height, largest);
  return [{shown}, [shown.data.buffer]];
};

// The corrected photo as a file: {blob, format, crc}; the file itself where nothing is changed.
const save = async ({file, maps, strength, exposure, format: wanted, quality}) => {
  const head = formatOf(new Uint8Array(await file.slice(0, 64).arrayBuffer()));
  if (strength === 0 && exposure === 0 && ["JPEG", "PNG"].includes(head) && ["", head].includes(wanted)) {
    return [{blob: file, format: head, crc: crc32(new Uint8Array(await file.arrayBuffer()))}, []];
  }
  const {found, colours, pixels, width, height} = await decode(file);
  let isTransparent = false;
  for (let i = 3; i < pixels.length && !isTransparent; i += 4) isTransparent = pixels[i] < 255;
  const format = wanted || (found.format === "PNG" || isTransparent ? "PNG" : "JPEG");
  applyCurves(pixels, width, height, maps, strength, exposure);
  if (isTransparent && format === "JPEG") {  // onto white
    for (let i = 0; i < pixels.length; i += 4) {
      const share = pixels[i + 3] / 255;
      for (let c = 0; c < 3; c++) pixels[i + c] = 255 + share * (pixels[i + c] - 255);
      pixels[i + 3] = 255;
    }
  }
  const [canvas, context] = canvasOf(width, height, colours.space);
  context.putImageData(new ImageData(pixels, width, height, {colorSpace: colours.space}), 0, 0);
  const encoded = await canvas.convertToBlob({type: `image/${format.toLowerCase()}`, quality: quality / 100});
  if (encoded.type !== `image/${format.toLowerCase()}`) throw new Error(`this browser does not write ${format}`);
  const bytes = new Uint8Array(await encoded.arrayBuffer());
  const whole = await withMetadata(bytes, format, found, width, height, colours.icc);
  return [{blob: new Blob([whole], {type: encoded.type}), format, crc: crc32(whole)}, []];
};

const started = start();
started.catch(error => postMessage({broken: String(error?.message ?? error)}));

let last = started.catch(() => {});
onmessage = ({data: {id, work, ...job}}) => {
  last = last.then(async () => {
    try {
      await started;
      const [result, moved] = await {correct, show, save}[work](job);
      postMessage({id, result}, moved);
    } catch (error) {
      postMessage({id, error: String(error?.message ?? error)});
    }
  });
};
