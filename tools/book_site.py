"""What this site adds to Jupyter Book, as one small Sphinx extension (named in `_config.yml`).

- Formulas become HTML and MathML while the book is built, by KaTeX in a node process: a page needs no math script,
  nothing moves when it loads, and TeX that cannot be rendered is a build warning, hence an error.
- A paragraph that opens with an emphasized "Figure ..." looks like a caption.
- Every page gets a description, for search engines and social cards: its own, or else its first sentences.
- The theme's 1.5 MB icon script goes; the same icons are in the theme's stylesheet.
- The site's front door, `index.html`, leads to the book's first page.
"""

import json
import re
import shutil
import subprocess
import zlib
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

HERE = Path(__file__).parent
MADE_WITH = ("tools", "book/assets", "book/templates", "_build/vendor")
logger = logging.getLogger(__name__)


class Katex:
    """The node process, started for the first formula of a build and asked one formula at a time."""

    process: subprocess.Popen[str] | None = None

    @classmethod
    def render(cls, tex: str, display: bool, where: nodes.Node) -> str:
        """Return the HTML of a formula; warn, with the place in the source, about one that KaTeX refuses."""
        if cls.process is None:
            node = shutil.which("node")
            if node is None:
                raise RuntimeError("no `node` on PATH: build with `make book`, whose environment has one")
            cls.process = subprocess.Popen(
                [node, str(HERE / "katex.mjs")],
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
    """Write a displayed formula, with its number where it has one."""
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(Katex.render(node.astext(), True, node) + "</div>\n")
    raise nodes.SkipNode


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


def add_to_head(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Put the description, the social card and, where there are formulas, KaTeX's stylesheet into a page's head."""
    tags = []
    if doctree is not None:
        own = re.search(
            r'name="description" content="([^"]*)"|content="([^"]*)" name="description"', context["metatags"]
        )
        description = (own and (own[1] or own[2])) or escape(describe(doctree))
        title = re.sub("<[^>]*>", "", context["title"])
        tags += [] if own else [f'<meta name="description" content="{description}">']
        tags += [
            f'<meta property="og:title" content="{title}">',
            f'<meta property="og:description" content="{description}">',
            f'<meta property="og:site_name" content="{escape(app.config.html_title)}">',
            '<meta property="og:type" content="article">',
            '<meta name="twitter:card" content="summary">',
        ]
        if any(doctree.findall(lambda node: isinstance(node, (nodes.math, nodes.math_block)))):
            app.add_css_file("katex/katex.css")
            for font in ("Main-Regular", "Math-Italic"):
                href = context["pathto"](f"_static/katex/fonts/KaTeX_{font}.woff2", 1)
                tags.append(f'<link rel="preload" as="font" type="font/woff2" crossorigin href="{href}">')
    else:  # search and index pages
        tags.append(f'<meta name="description" content="{escape(app.config.html_title)}: {pagename}">')
    context["metatags"] = context.get("metatags", "") + "\n".join(tags)
    # MyST-NB puts the widgets' state, pictures and all, into the head; below the text it keeps nobody from reading.
    for script in [
        js for js in context["script_files"] if "widget-state" in getattr(js, "attributes", {}).get("type", "")
    ]:
        context["script_files"].remove(script)
        context["body"] += f'<script type="{script.attributes["type"]}">{script.attributes["body"]}</script>\n'
    if "body" in context:  # docutils calls a bibliography a list, but not its entries list items
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


def without_icon_script(html: str) -> str:
    """Drop the theme's Font Awesome script from a piece of a page's head (used in `book/templates/layout.html`)."""
    return re.sub(r"<script[^>]*scripts/fontawesome\.js[^>]*></script>", "", html)


def mark_captions(app: Sphinx, doctree: nodes.document) -> None:
    """Give the paragraphs that open with an emphasized "Figure …" or "Table …" the class of a caption."""
    for emphasis in doctree.findall(nodes.emphasis):
        parent = emphasis.parent
        if (
            isinstance(parent, nodes.paragraph)
            and parent[0] is emphasis
            and re.match("(Figure|Table) ", emphasis.astext())
        ):
            parent["classes"].append("figure-caption")


def add_filter(app: Sphinx) -> None:
    """Make `without_icon_script` known to the templates."""
    app.builder.templates.environment.filters["without_icon_script"] = without_icon_script  # type: ignore[attr-defined]


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Stop node and write the site's front door."""
    if Katex.process is not None:
        Katex.process.communicate()
        Katex.process = None
    if exception is None and app.builder.name == "html":
        first, title = app.config.root_doc, escape(app.config.html_title)
        Path(app.outdir, "index.html").write_text(
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
            f'<meta name="description" content="{title}">\n'
            f'<meta http-equiv="refresh" content="0; url={first}.html"></head>\n'
            f'<body><p><a href="{first}.html">{title}</a></p></body></html>\n',
            encoding="utf-8",
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect all this to Sphinx."""
    app.add_html_math_renderer("katex", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None))
    app.connect("builder-inited", add_filter)
    app.connect("doctree-read", mark_captions)
    app.connect("html-page-context", add_to_head)
    app.connect("build-finished", finish)
    # Sphinx would keep pages, and even scripts and stylesheets, when only what they are made with changed.
    made_with = sorted(path for folder in MADE_WITH for path in (HERE.parent / folder).rglob("*") if path.is_file())
    version = zlib.crc32(b"".join(path.read_bytes() for path in made_with if path.suffix != ".pyc"))
    return {"version": "1", "env_version": version, "parallel_read_safe": True}
