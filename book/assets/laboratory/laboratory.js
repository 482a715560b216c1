// @ts-check
// The laboratory's first two benches: attack a classifier, find the smallest eps. The third is in bench_train.js.
import { argmax, norms, softmax } from "./attack.js";
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
let running = false; // something computes, and the settings are locked
let stopping = false; // and is to end
let started = false; // an attack has begun and can take a step
let draws = 0; // random starts so far
/** @type {number[]} */ let losses = [];

// ------------------------------------------------------------------------------------------------ settings

const unit = () => (field("norm").value === "linf" ? 255 : 1);
const eps = () => Number(field("eps").value) / unit();
const steps = () => Number(field("steps").value);
const stepSize = () => (field("step_size").value === "" ? (2.5 * eps()) / steps() : Number(field("step_size").value) / unit());
const plain = (/** @type {number} */ value) => String(Number(value.toPrecision(3)));
const counted = (/** @type {number} */ n, /** @type {string} */ thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;

/** What the form says; an error names the field that is wrong. @returns {Settings} */
function settings() {
  const widest = field("norm").value === "linf" ? 255 : 388;
  if (!(eps() > 0 && Number(field("eps").value) <= widest)) throw new Error(`eps must be above 0, and at most ${widest}.`);
  if (!(Number.isInteger(steps()) && steps() >= 1 && steps() <= 1000)) throw new Error("steps must be a whole number from 1 to 1000.");
  if (!(stepSize() > 0)) throw new Error("The step size must be above 0, or empty.");
  const targeted = field("goal").value === "targeted";
  if (!originalLogits) throw new Error("The classifier has not looked at the picture yet. Choose it once more.");
  const truth = argmax(originalLogits);
  const goal = targeted ? classCalled(field("target").value) : truth;
  if (targeted && goal === truth) throw new Error(`The classifier says ${names[truth]} already. Choose another target.`);
  return {
    norm: /** @type {Settings["norm"]} */ (field("norm").value), eps: eps(), stepSize: stepSize(), targeted, goal,
    loss: /** @type {Settings["loss"]} */ (field("loss").value), randomStart: field("random_start").checked, seed: draws++,
  };
}

/** @param {string} name */
function classCalled(name) {
  const wanted = name.trim().toLowerCase();
  const exact = names.indexOf(name.trim());
  const found = exact >= 0 ? exact : names.findIndex((other) => other.toLowerCase() === wanted);
  if (found >= 0) return found;
  const near = wanted ? names.filter((other) => other.toLowerCase().includes(wanted)).slice(0, 5) : [];
  throw new Error(`No ImageNet class is called "${name}". ${near.length ? `There are: ${near.join(", ")}.` : "Choose one from the list that opens as you type."}`);
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
    ...(field("goal").value === "targeted" ? [`target = torch.tensor([class_index(${JSON.stringify(field("target").value.trim())})])`] : []),
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
    else continue;
    if (part("more").contains(/** @type {Node} */ (input))) /** @type {HTMLDetailsElement} */ (part("more")).open = true;
  }
}

// ------------------------------------------------------------------------------------------------ what is seen

/** @param {Float32Array | null} logits */
function showTopFive(logits) {
  const p = logits ? softmax(logits) : new Float32Array(0);
  const truth = originalLogits ? argmax(originalLogits) : undefined;
  const top = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, 5);
  if (top.length && truth !== undefined && !top.includes(truth)) top.push(truth);
  for (const [i, row] of [...part("top-five").querySelectorAll("tbody tr")].entries()) {
    const k = top[i];
    row.children[0].textContent = k === undefined ? "–" : names[k];
    row.children[1].textContent = k === undefined ? "" : p[k].toFixed(3);
    /** @type {HTMLElement} */ (row.children[2].firstElementChild).style.width = k === undefined ? "0" : `${100 * p[k]}%`;
    row.classList.toggle("truth", k !== undefined && k === truth);
    /** @type {HTMLElement} */ (row).style.visibility = i < 5 || k !== undefined ? "" : "hidden";
  }
}

let kind = "the original";
/** @param {Float32Array} image @param {Float32Array | null} delta @param {string} what */
function showImages(image, delta, what) {
  shown = image;
  kind = what;
  part("image-name").textContent = what;
  draw(canvas("image"), part("compare").getAttribute("aria-pressed") === "true" && original ? original : image);
  drawDelta(canvas("delta"), delta ?? new Float32Array(image.length), AMPLIFIED);
  if (!delta) return part("delta-size").replaceChildren("no change yet");
  const size = norms(delta);
  part("delta-size").textContent = `largest change ${plain(255 * size.largest)} of 255, length ${plain(size.length)}`;
}

function showLosses() {
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const across = 300 / Math.max(steps(), losses.length - 1, 1);
  const points = losses.map((loss, i) => `${(i * across).toFixed(1)},${(100 - (100 * (loss - low)) / (high - low || 1)).toFixed(1)}`);
  part("loss-line").setAttribute("points", points.join(" "));
  const zero = low < 0 && high > 0 ? String(100 + (100 * low) / (high - low)) : "-10"; // out of sight
  for (const end of ["y1", "y2"]) part("loss-zero").setAttribute(end, zero);
  const words = losses.length ? `from ${losses[0].toFixed(2)} at the start to ${losses[losses.length - 1].toFixed(2)} after ${counted(losses.length - 1, "step")}` : "none drawn";
  part("loss-words").textContent = words;
}

/** @param {Seen} seen */
function show(seen) {
  showImages(seen.image, seen.delta, "attacked");
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
  started = false;
  original = image;
  originalLogits = null;
  source = from;
  field("picture").value = from; // an entry without a name stands for the reader's own
  losses = [];
  showImages(image, null, "the original");
  showLosses();
  showTopFive(null);
  follow();
  remember();
  if (!names.length) return;
  originalLogits = await ask("classify", { image });
  showTopFive(originalLogits);
  say("attack-status", `The classifier says: ${verdict(/** @type {Float32Array} */ (originalLogits))}.`);
}

/** @type {Map<string, Float32Array>} */ const photographs = new Map();
/** One of the book's photographs, kept for later. @param {string} name */
async function photograph(name) {
  const answer = photographs.has(name) ? null : await fetch(new URL(`${name}.png`, import.meta.url)).catch(() => null);
  if (answer?.ok) photographs.set(name, await savedImageOf(await answer.blob()));
  const image = photographs.get(name);
  if (!image) throw new Error(`The photograph ${name} cannot be loaded: the site does not answer.`);
  return image;
}

// ------------------------------------------------------------------------------------------------ what is done

/**
 * Do something with the settings locked, and unlock them whatever happens.
 * @param {() => Promise<void>} job
 */
async function locked(job) {
  if (running) return;
  const focused = document.activeElement;
  running = true;
  stopping = false;
  setRunning();
  try {
    await job();
  } finally {
    running = false;
    setRunning();
    if (focused instanceof HTMLElement && [document.body, focused].includes(/** @type {HTMLElement} */ (document.activeElement))) focused.focus({ preventScroll: true });
  }
}

function setRunning() {
  const locks = [...form.elements, ...["run", "step", "noise", "find", "save", "reset"].map(part)];
  for (const element of /** @type {HTMLButtonElement[]} */ (locks)) element.disabled = running || (element.classList.contains("needs-classifier") && !names.length);
  for (const id of ["stop", "find-stop"]) /** @type {HTMLButtonElement} */ (part(id)).disabled = !running || !names.length;
}

/** @param {Settings} chosen */
async function start(chosen) {
  losses = [];
  show(await ask("start", { image: original, settings: chosen }));
  started = true;
}

async function step() {
  const chosen = settings();
  remember();
  if (!started) await start(chosen);
  const seen = /** @type {Seen} */ (await ask("step"));
  show(seen);
  say("attack-status", `Step ${seen.step}: the classifier says ${verdict(seen.logits)}.`);
}

async function run() {
  const chosen = settings();
  const many = steps();
  remember();
  say("attack-status", "Attacking …");
  let first = -1; // the first step that fooled
  await start(chosen);
  for (let i = 0; i < many && !stopping; i++) {
    const seen = /** @type {Seen} */ (await ask("step"));
    show(seen);
    if (seen.fooled && first < 0) first = seen.step;
  }
  const best = /** @type {Seen} */ (await ask("best"));
  showImages(best.image, best.delta, "attacked");
  showTopFive(best.logits);
  const aim = chosen.targeted ? `, the target being ${names[chosen.goal]}` : "";
  say("attack-status", `${stopping ? "Stopped" : "Done"} after ${counted(losses.length - 1, "step")}. At the strongest point, step ${best.step}, the classifier says ${verdict(best.logits)}${aim}. ${best.fooled ? `The attack succeeded${first >= 0 ? `, first at step ${first}` : ""}.` : "The attack has not succeeded."}`);
}

async function addNoise() {
  const chosen = settings();
  const truth = argmax(/** @type {Float32Array} */ (originalLogits));
  started = false;
  losses = [];
  showLosses();
  say("attack-status", "Adding noise …");
  let same = 0;
  let i = 0;
  for (; i < 10 && !stopping; i++) {
    const seen = await ask("noise", { image: original, settings: { ...chosen, seed: i } });
    same += Number(argmax(seen.logits) === truth);
    showImages(seen.image, seen.delta, "with noise");
    showTopFive(seen.logits);
  }
  say("attack-status", `Noise of the same size, ${counted(i, "draw")}: the classifier still says ${names[truth]} in ${same} of them.`);
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
  losses = [];
  showLosses();
  showImages(image, delta, "the saved picture");
  showTopFive(logits);
  const truth = originalLogits && names[argmax(originalLogits)];
  const still = truth && names[argmax(logits)] !== truth ? "Still adversarial" : "Not adversarial";
  const target = field("goal").value === "targeted" ? ` The target is ${field("target").value.trim()}.` : "";
  say("attack-status", `Of the saved picture, in whole grey levels, the classifier says ${verdict(logits)}. ${still}: of the picture above it says ${truth}.${target}`);
}

// ------------------------------------------------------------------------------------------------ the smallest eps

const TRY = 20; // steps for each eps

async function findSmallest() {
  const guess = Number(/** @type {HTMLInputElement} */ (part("guess")).value);
  if (!(guess > 0)) throw new Error("Guess first: a number above 0.");
  const chosen = settings();
  const linf = chosen.norm === "linf";
  const scale = unit();
  const rows = part("tries");
  rows.replaceChildren();
  started = false;
  losses = [];
  showLosses();
  /** Whether an attack succeeds within a budget; null if it was stopped. @param {number} budget @returns {Promise<boolean | null>} */
  const breaks = async (budget) => {
    let seen = await ask("start", { image: original, settings: { ...chosen, eps: budget, stepSize: (2.5 * budget) / TRY } });
    let i = 0;
    for (; i < TRY && !seen.fooled && !stopping; i++) seen = await ask("step");
    if (!seen.fooled && i < TRY) return null;
    showImages(seen.image, seen.delta, "attacked");
    showTopFive(seen.logits);
    say("attack-status", `The search tries eps = ${plain(budget * scale)}: ${seen.fooled ? "fooled" : "not fooled"}.`);
    const row = document.createElement("tr");
    for (const cell of [plain(budget * scale), `${seen.fooled ? "fooled" : "not fooled"} after ${counted(i, "step")}`, names[argmax(seen.logits)]])
      row.append(Object.assign(document.createElement("td"), { textContent: cell }));
    rows.append(row);
    return seen.fooled;
  };
  const most = linf ? 64 / 255 : 64;
  let low = 0; // the largest eps at which the attack failed
  let high = 0; // the smallest at which it succeeded, if it has
  let widest = (linf ? 2 / 255 : 0.5) * scale; // of what is drawn
  const soFar = () => `${high ? `fooled at ${plain(high * scale)}` : `not fooled up to ${plain(low * scale)}`}${high && low ? `, not at ${plain(low * scale)}` : ""}`;
  const progress = () => {
    showRange(low * scale, high ? high * scale : widest, widest, guess);
    say("find-status", low || high ? `So far: ${soFar()}.` : "Searching …");
  };
  progress();
  for (let budget = linf ? 1 / 255 : 0.25; !high && budget <= most; budget *= 2) {
    widest = 1.5 * budget * scale;
    const fooled = await breaks(budget);
    if (fooled === null) break;
    if (fooled) high = budget;
    else low = budget;
    progress();
  }
  for (let i = 0; high && i < 7 && !stopping; i++) {
    const middle = (low + high) / 2;
    const fooled = await breaks(middle);
    if (fooled === null) break;
    if (fooled) high = middle;
    else low = middle;
    progress();
  }
  const found = low || high ? `${soFar()}${linf ? ", in grey levels of 255" : ", as a length"}` : "no try has ended";
  if (stopping) return say("find-status", `Stopped: ${found}.`);
  if (!high) return say("find-status", `Done: ${found}. The search goes no further. Take more steps on the bench above, or the other loss.`);
  const off = guess > high * scale ? `${plain(guess / (high * scale))} times too large` : guess < low * scale ? `${plain((high * scale) / guess)} times too small` : "right";
  say("find-status", `Done: ${found}. Your guess, ${plain(guess)}, was ${off}. That this attack failed does not say that a stronger one must.`);
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
    part("image-name").textContent = on ? "the original" : kind;
  };
  const keys = new Set([" ", "Enter"]);
  hold.addEventListener("pointerdown", () => set(true));
  for (const event of ["pointerup", "pointerleave", "pointercancel", "blur"]) hold.addEventListener(event, () => set(false));
  hold.addEventListener("keydown", (event) => { if (keys.has(event.key)) set(true); });
  hold.addEventListener("keyup", (event) => { if (keys.has(event.key)) set(false); });
}

/** Load the classifier, with a press on either bench. @param {string} pressed */
async function load(pressed) {
  const other = /** @type {HTMLButtonElement} */ (part(pressed === "load" ? "find-load" : "load"));
  other.disabled = true;
  names = await loadBench("classifier", "attack-progress", pressed).finally(() => { other.disabled = false; });
  part("classes").replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
  for (const id of ["load", "find-load"]) part(id).hidden = true;
  say("find-status", "Guess, then let the search begin.");
  await locked(async () => { if (original) await take(original, source); });
  if (document.activeElement === document.body) part(pressed === "load" ? "run" : "guess").focus({ preventScroll: true });
  for (const { value } of /** @type {HTMLSelectElement} */ (part("picture")).options) if (value) await photograph(value).catch(() => {}); // for a reader who goes offline
}

async function main() {
  recall();
  const wanted = field("picture").value || source;
  const size = await sizeOf("classifier");
  for (const [id, status] of [["load", "attack-status"], ["find-load", "find-status"]]) {
    button(id, status, () => load(id));
    part(id).textContent = `Load the classifier (${size})`;
    /** @type {HTMLButtonElement} */ (part(id)).disabled = false;
  }
  for (const [id, job] of /** @type {const} */ ([["run", run], ["step", step], ["noise", addNoise], ["save", save]]))
    button(id, "attack-status", () => locked(job));
  button("reset", "attack-status", () => locked(async () => { if (original) await take(original, source); }));
  button("find", "find-status", () => locked(findSmallest));
  for (const id of ["stop", "find-stop"]) button(id, "attack-status", async () => { stopping = true; });
  const guarded = (/** @type {() => Promise<void>} */ job) => locked(job).catch((error) => say("attack-status", error.message));
  const takePhotograph = async (/** @type {string} */ name) => take(await photograph(name), name);
  field("picture").addEventListener("change", () => guarded(() => takePhotograph(field("picture").value)));
  for (const name of ["own", "camera"])
    field(name).addEventListener("change", () => guarded(async () => {
      const [file] = field(name).files ?? [];
      field(name).value = ""; // so that the same file can be chosen again
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
  trainBench();
  await guarded(() => takePhotograph(wanted));
}

main();
