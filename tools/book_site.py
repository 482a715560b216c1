"""What this site adds to Jupyter Book, as one small Sphinx extension (named in `_config.yml`).

- Formulas become HTML and MathML while the book is built, by KaTeX in a node process: a page needs no math script,
  nothing moves when it loads, and TeX that cannot be rendered is a build warning, hence an error.
- A paragraph that opens with an emphasized "Figure ..." looks like a caption. Figures and formulas have addresses.
- Every page gets a description, for search engines and social cards: its own, or else its first sentences. It gets
  a social card, a folded citation, and a link to the next page that shows the question which that page answers.
- A page loads one stylesheet and one script, made of what the theme brings, without what no page uses. Pictures have
  their size, so that nothing moves, and come when the reader does; the state of the widgets too.
- The figures that matplotlib drew, as SVG, get the colours of the page: each is there twice, for light and for dark.
- Beside the pages: the front door `index.html`, which leads to the book's first page, `404.html`, `robots.txt` and
  `sitemap.xml`. The site's address follows from the repository's, in `_config.yml`.
"""

import base64
import io
import json
import posixpath
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterable
from html import escape, unescape
from logging import getLogger
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from PIL import Image
from repository import site_address
from social_card import draw_card
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
MADE_WITH = ("tools", "book/assets", "book/templates", "_build/vendor")
THEME = "_static/styles/theme.css", "_static/styles/pydata-sphinx-theme.css"
THEME_SCRIPTS = "_static/scripts/bootstrap.js", "_static/scripts/pydata-sphinx-theme.js"
OWN = "_static/book.css"
# What a page's formulas need at once, and the classes that KaTeX writes where it does (see katex.css).
FONTS = {
    "Main-Regular": "katex",
    "Math-Italic": "mathnormal",
    "Main-Bold": "mathbf|textbf",
    "AMS-Regular": "amsrm|mathbb|textbb",
    "Caligraphic-Regular": "mathcal",
    "Size1-Regular": "small-op|delimsizing size1|delim-size1",
    "Size2-Regular": "large-op|delimsizing size2",
    "Size3-Regular": "delimsizing size3",
    "Size4-Regular": "delimsizing size4|delim-size4",
}
logger = logging.getLogger(__name__)


def node_program() -> str:
    """Return the path of node."""
    node = shutil.which("node")
    if node is None:
        raise RuntimeError("no `node` on PATH: build with `make book`, whose environment has one")
    return node


def set_address(app: Sphinx, config: Config) -> None:
    """Let Sphinx know the site's address: it writes canonical links."""
    config.html_baseurl = config.html_baseurl or site_address(config.html_theme_options["repository_url"])


class Katex:
    """The node process, started for the first formula of a build and asked one formula at a time."""

    process: subprocess.Popen[str] | None = None

    @classmethod
    def render(cls, tex: str, display: bool, where: nodes.Node) -> str:
        """Return the HTML of a formula; warn, with the place in the source, about one that KaTeX refuses."""
        if cls.process is None:
            cls.process = subprocess.Popen(
                [node_program(), str(HERE / "katex.mjs")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        assert cls.process.stdin and cls.process.stdout
        cls.process.stdin.write(json.dumps({"tex": tex, "displayMode": display}) + "\n")
        cls.process.stdin.flush()
        line = cls.process.stdout.readline()
        if not line:
            raise RuntimeError("the KaTeX process died; its own message is above")
        reply = json.loads(line)
        if "error" in reply:
            logger.warning("KaTeX cannot render %r: %s", tex, reply["error"], location=where, type="katex")
            return f'<code class="katex-error">{escape(tex)}</code>'
        return reply["html"]


def visit_math(self: Any, node: nodes.math) -> None:
    """Write an inline formula."""
    html = Katex.render(node.astext(), False, node)
    self.body.append(self.starttag(node, "span", "", CLASS="math") + html + "</span>")
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Write a displayed formula, with its number where it has one, and its permalink."""
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append('<span class="eqno">')
    if node["number"]:
        self.body.append(f"({get_node_equation_number(self, node)})")
    self.add_permalink_ref(node, "Link to this equation")
    self.body.append("</span>" + Katex.render(node.astext(), True, node) + "</div>\n")
    raise nodes.SkipNode


# The colours of `helpers.plots` that a dark page needs brighter, with black, the words.
AT_NIGHT = {
    "#000000": "#ced6dd",
    "#0072b2": "#3fa0dc",
    "#d55e00": "#f58231",
    "#009e73": "#2bbd92",
    "#cc79a7": "#e39cc3",
    "#56b4e9": "#a5dafa",
}
# What Pygments writes around names, punctuation and spaces, which have the colour of the text: of a chapter's elements,
# every third.
PLAIN_CODE = re.compile(r'<span class="(?:nn?|p|w)">([^<]*)</span>')
ENLARGED = 1.25  # a figure of 4.8 inches, or 461 pixels, is 576 wide where there is room


def visit_image(self: Any, node: nodes.image) -> None:
    """Write a picture with its size in pixels, so that the browser leaves room for it; it may come late.

    A figure of matplotlib's becomes two, one for light pages and one for dark ones; the browser loads what it shows.
    """
    uri = node["uri"]
    path = Path(self.builder.srcdir, uri)
    HTML5Translator.visit_image(self, node)
    loading = "" if "eager" in node["classes"] else ' loading="lazy"'
    if path.suffix != ".svg":
        with Image.open(path) as image:
            size = f'width="{image.width}" height="{image.height}"'
        self.body[-1] = self.body[-1].replace("<img ", f"<img {size}{loading} ", 1)
    elif 'id="figure_1"' in (svg := path.read_text(encoding="utf-8")):
        points = re.findall(r' (?:width|height)="([\d.]+)pt"', svg)[:2]
        width, height = (ENLARGED * 4 / 3 * float(side) for side in points)
        written = self.body.pop()
        for theme in ("light", "dark"):
            content = svg.replace("fill: #ffffff", "fill: none", 1)  # the figure's ground is the page's
            if theme == "dark":
                content = content.replace("<svg ", f'<svg fill="{AT_NIGHT["#000000"]}" ', 1)
                content = re.sub("|".join(AT_NIGHT), lambda color: AT_NIGHT[color[0]], content)
            name = f"{Path(self.builder.images[uri]).stem}-{theme}.svg"
            target = Path(self.builder.outdir, self.builder.imagedir, name)
            target.parent.mkdir(exist_ok=True)
            target.write_text(content, encoding="utf-8")
            source = posixpath.join(self.builder.imgpath, name)
            new = f'src="{source}" width="{width:.0f}" height="{height:.0f}" class="drawn only-{theme}"{loading}'
            self.body.append(re.sub(r' (src|class)="[^"]*"', "", written).replace("<img ", f"<img {new} ", 1))


def describe(doctree: nodes.document, limit: int = 200) -> str:
    """Return the page's first sentences, as many as fit."""
    text = ""
    for paragraph in doctree.findall(nodes.paragraph):
        more = " ".join(paragraph.astext().split())
        # Captions and buttons describe nothing by themselves, and formulas read badly in a search result.
        if (
            "figure-caption" in paragraph["classes"]
            or more[-1:] not in (".", "?", "!")
            or any(paragraph.findall(nodes.math))
        ):
            continue
        text = f"{text} {more}".strip()
        if len(text) > 100:
            break
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " …"


class Bundle:
    """The stylesheets and scripts that a build's pages ask for, which become two files."""

    styles: dict[str, None] = {}  # noqa: RUF012  (in order, each once)
    scripts: dict[str, None] = {}  # noqa: RUF012

    @classmethod
    def take(cls, context: dict[str, Any]) -> None:
        """Take what a page would load. The scripts without a file only set options that are off."""
        for files, into in ((context["css_files"], cls.styles), (context["script_files"], cls.scripts)):
            into.update({str(file.filename): None for file in files if file.filename})

    @classmethod
    def write(cls, folder: Path) -> None:
        """Write `site.css` and `site.js`, if any page was written."""
        if not cls.styles:
            return
        styles = [*THEME, *(name for name in cls.styles if name != OWN)]
        files = {"styles": styles, "own": [OWN], "scripts": [*cls.scripts, *THEME_SCRIPTS]}
        command = [node_program(), str(HERE / "bundle.mjs"), str(folder)]
        subprocess.run(command, input=json.dumps(files), text=True, check=True)
        sheet = folder / "_static" / "site.css"
        css = with_few_icons(sheet.read_text(encoding="utf-8"), folder / "_static")
        sheet.write_text(with_few_letters(css, folder), encoding="utf-8")
        cls.styles, cls.scripts = {}, {}


getLogger("fontTools").setLevel("ERROR")  # it reports every glyph


def subset_font(path: Path, characters: Iterable[int]) -> bytes:
    """Return a font with these characters only, as woff: no page pays for the others."""
    options = subset.Options(hinting=False)
    font = subset.load_font(path, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=characters)
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(file := io.BytesIO())
    return file.getvalue()


def with_few_letters(css: str, folder: Path) -> str:
    """Put KaTeX's fonts with the characters of the site's pages in place of those with all, for a stylesheet."""
    characters = {ord(letter) for page in folder.rglob("*.html") for letter in unescape(page.read_text("utf-8"))}
    for whole in (folder / "_static" / "fonts").glob("KaTeX_*.woff2"):
        source = HERE.parent / "node_modules/katex/dist/fonts" / f"{whole.stem}.ttf"
        whole.with_suffix(".woff").write_bytes(subset_font(source, characters))
        whole.unlink()
    return re.sub(r'(KaTeX_[\w-]+\.woff)2("?\) ?format\("woff)2"', r'\1\2"', css)


def with_few_icons(css: str, folder: Path) -> str:
    """Put the few icons that a stylesheet still names into it, in place of the fonts with all of Font Awesome."""
    named = {int(code, 16) for code in re.findall(r'content:\s*"\\(f[0-9a-f]{3})"', css)}

    def inline(match: re.Match[str]) -> str:
        font = subset_font(next(folder.rglob(f"{match[1]}.ttf")), named)
        return f'url(data:font/woff;base64,{base64.b64encode(font).decode()}) format("woff")'

    return re.sub(r'url\("?(?:\./)?fonts/(fa-[\w-]+)\.woff2"?\) ?format\("woff2"\)', inline, css)


def citation(config: Config, pagename: str, title: str) -> str:
    """Return a folded block that says how to cite a page."""
    year, url = config.copyright, f"{config.html_baseurl}{pagename}.html"
    key = "hands_on_" + pagename.split("/")[-1]
    entry = (
        f"@incollection{{{key},\n  title     = {{{title}}},\n  author    = {{{{{config.author}}}}},\n"
        f"  booktitle = {{{config.html_title}}},\n  year      = {{{year}}},\n  url       = {{{url}}}\n}}"
    )
    return (
        f'<details class="cite-this-page"><summary>Cite this page</summary>\n'
        f"<p>{escape(config.author)} ({year}). <q>{escape(title)}</q>. In <cite>{escape(config.html_title)}</cite>. "
        f'<a href="{url}">{url}</a></p>\n'
        f'<div class="highlight"><pre tabindex="0">{escape(entry)}</pre></div></details>\n'
    )


def complete(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Complete a page: what its head says about it, what it loads, and what follows its text."""
    config, out = app.config, Path(app.outdir)
    tags = []
    if doctree is not None:
        own = re.search(
            r'name="description" content="([^"]*)"|content="([^"]*)" name="description"', context["metatags"]
        )
        description = (own and (own[1] or own[2])) or escape(describe(doctree))
        title = re.sub("<[^>]*>", "", context["title"])
        card = f"_static/cards/{pagename.split('/')[-1]}.jpg"
        draw_card(out / card, unescape(title), question(doctree), config.html_title)
        tags += [] if own else [f'<meta name="description" content="{description}">']
        tags += [
            f'<meta property="og:title" content="{title}">',
            f'<meta property="og:description" content="{description}">',
            f'<meta property="og:site_name" content="{escape(config.html_title)}">',
            '<meta property="og:type" content="article">',
            f'<meta property="og:url" content="{context["pageurl"]}">',
            f'<meta property="og:image" content="{config.html_baseurl}{card}">',
            '<meta property="og:image:width" content="1200">',
            '<meta property="og:image:height" content="630">',
            f'<meta property="og:image:alt" content="{title}. {escape(question(doctree))}">',
            '<meta name="twitter:card" content="summary_large_image">',
        ]
        for font, classes in FONTS.items():
            if re.search(rf'class="[^"]*\b({classes})\b', context["body"]):
                href = context["pathto"](f"_static/fonts/KaTeX_{font}.woff", 1)
                tags.append(f'<link rel="preload" as="font" type="font/woff" crossorigin href="{href}">')
        # A notebook names a page of this site by its whole address, which works in Colab too; here it is a link within.
        # (MyST escapes an ampersand in an address twice.)
        context["body"] = re.sub(
            f'class="reference external" href="{re.escape(config.html_baseurl)}([^"]*)"',
            lambda link: f'href="{"../" * pagename.count("/")}{link[1].replace("&amp;amp;", "&amp;")}"',
            context["body"],
        )
        context["body"] = PLAIN_CODE.sub(r"\1", context["body"])
        if pagename != config.root_doc:
            context["body"] += citation(config, pagename, unescape(title))
        _, _, following = app.builder.relations.get(pagename, (None, None, None))  # type: ignore[attr-defined]
        if following and (asked := question(app.env.get_doctree(following))):
            context["next_title"] = f"{context['next']['title']}<span>{escape(asked)}</span>"
    else:  # search and index pages
        tags.append(f'<meta name="description" content="{escape(config.html_title)}: {pagename}">')
    context["metatags"] = context.get("metatags", "") + "\n".join(tags)
    # MyST-NB puts the widgets' state, pictures and all, into the head. In a file of its own it keeps nobody from
    # reading; book.js fetches it when a widget comes near.
    for script in [
        js for js in context["script_files"] if "widget-state" in getattr(js, "attributes", {}).get("type", "")
    ]:
        state = out / f"{pagename}.widgets.json"
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(script.attributes["body"], encoding="utf-8")
        for key, model in json.loads(script.attributes["body"])["state"].items():
            if model["model_name"] == "HTMLModel":  # no controls, so it needs less room than a figure that has some
                view = f'widget-view+json">{{"model_id": "{key}"'
                context["body"] = context["body"].replace(view, view.replace('">', '" class="low">', 1))
        context["body"] += f'<script type="{script.attributes["type"]}" data-src="{state.name}"></script>\n'
    Bundle.take(context)
    context["made_with"] = f"{app.extensions['book_site'].metadata['env_version']:x}"
    if "body" in context:  # docutils calls a bibliography a list, but not its entries list items
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )
        context["body"] = context["body"].replace(' role="doc-biblioentry"', "")  # deprecated, says Lighthouse


def mark(app: Sphinx, doctree: nodes.document) -> None:
    """Mark captions, and give figures and formulas an address.

    A caption is a paragraph that opens with an emphasized "Figure ..." or "Table ...". It names what stands before it:
    Figure 3.4 is `#figure-3-4`. A formula's address is made from its TeX, so it outlives formulas put in before it.
    """
    for emphasis in list(doctree.findall(nodes.emphasis)):
        caption = emphasis.parent
        found = re.match(r"(Figure|Table) ((?:\d+|[A-Z])(?:\.\d+)*(?![\w]))?", emphasis.astext())
        if not (found and isinstance(caption, nodes.paragraph) and caption[0] is emphasis):
            continue
        caption["classes"].append("figure-caption")
        place = caption.parent.index(caption)
        if found[2] and place:
            shown = caption.parent[place - 1]
            outputs = [part for part in shown.findall(nodes.container) if "cell_output" in part["classes"]]
            name = f"{found[1]}-{found[2]}".lower().replace(".", "-")
            (outputs or [shown])[-1]["ids"].append(name)
            hint = f"Link to this {found[1].lower()}"
            caption += nodes.reference("", "#", refid=name, internal=True, classes=["headerlink"], reftitle=hint)
    taken: list[str] = []
    for formula in doctree.findall(nodes.math_block):
        if not formula["ids"]:
            name = f"equation-{zlib.crc32(''.join(formula.astext().split()).encode()):08x}"
            taken.append(name)
            formula["ids"].append(name if taken.count(name) == 1 else f"{name}-{taken.count(name)}")


def question(doctree: nodes.document) -> str:
    """Return the question that a page opens with, in bold, or an empty text."""
    first = next(iter(doctree.findall(nodes.paragraph)), None)
    text = first.astext().strip() if first is not None else ""
    bold = [part.astext() for part in first.findall(nodes.strong)] if first is not None else []
    return text if bold == [text] and text.endswith("?") else ""


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Stop node; write what stands beside the pages."""
    if Katex.process is not None:
        Katex.process.communicate()
        Katex.process = None
    if exception is not None or app.builder.name != "html":
        return
    out, base, root = Path(app.outdir), app.config.html_baseurl, app.config.root_doc
    Bundle.write(out)
    title = escape(app.config.html_title)
    (out / "index.html").write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="description" content="{title}"><link rel="canonical" href="{base}{root}.html">\n'
        f'<meta http-equiv="refresh" content="0; url={root}.html"></head>\n'
        f'<body><p><a href="{root}.html">{title}</a></p></body></html>\n',
        encoding="utf-8",
    )
    pages = [root, *(name for name in app.env.toctree_includes.get(root, []))]
    titles = {name: app.env.titles[name].astext() for name in pages}
    context = {"base": "/" + base.split("/", 3)[3], "root": root, "titles": titles, "title": app.config.html_title}
    missing = app.builder.templates.render("404.html", context)  # type: ignore[attr-defined]
    (out / "404.html").write_text(missing, encoding="utf-8")
    (out / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {base}sitemap.xml\n", encoding="utf-8")
    places = "".join(f"<url><loc>{base}{name}.html</loc></url>\n" for name in pages)
    (out / "sitemap.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        f"{places}</urlset>\n",
        encoding="utf-8",
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect all this to Sphinx."""
    app.add_html_math_renderer("katex", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None))
    app.add_node(nodes.image, override=True, html=(visit_image, HTML5Translator.depart_image))
    app.connect("config-inited", set_address)
    app.connect("doctree-read", mark)
    app.connect("html-page-context", complete)
    app.connect("build-finished", finish, priority=900)  # the theme, too, rewrites a stylesheet at the end
    # Sphinx would keep pages, and even scripts and stylesheets, when only what they are made with changed.
    made_with = sorted(path for folder in MADE_WITH for path in (HERE.parent / folder).rglob("*") if path.is_file())
    version = zlib.crc32(b"".join(path.read_bytes() for path in made_with if path.suffix != ".pyc"))
    return {"version": "1", "env_version": version, "parallel_read_safe": True}
