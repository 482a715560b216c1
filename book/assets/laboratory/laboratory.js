// @ts-check
// The laboratory's first two benches: attack a classifier, find the smallest eps. The third is in bench_train.js.
import { argmax, length, softmax } from "./attack.js";
import { trainBench } from "./bench_train.js";
import { draw, drawDelta, imageOf, pngOf, savedImageOf } from "./picture.js";
import { button, ask, loadBench, part, say, sizeOf } from "./page.js";

/** @typedef {import("./attack.js").Settings} Settings */
/** @typedef {NonNullable<import("./attack.js").Attack["best"]>} Seen */

const AMPLIFIED = 50;
const form = /** @type {HTMLFormElement} */ (part("attack-settings"));
const field = (/** @type {string} */ name) => /** @type {HTMLInputElement} */ (form.elements.namedItem(name));
const canvas = (/** @type {string} */ id) => /** @type {HTMLCanvasElement} */ (part(id));

/** @type {string[]} */ let names = [];
/** @type {Float32Array | null} */ let original = null; // what is attacked
/** @type {Float32Array | null} */ let originalLogits = null;
/** @type {Float32Array | null} */ let shown = null; // what the left picture shows when nobody compares
let source = "coffee"; // or "" for the reader's own
let running = false;
let started = false; // an attack has begun and can take a step
/** @type {number[]} */ let losses = [];

// ------------------------------------------------------------------------------------------------ settings

const unit = () => (field("norm").value === "linf" ? 255 : 1);
const eps = () => Number(field("eps").value) / unit();
const steps = () => Number(field("steps").value);
const stepSize = () => (field("step_size").value === "" ? (2.5 * eps()) / steps() : Number(field("step_size").value) / unit());
const plain = (/** @type {number} */ value) => String(Number(value.toPrecision(3)));

/** What the form says; an error names the field that is wrong. @returns {Settings} */
function settings() {
  const widest = field("norm").value === "linf" ? 255 : 388;
  if (!(eps() > 0 && Number(field("eps").value) <= widest)) throw new Error(`eps must be above 0, and at most ${widest}.`);
  if (!(Number.isInteger(steps()) && steps() >= 1 && steps() <= 1000)) throw new Error("steps must be a whole number from 1 to 1000.");
  if (!(stepSize() > 0)) throw new Error("The step size must be above 0, or empty.");
  const targeted = field("goal").value === "targeted";
  const truth = argmax(/** @type {Float32Array} */ (originalLogits));
  const goal = targeted ? classCalled(field("target").value) : truth;
  if (targeted && goal === truth) throw new Error(`The classifier says ${names[truth]} already. Choose another target.`);
  return {
    norm: /** @type {Settings["norm"]} */ (field("norm").value), eps: eps(), stepSize: stepSize(), targeted, goal,
    loss: /** @type {Settings["loss"]} */ (field("loss").value), randomStart: field("random_start").checked, seed: 0,
  };
}

/** @param {string} name */
function classCalled(name) {
  const exact = names.indexOf(name.trim());
  const found = exact >= 0 ? exact : names.findIndex((other) => other.toLowerCase() === name.trim().toLowerCase());
  if (found < 0) throw new Error(`No ImageNet class is called "${name}". Choose one from the list that opens as you type.`);
  return found;
}

/** Write what follows from the settings: units, the default step size, the same as Python, the page's address. */
function follow() {
  const linf = field("norm").value === "linf";
  for (const place of form.querySelectorAll(".unit")) place.textContent = linf ? "of 255" : "(length)";
  field("step_size").placeholder = eps() > 0 && steps() > 0 ? plain((2.5 * Number(field("eps").value)) / steps()) : "";
  part("target-row").hidden = field("goal").value !== "targeted";
  const size = (/** @type {string} */ value) => (linf ? `${value} / 255` : value);
  const options = [
    linf ? "" : ", norm=\"l2\"",
    field("goal").value === "targeted" ? ", target=target" : "",
    field("loss").value === "soft_margin" ? "" : ", loss=\"cross_entropy\"",
    `, steps=${field("steps").value}`,
    field("step_size").value === "" ? "" : `, step_size=${size(field("step_size").value)}`,
    field("random_start").checked ? ", random_start=True" : "",
  ].join("");
  part("python").textContent = [
    "import torch",
    "from helpers.attacks import pgd",
    `from helpers.data import ${source ? "photograph" : "load_image"}`,
    `from helpers.models import ${field("goal").value === "targeted" ? "class_index, " : ""}load_classifier`,
    "",
    `model, x = load_classifier(device="cpu"), ${source ? `photograph("${source}")` : "load_image(\"your picture.jpg\")"}`,
    "y = model(x).argmax(1)",
    ...(field("goal").value === "targeted" ? [`target = torch.tensor([class_index(${JSON.stringify(field("target").value)})])`] : []),
    `x_adv = pgd(model, x, y, ${size(field("eps").value)}${options})`,
    "p, k = model(x_adv).softmax(1).max(1)",
    "print(model.class_names[k], f\"{p.item():.3f}\")",
  ].join("\n");
}

/** The settings that differ from the page's own, in its address, so that they can be shared. */
function remember() {
  const query = new URLSearchParams();
  if (source && source !== "coffee") query.set("picture", source);
  for (const element of form.elements) {
    const input = /** @type {HTMLInputElement} */ (element);
    if (!input.name || input.type === "file" || input.name === "picture") continue;
    const value = input.type === "checkbox" ? String(input.checked) : input.value;
    if (input.name === "target" && field("goal").value !== "targeted") continue;
    if (value !== input.dataset.default) query.set(input.name, value);
  }
  history.replaceState(null, "", `${location.pathname}${query.size ? `?${query}` : ""}${location.hash}`);
}

/** Take the settings of the page's address. */
function recall() {
  for (const element of form.elements) {
    const input = /** @type {HTMLInputElement} */ (element);
    if (input.name && input.type !== "file") input.dataset.default = input.type === "checkbox" ? String(input.checked) : input.value;
  }
  for (const [name, value] of new URLSearchParams(location.search)) {
    const input = form.elements.namedItem(name);
    if (input instanceof HTMLInputElement && input.type === "checkbox") input.checked = value === "true";
    else if (input instanceof HTMLSelectElement && ![...input.options].some((option) => option.value === value)) continue;
    else if ((input instanceof HTMLInputElement && input.type !== "file") || input instanceof HTMLSelectElement) input.value = value;
  }
}

// ------------------------------------------------------------------------------------------------ what is seen

/** @param {Float32Array | null} logits */
function showTopFive(logits) {
  const p = logits ? softmax(logits) : new Float32Array(0);
  const truth = originalLogits ? argmax(originalLogits) : undefined;
  const top = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, 5);
  for (const [i, row] of [...part("top-five").querySelectorAll("tbody tr")].entries()) {
    const k = top[i];
    row.children[0].textContent = k === undefined ? "–" : names[k];
    row.children[1].textContent = k === undefined ? "" : p[k].toFixed(3);
    /** @type {HTMLElement} */ (row.children[2].firstElementChild).style.width = k === undefined ? "0" : `${100 * p[k]}%`;
    row.classList.toggle("truth", k !== undefined && k === truth);
  }
}

/** @param {Float32Array} image @param {Float32Array | null} delta */
function showImages(image, delta) {
  shown = image;
  draw(canvas("image"), image);
  drawDelta(canvas("delta"), delta ?? new Float32Array(image.length), AMPLIFIED);
  if (!delta) return part("delta-size").replaceChildren("no change yet");
  const largest = delta.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  part("delta-size").textContent = `largest change ${plain(255 * largest)} of 255, length ${plain(length(delta))}`;
}

function showLosses() {
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const across = 300 / Math.max(steps(), losses.length - 1, 1);
  const points = losses.map((loss, i) => `${(i * across).toFixed(1)},${(100 - (100 * (loss - low)) / (high - low || 1)).toFixed(1)}`);
  part("loss-line").setAttribute("points", points.join(" "));
  const words = losses.length ? `from ${losses[0].toFixed(2)} at the start to ${losses[losses.length - 1].toFixed(2)} after ${losses.length - 1} steps` : "no attack yet";
  part("loss-words").textContent = words;
}

/** @param {Seen} seen */
function show(seen) {
  showImages(seen.image, seen.delta);
  showTopFive(seen.logits);
  losses.push(seen.loss);
  showLosses();
}

/** @param {Float32Array} logits */
const verdict = (logits) => {
  const k = argmax(logits);
  return `${names[k]} (probability ${softmax(logits)[k].toFixed(3)})`;
};

/** Take another picture. @param {Float32Array} image @param {string} from */
async function take(image, from) {
  running = started = false;
  original = image;
  source = from;
  losses = [];
  showImages(image, null);
  showLosses();
  showTopFive(null);
  follow();
  remember();
  if (!names.length) return;
  const logits = await ask("classify", { image });
  if (original !== image) return; // meanwhile the reader has taken another one
  originalLogits = logits;
  showTopFive(logits);
  say("attack-status", `The classifier says: ${verdict(logits)}.`);
}

/** @param {string} name */
async function takePhotograph(name) {
  const answer = await fetch(new URL(`${name}.png`, import.meta.url));
  if (!answer.ok) throw new Error(`The site has no photograph ${name}.`);
  await take(await savedImageOf(await answer.blob()), name);
}

// ------------------------------------------------------------------------------------------------ what is done

async function start() {
  if (!original) return;
  const image = original;
  losses = [];
  const seen = await ask("start", { image, settings: settings() });
  started = true;
  show(seen);
}

async function step() {
  if (!started) return start();
  show(await ask("step"));
}

async function run() {
  remember();
  await start();
  running = true;
  setRunning();
  say("attack-status", "Attacking …");
  const many = steps();
  for (let i = 0; i < many && running; i++) await step();
  const stopped = !running;
  running = false;
  setRunning();
  const best = /** @type {Seen} */ (await ask("best"));
  showImages(best.image, best.delta);
  showTopFive(best.logits);
  const { targeted, goal } = settings();
  const aim = targeted ? `, the target being ${names[goal]}` : "";
  say("attack-status", `${stopped ? "Stopped" : "Done"} after ${losses.length - 1} steps. At the strongest point, step ${best.step}, the classifier says ${verdict(best.logits)}${aim}. ${best.fooled ? "The attack succeeded." : "The attack has not succeeded."}`);
}

function setRunning() {
  for (const id of ["run", "step", "noise", "find"]) /** @type {HTMLButtonElement} */ (part(id)).disabled = running || !names.length;
  /** @type {HTMLButtonElement} */ (part("stop")).disabled = !running;
}

async function addNoise() {
  if (!original) return;
  const image = original;
  const chosen = settings();
  const truth = argmax(/** @type {Float32Array} */ (originalLogits));
  let same = 0;
  running = true;
  setRunning();
  let i = 0;
  for (; i < 10 && running; i++) {
    const seen = await ask("noise", { image, settings: { ...chosen, seed: i } });
    same += Number(argmax(seen.logits) === truth);
    showImages(seen.image, seen.delta);
    showTopFive(seen.logits);
  }
  running = started = false;
  setRunning();
  say("attack-status", `Noise of the same size, ${i} draws: the classifier still says ${names[truth]} in ${same} of them.`);
}

async function save() {
  if (!shown) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await pngOf(shown));
  link.download = "x_adv.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** @param {Blob} file */
async function judge(file) {
  say("attack-status", "Judging …");
  const image = await savedImageOf(file);
  const logits = await ask("classify", { image });
  const delta = original && image.map((value, i) => value - /** @type {Float32Array} */ (original)[i]);
  started = false;
  showImages(image, delta);
  showTopFive(logits);
  const truth = originalLogits && names[argmax(originalLogits)];
  const still = truth && names[argmax(logits)] !== truth ? "Still adversarial" : "Not adversarial any more";
  say("attack-status", `Of the saved picture, in whole grey levels, the classifier says ${verdict(logits)}. ${still}: of the picture above it says ${truth}.`);
}

// ------------------------------------------------------------------------------------------------ the smallest eps

async function findSmallest() {
  if (!original) return;
  const image = original;
  const guess = Number(/** @type {HTMLInputElement} */ (part("guess")).value);
  if (!(guess > 0)) throw new Error("Guess first: a number above 0.");
  const chosen = settings();
  const scale = unit();
  const rows = part("tries");
  rows.replaceChildren();
  running = true;
  setRunning();
  /** Whether an attack of 20 steps succeeds within a budget. @param {number} budget */
  const breaks = async (budget) => {
    let seen = await ask("start", { image, settings: { ...chosen, eps: budget, stepSize: (2.5 * budget) / 20 } });
    let i = 0;
    for (; i < 20 && !seen.fooled && running; i++) seen = await ask("step");
    if (!running) return false;
    showImages(seen.image, seen.delta);
    showTopFive(seen.logits);
    say("attack-status", `The search tries eps = ${plain(budget * scale)}: ${seen.fooled ? "broken" : "not broken"}.`);
    const row = document.createElement("tr");
    for (const cell of [plain(budget * scale), seen.fooled ? `broken in ${i} steps` : `not broken in ${i} steps`, names[argmax(seen.logits)]])
      row.append(Object.assign(document.createElement("td"), { textContent: cell }));
    rows.append(row);
    return seen.fooled;
  };
  losses = [];
  showLosses();
  let [low, high] = [0, (chosen.norm === "linf" ? 1 : 0.25) / (chosen.norm === "linf" ? 255 : 1)];
  showRange(0, 2 * high * scale, 2 * high * scale, guess);
  while (running && high <= 64 / 255 * (chosen.norm === "linf" ? 1 : 255) && !(await breaks(high))) [low, high] = [high, 2 * high];
  const widest = 1.5 * high * scale;
  for (let i = 0; i < 7 && running; i++) {
    showRange(low * scale, high * scale, widest, guess);
    say("find-status", `Between ${plain(low * scale)} and ${plain(high * scale)}.`);
    const middle = (low + high) / 2;
    if (await breaks(middle)) high = middle;
    else low = middle;
  }
  const stopped = !running;
  running = started = false;
  setRunning();
  showRange(low * scale, high * scale, widest, guess);
  const off = guess > high * scale ? `${plain(guess / (high * scale))} times as large` : guess < low * scale ? `${plain((high * scale) / guess)} times too small` : "right";
  say("find-status", `${stopped ? "Stopped: b" : "B"}etween ${plain(low * scale)} and ${plain(high * scale)}, ${chosen.norm === "linf" ? "in grey levels of 255" : "as a length"}. Your guess, ${plain(guess)}, was ${off}. A stronger attack might need less: this bounds the smallest eps from above only.`);
}

/** @param {number} low @param {number} high @param {number} widest @param {number} guess */
function showRange(low, high, widest, guess) {
  const place = (/** @type {number} */ value) => `${Math.min(100, (100 * value) / widest)}%`;
  part("range-bar").style.cssText = `left: ${place(low)}; width: max(3px, calc(${place(high)} - ${place(low)}))`;
  part("range-guess").style.left = place(guess);
  part("range-end").textContent = plain(widest);
}

// ------------------------------------------------------------------------------------------------ the page

/** Hold to compare, with a finger, a mouse, or the keys. */
function comparing() {
  const hold = part("compare");
  const set = (/** @type {boolean} */ on) => {
    if (!original || !shown) return;
    hold.setAttribute("aria-pressed", String(on));
    draw(canvas("image"), on ? original : shown);
    part("image-name").textContent = on ? "the original" : "the image";
  };
  const keys = new Set([" ", "Enter"]);
  hold.addEventListener("pointerdown", () => set(true));
  for (const event of ["pointerup", "pointerleave", "pointercancel", "blur"]) hold.addEventListener(event, () => set(false));
  hold.addEventListener("keydown", (event) => { if (keys.has(event.key)) set(true); });
  hold.addEventListener("keyup", (event) => { if (keys.has(event.key)) set(false); });
}

async function main() {
  recall();
  const wanted = field("picture").value;
  button("load", "attack-status", async () => {
    names = await loadBench("classifier", "attack-progress", "load");
    part("classes").replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
    for (const element of document.querySelectorAll(".needs-classifier")) element.removeAttribute("disabled");
    part("load").hidden = true;
    say("find-status", "Guess, then let the search begin.");
    setRunning();
    if (original) await take(original, source);
  });
  part("load").textContent = `Load the classifier (${await sizeOf("classifier")})`;
  /** @type {HTMLButtonElement} */ (part("load")).disabled = false;
  button("run", "attack-status", run);
  button("step", "attack-status", step);
  button("stop", "attack-status", async () => { running = false; });
  button("reset", "attack-status", async () => { if (original) await take(original, source); });
  button("noise", "attack-status", addNoise);
  button("save", "attack-status", save);
  button("find", "find-status", findSmallest);
  button("find-stop", "find-status", async () => { running = false; });
  const guarded = (/** @type {() => Promise<void>} */ job) => job().catch((error) => say("attack-status", error.message));
  field("picture").addEventListener("change", () => guarded(() => takePhotograph(field("picture").value)));
  for (const name of ["own", "camera"])
    field(name).addEventListener("change", () => guarded(async () => {
      const [file] = field(name).files ?? [];
      if (file) await take(await imageOf(file), "");
    }));
  field("saved").addEventListener("change", () => guarded(async () => {
    const [file] = field("saved").files ?? [];
    if (file) await judge(file);
    field("saved").value = ""; // so that the same file can be judged again
  }));
  const stage = part("attack-stage");
  stage.addEventListener("dragover", (event) => event.preventDefault());
  stage.addEventListener("drop", (event) => {
    event.preventDefault();
    const file = event.dataTransfer?.files[0];
    if (file) guarded(async () => take(await imageOf(file), ""));
  });
  field("norm").addEventListener("change", () => {
    field("eps").value = field("norm").value === "linf" ? "2" : "0.5";
    field("step_size").value = "";
  });
  form.addEventListener("input", () => { started = false; follow(); });
  form.addEventListener("change", () => { started = false; follow(); remember(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  comparing();
  setRunning();
  trainBench();
  await guarded(() => takePhotograph(wanted));
}

main();
