// The page: photos come in, are corrected one after the other, looked at and saved.

import {applyCurves} from "./curves.js";
import {openView} from "./view.js";
import {zipOf} from "./zip.js";

const $ = id => document.getElementById(id);
const PHOTOS = /\.(jpe?g|jpe|jfif|png|webp|avif|bmp|gif|hei[cf])$/i;
const NOW = 0, SOON = 1, LATER = 2;

class Cancelled extends Error {}

// Work for the worker, the most urgent first, one at a time.
class Queue {
  constructor(started, broken) {
    this.waiting = [];
    this.running = null;
    this.worker = new Worker(new URL(`worker.js${location.search}`, import.meta.url), {type: "module"});
    this.worker.onmessage = ({data}) => {
      if (data.started) return started(data.started);
      if (data.broken) return broken(data.broken);
      const {resolve, reject} = this.running;
      this.running = null;
      data.error === undefined ? resolve(data.result) : reject(new Error(data.error));
      this.next();
    };
    this.worker.onerror = event => broken(event.message || "the browser cannot run this page's worker");
  }

  ask(urgency, photo, work, job) {
    return new Promise((resolve, reject) => {
      this.waiting.push({urgency, photo, work, job, resolve, reject});
      this.next();
    });
  }

  next() {
    if (this.running || !this.waiting.length) return;
    const first = this.waiting.reduce((a, b) => b.urgency < a.urgency ? b : a);
    this.waiting.splice(this.waiting.indexOf(first), 1);
    this.running = first;
    this.worker.postMessage({id: 0, work: first.work, ...first.job});
  }

  cancel(which) {
    for (const request of this.waiting.filter(which)) {
      this.waiting.splice(this.waiting.indexOf(request), 1);
      request.reject(new Cancelled());
    }
  }
}

const photos = [];
let selected = null, split = 0.5, isZoomed = false, pan = [0.5, 0.5], batch = null, isDirty = false;

const say = text => { $("status").textContent = text; };
const show = text => { $("message").hidden = !text; $("message").textContent = text; };

const queue = new Queue(({runtime, engine, facts}) => {
  $("engine").textContent = `${engine}; ${view.name}; ${facts.model}, ${facts.working_size} px`;
  document.documentElement.dataset.ready = "";
  if ("serviceWorker" in navigator && window.isSecureContext) {  // now that its files need not be fetched twice
    navigator.serviceWorker.register(`service-worker.js?${runtime}`, {updateViaCache: "none"}).catch(error => console.info("works with a network only", error));
  }
}, reason => {
  $("engine").textContent = `The network could not be loaded: ${reason}`;
  say("Photos cannot be corrected. Load the page again; it needs a current browser with WebAssembly.");
});
const view = openView($("view"), () => invalidate(), new URLSearchParams(location.search).has("plain"));

// The photo on the screen

const invalidate = () => {
  if (isDirty) return;
  isDirty = true;
  requestAnimationFrame(now => {
    isDirty = false;
    keepPace(now);
    const place = placeOf(selected);
    if (!place || !selected.isShown) { view.clear(); return; }
    const [left, right] = [Math.max(place[0], 0), Math.min(place[0] + place[2], $("view").width)];
    const border = left + split * (right - left);
    view.draw(place, border);
    $("line").style.left = `${border / $("view").width * 100}%`;
    $("label-before").style.left = `calc(${left / $("view").width * 100}% + .5rem)`;
    $("label-after").style.right = `calc(${100 - right / $("view").width * 100}% + .5rem)`;
  });
};

// While a slider moves on a device that cannot keep up, draw fewer pixels; once it rests, all of them again.
let coarse = 1, isSliding = false, rest = 0, before = 0, pace = 16;
const keepPace = now => {
  const time = now - before;
  before = now;
  if (!isSliding || time > 500) return;
  pace += (time - pace) / 4;
  if (pace > 34 && coarse < 4) resize(coarse * 2);
};
const slide = () => {
  isSliding = true;
  clearTimeout(rest);
  rest = setTimeout(() => {
    isSliding = false;
    resize(1);
  }, 250);
};

const resize = (every = coarse) => {
  const canvas = $("view"), ratio = (window.devicePixelRatio || 1) / every;
  [coarse, pace] = [every, 16];
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map(length => Math.max(Math.round(length * ratio), 1));
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  invalidate();
};
new ResizeObserver(() => resize()).observe($("viewer"));

// Where a photo lies on the canvas, in the screen's pixels: [left, top, width, height].
const placeOf = photo => {
  if (!photo?.width) return null;
  const {width, height} = $("view");
  const fit = Math.min(width / photo.width, height / photo.height, 1 / coarse), scale = isZoomed ? 1 / coarse : fit;
  const place = (length, room, share) => length <= room ? Math.round((room - length) / 2) : Math.round((room - length) * share);
  const [across, down] = [Math.round(photo.width * scale), Math.round(photo.height * scale)];
  return [place(across, width, pan[0]), place(down, height, pan[1]), across, down];
};

const setSplit = share => {
  split = Math.min(Math.max(share, 0), 1);
  $("split").value = 100 * split;
  $("split").setAttribute("aria-valuetext", `${Math.round(100 * split)} % before`);
  invalidate();
};

const setZoom = (zoomed, at = [0.5, 0.5]) => {
  isZoomed = zoomed;
  pan = at;
  $("zoom").setAttribute("aria-pressed", zoomed);
  invalidate();
};

const move = (across, down) => {
  const place = placeOf(selected);
  if (!place) return;
  const step = (share, by, length, room) => length > room ? Math.min(Math.max(share - by / (length - room), 0), 1) : share;
  pan = [step(pan[0], across, place[2], $("view").width), step(pan[1], down, place[3], $("view").height)];
  invalidate();
};

let drag = null;
const shareAt = event => {
  const box = $("view").getBoundingClientRect(), place = placeOf(selected), ratio = $("view").width / box.width;
  const [left, right] = [Math.max(place[0], 0), Math.min(place[0] + place[2], $("view").width)];
  return ((event.clientX - box.left) * ratio - left) / Math.max(right - left, 1);
};
$("viewer").addEventListener("pointerdown", event => {
  if (!placeOf(selected) || event.button) return;
  const box = $("view").getBoundingClientRect();
  const isNear = Math.abs(event.clientX - box.left - box.width * parseFloat($("line").style.left || "50") / 100) < 28;
  drag = {isPan: isZoomed && !isNear, x: event.clientX, y: event.clientY};
  $("viewer").setPointerCapture(event.pointerId);
  $("split").focus({preventScroll: true});
  event.preventDefault();
  if (!drag.isPan) setSplit(shareAt(event));
});
$("viewer").addEventListener("pointermove", event => {
  if (!drag) return;
  const ratio = $("view").width / $("view").clientWidth;
  if (drag.isPan) move((event.clientX - drag.x) * ratio, (event.clientY - drag.y) * ratio);
  else setSplit(shareAt(event));
  [drag.x, drag.y] = [event.clientX, event.clientY];
});
for (const name of ["pointerup", "pointercancel"]) $("viewer").addEventListener(name, () => { drag = null; });
$("viewer").addEventListener("dblclick", event => {
  const box = $("view").getBoundingClientRect();
  setZoom(!isZoomed, [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
});
$("split").addEventListener("input", () => setSplit($("split").value / 100));
$("split").addEventListener("keydown", event => {
  const [across, down] = {ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key] ?? [0, 0];
  if (!across && !down) return;
  event.preventDefault();
  if (event.shiftKey) move(across * 100, down * 100);
  else setSplit(split - (across - down) * 0.05);
});
$("zoom").addEventListener("click", () => setZoom(!isZoomed));

// Photos and their list

const add = files => {
  let count = 0, first = null;
  for (const {file, path} of files) {
    const is = other => other.path === path && other.file.size === file.size && other.file.lastModified === file.lastModified;
    if (photos.some(is)) continue;
    const photo = {file, path, state: "waiting", strength: 1, exposure: 0};
    photos.push(photo);
    photo.entry = entryOf(photo);
    $("photos").append(photo.entry);
    first ??= photo;
    count++;
  }
  if (!count) return say(files.length ? "These photos are here already." : "No photos in there.");
  say(`${count} ${count === 1 ? "photo" : "photos"} added.`);
  refresh();
  select(first);
  for (const photo of photos) if (photo.state === "waiting") correct(photo, LATER).catch(() => {});
};

const entryOf = photo => {
  const entry = document.createElement("li"), pick = document.createElement("button"), remove = document.createElement("button");
  const canvas = document.createElement("canvas"), title = document.createElement("span");
  pick.className = "pick"; remove.className = "remove"; title.className = "title";
  title.textContent = photo.path;
  canvas.width = canvas.height = 1;
  canvas.setAttribute("aria-hidden", "true");
  remove.textContent = "×";
  remove.setAttribute("aria-label", `Remove ${photo.path}`);
  pick.append(canvas, title);
  pick.addEventListener("click", () => select(photo));
  pick.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], other = photos[photos.indexOf(photo) + step];
    if (other) { event.preventDefault(); select(other); other.entry.querySelector(".pick").focus(); }
  });
  remove.addEventListener("click", () => discard(photo));
  entry.append(pick, remove);
  return entry;
};

const discard = photo => {
  queue.cancel(request => request.photo === photo);
  const index = photos.indexOf(photo), hadFocus = photo.entry.contains(document.activeElement);
  photos.splice(index, 1);
  photo.entry.remove();
  photo.isGone = true;
  const other = photos[Math.min(index, photos.length - 1)] ?? null;
  if (selected === photo) select(other);
  refresh();
  if (hadFocus) (photos.length > 1 ? other.entry.querySelector(".pick") : $(other ? "format" : "files")).focus();
};

// Correct a photo unless that is done; the one on the screen brings its pixels along.
const correct = async (photo, urgency) => {
  if (photo.state === "ready") return;
  if (photo.work) {
    const request = queue.waiting.find(other => other.photo === photo && other.work === "correct");
    if (request && urgency < request.urgency) {
      request.urgency = urgency;
      if (photo === selected) request.job.largest = view.largest;
    }
    return photo.work;
  }
  photo.state = "working";
  photo.work = (async () => {
    try {
      const job = {file: photo.file, largest: photo === selected ? view.largest : 0};
      const result = await queue.ask(urgency, photo, "correct", job);
      if (photo.isGone) return;
      Object.assign(photo, {state: "ready", width: result.width, height: result.height, space: result.space, maps: result.maps,
        format: result.format, isDeep: result.isDeep, thumbnail: result.thumbnail});
      drawThumbnail(photo);
      if (photo === selected && result.shown) present(photo, result.shown);
    } catch (error) {
      photo.state = error instanceof Cancelled ? "waiting" : "failed";
      if (!(error instanceof Cancelled)) {
        photo.error = error.message;
        photo.entry.classList.add("failed");
        photo.entry.querySelector(".title").textContent = `${photo.path}: ${error.message}`;
        say(`${photo.path}: ${error.message}`);
        if (photo === selected) showFacts();
      }
      throw error;
    } finally {
      photo.work = null;
      refresh();
    }
  })();
  photo.work.catch(() => {});
  return photo.work;
};

const present = async (photo, shown) => {
  await view.setPhoto(shown, photo.space);
  if (photo !== selected) return;
  photo.isShown = true;
  view.setCurves(photo.maps, photo.strength, photo.exposure);
  showFacts();
  invalidate();
};

const select = async photo => {
  if (selected) {
    selected.isShown = false;
    selected.entry.querySelector(".pick").removeAttribute("aria-current");
  }
  selected = photo;
  setZoom(false);
  showFacts();
  invalidate();
  if (!photo) return;
  photo.entry.querySelector(".pick").setAttribute("aria-current", "true");
  photo.entry.scrollIntoView({block: "nearest", inline: "nearest"});
  if (photo.state === "failed") return;
  try {
    queue.cancel(request => request.work === "show");
    await correct(photo, NOW);
    if (photo !== selected || photo.isShown) return;
    const {shown} = await queue.ask(NOW, photo, "show", {file: photo.file, largest: view.largest});
    if (photo === selected) await present(photo, shown);
  } catch (error) {
    if (!(error instanceof Cancelled) && photo === selected) show(error.message);
  }
};

const showFacts = () => {
  const photo = selected, isReady = photo?.state === "ready";
  $("name").textContent = photo?.path ?? "";
  const colours = photo?.space === "display-p3" ? ", Display P3" : "";
  $("facts").textContent = isReady ? `${photo.width} × ${photo.height}${colours}${photo.isDeep ? "; of more than 8 bits, saved with 8" : ""}` : "";
  $("strength").value = 100 * (photo?.strength ?? 1);
  $("exposure").value = photo?.exposure ?? 0;
  for (const id of ["strength", "exposure", "reset", "all", "zoom", "save"]) $(id).disabled = !isReady;
  const wait = photo ? "Correcting …" : "";
  show(photo?.state === "failed" ? `${photo.path}: ${photo.error}` : photo?.isShown ? "" : wait);
  for (const id of ["line", "label-before", "label-after", "split"]) $(id).hidden = !photo?.isShown;
  showValues();
};

const showValues = () => {
  const stops = Number($("exposure").value), strength = `${$("strength").value} %`;
  const exposure = `${stops > 0 ? "+" : stops < 0 ? "−" : ""}${Math.abs(stops).toFixed(2)} EV`;
  $("strength-value").textContent = strength;
  $("exposure-value").textContent = exposure;
  $("strength").setAttribute("aria-valuetext", strength);
  $("exposure").setAttribute("aria-valuetext", exposure);
};

const drawThumbnail = photo => {
  const {data, width, height} = photo.thumbnail, canvas = photo.entry.querySelector("canvas"), pixels = data.slice();
  applyCurves(pixels, width, height, photo.maps, photo.strength, photo.exposure);
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d", {colorSpace: photo.space}).putImageData(new ImageData(pixels, width, height, {colorSpace: photo.space}), 0, 0);
};

const set = (photo, strength, exposure) => {
  Object.assign(photo, {strength, exposure});
  if (photo === selected && photo.isShown) {
    view.setCurves(photo.maps, strength, exposure);
    invalidate();
  }
};
for (const id of ["strength", "exposure"]) {
  $(id).addEventListener("input", () => {
    slide();
    showValues();
    if (selected) set(selected, $("strength").value / 100, Number($("exposure").value));
  });
  $(id).addEventListener("change", () => { if (selected?.thumbnail) drawThumbnail(selected); });
}
$("reset").addEventListener("click", () => {
  set(selected, 1, 0);
  drawThumbnail(selected);
  showFacts();
});
$("all").addEventListener("click", () => {
  for (const photo of photos) {
    set(photo, selected.strength, selected.exposure);
    if (photo.thumbnail) drawThumbnail(photo);
  }
  say("The sliders are those of all photos now.");
});

const refresh = () => {
  $("empty").hidden = photos.length > 0;
  $("work").hidden = photos.length === 0;
  $("strip").hidden = photos.length < 2;
  $("save-zip").hidden = photos.length < 2;
  $("save-folder").hidden = photos.length < 1 || !window.showDirectoryPicker;
  for (const id of ["save-zip", "save-folder"]) $(id).disabled = batch !== null;
  const pending = photos.filter(photo => photo.work).length, settled = photos.length - pending;
  const [done, total, verb] = batch ? [batch.done, batch.total, "saved"] : [settled, photos.length, "corrected"];
  $("progress").hidden = batch ? false : pending === 0 || photos.length < 2;
  [$("bar").max, $("bar").value] = [total || 1, done];
  $("progress-text").textContent = `${done} of ${total} ${verb}`;
};

$("cancel").addEventListener("click", () => {
  if (batch) batch.isCancelled = true;
  queue.cancel(request => request.photo !== selected || request.work === "save");
  say("Cancelled. A photo that is left is corrected when you choose it.");
  refresh();
});

// Saving

const outputOf = (photo, format, suffix) => {
  const place = photo.path.lastIndexOf("."), slash = photo.path.lastIndexOf("/");
  const [stem, ending] = place > slash + 1 ? [photo.path.slice(0, place), photo.path.slice(place)] : [photo.path, ""];
  const isRight = format === "PNG" ? /^\.png$/i.test(ending) : /^\.(jpe?g|jpe|jfif)$/i.test(ending);
  return stem + suffix + (isRight ? ending : format === "PNG" ? ".png" : ".jpg");
};

const numbered = (name, number) => number < 2 ? name : name.replace(/(\.[^./]*)?$/, ` ${number}$1`);

const saved = async (photo, urgency) => {
  await correct(photo, urgency);
  const {file, maps, strength, exposure} = photo, quality = Math.min(Math.max(Number($("quality").value || 95), 1), 100);
  return queue.ask(urgency, photo, "save", {file, maps, strength, exposure, format: $("format").value, quality});
};

const download = (blob, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.slice(name.lastIndexOf("/") + 1);
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

$("panel").addEventListener("submit", event => event.preventDefault());  // by Enter in a field
$("save").addEventListener("click", async () => {
  const photo = selected;
  $("save").disabled = true;
  say(`Saving ${photo.path} …`);
  try {
    const {blob, format} = await saved(photo, NOW), name = outputOf(photo, format, "_corrected");
    download(blob, name);
    say(`Saved ${name.slice(name.lastIndexOf("/") + 1)}.`);
  } catch (error) {
    say(error instanceof Cancelled ? "Cancelled." : `${photo.path}: ${error.message}`);
  } finally {
    showFacts();
  }
});

// Save every photo through `keep`, one after the other; one that fails does not stop the others.
const saveAll = async keep => {
  const all = photos.filter(photo => photo.state !== "failed"), failures = photos.filter(photo => photo.state === "failed").length;
  batch = {done: 0, total: all.length, isCancelled: false};
  let failed = failures;
  refresh();
  try {
    for (const photo of all) {
      if (batch.isCancelled) return null;
      if (photo.isGone) continue;
      try {
        await keep(photo, await saved(photo, SOON));
      } catch (error) {
        if (error instanceof Cancelled && batch.isCancelled) return null;
        if (error instanceof Cancelled) continue;
        failed++;
        say(`${photo.path}: ${error.message}`);
      }
      batch.done++;
      refresh();
    }
    return failed;
  } finally {
    batch = null;
    refresh();
  }
};

const report = (count, failed) => say(`${count} ${count === 1 ? "photo" : "photos"} saved${failed ? `, ${failed} could not be` : ""}.`);

$("save-zip").addEventListener("click", async () => {
  const entries = [], taken = new Set();
  const failed = await saveAll((photo, {blob, format, crc}) => {
    let name, number = 1;
    do name = numbered(outputOf(photo, format, ""), number++); while (taken.has(name.toLowerCase()));
    taken.add(name.toLowerCase());
    entries.push({name, blob, crc, date: new Date(photo.file.lastModified)});
  });
  if (failed === null || !entries.length) return;
  try {
    download(zipOf(entries), "corrected.zip");
    report(entries.length, failed);
  } catch (error) {
    say(error.message);
  }
});

$("save-folder").addEventListener("click", async () => {
  let root, count = 0;
  try {
    root = await window.showDirectoryPicker({mode: "readwrite"});
  } catch {
    return;  // the photographer has thought better of it
  }
  const failed = await saveAll(async (photo, {blob, format}) => {
    const folders = outputOf(photo, format, "").split("/"), last = folders.pop();
    let folder = root;
    for (const name of folders) folder = await folder.getDirectoryHandle(name, {create: true});
    const candidates = [last, ...Array.from({length: 999}, (_, i) => numbered(outputOf({path: last}, format, "_corrected"), i + 1))];
    for (const name of candidates) {  // nothing that is there is replaced
      try {
        await folder.getFileHandle(name);
      } catch (error) {
        if (error.name !== "NotFoundError") continue;  // a folder of that name
        const stream = await (await folder.getFileHandle(name, {create: true})).createWritable();
        await stream.write(blob);
        await stream.close();
        count++;
        return;
      }
    }
    throw new Error("too many files of this name are there already");
  });
  if (failed !== null) report(count, failed);
});

// Photos come in

const isPhoto = (file, path) => !path.split("/").some(part => part.startsWith(".")) && (file.type.startsWith("image/") || PHOTOS.test(file.name));

const inside = async entry => {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{file, path: entry.fullPath.replace(/^\//, "")}];
  }
  const reader = entry.createReader(), found = [];
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) break;
    for (const child of entries) found.push(...await inside(child));
  }
  return found.filter(({file, path}) => isPhoto(file, path)).sort((a, b) => a.path.localeCompare(b.path, undefined, {numeric: true}));
};

$("files").addEventListener("change", () => {
  add(Array.from($("files").files, file => ({file, path: file.name})));
  $("files").value = "";
});
$("folder").addEventListener("change", () => {
  add(Array.from($("folder").files, file => ({file, path: file.webkitRelativePath || file.name})).filter(({file, path}) => isPhoto(file, path)));
  $("folder").value = "";
});
$("add-folder").hidden = !("webkitdirectory" in HTMLInputElement.prototype);

let over = 0;
addEventListener("dragenter", event => { event.preventDefault(); over++; document.body.classList.add("over"); });
addEventListener("dragover", event => event.preventDefault());
addEventListener("dragleave", () => { if (--over <= 0) { over = 0; document.body.classList.remove("over"); } });
addEventListener("drop", async event => {
  event.preventDefault();
  over = 0;
  document.body.classList.remove("over");
  const items = [...event.dataTransfer.items].filter(item => item.kind === "file");
  const entries = items.map(item => item.webkitGetAsEntry?.() ?? null), files = items.map(item => item.getAsFile());
  const found = [];
  for (const [index, entry] of entries.entries()) {
    try {
      found.push(...entry ? await inside(entry) : [{file: files[index], path: files[index].name}]);
    } catch (error) {
      say(`${files[index]?.name ?? entry?.name}: ${error.message}`);
    }
  }
  add(found);
});
addEventListener("paste", event => {
  const files = [...event.clipboardData.files];
  if (files.length) add(files.map(file => ({file, path: file.name || "pasted.png"})));
});
addEventListener("keydown", event => {
  if (event.target.matches?.("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "z" && selected?.isShown) setZoom(!isZoomed);
  if (event.key === "b" && !event.repeat) setSplit(split < 1 ? 1 : 0);
});

refresh();
showFacts();
