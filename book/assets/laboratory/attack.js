// @ts-check
// Projected gradient descent on one image, as in `helpers.attacks` and `helpers.perturbations`: images are Float32Arrays
// of values in [0, 1], delta is what is added to them.

/** @typedef {{logits: Float32Array, gradient: Float32Array}} Answer of a model: the gradient is that of the goal's loss */
/**
 * @typedef {object} Settings
 * @property {"linf" | "l2"} norm of the perturbation set
 * @property {number} eps in pixel units: 2 of 255 grey levels are 2/255
 * @property {number} stepSize in the norm, in pixel units
 * @property {"cross_entropy" | "soft_margin"} loss climbed at the true class, or descended at the target
 * @property {number} goal the true class, or the target
 * @property {boolean} targeted
 * @property {boolean} randomStart
 * @property {number} seed of the random start
 */
/** @typedef {(image: Float32Array, settings: Settings) => Promise<Answer>} Model */

/** A generator of numbers in [0, 1) that is the same everywhere (Marsaglia's xorshift). @param {number} seed */
export function random(seed) {
  let state = (seed + 1) * 2654435761 >>> 0 || 1;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 8; i++) next(); // neighbouring seeds part ways
  return next;
}

/** One normally distributed number (Box and Muller). @param {() => number} uniform */
export const normal = (uniform) => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());

/** @param {Float32Array} values */
export const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

/** log(sum of exp) of some logits, without one. @param {Float32Array} logits @param {number} [without] @param {number} [t] */
function logSumExp(logits, without = -1, t = 1) {
  let highest = -Infinity;
  logits.forEach((logit, k) => { if (k !== without && logit > highest) highest = logit; });
  let sum = 0;
  logits.forEach((logit, k) => { if (k !== without) sum += Math.exp((logit - highest) / t); });
  return highest + t * Math.log(sum);
}

/** @param {Float32Array} logits */
export function softmax(logits) {
  const all = logSumExp(logits);
  return logits.map((logit) => Math.exp(logit - all));
}

/** The soft margin's temperature: a tenth of how far the highest logit is above their mean. @param {Float32Array} logits */
const temperature = (logits) =>
  (Math.max(...logits) - logits.reduce((sum, logit) => sum + logit, 0) / logits.length) / 10 || 1;

/** The loss of a class. @param {Settings["loss"]} kind @param {Float32Array} logits @param {number} k */
export function lossOf(kind, logits, k) {
  return kind === "cross_entropy"
    ? logSumExp(logits) - logits[k]
    : logSumExp(logits, k, temperature(logits)) - logits[k];
}

/** The l2 and the l-inf norm. @param {Float32Array} vector */
export function norms(vector) {
  let sum = 0;
  let largest = 0;
  for (let i = 0; i < vector.length; i++) {
    sum += vector[i] * vector[i];
    largest = Math.max(largest, Math.abs(vector[i]));
  }
  return { length: Math.sqrt(sum), largest };
}

/** @param {Float32Array} vector */
export const length = (vector) => norms(vector).length;

/** Move `delta` along the gradient's steepest direction. @param {Float32Array} delta @param {Float32Array} gradient @param {Settings} settings */
function climb(delta, gradient, { norm, stepSize, targeted }) {
  const size = targeted ? -stepSize : stepSize;
  if (norm === "linf") return delta.map((value, i) => value + size * Math.sign(gradient[i]));
  const scale = size / (length(gradient) || 1);
  return delta.map((value, i) => value + scale * gradient[i]);
}

/**
 * The nearest point of the perturbation set: a ball cut by the pixel box.
 * @param {Float32Array} delta @param {Float32Array} x @param {Pick<Settings, "norm" | "eps">} settings
 */
export function project(delta, x, { norm, eps }) {
  if (norm === "linf")
    return delta.map((value, i) => Math.max(-x[i], Math.min(1 - x[i], Math.max(-eps, Math.min(eps, value)))));
  // In l2 it is clip(scale * delta), for the largest scale up to 1 that keeps the length within eps. A pixel that is
  // clipped at one scale is clipped at all larger ones; so scale the free ones to what the others leave, and repeat.
  const clip = (/** @type {number} */ value, /** @type {number} */ i) => Math.max(-x[i], Math.min(1 - x[i], value));
  const clipped = new Uint8Array(delta.length);
  for (;;) {
    let free = 0;
    let spent = 0;
    delta.forEach((value, i) => { if (clipped[i]) spent += clip(value, i) ** 2; else free += value * value; });
    const scale = Math.min(1, Math.sqrt(Math.max(0, eps * eps - spent) / free) || 0);
    let more = false;
    delta.forEach((value, i) => {
      if (clipped[i] || (scale * value >= -x[i] && scale * value <= 1 - x[i])) return;
      clipped[i] = 1;
      more = true;
    });
    if (!more) return delta.map((value, i) => clip(scale * value, i));
  }
}

/** A point of the perturbation set: uniform, in l2 on the ball and then projected. @param {Float32Array} x @param {Settings} settings */
export function randomPoint(x, settings) {
  const uniform = random(settings.seed);
  if (settings.norm === "linf")
    return x.map((value) => {
      const low = Math.max(-value, -settings.eps);
      return low + (Math.min(1 - value, settings.eps) - low) * uniform();
    });
  const direction = x.map(() => normal(uniform));
  const scale = (settings.eps / length(direction)) * uniform() ** (1 / x.length);
  return project(direction.map((value) => scale * value), x, settings);
}

/** Noise of the full size, for comparison: each value -eps or eps, or in l2 a random direction. @param {Float32Array} x @param {Settings} settings */
export function noise(x, settings) {
  const uniform = random(settings.seed);
  const delta = x.map(() => (settings.norm === "linf" ? Math.sign(uniform() - 0.5) * settings.eps : normal(uniform)));
  const scale = settings.norm === "linf" ? 1 : settings.eps / length(delta);
  return project(delta.map((value) => scale * value), x, settings);
}

/** The attack, a step at a time; it remembers the strongest point of its path. */
export class Attack {
  /** @param {Model} model @param {Float32Array} x @param {Settings} settings */
  constructor(model, x, settings) {
    this.model = model;
    this.x = x;
    this.settings = settings;
    this.step = -1;
    /** @type {Float32Array} */ this.delta = settings.randomStart ? randomPoint(x, settings) : new Float32Array(x.length);
    /** @type {Answer | null} */ this.answer = null;
    /** @type {Awaited<ReturnType<Attack["next"]>> | null} */ this.best = null;
  }

  /** Go on by a step, or first look at where it starts. */
  async next() {
    const { x, settings } = this;
    if (this.answer) this.delta = project(climb(this.delta, this.answer.gradient, settings), x, settings);
    const point = x.map((value, i) => value + this.delta[i]);
    this.answer = await this.model(point, settings);
    this.step++;
    const { logits } = this.answer;
    const loss = lossOf(settings.loss, logits, settings.goal);
    const fooled = (argmax(logits) === settings.goal) === settings.targeted;
    const height = settings.targeted ? -loss : loss;
    const seen = { step: this.step, image: point, delta: this.delta, logits, loss, fooled, height };
    const { best } = this;
    if (!best || (fooled && !best.fooled) || (fooled === best.fooled && height > best.height)) this.best = seen;
    return seen;
  }
}
