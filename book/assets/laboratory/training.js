// @ts-check
// The book's network for digits, trained in the browser: `helpers.training.train`, with Adam written out.
import { project, random } from "./attack.js";

/** @typedef {(image: Float32Array, labels: Uint8Array, weights: Float32Array[]) => Promise<Record<string, Float32Array>>} Graph */

export const SHAPES = [[16, 1, 4, 4], [16], [32, 16, 4, 4], [32], [100, 1568], [100], [10, 100], [10]];
const PIXELS = 784;
const BATCH = 100;
const LEARNING_RATE = 2e-3;

/** Weights as PyTorch starts them: uniform, up to one over the root of a neuron's inputs. @param {number} seed */
function freshWeights(seed) {
  const uniform = random(seed);
  return SHAPES.map((shape, i) => {
    const kernel = SHAPES[i - (i % 2)];
    const bound = 1 / Math.sqrt(kernel.slice(1).reduce((product, n) => product * n, 1));
    return Float32Array.from({ length: shape.reduce((product, n) => product * n, 1) }, () => bound * (2 * uniform() - 1));
  });
}

/**
 * Attack a batch of digits with l-inf PGD on the cross-entropy; return the last point of the path.
 * @param {Graph} graph @param {Float32Array[]} weights @param {Float32Array} x @param {Uint8Array} labels
 * @param {number} eps @param {number} steps @param {(image: Float32Array, logits: Float32Array) => void} [look]
 */
export async function attackDigits(graph, weights, x, labels, eps, steps, look) {
  let image = x;
  for (let step = 0; step < steps; step++) {
    const { logits, gradient } = await graph(image, labels, weights);
    look?.(image, logits);
    const delta = image.map((value, i) => value - x[i] + ((2.5 * eps) / steps) * Math.sign(gradient[i]));
    const kept = project(delta, x, { norm: "linf", eps });
    image = x.map((value, i) => value + kept[i]);
  }
  if (look) look(image, (await graph(image, labels, weights)).logits);
  return image;
}

/** How many of a batch are wrong. @param {Float32Array} logits @param {Uint8Array} labels */
export function wrongOf(logits, labels) {
  return labels.reduce((wrong, label, i) => {
    const own = logits.subarray(10 * i, 10 * i + 10);
    if (!own.every(Number.isFinite)) throw new Error("The network's logits are no numbers any more: the training went astray. Train again, with another eps.");
    return wrong + Number(own.some((logit, k) => k !== label && logit >= own[label]));
  }, 0);
}

/** Standard training, or with eps above 0 min-max training against PGD-5 with a ramp of eps. */
export class Training {
  /**
   * @param {{attack: Graph, train: Graph}} graphs @param {{pixels: Float32Array, labels: Uint8Array}} digits to train on
   * @param {number} eps @param {number} epochs @param {number} seed
   */
  constructor(graphs, digits, eps, epochs, seed) {
    this.graphs = graphs;
    this.digits = digits;
    this.eps = eps;
    this.epochs = epochs;
    this.uniform = random(seed);
    this.weights = freshWeights(seed);
    this.moments = this.weights.map((w) => [new Float32Array(w.length), new Float32Array(w.length)]);
    this.perEpoch = digits.labels.length / BATCH;
    this.step = 0;
    /** @type {number[]} */ this.order = [];
  }

  get done() { return this.step >= this.epochs * this.perEpoch; }

  /** Learn from one batch; return how many of it were wrong when it was their turn. */
  async next() {
    if (this.step % this.perEpoch === 0) this.shuffle();
    const rows = this.order.splice(0, BATCH);
    const labels = Uint8Array.from(rows, (row) => this.digits.labels[row]);
    /** @type {Float32Array} */ let image = new Float32Array(BATCH * PIXELS);
    rows.forEach((row, i) => image.set(this.digits.pixels.subarray(row * PIXELS, (row + 1) * PIXELS), i * PIXELS));
    const ramp = Math.min(1, (this.step + 1) / (this.perEpoch * (this.epochs / 2)));
    if (this.eps > 0) image = await attackDigits(this.graphs.attack, this.weights, image, labels, this.eps * ramp, 5);
    const answer = await this.graphs.train(image, labels, this.weights);
    this.adam(SHAPES.map((_, i) => answer[`gradient_${i}`]));
    return wrongOf(answer.logits, labels);
  }

  shuffle() {
    this.order = Array.from(this.digits.labels, (_, i) => i);
    for (let i = this.order.length - 1; i > 0; i--) {
      const j = Math.floor(this.uniform() * (i + 1));
      [this.order[i], this.order[j]] = [this.order[j], this.order[i]];
    }
  }

  /** One step of Adam (Kingma and Ba 2015); the rate falls to 0 in the second half. @param {Float32Array[]} gradients */
  adam(gradients) {
    const rate = LEARNING_RATE * Math.min(1, 2 * (1 - this.step / (this.epochs * this.perEpoch)));
    this.step++;
    const first = 1 - 0.9 ** this.step;
    const second = Math.sqrt(1 - 0.999 ** this.step);
    gradients.forEach((gradient, which) => {
      const weight = this.weights[which];
      const [mean, square] = this.moments[which];
      for (let i = 0; i < weight.length; i++) {
        const g = gradient[i] / BATCH;
        mean[i] += 0.1 * (g - mean[i]);
        square[i] += 0.001 * (g * g - square[i]);
        weight[i] -= (rate * mean[i]) / first / (Math.sqrt(square[i]) / second + 1e-8);
      }
    });
  }
}
