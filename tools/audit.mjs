// Lighthouse over every page of the built site, as a telephone on a slow network would see it: `make audit`.
// Prints a table and fails if a page misses the book's budgets. Asks no other host for anything.
import { createReadStream, existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { gzipSync } from "node:zlib";
import { launch } from "chrome-launcher";
import lighthouse from "lighthouse";
import { throttling } from "lighthouse/core/config/constants.js";

const SITE = "_build/html";
const BUDGET = { performance: 90, accessibility: 100, "best-practices": 90, seo: 90, fcp: 1500, cls: 0.05 };
const TYPES = { ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".json": "application/json",
  ".svg": "image/svg+xml", ".xml": "application/xml", ".txt": "text/plain", ".png": "image/png", ".jpg": "image/jpeg",
  ".jpeg": "image/jpeg", ".woff2": "font/woff2", ".woff": "font/woff" };

// The pages, like GitHub Pages serves them: text compressed, everything cached for ten minutes.
const server = createServer((request, response) => {
  const path = join(SITE, normalize(decodeURIComponent(new URL(request.url, "http://site").pathname)));
  const file = existsSync(path) && statSync(path).isDirectory() ? join(path, "index.html") : path;
  const found = existsSync(file);
  const type = TYPES[extname(file)] ?? "application/octet-stream";
  const head = { "content-type": found ? type : "text/html; charset=utf-8", "cache-control": "max-age=600" };
  if (found && !/text|json|xml|svg/.test(type)) return createReadStream(file).pipe(response.writeHead(200, head));
  const body = gzipSync(readFileSync(found ? file : join(SITE, "404.html")));
  response.writeHead(found ? 200 : 404, { ...head, "content-encoding": "gzip", "content-length": body.length }).end(body);
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const site = `http://127.0.0.1:${server.address().port}`;

const pages = process.argv.slice(2).length
  ? process.argv.slice(2)
  : ["book", "notebooks"].flatMap((folder) => readdirSync(join(SITE, folder)).filter((name) => name.endsWith(".html")).map((name) => `${folder}/${name}`))
      .concat(["search.html", "genindex.html", "404.html"].filter((name) => existsSync(join(SITE, name))));

const chrome = await launch({
  chromePath: process.env.CHROMIUM || process.env.CHROME_PATH, // else it looks where Chrome usually is
  chromeFlags: ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
});

// Lighthouse slows the processor down by four, and so makes a telephone out of the machine that it expects, whose own
// benchmark gives 2,000 (github.com/GoogleChrome/lighthouse/blob/main/docs/throttling.md). A slower machine is slowed
// down less, so that it is the same telephone everywhere.
const TELEPHONE = 500;
const indices = [];
for (let i = 0; i < 3; i++) {
  const { lhr } = await lighthouse(`${site}/404.html`, { port: chrome.port, logLevel: "error", output: [], onlyAudits: ["document-title"] });
  indices.push(lhr.environment.benchmarkIndex);
}
const index = indices.sort((a, b) => a - b)[1];
const slowdown = Math.min(4, Math.max(1, index / TELEPHONE));
console.log(`This machine's benchmark index is ${Math.round(index)}: slowed down by ${slowdown.toFixed(1)}.`);

async function measure(page) {
  const options = { port: chrome.port, logLevel: "error", output: [], throttling: { ...throttling.mobileSlow4G, cpuSlowdownMultiplier: slowdown } };
  if (["404.html", "search.html"].includes(page)) options.skipAudits = ["is-crawlable"]; // search engines should not
  const { lhr } = await lighthouse(`${site}/${page}`, options);
  const score = (category) => Math.round(100 * lhr.categories[category].score);
  const number = (audit) => lhr.audits[audit].numericValue;
  const requests = lhr.audits["network-requests"].details.items;
  const failed = Object.values(lhr.categories).flatMap((category) => category.auditRefs)
    .filter(({ id, weight }) => weight && lhr.audits[id].score !== null && lhr.audits[id].score < 0.9).map(({ id }) => id);
  return {
    page, performance: score("performance"), accessibility: score("accessibility"), "best-practices": score("best-practices"), seo: score("seo"),
    fcp: number("first-contentful-paint"), lcp: number("largest-contentful-paint"), cls: number("cumulative-layout-shift"), tbt: number("total-blocking-time"),
    bytes: requests.reduce((sum, { transferSize }) => sum + (transferSize ?? 0), 0), requests: requests.length, failed,
    foreign: requests.map(({ url }) => url).filter((url) => !url.startsWith(site) && !url.startsWith("data:")),
  };
}

function misses(result) {
  const low = ["performance", "accessibility", "best-practices", "seo"].filter((name) => result[name] < BUDGET[name]);
  const high = ["fcp", "cls"].filter((name) => result[name] > BUDGET[name]);
  return [...low, ...high, ...result.foreign.map((url) => `asks ${url}`)];
}

const columns = ["performance", "accessibility", "best-practices", "seo", "fcp", "lcp", "cls", "tbt", "bytes", "requests"];
const titles = ["page", "perf", "a11y", "best", "seo", "FCP ms", "LCP ms", "CLS", "TBT ms", "bytes", "requests"];
const row = (cells) => console.log(cells.map((cell, i) => (i ? String(cell).padStart(9) : String(cell).padEnd(36))).join(""));
row(titles);
let bad = 0;
for (const page of pages) {
  let result = await measure(page);
  if (misses(result).length) {
    // A busy machine slows a page down: take the middle of three, of each number.
    const tries = [result, await measure(page), await measure(page)].sort((a, b) => a.performance - b.performance);
    const middle = (name) => tries.map((one) => one[name]).sort((a, b) => a - b)[1];
    result = { ...tries[1], ...Object.fromEntries(columns.map((name) => [name, middle(name)])) };
  }
  row([page, ...columns.map((name) => (name === "cls" ? result[name].toFixed(3) : Math.round(result[name])))]);
  const missed = misses(result);
  if (missed.length || result.failed.length) console.log(`    ${missed.length ? `MISSES ${missed.join(", ")}. ` : ""}below 0.9: ${result.failed.join(", ")}`);
  bad += missed.length > 0;
}
chrome.kill();
server.close();
server.closeAllConnections();
console.log(bad ? `${bad} of ${pages.length} pages miss the budget` : `${pages.length} pages keep the budget`);
process.exitCode = bad ? 1 : 0;
