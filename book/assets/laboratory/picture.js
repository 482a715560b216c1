// @ts-check
// Pictures to images and back, as in `helpers.data`: 3 x 224 x 224 values in [0, 1], all reds first, then greens, blues.

export const SIDE = 224;
const AREA = SIDE * SIDE;

/** @param {number} width @param {number} height */
function surface(width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
}

/** A picture's pixels, upright, on white where it is transparent; a huge one somewhat smaller. @param {Blob} file */
async function pixelsOf(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // turns the picture as its EXIF entry says
  } catch {
    throw new Error("This file is no picture that the browser can open. JPEG, PNG and WebP work everywhere.");
  }
  const scale = Math.min(1, Math.sqrt(12e6 / (bitmap.width * bitmap.height))); // what a phone has the memory for
  const context = surface(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
  const { width, height } = context.canvas;
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

/**
 * For each of SIDE places along an axis, the pixels that it is made of and their weights: a triangle as wide as needed.
 * @param {number} start @param {number} extent in pixels, need not be whole @param {number} size of the axis
 */
function taps(start, extent, size) {
  const step = extent / SIDE;
  const reach = Math.max(step, 1);
  return Array.from({ length: SIDE }, (_, i) => {
    const centre = start + (i + 0.5) * step;
    const from = Math.max(0, Math.floor(centre - reach + 0.5));
    const to = Math.min(size, Math.floor(centre + reach + 0.5));
    const weights = Array.from({ length: to - from }, (_, j) => Math.max(0, 1 - Math.abs(from + j + 0.5 - centre) / reach));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { from, weights: weights.map((weight) => weight / sum) };
  });
}

/**
 * The centre of any picture as an image: its shorter side becomes 256, and the middle 224 x 224 pixels stay.
 * @param {Blob} file
 */
export async function imageOf(file) {
  const { data, width, height } = await pixelsOf(file);
  const side = Math.min(width, height) * (1 - 2 / 16);
  const across = taps((width - side) / 2, side, width);
  const down = taps((height - side) / 2, side, height);
  const rows = new Float32Array(3 * SIDE * height); // first along the rows, then along the columns
  for (let y = 0; y < height; y++)
    across.forEach(({ from, weights }, x) => {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) sum += weights[j] * data[4 * (y * width + from + j) + c];
        rows[(c * height + y) * SIDE + x] = Math.round(sum);
      }
    });
  const image = new Float32Array(3 * AREA);
  for (let c = 0; c < 3; c++)
    down.forEach(({ from, weights }, y) => {
      for (let x = 0; x < SIDE; x++) {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) sum += weights[j] * rows[(c * height + from + j) * SIDE + x];
        image[c * AREA + y * SIDE + x] = Math.round(sum) / 255;
      }
    });
  return image;
}

/** A saved image, 224 x 224 pixels, as it is. @param {Blob} file */
export async function savedImageOf(file) {
  const { data, width, height } = await pixelsOf(file);
  if (width !== SIDE || height !== SIDE)
    throw new Error(`A saved image has ${SIDE} x ${SIDE} pixels; this one has ${width} x ${height}. For a picture of any size, use "Your own picture".`);
  return Float32Array.from({ length: 3 * AREA }, (_, i) => data[4 * (i % AREA) + Math.floor(i / AREA)] / 255);
}

/**
 * Draw an image, each value as `plus + times * value`.
 * @param {HTMLCanvasElement} canvas @param {Float32Array} image @param {number} [times] @param {number} [plus]
 */
export function draw(canvas, image, times = 1, plus = 0) {
  const side = Math.sqrt(image.length / (image.length === AREA * 3 ? 3 : 1));
  const area = side * side;
  const [green, blue] = image.length === area ? [0, 0] : [area, 2 * area]; // where they begin
  const pixels = new ImageData(side, side);
  const { data } = pixels; // which rounds
  for (let i = 0; i < area; i++) {
    data[4 * i] = 255 * (plus + times * image[i]);
    data[4 * i + 1] = 255 * (plus + times * image[green + i]);
    data[4 * i + 2] = 255 * (plus + times * image[blue + i]);
    data[4 * i + 3] = 255;
  }
  canvas.width = canvas.height = side;
  /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(pixels, 0, 0);
}

/** Draw a perturbation so that it can be seen: grey is no change. @param {HTMLCanvasElement} canvas @param {Float32Array} delta @param {number} times */
export const drawDelta = (canvas, delta, times) => draw(canvas, delta, times, 0.5);

/** An image as a PNG file: whole grey levels, so it is rounded. @param {Float32Array} image @returns {Promise<Blob>} */
export function pngOf(image) {
  const canvas = document.createElement("canvas");
  draw(canvas, image);
  return new Promise((done, fail) => canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error("The browser could not write the picture."))), "image/png"));
}
