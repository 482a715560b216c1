// @ts-check
// What the benches share: the worker that computes for them, and words for the reader.
import { bytes, version } from "./files.js";

/** @param {string} id @returns {HTMLElement} */
export function part(id) {
  const found = document.getElementById(`lab-${id}`);
  if (!found) throw new Error(`The page has no part ${id}.`);
  return found;
}

/** Say something where a screen reader hears it. @param {string} id @param {string} words */
export const say = (id, words) => { part(id).textContent = words; };

/** Do something when a button is pressed; what goes wrong becomes a sentence. @param {string} id @param {string} status @param {() => Promise<unknown>} job */
export function button(id, status, job) {
  part(id).addEventListener("click", async () => {
    try {
      await job();
    } catch (error) {
      const words = error instanceof Error ? error.message : String(error);
      const memory = /memory|allocat|RangeError/i.test(words);
      say(status, memory ? `The browser did not give the laboratory enough memory (${words}). Close other pages and load this one again.` : words);
    }
  });
}

/** @type {Worker | null} */ let worker = null;
/** @typedef {(here: number, total: number) => void} Progress */
/** @type {Map<number, {done: (result: any) => void, fail: (error: Error) => void, progress: Progress}>} */ const waiting = new Map();
let last = 0;

/** Ask the worker. @param {string} what @param {object} [rest] @param {Progress} [progress] @returns {Promise<any>} */
export function ask(what, rest = {}, progress = () => {}) {
  if (!worker) {
    worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    worker.addEventListener("message", ({ data }) => {
      const { done, fail, progress: told } = /** @type {NonNullable<ReturnType<typeof waiting.get>>} */ (waiting.get(data.id));
      if ("progress" in data) return told(data.progress, data.total);
      waiting.delete(data.id);
      if ("error" in data) fail(new Error(data.error));
      else done(data.result);
    });
    worker.addEventListener("error", (event) => {
      for (const { fail } of waiting.values()) fail(new Error(event.message || "The laboratory's worker could not start. Load the page again."));
      waiting.clear();
    });
  }
  return new Promise((done, fail) => {
    waiting.set(++last, { done, fail, progress });
    /** @type {Worker} */ (worker).postMessage({ id: last, what, ...rest });
  });
}

const FILES = { classifier: ["runtime.bin", "classifier.bin", "names.bin"], digits: ["runtime.bin", "digits.bin", "digits_attack.bin", "digits_train.bin"] };
/** @param {number} amount */
const megabytes = (amount) => `${(amount / 1e6).toFixed(1)} MB`;

/** What a bench has to download, in words. @param {"classifier" | "digits"} bench */
export async function sizeOf(bench) {
  const store = "caches" in window ? await caches.open(`laboratory-${version}`).catch(() => null) : null;
  const stored = store ? new Set((await store.keys()).map(({ url }) => new URL(url).pathname.split("/").pop())) : new Set();
  const missing = FILES[bench].filter((name) => !stored.has(name));
  return missing.length ? megabytes(missing.reduce((sum, name) => sum + bytes[name], 0)) : "stored on this device";
}

/** Load what a bench needs, with a progress bar. @param {"classifier" | "digits"} bench @param {string} bar @param {string} pressed @returns {Promise<any>} */
export async function loadBench(bench, bar, pressed) {
  const progress = /** @type {HTMLProgressElement} */ (part(bar));
  const control = /** @type {HTMLButtonElement} */ (part(pressed));
  const label = control.textContent;
  control.disabled = true;
  progress.hidden = false;
  try {
    for (const name of "caches" in window ? await caches.keys() : []) // an older book's files
      if (name.startsWith("laboratory-") && name !== `laboratory-${version}`) await caches.delete(name);
    return await ask("load", { bench }, (here, total) => {
      progress.max = total;
      progress.value = here;
      control.textContent = here < total ? `Loading: ${megabytes(here)} of ${megabytes(total)}` : "Starting …";
    });
  } catch (error) {
    control.disabled = false;
    control.textContent = label;
    throw error;
  } finally {
    progress.hidden = true;
  }
}
