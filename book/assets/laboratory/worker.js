// @ts-check
// What computes, away from the page, so that the page never stalls. The page asks by messages and gets one answer each.
import { Attack, argmax, noise } from "./attack.js";
import { bytes, version } from "./files.js";
import { Training, attackDigits, wrongOf, SHAPES } from "./training.js";

/** @typedef {import("onnxruntime-web/wasm").InferenceSession} Session */
/** @typedef {import("./attack.js").Settings} Settings */

export const STORE = "laboratory-";
const PIXELS = 784;
const TEST = 1000; // of the 5,000 digits

/** @type {typeof import("onnxruntime-web/wasm")} */ let ort;
/** @type {Promise<void> | null} */ let runtime = null; // which the benches share
/** @type {Session} */ let classifier;
/** @type {Attack} */ let attack;
/** @type {Record<"attack" | "train", Session>} */ let graphs;
/** @type {Uint8Array} */ let labels;
/** @type {Float32Array} */ let pixels;
/** @type {Record<string, Training>} */ const trainings = {};

/**
 * A file of the laboratory: from this browser's store, or else from the site, and then into the store.
 * @param {string} name @param {(more: number) => void} progress told how many more bytes are here
 * @param {Promise<void>[]} kept what is being stored meanwhile
 */
async function fetched(name, progress, kept) {
  const url = new URL(`${name}?${version}`, import.meta.url);
  const store = "caches" in self ? await caches.open(STORE + version).catch(() => null) : null;
  let response = await store?.match(url);
  if (!response) {
    response = await fetch(url).catch(() => { throw new Error(`The site does not answer, so ${name} could not be loaded. Is the network on?`); });
    if (!response.ok || !response.body) throw new Error(`The site has no file ${name} (answer ${response.status}).`);
    if (store) kept.push(store.put(url, response.clone()).catch(() => {})); // no room: it is fetched again next time
  }
  const counted = new TransformStream({
    transform(chunk, controller) {
      progress(chunk.length);
      controller.enqueue(chunk);
    },
  });
  const unpacked = /** @type {ReadableStream} */ (response.body).pipeThrough(counted).pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

/** @param {Uint8Array} graph */
const session = (graph) => ort.InferenceSession.create(graph, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });

/** @param {Float32Array} data @param {number[]} shape */
const tensor = (data, shape) => new ort.Tensor("float32", data, shape);

/** @type {import("./attack.js").Model} */
async function classify(image, { goal, loss }) {
  const own = new Float32Array(1000);
  own[goal] = 1;
  const relative = loss === "soft_margin" ? 0.1 : 0;
  const { logits, gradient } = await classifier.run({
    image: tensor(image, [1, 3, 224, 224]),
    own: tensor(own, [1, 1000]),
    fixed: tensor(Float32Array.of(relative ? 0 : 1), [1, 1]),
    relative: tensor(Float32Array.of(relative), [1, 1]),
  });
  return { logits: /** @type {Float32Array} */ (logits.data), gradient: /** @type {Float32Array} */ (gradient.data) };
}

/** @param {"attack" | "train"} which @returns {import("./training.js").Graph} */
const graphOf = (which) => async (image, classes, weights) => {
  const own = new Float32Array(10 * classes.length);
  classes.forEach((k, i) => { own[10 * i + k] = 1; });
  const feeds = Object.fromEntries(weights.map((weight, i) => [`weight_${i}`, tensor(weight, SHAPES[i])]));
  feeds.image = tensor(image, [classes.length, 1, 28, 28]);
  feeds.own = tensor(own, [classes.length, 10]);
  const found = await graphs[which].run(feeds);
  return Object.fromEntries(Object.entries(found).map(([name, { data }]) => [name, /** @type {Float32Array} */ (data)]));
};

/** @param {number} from @param {number} to */
const some = (from, to) => ({ pixels: pixels.subarray(from * PIXELS, to * PIXELS), labels: labels.subarray(from, to) });

/** @param {Promise<Uint8Array>} binary */
async function startRuntime(binary) {
  try {
    const module = await import(new URL("./ort.wasm.min.mjs", import.meta.url).href);
    module.env.wasm.numThreads = 1;
    module.env.wasm.wasmBinary = await binary;
    module.env.wasm.wasmPaths = { mjs: new URL("./ort-wasm-simd-threaded.mjs", import.meta.url).href };
    ort = module;
  } catch (error) {
    runtime = null; // it can be tried again
    throw error;
  }
}

const requests = {
  /** Fetch what a bench needs, and start it. @param {{bench: "classifier" | "digits"}} what @param {number} id */
  async load({ bench }, id) {
    // A module whose only function multiplies two vectors of four numbers: what every browser since 2021 can.
    const simd = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(simd) || typeof DecompressionStream !== "function")
      throw new Error("This browser is too old for the laboratory, which needs WebAssembly with SIMD. A current Chrome, Edge, Firefox or Safari has it.");
    const names = bench === "classifier" ? ["classifier.bin", "names.bin"] : ["digits.bin", "digits_attack.bin", "digits_train.bin"];
    if (!runtime) names.unshift("runtime.bin");
    const total = names.reduce((sum, name) => sum + bytes[name], 0);
    let here = 0;
    /** @type {Promise<void>[]} */ const kept = [];
    const files = Object.fromEntries(names.map((name) => [name, fetched(name, (more) => {
      here += more;
      postMessage({ id, progress: here, total });
    }, kept)]));
    runtime ??= startRuntime(files["runtime.bin"]);
    runtime.catch(() => {}); // said below, by whoever waits for it
    const file = Object.fromEntries(await Promise.all(Object.entries(files).map(async ([name, content]) => [name, await content])));
    await runtime;
    await Promise.all(kept);
    if (bench === "classifier") {
      classifier = await session(file["classifier.bin"]);
      return JSON.parse(new TextDecoder().decode(file["names.bin"]));
    }
    const digits = file["digits.bin"];
    const count = digits.length / (PIXELS + 1);
    labels = digits.slice(0, count);
    pixels = Float32Array.from(digits.subarray(count), (level) => level / 255);
    graphs = { attack: await session(file["digits_attack.bin"]), train: await session(file["digits_train.bin"]) };
    return count;
  },

  /** What the classifier says of an image. @param {{image: Float32Array}} what */
  async classify({ image }) {
    return (await classify(image, /** @type {Settings} */ ({ goal: 0, loss: "cross_entropy" }))).logits;
  },

  /** What the classifier computes, for tests. @param {{image: Float32Array, settings: Settings}} what */
  answer: ({ image, settings }) => classify(image, settings),

  /** Begin an attack and look at where it starts. @param {{image: Float32Array, settings: Settings}} what */
  start({ image, settings }) {
    attack = new Attack(classify, image, settings);
    return attack.next();
  },

  step: () => attack.next(),

  best: () => attack.best,

  /** An image with noise of the full size, and what the classifier says of it. @param {{image: Float32Array, settings: Settings}} what */
  async noise({ image, settings }) {
    const delta = noise(image, settings);
    const noisy = image.map((value, i) => value + delta[i]);
    return { image: noisy, delta, logits: (await classify(noisy, settings)).logits };
  },

  /** Begin to train a network. @param {{name: string, eps: number, epochs: number, seed: number}} what */
  train({ name, eps, epochs, seed }) {
    const both = { attack: graphOf("attack"), train: graphOf("train") };
    trainings[name] = new Training(both, some(0, labels.length - TEST), eps, epochs, seed);
  },

  /** Learn from one batch. @param {{name: string}} what */
  async batch({ name }) {
    const training = trainings[name];
    const wrong = await training.next();
    return { wrong, epoch: training.step / training.perEpoch, done: training.done };
  },

  /** A network's errors on digits that it has not seen: clean, and under PGD with all its points judged.
   * @param {{name: string, eps: number, steps: number, count: number}} what */
  async test({ name, eps, steps, count }) {
    let clean = 0;
    let broken = 0;
    for (let from = labels.length - TEST; from < labels.length - TEST + count; from += 100) {
      const batch = some(from, from + 100);
      const fooled = new Uint8Array(100);
      let first = true;
      await attackDigits(graphOf("attack"), trainings[name].weights, batch.pixels, batch.labels, eps, steps, (_, logits) => {
        for (let i = 0; i < 100; i++)
          if (wrongOf(logits.subarray(10 * i, 10 * i + 10), batch.labels.subarray(i, i + 1))) fooled[i] = 1;
        if (first) clean += fooled.reduce((sum, one) => sum + one, 0);
        first = false;
      });
      broken += fooled.reduce((sum, one) => sum + one, 0);
    }
    return { clean: clean / count, broken: broken / count };
  },

  /** What a network says of one digit. @param {{name: string, image: Float32Array}} what */
  async read({ name, image }) {
    return (await graphOf("attack")(image, Uint8Array.of(0), trainings[name].weights)).logits;
  },

  /** Attack one digit until the network's answer changes. @param {{name: string, image: Float32Array, eps: number, steps: number}} what */
  async attackDigit({ name, image, eps, steps }) {
    const { weights } = trainings[name];
    const before = argmax(await requests.read({ name, image }));
    /** @type {Float32Array | null} */ let found = null;
    const last = await attackDigits(graphOf("attack"), weights, image, Uint8Array.of(before), eps, steps, (point, logits) => {
      if (argmax(logits) !== before) found ??= point;
    });
    const adversarial = found ?? last;
    return { before, image: adversarial, logits: await requests.read({ name, image: adversarial }) };
  },

  /** One of the digits of the test set. @param {{index: number}} what */
  digit({ index }) {
    const at = labels.length - TEST + index;
    return { image: some(at, at + 1).pixels.slice(), label: labels[at] };
  },

  /** The weights of a trained network, for tests. @param {{name: string}} what */
  weights: ({ name }) => trainings[name].weights,

  /** What a graph of the network for digits computes, for tests. @param {{which: "attack" | "train", image: Float32Array, classes: Uint8Array, weights: Float32Array[]}} what */
  graph: ({ which, image, classes, weights }) => graphOf(which)(image, classes, weights),
};

addEventListener("message", async ({ data: { id, what, ...rest } }) => {
  try {
    postMessage({ id, result: await requests[/** @type {keyof typeof requests} */ (what)](rest, id) });
  } catch (error) {
    postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
});
