// Copies what a page needs from node_modules into _build/vendor, which is one of the site's static folders.
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const OUT = "_build/vendor";
rmSync(OUT, { recursive: true, force: true });

// KaTeX: the stylesheet and its fonts. The pages hold finished HTML, so no script. Every browser reads woff2.
const dist = "node_modules/katex/dist";
mkdirSync(`${OUT}/katex/fonts`, { recursive: true });
const css = readFileSync(`${dist}/katex.min.css`, "utf8");
writeFileSync(`${OUT}/katex/katex.css`, css.replace(/,url\([^)]+\.(woff|ttf)\) format\("[a-z]+"\)/g, ""));
for (const font of readdirSync(`${dist}/fonts`).filter((name) => name.endsWith(".woff2")))
  cpSync(`${dist}/fonts/${font}`, `${OUT}/katex/fonts/${font}`);

// ipywidgets: one script and one stylesheet, loaded only where there is a widget to draw.
await build({
  entryPoints: { widgets: "tools/widgets.mjs" },
  outdir: `${OUT}/widgets`,
  bundle: true,
  minify: true,
  legalComments: "linked", // the authors' licences travel along, in a file of their own
  format: "esm",
});
