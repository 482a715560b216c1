// Makes two files of the thirty that the theme and Sphinx's extensions would have a page load: _static/site.css,
// without the rules that no page can use, and _static/site.js. Started by tools/book_site.py when the pages are there:
// node bundle.mjs FOLDER, and on stdin {"styles": [...], "own": [...], "scripts": [...]}, paths in FOLDER.
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build, transform } from "esbuild";
import { PurgeCSS } from "purgecss";

const out = process.argv[2];
const { styles, own, scripts } = JSON.parse(readFileSync(0, "utf8"));
const read = (name) => readFileSync(join(out, name), "utf8");
mkdirSync(join(out, "_static/fonts"), { recursive: true });

// The theme measures every block of code and changes it at once, so the browser lays the page out again for each, which
// on a phone takes most of a second. book.js does the same when a block comes near.
const TAB_STOPS = /\.forEach\((\w+)=>\{\1\.tabIndex=[^}]*scrollWidth[^}]*\}\)/;
const all = scripts.map(read).join("\n;\n");
if (!TAB_STOPS.test(all)) throw new Error("the theme no longer sets tab stops where tools/bundle.mjs looks for it");
const script = all.replace(TAB_STOPS, ".forEach(()=>{})");
writeFileSync(join(out, "_static/site.js"), (await transform(script, { minify: true, legalComments: "inline" })).code);

async function bundle(names) {
  const { outputFiles } = await build({
    stdin: { contents: names.map((name) => `@import "./${name}";`).join("\n"), resolveDir: out, loader: "css" },
    outfile: join(out, "_static/site.css"),
    bundle: true,
    minify: true,
    write: false,
    loader: { ".woff2": "file", ".ttf": "file", ".png": "dataurl", ".svg": "dataurl" },
    assetNames: "fonts/[name]",
  });
  for (const { path, contents } of outputFiles) if (path.endsWith(".woff2")) writeFileSync(path, contents);
  const css = outputFiles.find(({ path }) => path.endsWith(".css")).text;
  return css.replace(/,\s*url\([^)]+\.ttf"?\) ?format\("truetype"\)/g, ""); // every browser reads woff2
}

const pages = readdirSync(out, { recursive: true }).filter((name) => name.endsWith(".html"));
const [{ css: used }] = await new PurgeCSS().purge({
  css: [{ raw: await bundle(styles) }],
  content: [
    ...pages.map((name) => ({ raw: read(name), extension: "html" })),
    // Classes that scripts add.
    { raw: script, extension: "js" },
  ],
  keyframes: true, // but not fontFace: it does not see the family in a `font:` shorthand, and a face that nobody uses costs nothing
});
writeFileSync(join(out, "_static/site.css"), used + (await bundle(own)));
