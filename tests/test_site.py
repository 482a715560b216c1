"""The built site, as a reader's browser sees it: nothing from elsewhere, nothing broken, nothing left raw.

Each check looks at one page and returns what is wrong with it, in words. The last tests point the same checks at pages
that are bad on purpose.
"""

import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import ROOT, SITE, serve
from repository import address, owner_and_name

pytestmark = pytest.mark.site

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CHAPTERS = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [f"{name}.html" for name in [TOC["root"], *CHAPTERS, "search", "genindex"]]
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LIMIT = 2_500_000  # bytes that a page may load before the reader asks for more


# What is wrong with a page, read from its HTML


@cache
def soup(path: Path) -> BeautifulSoup:
    """Parse a page, once."""
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def foreign_parts(page: BeautifulSoup) -> list[str]:
    """Name everything that a page would load from another host."""
    loads = [
        ("script", "src"),
        ("img", "src"),
        ("iframe", "src"),
        ("source", "src"),
        ("link", "href"),
        ("object", "data"),
    ]
    return [
        f"<{tag}> from {element[attribute]}"
        for tag, attribute in loads
        for element in page.find_all(tag, **{attribute: re.compile("^(https?:)?//")})
        if "canonical" not in element.get("rel", [])
    ]


def broken_links(folder: Path, name: str) -> list[str]:
    """Name the links of a page to pages, files and places of this site that do not exist."""
    broken = []
    for element in soup(folder / name).find_all(href=True):
        target = urlsplit(urljoin(f"http://site/{name}", element["href"]))
        if target.netloc != "site" or target.scheme != "http":
            continue
        file = folder / unquote(target.path).lstrip("/")
        file = file / "index.html" if file.is_dir() else file
        if not file.is_file():
            broken.append(f"{element['href']}: no such file")
        elif target.fragment and file.suffix == ".html":
            place = unquote(target.fragment)
            if not soup(file).find(id=place) and not soup(file).find(attrs={"name": place}):
                broken.append(f"{element['href']}: no such place on the page")
    return broken


# What is wrong with a page, seen in the browser

LOOK = r"""() => {
  const wrong = [];
  const content = document.querySelector("#main-content, main, body");
  const visible = (element) => element.checkVisibility();

  if (!document.title.trim()) wrong.push("no title");
  if (!document.querySelector('meta[name="description"]')?.content.trim()) wrong.push("no description");

  const prose = content.cloneNode(true);
  prose.querySelectorAll("pre, code, script, style, noscript, .katex, .headerlink").forEach((part) => part.remove());
  const text = prose.textContent;
  for (const [what, pattern] of [
    ["raw TeX", /\\[([]|\\begin\{|\\[a-zA-Z]+\{|\$\$|\$[^\s$][^$\n]*\$/],
    ["raw MyST", /:::|```|\{[a-z]+(:[a-z]+)?\}(?=[`\[ ]|$)|\]\(|\*\*\w/],
  ]) {
    const found = text.match(pattern);
    if (found) wrong.push(`${what}: ${text.slice(Math.max(0, found.index - 30), found.index + 50)}`);
  }
  for (const formula of document.querySelectorAll(".katex-error"))
    wrong.push(`formula not rendered: ${formula.textContent}`);

  for (const image of document.images) {
    const name = image.src.slice(0, 100);
    if (image.loading !== "lazy" && !(image.complete && image.naturalWidth)) wrong.push(`picture not loaded: ${name}`);
    const alt = image.getAttribute("alt");
    if (!image.closest("[aria-hidden=true]") && !alt?.trim()) wrong.push(`picture without alternative text: ${name}`);
    if (/\.(png|jpe?g|svg|gif|webp)\s*$/i.test(alt ?? "")) wrong.push(`a file name as alternative text: ${alt}`);
  }

  let last = 0;
  const headings = [...content.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter(visible);
  for (const heading of headings) {
    const level = Number(heading.tagName[1]);
    if (level > last + 1) wrong.push(`heading of level ${level} after level ${last}: ${heading.textContent}`);
    last = level;
  }
  const tops = headings.filter((heading) => heading.tagName === "H1").length;
  if (tops !== 1) wrong.push(`${tops} headings of the first level`);
  return wrong;
}"""


WEIGHT = "performance.getEntries().reduce((sum, entry) => sum + (entry.encodedBodySize ?? 0), 0)"


def visit(browser, url: str, **context_options):
    """Open a page with every other host cut off; return the page and what went wrong, a list that grows with it."""
    own = urlsplit(url).netloc
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **context_options)

    def gate(route):
        if urlsplit(route.request.url).netloc == own:
            route.continue_()
        else:
            wrong.append(f"asks another host: {route.request.url[:200]}")
            route.abort()

    def answer(response):
        if response.status >= 400:
            wrong.append(f"answer {response.status}: {response.url}")

    context.route(re.compile("^(https?|wss?):"), gate)
    page = context.new_page()
    page.on("response", answer)
    page.on("requestfailed", lambda request: wrong.append(f"failed request: {request.url[:200]}"))
    page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
    page.on(
        "console",
        lambda message: message.type == "error" and wrong.append(f"console error: {message.text}"),
    )
    page.goto(url, wait_until="networkidle")
    return page, wrong


def draw_widgets(page) -> None:
    """Bring the widgets near the screen, which is when a page draws them, and wait until they are there."""
    undrawn = f"document.querySelector('script[type=\"{WIDGET_VIEW}\"]')"
    page.evaluate(f"{undrawn}?.parentElement.scrollIntoView()")
    page.wait_for_function(f"!{undrawn}", timeout=60_000)
    page.wait_for_load_state("networkidle")


def stored_widgets(page_name: str) -> int:
    """Count the widgets among the outputs of a page's notebook."""
    notebook = ROOT / Path(page_name).with_suffix(".ipynb")
    if not notebook.is_file():
        return 0
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return sum(WIDGET_VIEW in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


def problems(browser, url: str, widgets: int = 0) -> list[str]:
    """Open a page and return all that is wrong with it."""
    page, wrong = visit(browser, url)
    if (weight := page.evaluate(WEIGHT)) > LIMIT:
        wrong.append(f"loads {weight:,} bytes before the reader asks for more")
    if widgets:
        draw_widgets(page)
    drawn = page.locator(".drawn-widget:visible").count()
    if drawn != widgets:
        wrong.append(f"{drawn} widgets drawn, {widgets} stored in the notebook")
    wrong += page.evaluate(LOOK)
    page.set_viewport_size({"width": 360, "height": 740})
    if (width := page.evaluate("document.scrollingElement.scrollWidth")) > 360:
        wrong.append(f"{width} pixels wide on a telephone of 360")
    page.context.close()
    return wrong


# The tests


def test_every_page_of_the_contents_was_built() -> None:
    missing = [page for page in ["index.html", *PAGES] if not (SITE / page).is_file()]
    assert not missing


def test_no_page_is_left_over_from_an_earlier_table_of_contents() -> None:
    built = {
        str(path.relative_to(SITE)) for folder in ("book", "notebooks") for path in (SITE / folder).rglob("*.html")
    }
    assert built <= set(PAGES), "run `make clean book`"


@pytest.mark.parametrize("name", ["index.html", *PAGES])
def test_html_stands_alone_and_its_links_lead_somewhere(name: str) -> None:
    assert not foreign_parts(soup(SITE / name)) + broken_links(SITE, name)


@pytest.mark.parametrize("name", PAGES)
def test_page_in_the_browser(browser, site: str, name: str) -> None:
    assert not problems(browser, f"{site}/{name}", stored_widgets(name))


# The interactive figures

WITH_FIGURES = [page for page in PAGES if stored_widgets(page)]
LABEL = "input => document.querySelector(`label[for='${input.id}']`)?.textContent"


def figures(browser, url: str):
    """Open a page and draw its interactive figures; return the page, what went wrong, and the figures with controls."""
    page, wrong = visit(browser, url)
    draw_widgets(page)
    return (
        page,
        wrong,
        [figure for figure in page.locator(".explorer").all() if figure.locator("input, select").count()],
    )


def seen(figure) -> tuple[str, str, list[str]]:
    """What a figure shows: its picture, the words below it, and its pictures in words."""
    words = figure.locator(".explorer-words").inner_text()
    alternatives = [image.get_attribute("alt") for image in figure.locator("img").all()]
    alternatives += [image.get_attribute("aria-label") for image in figure.locator("svg").all()]
    return figure.evaluate("figure => figure.innerHTML"), words, alternatives


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_every_control_moves_picture_and_words_by_keyboard(browser, site: str, name: str) -> None:
    page, wrong, found = figures(browser, f"{site}/{name}")
    for figure in found:
        sliders, lists = figure.locator("input:visible").all(), figure.locator("select:visible").all()
        for slider in sliders:
            slider.focus()
            slider.press("End")
        for control, there, back in [(s, "Home", "End") for s in sliders] + [
            (s, "ArrowDown", "ArrowUp") for s in lists
        ]:
            assert control.evaluate(LABEL)
            control.focus()
            before = seen(figure)
            control.press(there)
            after = seen(figure)
            assert control.evaluate("input => input === document.activeElement")
            assert all(old != new for old, new in zip(before, after, strict=True)), control.evaluate(LABEL)
            control.press(back)
            assert seen(figure) == before
        for slider in sliders:  # what is printed beside it is also what a screen reader says
            assert slider.get_attribute("aria-valuetext") == slider.evaluate("input => input.nextSibling.textContent")
    assert not wrong
    page.context.close()


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_a_control_moves_nothing_else_on_the_page(browser, site: str, name: str) -> None:
    page, _, found = figures(browser, f"{site}/{name}")
    for figure in found:
        page.wait_for_function("[...document.images].every(i => i.complete || i.loading === 'lazy')")
        height = figure.bounding_box()["height"]
        for control in figure.locator("input:visible, select:visible").all():
            for key in ("Home", "ArrowRight", "End"):
                control.press(key)
                assert figure.bounding_box()["height"] == pytest.approx(height, abs=1)
    page.context.close()


def test_what_needs_a_kernel_says_so_and_offers_the_chapter_in_colab(browser, site: str) -> None:
    page, _, found = figures(browser, f"{site}/notebooks/03_untargeted_pgd.html")
    notes = [figure for figure in found if "needs a running notebook" in figure.inner_text()]
    assert len(notes) == 1
    link = notes[0].get_by_role("link").get_attribute("href")
    repository = owner_and_name(address())
    assert link == f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/03_untargeted_pgd.ipynb"
    assert not notes[0].locator("input[type=file], button").count()
    page.context.close()


def test_a_widget_that_the_site_cannot_draw_is_an_error(browser, tmp_path: Path) -> None:
    state = {"state": {"1": {"state": {"_model_name": "TextModel", "_dom_classes": []}}}}
    view, script = {"model_id": "1"}, (ROOT / "book/assets/widgets.js").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(
        f'<script type="{WIDGET_VIEW}">{json.dumps(view)}</script>'
        f'<script type="{WIDGET_VIEW.replace("view", "state")}">{json.dumps(state)}</script>'
        f'<script type="module">{script}</script>',
        encoding="utf-8",
    )
    (tmp_path / "favicon.ico").touch()
    server, home = serve(tmp_path)
    page, wrong = visit(browser, f"{home}/page.html")
    server.shutdown()
    page.context.close()
    assert any("cannot draw TextModel" in line for line in wrong)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_accessibility(browser, site: str, name: str, scheme: str) -> None:
    page, _ = visit(browser, f"{site}/{name}", color_scheme=scheme)
    if stored_widgets(name):
        draw_widgets(page)
    page.add_script_tag(path=ROOT / "node_modules/axe-core/axe.min.js")
    found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})")
    page.context.close()
    serious = [
        f"{finding['id']}: {finding['help']}: {finding['nodes'][0]['html'][:300]} ({len(finding['nodes'])} places)"
        for finding in found["violations"]
        if finding["impact"] in ("serious", "critical")
    ]
    assert not serious


def test_search_finds_a_word_of_the_book(browser, site: str) -> None:
    page, wrong = visit(browser, f"{site}/search.html?q=logits")
    page.wait_for_selector("#search-results li a", timeout=30_000)
    page.locator("#search-results li a").first.click()
    page.wait_for_selector("article h1")
    assert "logits" in page.locator("main").inner_text().lower()
    assert not wrong
    page.context.close()


# The checks themselves, tried on pages that are bad on purpose

GOOD = '<html lang="en"><title>T</title><meta name="description" content="D"><main><h1>One</h1>{}</main></html>'


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("", None),
        ("<p>Nothing wrong, at a price of 5 $.</p><pre>$x$ \\begin{align}</pre>", None),
        ('<img alt="A picture from elsewhere" src="http://elsewhere.example/a.png">', "asks another host"),
        ('<script src="http://elsewhere.example/a.js"></script>', "asks another host"),
        ("<script>fetch('//elsewhere.example/')</script>", "asks another host"),
        ('<img alt="A missing picture" src="missing.png">', "answer 404"),
        ("<script>nonsense()</script>", "script error"),
        ("<p>The loss $\\ell$ is</p>", "raw TeX"),
        ("<p>\\(x\\)</p>", "raw TeX"),
        ("<p>\\begin{align} a \\end{align}</p>", "raw TeX"),
        ('<code class="katex-error">x</code>', "formula not rendered"),
        ("<p>:::{note}</p>", "raw MyST"),
        ("<p>{cite}`someone`</p>", "raw MyST"),
        (
            '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">',
            "without alternative",
        ),
        ('<img alt="../_images/a.png" src="missing.png">', "file name"),
        ("<h3>Three after one</h3>", "heading of level 3"),
        ("<h1>Another</h1>", "2 headings"),
        ('<div style="width: 900px">wide</div>', "pixels wide"),
        ('<div class="drawn-widget">drawn twice</div>', "1 widgets drawn, 0 stored"),
    ],
)
def test_the_checks_notice_what_is_planted(browser, tmp_path: Path, body: str, complaint: str | None) -> None:
    (tmp_path / "page.html").write_text(GOOD.replace("{}", body))
    (tmp_path / "favicon.ico").touch()
    server, address = serve(tmp_path)
    wrong = problems(browser, f"{address}/page.html")
    server.shutdown()
    assert any(complaint in line for line in wrong) if complaint else not wrong, wrong


def test_the_link_check_notices_what_is_planted(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="top">A</h1><a href="b.html"></a><a href="#top"></a><a href="#gone"></a>')
    assert len(broken_links(tmp_path, "a.html")) == 2
    assert foreign_parts(BeautifulSoup('<link rel="stylesheet" href="//elsewhere.example/a.css">', "html.parser"))
