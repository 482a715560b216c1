// Copies what a page needs from node_modules into _build/vendor, which is one of the site's static folders.
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";

const OUT = "_build/vendor";
rmSync(OUT, { recursive: true, force: true });

// KaTeX: the stylesheet and its fonts. The pages hold finished HTML, so no script. Every browser reads woff2.
const dist = "node_modules/katex/dist";
mkdirSync(`${OUT}/katex/fonts`, { recursive: true });
const css = readFileSync(`${dist}/katex.min.css`, "utf8");
writeFileSync(`${OUT}/katex/katex.css`, css.replace(/,url\([^)]+\.(woff|ttf)\) format\("[a-z]+"\)/g, ""));
for (const font of readdirSync(`${dist}/fonts`).filter((name) => name.endsWith(".woff2")))
  cpSync(`${dist}/fonts/${font}`, `${OUT}/katex/fonts/${font}`);
