// The page that mobilenext/deploy/page.py writes: networks in a browser, classified with, measured.
// Pixels are made as classify.py of an export makes them: Pillow's antialiased resize with its
// fixed point arithmetic, then the central square.
"use strict";

const part = (id) => document.getElementById(id);
const ENGINE = "onnxruntime-web";
const PROVIDER = "wasm";
const THREADS = 1;
const TOP = 5;

// ---- Pixels -------------------------------------------------------------------------------------

const BITS = 22; // of the fraction of Pillow's weights
const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, at: bicubic },
};

function bicubic(signed) {
  const a = -0.5;
  const x = Math.abs(signed);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** Half to even, as Python rounds. */
function rounded(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

/** The weights of one side: for each pixel from `first` on, where its window begins, and how much
 * each pixel of the window counts, in units of 2**-BITS. */
function weights(from, to, first, count, filter) {
  const scale = from / to;
  const wide = Math.max(scale, 1);
  const support = filter.support * wide;
  return Array.from({ length: count }, (_, place) => {
    const center = (first + place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(from, Math.trunc(center + support + 0.5));
    const shares = [];
    let sum = 0;
    for (let x = start; x < end; x += 1) {
      const share = filter.at((x - center + 0.5) * (1 / wide));
      shares.push(share);
      sum += share;
    }
    const fixed = shares.map((share) => {
      const scaled = (sum === 0 ? share : share / sum) * 2 ** BITS;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { start, fixed: Int32Array.from(fixed) };
  });
}

/** A byte out of weighted ones, which are `step` apart in `bytes`, from `at` on. */
function weighted(bytes, at, step, fixed) {
  let sum = 2 ** (BITS - 1);
  for (let x = 0; x < fixed.length; x += 1) sum += bytes[at + x * step] * fixed[x];
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** The central square of a resized picture, RGB.
 *
 * @param {{width: number, height: number, rows: Function}} picture `rows(first, count)` gives
 *   bytes, RGBA. Few rows at a time: photographs are larger than canvases may be.
 * @param how The network's preprocessing.
 */
function square(picture, how) {
  const short = Math.min(picture.width, picture.height);
  const side = (length) => Math.floor((length * how.short_side) / short);
  const [width, height] = [side(picture.width), side(picture.height)];
  const size = how.image_size;
  const [left, top] = [rounded((width - size) / 2), rounded((height - size) / 2)];
  const filter = FILTERS[how.interpolation];
  const across = weights(picture.width, width, left, size, filter);
  const down = weights(picture.height, height, top, size, filter);
  // Each pass rounds, so their order counts. Pillow below 13 begins with the rows always.
  const columnsFirst = picture.height - height > Math.max(0, 2 * (picture.width - width));
  return columnsFirst ? throughColumns(picture, across, down) : throughRows(picture, across, down);
}

const endOf = (axis) => Math.max(...axis.map((one) => one.start + one.fixed.length));

function throughRows(picture, across, down) {
  const size = down.length;
  const [begin, end] = [down[0].start, endOf(down)];
  const narrow = new Uint8Array((end - begin) * size * 3);
  const strip = Math.max(1, Math.floor(2 ** 21 / picture.width));
  for (let first = begin; first < end; first += strip) {
    const count = Math.min(strip, end - first);
    const bytes = picture.rows(first, count);
    for (let y = 0; y < count; y += 1) {
      for (let x = 0; x < size; x += 1) {
        const { start, fixed } = across[x];
        for (let c = 0; c < 3; c += 1) {
          narrow[((first - begin + y) * size + x) * 3 + c] = weighted(
            bytes, (y * picture.width + start) * 4 + c, 4, fixed,
          );
        }
      }
    }
  }
  const made = new Uint8Array(size * size * 3);
  for (let y = 0; y < size; y += 1) {
    const { start, fixed } = down[y];
    for (let at = 0; at < size * 3; at += 1) {
      made[y * size * 3 + at] = weighted(narrow, (start - begin) * size * 3 + at, size * 3, fixed);
    }
  }
  return made;
}

function throughColumns(picture, across, down) {
  const size = down.length;
  const [begin, end] = [across[0].start, endOf(across)];
  const made = new Uint8Array(size * size * 3);
  const line = new Uint8Array((end - begin) * 3);
  for (let y = 0; y < size; y += 1) {
    const bytes = picture.rows(down[y].start, down[y].fixed.length);
    for (let x = begin; x < end; x += 1) {
      for (let c = 0; c < 3; c += 1) {
        line[(x - begin) * 3 + c] = weighted(bytes, x * 4 + c, picture.width * 4, down[y].fixed);
      }
    }
    for (let x = 0; x < size; x += 1) {
      const { start, fixed } = across[x];
      for (let c = 0; c < 3; c += 1) {
        made[(y * size + x) * 3 + c] = weighted(line, (start - begin) * 3 + c, 3, fixed);
      }
    }
  }
  return made;
}

/** A JPEG or PNG file without what would change its pixels: colour profiles, and the orientation
 * that cameras note. Browsers differ in what they heed and in what they can be told to ignore. */
function bare(bytes, upright) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const kept = [];
  const text = (at, length) => String.fromCharCode(...bytes.subarray(at, at + length));
  if (bytes.length > 4 && view.getUint16(0) === 0xffd8) {
    kept.push(bytes.subarray(0, 2));
    let at = 2;
    while (at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda) {
      const end = at + 2 + view.getUint16(at + 2);
      const exif = bytes[at + 1] === 0xe1 && text(at + 4, 4) === "Exif";
      const profile = bytes[at + 1] === 0xe2 && text(at + 4, 11) === "ICC_PROFILE";
      if (!(profile || (exif && !upright))) kept.push(bytes.subarray(at, end));
      at = end;
    }
    kept.push(bytes.subarray(at));
    return kept;
  }
  if (bytes.length > 8 && text(1, 3) === "PNG") {
    const left = new Set(["iCCP", "gAMA", "cHRM", "sRGB", "cICP", ...(upright ? [] : ["eXIf"])]);
    kept.push(bytes.subarray(0, 8));
    let at = 8;
    while (at + 12 <= bytes.length) {
      const end = at + 12 + view.getUint32(at);
      if (!left.has(text(at + 4, 4))) kept.push(bytes.subarray(at, end));
      at = end;
    }
    return kept;
  }
  return [bytes];
}

async function bitmapOf(file, upright) {
  const blob = new Blob(bare(new Uint8Array(await file.arrayBuffer()), upright), {
    type: file.type,
  });
  const options = {
    imageOrientation: upright ? "from-image" : "none",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  };
  try {
    return await createImageBitmap(blob, options);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    return createImageBitmap(blob); // a browser that does not know one of them
  }
}

/** What `square` takes, of a file; `transparent` says whether a pixel seen so far is. */
async function opened(file, upright) {
  const bitmap = await bitmapOf(file, upright);
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  const context = () => canvas.getContext("2d", { willReadFrequently: true });
  return {
    width: bitmap.width,
    height: bitmap.height,
    transparent: false,
    rows(first, count) {
      canvas.height = count; // clears it
      const drawing = context();
      drawing.drawImage(bitmap, 0, -first);
      const { data } = drawing.getImageData(0, 0, bitmap.width, count);
      for (let at = 3; at < data.length && !this.transparent; at += 4) {
        this.transparent = data[at] !== 255;
      }
      return data;
    },
    close: () => bitmap.close(),
  };
}

/** Whether pixels come back from a canvas as they were put there; some browsers alter them, so that
 * pages can't tell devices apart. */
function canvasIsExact() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 32;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(32, 32);
  for (let at = 0; at < image.data.length; at += 1) {
    image.data[at] = at % 4 === 3 ? 255 : (at * 37) % 251;
  }
  context.putImageData(image, 0, 0);
  const found = context.getImageData(0, 0, 32, 32).data;
  return found.every((value, at) => value === image.data[at]);
}

// ---- Networks -----------------------------------------------------------------------------------

let ort = null;
let page = null;
const sessions = new Map();

/** The bytes of a file, and an error in words if they don't come. */
async function bytesOf(url, what, options = {}) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    const { href } = new URL(url, location.href);
    throw new Error(`${what} can't be loaded from ${href}: ${error.message}`);
  }
  if (!response.ok) {
    throw new Error(`${what} can't be loaded from ${response.url}: ${response.status}`);
  }
  return response.arrayBuffer();
}

async function engine() {
  if (ort !== null) return ort;
  const { module, wasm, wasm_integrity: integrity } = page.engine;
  const binary = await bytesOf(wasm, "The engine", { integrity });
  const { href } = new URL(module, location.href);
  let loaded;
  try {
    loaded = await import(href);
  } catch (error) {
    throw new Error(`The engine can't be loaded from ${href}: ${error.message}`);
  }
  loaded.env.logLevel = "error";
  loaded.env.wasm.numThreads = THREADS; // more need a page that is isolated from other origins
  loaded.env.wasm.wasmBinary = binary;
  ort = loaded;
  part("engine").textContent = `ONNX Runtime Web ${ort.env.versions.web}`;
  return ort;
}

async function sessionOf(network) {
  if (!sessions.has(network.file)) {
    const { InferenceSession } = await engine();
    const bytes = new Uint8Array(await bytesOf(network.file, network.label));
    sessions.set(network.file, await InferenceSession.create(bytes, {
      executionProviders: [PROVIDER], graphOptimizationLevel: "all",
    }));
  }
  return sessions.get(network.file);
}

/** The input of a network out of bytes (image_size, image_size, 3). */
function inputOf(made, size) {
  const planes = new Uint8Array(made.length);
  const area = size * size;
  for (let at = 0; at < area; at += 1) {
    for (let c = 0; c < 3; c += 1) planes[c * area + at] = made[at * 3 + c];
  }
  return { pixels: new ort.Tensor("uint8", planes, [1, 3, size, size]) };
}

function probabilities(logits) {
  const most = logits.reduce((one, other) => Math.max(one, other), -Infinity);
  const shares = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = shares.reduce((one, other) => one + other, 0);
  return shares.map((share) => share / sum);
}

// ---- Classifying --------------------------------------------------------------------------------

let picture = null;
let busy = Promise.resolve();

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function chosen() {
  return page.networks[part("network").selectedIndex];
}

function showPixels(made, size) {
  const canvas = part("pixels");
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  for (let at = 0; at < size * size; at += 1) {
    for (let c = 0; c < 3; c += 1) image.data[at * 4 + c] = made[at * 3 + c];
    image.data[at * 4 + 3] = 255;
  }
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
}

function showTop(shares, classes) {
  const order = shares.map((_, place) => place).sort((a, b) => shares[b] - shares[a]);
  part("top").replaceChildren(...order.slice(0, TOP).map((place) => {
    const [item, line, bar] = ["li", "span", "progress"].map((name) => element(name));
    bar.value = shares[place];
    bar.setAttribute("aria-hidden", "true");
    const share = `${(100 * shares[place]).toFixed(2)} %`;
    line.append(element("span", classes[place]), element("b", share));
    item.dataset.probability = shares[place];
    item.append(bar, line);
    return item;
  }));
}

async function classify() {
  if (picture === null) return;
  const network = chosen();
  const told = part("told");
  told.textContent = `${network.label}: reading ${picture.name} …`;
  part("answer").hidden = true;
  try {
    const how = network.preprocessing;
    const session = await sessionOf(network);
    const file = await opened(picture, part("upright").checked).catch((error) => {
      throw new Error(
        `${picture.name}: expected a picture that this browser can show (${error.message})`,
      );
    });
    const made = square(file, how);
    const { logits } = await session.run(inputOf(made, how.image_size));
    showPixels(made, how.image_size);
    showTop(probabilities(logits.data), how.classes);
    part("answer").hidden = false;
    const notes = [`${network.label}: ${picture.name}, ${file.width} × ${file.height} pixels.`];
    if (file.transparent) {
      notes.push("It has transparent parts, whose colours browsers may change.");
    }
    if (!canvasIsExact()) {
      notes.push("This browser alters pixels that pages read, for privacy: answers may differ.");
    }
    told.textContent = notes.join(" ");
    file.close();
  } catch (error) {
    told.textContent = error.message;
  }
}

/** One thing at a time: classifying would disturb measuring, and one session runs one image. */
function next(work) {
  busy = busy.then(work);
  return busy;
}

// ---- Measuring ----------------------------------------------------------------------------------

const LEAST_STEPS = 20; // of the clock, in a measurement
const LEAST_ROUNDS = 5; // fewer have no quartiles
const WARM_UP = 300; // ms, and at least three inferences

/** The smallest step of the clock that is seen, in ms. */
function clockStep() {
  let least = Infinity;
  for (let number = 0; number < 30; number += 1) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return least;
}

/** By linear interpolation between the sorted values, as numpy's quantile. */
function quantile(sorted, share) {
  const place = (sorted.length - 1) * share;
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - below);
}

const short = (value) => Number(value.toPrecision(7));

function summary(values, names) {
  const sorted = Float64Array.from(values).sort();
  const shares = { min: 0, q1: 0.25, median: 0.5, q3: 0.75, p90: 0.9 };
  return Object.fromEntries(names.map((name) => [name, short(quantile(sorted, shares[name]))]));
}

const breath = (ms) => new Promise((done) => { setTimeout(done, ms); });

/** Milliseconds of one inference, out of `repeats`. */
async function timed(one) {
  const start = performance.now();
  for (let number = 0; number < one.repeats; number += 1) await one.session.run(one.input);
  return (performance.now() - start) / one.repeats;
}

/** Run a network until it is warm; how often it has to run for the clock to measure it. */
async function warmUp(one, step) {
  for (let number = 0; number < 3; number += 1) await one.session.run(one.input);
  const start = performance.now();
  let [runs, spent] = [0, 0];
  while (spent < Math.max(WARM_UP, LEAST_STEPS * step)) {
    await one.session.run(one.input);
    runs += 1;
    spent = performance.now() - start;
  }
  one.repeats = Math.max(1, Math.ceil((LEAST_STEPS * step * runs) / spent));
}

/** Bytes that are the same on every device. */
function noise(count) {
  let state = 1;
  return Uint8Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
}

/** Measure all networks in turns.
 *
 * @param rounds How many.
 * @param tell Called with words and a share done.
 * @param stopped Whether to end as soon as there are rounds enough.
 */
async function measured(rounds, tell, stopped) {
  const all = [];
  for (const [place, network] of page.networks.entries()) {
    tell(`Loading ${network.label} (${place + 1} of ${page.networks.length}) …`, 0);
    const session = await sessionOf(network);
    const size = network.preprocessing.image_size;
    const input = inputOf(noise(size * size * 3), size);
    all.push({ network, session, input, times: [], repeats: 1 });
  }
  const step = clockStep();
  for (const one of all) {
    tell(`Warming up ${one.network.label} …`, 0);
    await breath(30);
    await warmUp(one, step);
  }
  let done = 0;
  while (done < rounds && !(stopped() && done >= LEAST_ROUNDS)) {
    tell(`Round ${done + 1} of ${rounds} …`, done / rounds);
    await breath(30);
    for (let place = 0; place < all.length; place += 1) {
      const one = all[(done + place) % all.length];
      one.times.push(await timed(one));
    }
    done += 1;
  }
  return { all, rounds: done, step };
}

function rowOf(one, baseline, rounds) {
  const ratio = one === baseline ? null : summary(
    one.times.map((time, round) => time / baseline.times[round]), ["q1", "median", "q3"],
  );
  return {
    engine: ENGINE,
    engine_version: ort.env.versions.web,
    provider: PROVIDER,
    label: one.network.label,
    ...one.network.facts,
    image_size: one.network.preprocessing.image_size,
    ms: summary(one.times, ["min", "q1", "median", "q3", "p90"]),
    ratio,
    resolved: ratio === null ? null : ratio.q1 > 1 || ratio.q3 < 1,
    rounds,
    repeats: one.repeats,
  };
}

function resultOf({ all, rounds, step }) {
  return {
    kind: "latency",
    version: 1,
    device: part("device").value.trim() || navigator.userAgent,
    user_agent: navigator.userAgent,
    threads: THREADS,
    batch: 1,
    rounds,
    baseline: all[0].network.label,
    rows: all.map((one) => rowOf(one, all[0], rounds)),
    clock_resolution_ms: Number(step.toPrecision(3)),
  };
}

function showRows(result) {
  const ms = (value) => value.toFixed(value < 10 ? 2 : 1);
  const names = ["Median, ms", "Quartiles, ms", "90 %, ms", "Ratio", "Its quartiles"];
  part("rows").replaceChildren(...result.rows.map(({ label, ms: times, ratio, resolved }) => {
    const row = element("tr");
    const name = element("th", label);
    name.scope = "row";
    row.setAttribute("role", "row"); // said, since they are no table where the page is narrow
    name.setAttribute("role", "rowheader");
    const unsure = resolved === false ? ", not resolved" : "";
    const cells = [
      ms(times.median), `${ms(times.q1)} – ${ms(times.q3)}`, ms(times.p90),
      ratio === null ? "1 (baseline)" : ratio.median.toFixed(3) + unsure,
      ratio === null ? "–" : `${ratio.q1.toFixed(3)} – ${ratio.q3.toFixed(3)}`,
    ].map((text, place) => {
      const cell = element("td", text);
      cell.dataset.name = names[place];
      cell.setAttribute("role", "cell");
      return cell;
    });
    row.append(name, ...cells);
    return row;
  }));
}

async function measure() {
  const rounds = part("rounds");
  if (!rounds.reportValidity()) return;
  const count = Math.trunc(Number(rounds.value)) || 30;
  const [progress, doing, stop] = ["progress", "doing", "stop"].map(part);
  let [stopping, unseen] = [false, document.hidden];
  const hide = () => { unseen = unseen || document.hidden; };
  stop.onclick = () => { stopping = true; stop.disabled = true; };
  const others = ["measure", "network", "choose", "photograph", "upright", "rounds"].map(part);
  for (const one of others) one.disabled = true;
  stop.disabled = false;
  progress.hidden = false;
  part("results").hidden = true;
  document.addEventListener("visibilitychange", hide);
  try {
    const tell = (text, share) => { doing.textContent = text; progress.value = share; };
    const result = resultOf(await measured(count, tell, () => stopping));
    showRows(result);
    part("json").value = `${JSON.stringify(result, null, 1)}\n`;
    part("copied").textContent = "";
    part("results").hidden = false;
    const hidden = unseen ? " The page was in the background meanwhile, where browsers slow pages "
      + "down: measure again." : "";
    doing.textContent = `${result.rounds} rounds, ${THREADS} thread, clock in steps of `
      + `${result.clock_resolution_ms} ms.${hidden}`;
  } catch (error) {
    doing.textContent = error.message;
  } finally {
    document.removeEventListener("visibilitychange", hide);
    progress.hidden = true;
    stop.disabled = true;
    for (const one of others) one.disabled = false;
  }
}

async function copy() {
  const area = part("json");
  try {
    await navigator.clipboard.writeText(area.value);
  } catch { // no clipboard on pages without https, as phones see them
    area.closest("details").open = true;
    area.focus();
    area.select();
    if (!document.execCommand("copy")) {
      part("copied").textContent = "It can't be copied by itself here: copy the selected text.";
      return;
    }
  }
  part("copied").textContent = "Copied.";
}

// ---- The page -----------------------------------------------------------------------------------

function showFacts() {
  const { facts, preprocessing } = chosen();
  const shown = (value) => (typeof value === "number" ? value.toLocaleString("en") : value);
  const words = Object.entries(facts)
    .filter(([, value]) => value !== null && typeof value !== "object")
    .map(([name, value]) => `${name} ${shown(value)}`);
  const size = `image ${preprocessing.image_size} × ${preprocessing.image_size}`;
  part("facts").textContent = [...words, size].join(" · ");
}

async function nameDevice() {
  part("device").value = navigator.userAgent;
  try {
    const names = ["model", "platform", "platformVersion"];
    const found = await navigator.userAgentData.getHighEntropyValues(names);
    const system = [found.platform, found.platformVersion].filter(Boolean).join(" ");
    const words = [found.model, system].filter(Boolean).join(", ");
    if (found.model) part("device").value = words;
  } catch { /* most browsers don't tell */ }
}

async function start() {
  if (location.protocol === "file:") return; // the text that the page begins with says what to do
  part("serve").hidden = true;
  try {
    page = JSON.parse(new TextDecoder().decode(
      await bytesOf("networks.json", "The list of networks", { cache: "no-cache" }),
    ));
  } catch (error) {
    part("problem").textContent = error.message;
    part("problem").hidden = false;
    return;
  }
  part("network").append(...page.networks.map(({ label }) => element("option", label)));
  showFacts();
  nameDevice();
  part("network").addEventListener("change", () => { showFacts(); next(classify); });
  part("upright").addEventListener("change", () => next(classify));
  for (const id of ["choose", "photograph"]) {
    part(id).addEventListener("change", () => {
      if (part(id).files.length === 0) return;
      [picture] = part(id).files;
      next(classify).then(() => { part(id).value = ""; }); // the same file may be chosen again
    });
  }
  part("measure").addEventListener("click", () => next(measure));
  part("copy").addEventListener("click", copy);
  part("parts").hidden = false;
}

start();
