// @ts-check
// The laboratory's third bench: train the same network twice, once against the attack, then draw a digit and attack both.
import { argmax, softmax } from "./attack.js";
import { ask, button, loadBench, part, say, sizeOf } from "./page.js";
import { draw } from "./picture.js";

const NETWORKS = /** @type {const} */ (["standard", "robust"]);
const TESTED = 200; // digits after each epoch; at the end all 1,000
const STEPS = 20;
const percent = (/** @type {number} */ share) => `${(100 * share).toFixed(1)} %`;
const number = (/** @type {string} */ id) => Number(/** @type {HTMLInputElement} */ (part(id)).value);

let training = false;
let attacking = false;
let ready = false;
/** @type {Float32Array} */ let digit = new Float32Array(784);
/** @type {number | null} */ let label = null; // of a digit of the test set
let next = 0; // which digit of the test set comes next

/** @typedef {Record<"clean" | "broken", number>} Errors */

/** Draw the four curves. @param {Record<string, Errors[]>} history @param {number} epochs */
function showCurves(history, epochs) {
  for (const name of NETWORKS)
    for (const which of /** @type {const} */ (["clean", "broken"])) {
      const points = history[name].map((errors, i) => `${((300 * i) / epochs).toFixed(1)},${(100 - 100 * errors[which]).toFixed(1)}`);
      part(`curve-${name}-${which}`).setAttribute("points", points.join(" "));
    }
}

/** @param {string} name @param {Errors} errors */
function showErrors(name, { clean, broken }) {
  part(`${name}-clean`).textContent = percent(clean);
  part(`${name}-broken`).textContent = percent(broken);
}

/** The field's eps, or an error. */
function trainingEps() {
  const eps = number("train-eps");
  if (!(eps > 0 && eps <= 0.5)) throw new Error("eps must be above 0, and at most 0.5.");
  return eps;
}

async function train() {
  const [eps, epochs] = [trainingEps(), number("epochs")];
  if (!(Number.isInteger(epochs) && epochs >= 2 && epochs <= 30)) throw new Error("epochs must be a whole number from 2 to 30.");
  const bar = /** @type {HTMLProgressElement} */ (part("train-progress"));
  bar.value = 0;
  bar.max = 2 * epochs;
  bar.hidden = false;
  training = true;
  ready = false;
  setTraining();
  try {
    await learn(eps, epochs, bar);
    ready = true;
  } finally {
    training = false;
    bar.hidden = true;
    setTraining();
  }
  await read();
}

/** Train both networks, an epoch of each in turn. @param {number} eps @param {number} epochs @param {HTMLProgressElement} bar */
async function learn(eps, epochs, bar) {
  const began = performance.now();
  const seconds = () => Math.round((performance.now() - began) / 1000);
  /** @param {string} name @param {number} count */
  const test = async (name, count) => {
    const errors = await ask("test", { name, eps, steps: STEPS, count });
    showErrors(name, errors);
    return errors;
  };
  say("train-status", "Before the first epoch: both networks guess.");
  for (const name of NETWORKS) await ask("train", { name, eps: name === "robust" ? eps : 0, epochs, seed: 0 });
  /** @type {Record<string, Errors[]>} */ const history = {};
  for (const name of NETWORKS) history[name] = [await test(name, TESTED)];
  for (let epoch = 1; epoch <= epochs && training; epoch++) {
    const left = Math.ceil((seconds() * (epochs + 1 - epoch)) / Math.max(1, epoch - 1) / 60);
    say("train-status", `Epoch ${epoch} of ${epochs}${epoch > 1 ? `, about ${left} ${left === 1 ? "minute" : "minutes"} left` : ""} …`);
    for (const [i, name] of NETWORKS.entries()) {
      for (let seen = { epoch: 0 }; seen.epoch < epoch && training; ) {
        seen = await ask("batch", { name });
        bar.value = 2 * (epoch - 1) + i + (seen.epoch - epoch + 1);
      }
      if (!training) break;
      history[name].push(await test(name, TESTED));
      showCurves(history, epochs);
    }
  }
  if (!training) {
    for (const name of NETWORKS) await test(name, TESTED);
    return say("train-status", `Stopped after ${seconds()} seconds. The networks can be tried as they are; the table has their errors on ${TESTED} digits.`);
  }
  say("train-status", "Testing on 1,000 digits …");
  for (const name of NETWORKS) await test(name, 1000);
  const [standard, robust] = NETWORKS.map((name) => part(`${name}-broken`).textContent);
  say("train-status", `Done in ${seconds()} seconds. On 1,000 digits that neither network has seen, PGD-20 with eps ${eps} makes the standard network err on ${standard} and the robust one on ${robust}.`);
}

function setTraining() {
  /** @type {HTMLButtonElement} */ (part("train")).disabled = training || attacking;
  /** @type {HTMLButtonElement} */ (part("train-stop")).disabled = !training;
  for (const id of ["attack-digit", "next-digit"]) /** @type {HTMLButtonElement} */ (part(id)).disabled = !ready || attacking;
}

// ------------------------------------------------------------------------------------------------ a digit

/** Let both networks read the digit. */
async function read() {
  draw(/** @type {HTMLCanvasElement} */ (part("digit")), digit);
  for (const name of NETWORKS) {
    draw(/** @type {HTMLCanvasElement} */ (part(`${name}-attacked`)), new Float32Array(784));
    part(`${name}-after`).textContent = "–";
    part(`${name}-reads`).textContent = "–";
    if (!ready || digit.every((value) => value === 0)) continue;
    part(`${name}-reads`).textContent = words(await ask("read", { name, image: digit }));
  }
}

/** @param {Float32Array} logits */
const words = (logits) => `${argmax(logits)} (${softmax(logits)[argmax(logits)].toFixed(2)})`;

async function attackDigit() {
  if (digit.every((value) => value === 0)) throw new Error("Draw a digit first, or take one from the test set.");
  const eps = trainingEps();
  const [image, truth] = [digit, label];
  attacking = true;
  setTraining();
  try {
    await attackBoth(image, truth, eps);
  } finally {
    attacking = false;
    setTraining();
  }
}

/** @param {Float32Array} image @param {number | null} truth @param {number} eps */
async function attackBoth(image, truth, eps) {
  const said = [];
  for (const name of NETWORKS) {
    const found = await ask("attackDigit", { name, image, eps, steps: STEPS });
    if (digit !== image) return; // meanwhile the reader has drawn another one
    draw(/** @type {HTMLCanvasElement} */ (part(`${name}-attacked`)), found.image);
    part(`${name}-after`).textContent = words(found.logits);
    const after = argmax(found.logits);
    const misread = truth !== null && found.before !== truth ? ` (wrong without an attack: it is a ${truth})` : "";
    said.push(`the ${name} network ${after === found.before ? "still says" : `says ${after} instead of`} ${found.before}${misread}`);
  }
  say("digit-status", `With eps ${eps}, ${said.join(", ")}.`);
}

/** What was drawn as a digit of MNIST: 20 pixels at its longer side, its centre of mass in the middle of 28 x 28. @param {HTMLCanvasElement} pad */
function digitOf(pad) {
  const context = /** @type {CanvasRenderingContext2D} */ (pad.getContext("2d"));
  const { data, width, height } = context.getImageData(0, 0, pad.width, pad.height);
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let i = 0; i < width * height; i++)
    if (data[4 * i + 3] > 0) {
      left = Math.min(left, i % width);
      right = Math.max(right, i % width);
      top = Math.min(top, Math.floor(i / width));
      bottom = Math.max(bottom, Math.floor(i / width));
    }
  const result = new Float32Array(784);
  if (right < 0) return result;
  const scale = 20 / Math.max(right - left + 1, bottom - top + 1);
  let [mass, x, y] = [0, 0, 0];
  for (let i = 0; i < width * height; i++) {
    const ink = data[4 * i + 3];
    mass += ink;
    x += ink * (i % width);
    y += ink * Math.floor(i / width);
  }
  const [offsetX, offsetY] = [14 - (scale * x) / mass, 14 - (scale * y) / mass];
  for (let i = 0; i < width * height; i++) { // each pixel of the pad adds its area to the one that it falls on
    const column = Math.floor(offsetX + scale * (i % width));
    const row = Math.floor(offsetY + scale * Math.floor(i / width));
    if (column >= 0 && column < 28 && row >= 0 && row < 28) result[28 * row + column] += (scale * scale * data[4 * i + 3]) / 255;
  }
  return result.map((value) => Math.min(1, value));
}

function drawing() {
  const pad = /** @type {HTMLCanvasElement} */ (part("pad"));
  const context = /** @type {CanvasRenderingContext2D} */ (pad.getContext("2d", { willReadFrequently: true }));
  let drawn = false;
  /** @param {PointerEvent} event */
  const at = (event) => {
    const box = pad.getBoundingClientRect();
    return /** @type {const} */ ([((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height]);
  };
  pad.addEventListener("pointerdown", (event) => {
    pad.setPointerCapture(event.pointerId);
    drawn = true;
    Object.assign(context, { lineWidth: pad.width / 12, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
    context.beginPath();
    context.moveTo(...at(event));
    context.lineTo(...at(event));
    context.stroke();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!drawn) return;
    context.lineTo(...at(event));
    context.stroke();
  });
  const finish = async () => {
    if (!drawn) return;
    drawn = false;
    digit = digitOf(pad);
    label = null;
    say("digit-status", "");
    await read();
  };
  pad.addEventListener("pointerup", finish);
  pad.addEventListener("pointercancel", finish);
  button("clear", "digit-status", async () => {
    context.clearRect(0, 0, pad.width, pad.height);
    digit = new Float32Array(784);
    label = null;
    say("digit-status", "");
    await read();
  });
}

export async function trainBench() {
  button("load-digits", "train-status", async () => {
    await loadBench("digits", "digits-progress", "load-digits");
    part("load-digits").hidden = true;
    setTraining();
    say("train-status", "4,000 digits to train on and 1,000 to test on are here.");
  });
  button("train", "train-status", train);
  button("train-stop", "train-status", async () => { training = false; });
  button("attack-digit", "digit-status", attackDigit);
  button("next-digit", "digit-status", async () => {
    part("clear").click();
    ({ image: digit, label } = await ask("digit", { index: next++ % 1000 }));
    say("digit-status", `A digit of the test set: ${label}.`);
    await read();
  });
  drawing();
  part("load-digits").textContent = `Load the digits (${await sizeOf("digits")})`;
  /** @type {HTMLButtonElement} */ (part("load-digits")).disabled = false;
}
