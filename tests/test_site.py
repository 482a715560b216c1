"""The built site, as a reader's browser sees it: nothing from elsewhere, nothing broken, nothing left raw.

Each check looks at one page and returns what is wrong with it, in words. The last tests point the same checks at pages
that are bad on purpose.
"""

import io
import json
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from book_site import site_address
from bs4 import BeautifulSoup
from conftest import ROOT, SITE, patience, serve
from PIL import Image
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from repository import address, owner_and_name

pytestmark = pytest.mark.site

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CHAPTERS = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [f"{name}.html" for name in [TOC["root"], *CHAPTERS, "search", "genindex"]]
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
BASE = site_address(address())
# What a page may take before the reader asks for more: bytes, requests, and how far its parts may jump (Google's
# cumulative layout shift; 0.1 counts as good).
LIMITS = {"bytes": 2_500_000, "requests": 25, "shift": 0.05}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


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
    if (visible(image) && !(image.complete && image.naturalWidth)) wrong.push(`picture not loaded: ${name}`);
    const alt = image.getAttribute("alt");
    if (!image.closest("[aria-hidden=true]") && !alt?.trim()) wrong.push(`picture without alternative text: ${name}`);
    if (/\.(png|jpe?g|svg|gif|webp)\s*$/i.test(alt ?? "")) wrong.push(`a file name as alternative text: ${alt}`);
  }

  for (const image of document.querySelectorAll(".cell_output img"))
    if (!image.closest(".cell").nextElementSibling?.matches(".figure-caption"))
      wrong.push(`picture without a caption: ${image.alt}`);

  const drawn = [...document.fonts].filter(({ status }) => status === "loaded").map(({ family }) => family);
  if (document.querySelector(".katex") && !drawn.includes("KaTeX_Main")) wrong.push("formulas without their font");
  const early = document.querySelectorAll("link[rel=preload][href*=KaTeX]").length;
  if (drawn.filter((family) => family.startsWith("KaTeX")).length > early) wrong.push("a font of formulas comes late");

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


# Sums up what has moved without the reader's doing; runs before anything of the page does.
WATCH = """
window.shift = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""
TAKEN = """() => {
  const loads = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  return { bytes: loads.reduce((sum, load) => sum + load.encodedBodySize, 0), requests: loads.length };
}"""
# Brings every part of the page to the screen once, and waits for the pictures that come late.
SCROLL = """async () => {
  for (let y = 0; y < document.scrollingElement.scrollHeight; y += innerHeight) {
    scrollTo(0, y);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 10)));
  }
  scrollTo(0, 0);
  const pictures = [...document.images].filter((image) => image.checkVisibility());
  await Promise.all(pictures.map((image) => image.decode().catch(() => {})));
}"""
# What axe-core calls serious or critical, in words.
AXE = """async (options) => (await axe.run(document, { resultTypes: ["violations"], ...options })).violations
  .filter(({ impact }) => impact === "serious" || impact === "critical")
  .map(({ id, help, nodes }) => `${id}: ${help}: ${nodes[0].html.slice(0, 300)} (${nodes.length} places)`)"""
DARK = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)) < 60"
COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}


def visit(browser, url: str, **context_options):
    """Open a page with every other host cut off; return the page and what went wrong, a list that grows with it."""
    own = urlsplit(url).netloc
    wrong: list[str] = []
    context = browser.new_context(**{"viewport": DESKTOP, **context_options})
    context.add_init_script(WATCH)

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
    """Come near the widgets, as a reader does who scrolls, wait until the page has drawn them, and go to the first."""
    place = f"document.querySelector('script[type=\"{WIDGET_VIEW}\"]')"
    page.evaluate(f"window.place = {place}?.parentElement")
    page.evaluate("place && scrollTo(0, scrollY + place.getBoundingClientRect().top - innerHeight - 600)")
    page.wait_for_function(f"!{place}", timeout=60_000)
    page.evaluate("place?.scrollIntoView()")
    page.wait_for_load_state("networkidle")


def stored_widgets(page_name: str) -> int:
    """Count the widgets among the outputs of a page's notebook."""
    notebook = ROOT / Path(page_name).with_suffix(".ipynb")
    if not notebook.is_file():
        return 0
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return sum(WIDGET_VIEW in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


def problems(browser, url: str, widgets: int = 0, screen: dict[str, int] = DESKTOP, axe: bool = False) -> list[str]:
    """Open a page, in light, and return all that is wrong with it; with `axe`, for people who read otherwise too."""
    for last in (False, False, True):  # a page that moves does so every time; a busy machine, now and then
        page, wrong = visit(browser, url, viewport=screen, color_scheme="light")
        taken = page.evaluate(TAKEN)
        if widgets:
            draw_widgets(page)
        page.evaluate(SCROLL)
        taken["shift"] = page.evaluate("window.shift")
        if last or taken["shift"] <= LIMITS["shift"]:
            break
        page.context.close()
    wrong += [f"{taken[what]:,} {what}, {limit:,} are allowed" for what, limit in LIMITS.items() if taken[what] > limit]
    drawn = page.locator(".drawn-widget:visible").count()
    if drawn != widgets:
        wrong.append(f"{drawn} widgets drawn, {widgets} stored in the notebook")
    wrong += page.evaluate(LOOK)
    if (width := page.evaluate("document.scrollingElement.scrollWidth")) > screen["width"]:
        wrong.append(f"{width} pixels wide on a screen of {screen['width']}")
    if axe:
        page.add_script_tag(path=ROOT / "node_modules/axe-core/axe.min.js")
        wrong += page.evaluate(AXE, {})
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")  # colours fade, which axe must not catch
        try:
            page.wait_for_function(DARK, timeout=5_000)
        except PlaywrightTimeout:
            wrong.append("bright in the dark")
        wrong += [f"in the dark: {finding}" for finding in page.evaluate(AXE, COLOURS)]
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


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", [*PAGES, "404.html"])
def test_page_in_the_browser(browser, site: str, name: str, screen: dict[str, int]) -> None:
    assert not problems(browser, f"{site}/{name}", stored_widgets(name), screen, axe=True)


def plates(page) -> list[str]:
    """Name the figures whose edge is mostly white: on a dark page they are plates that dazzle."""
    found = []
    page.evaluate(SCROLL)  # what is far from the screen has no size yet
    for image in page.locator("img.drawn:visible").all():
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
        picture = Image.open(io.BytesIO(image.screenshot())).convert("L")
        width, height = picture.size
        edge = [picture.getpixel((x, y)) for x in range(2, width - 2) for y in (2, height - 3)]
        if sum(level > 200 for level in edge) > len(edge) / 2:
            found.append(image.get_attribute("alt"))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_no_figure_is_a_white_plate_in_the_dark(browser, site: str, name: str) -> None:
    page, _ = visit(browser, f"{site}/{name}", color_scheme="dark")
    assert not plates(page)
    page.context.close()


def test_a_white_plate_is_noticed(browser, tmp_path: Path) -> None:
    plate = (
        "<svg xmlns='http://www.w3.org/2000/svg' width='90' height='60'><rect width='90' height='60' fill='{}'/></svg>"
    )
    images = [
        f'<img class="drawn" alt="{color}" src="data:image/svg+xml,{plate.format(color)}">'
        for color in ("white", "black")
    ]
    (tmp_path / "page.html").write_text("".join(images))
    server, home = serve(tmp_path)
    page, _ = visit(browser, f"{home}/page.html")
    server.shutdown()
    assert plates(page) == ["white"]
    page.context.close()


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


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_link_to_a_section_arrives_there(browser, site: str, screen: dict[str, int]) -> None:
    name = "notebooks/03_untargeted_pgd.html"
    sections = [part["id"] for part in soup(SITE / name).select(".bd-article > section section[id]")]
    missed = {}
    for section in sections[1::4]:
        page, _ = visit(browser, f"{site}/{name}#{section}", viewport=screen)
        top = f"document.getElementById('{section}').getBoundingClientRect().top"
        end = "scrollY + innerHeight >= document.scrollingElement.scrollHeight - 2"
        page.wait_for_timeout(500)
        if not 0 <= page.evaluate(top) < 200 and not page.evaluate(end):
            missed[section] = page.evaluate(top)
        page.context.close()
    assert len(sections) > 10 and missed == {}


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


def test_search_finds_a_word_of_the_book(browser, site: str) -> None:
    page, wrong = visit(browser, f"{site}/search.html?q=logits")
    page.wait_for_selector("#search-results li a", timeout=30_000)
    page.locator("#search-results li a").first.click()
    page.wait_for_selector("article h1")
    assert "logits" in page.locator("main").inner_text().lower()
    assert not wrong
    page.context.close()


# The keyboard


FOCUS = """() => {
  const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
  return {
    name: `${element.tagName} ${element.className} ${element.textContent.trim().slice(0, 40)}`,
    body: element === document.body,
    marked: (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1) || style.boxShadow !== "none",
    seen: box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight && style.opacity !== "0",
    place: [...document.querySelectorAll("*")].indexOf(element),
  };
}"""


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_tab_goes_through_a_page_in_order_and_shows_where_it_is(browser, site: str, screen: dict[str, int]) -> None:
    page, wrong = visit(browser, f"{site}/notebooks/01_notation.html", viewport=screen, reduced_motion="reduce")
    stops = []
    for _ in range(1000):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUS)
        if stop["body"]:
            break
        stops.append(stop)
    assert len(stops) > 30
    assert "Skip to main content" in stops[0]["name"]
    assert not [stop["name"] for stop in stops if not (stop["marked"] and stop["seen"])]
    places = [stop["place"] for stop in stops]
    assert places == sorted(places)
    assert not wrong
    page.context.close()


def test_the_skip_link_skips(browser, site: str) -> None:
    page, _ = visit(browser, f"{site}/notebooks/01_notation.html")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    page.context.close()


def test_menus_and_folded_solutions_open_with_the_keyboard(browser, site: str) -> None:
    page, wrong = visit(browser, f"{site}/notebooks/01_notation.html")
    button, menu = page.locator(".dropdown-launch-buttons > button"), page.locator(".dropdown-launch-buttons ul")
    button.focus()
    page.keyboard.press("Enter")
    assert menu.is_visible()
    page.keyboard.press("ArrowDown")
    assert "Colab" in page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Escape")
    assert menu.is_hidden()
    solution = page.locator("details.hide").last
    assert solution.locator("pre").first.is_hidden()
    solution.locator("summary").focus()
    page.keyboard.press("Enter")
    assert solution.locator("pre").first.is_visible()
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.matches('dialog[open] input[type=search]')")
    assert not wrong
    page.context.close()


def test_the_contents_open_on_a_telephone_and_close_again(browser, site: str) -> None:
    page, wrong = visit(browser, f"{site}/notebooks/01_notation.html", viewport=PHONE, reduced_motion="reduce")
    chapter = page.locator("nav.bd-links a", has_text="Targeted PGD").first
    assert chapter.is_hidden()
    page.locator(".primary-toggle:visible").focus()
    page.keyboard.press("Enter")
    assert chapter.is_visible()
    page.keyboard.press("Escape")
    chapter.wait_for(state="hidden")
    assert not wrong
    page.context.close()


def test_nothing_moves_for_those_who_do_not_want_it(browser, site: str) -> None:
    moving = """() => [...document.querySelectorAll("*")].filter((element) => {
      const style = getComputedStyle(element);
      const durations = `${style.transitionDuration} ${style.animationDuration}`;
      return style.scrollBehavior === "smooth" || /[1-9]/.test(durations);
    }).length"""
    page, _ = visit(browser, f"{site}/notebooks/01_notation.html", reduced_motion="no-preference")
    assert page.evaluate(moving)
    page.emulate_media(reduced_motion="reduce")
    assert not page.evaluate(moving)
    page.context.close()


# To be found, and to be kept


def test_figures_and_formulas_have_addresses() -> None:
    for name in PAGES:
        page = soup(SITE / name)
        twice = [place for place, n in Counter(tag["id"] for tag in page.find_all(id=True)).items() if n > 1]
        assert not twice, name
        for caption in page.select("p.figure-caption"):
            kind, number = re.match(r"(Figure|Table) ([A-Z]?[\d.]+)\.", caption.get_text()).groups()
            place = f"{kind}-{number}".lower().replace(".", "-")
            assert caption.select_one("a.headerlink")["href"] == f"#{place}", name
            assert page.find(id=place).select_one("img, table, script, pre"), f"{name}: nothing at {place}"
        formulas = page.select("div.math")
        assert all(formula.select_one("a.headerlink")["href"] == f"#{formula['id']}" for formula in formulas), name
        assert all(re.match("equation-", formula["id"]) for formula in formulas), name
    assert soup(SITE / "notebooks/03_untargeted_pgd.html").select("#figure-3-4 img")


def test_a_page_leads_on_with_the_next_question() -> None:
    for name, after in pairwise(CHAPTERS):
        if (notebook := ROOT / f"{after}.ipynb").is_file():
            question = "".join(json.loads(notebook.read_text())["cells"][0]["source"]).splitlines()[2].strip("*")
            assert question in soup(SITE / f"{name}.html").select_one("a.right-next").get_text(), name


def jpeg_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("name", [TOC["root"], *CHAPTERS])
def test_a_page_can_be_shared_and_cited(name: str) -> None:
    page = soup(SITE / f"{name}.html")
    own = f"{BASE}{name}.html"
    facts = {tag.get("property", tag.get("name")): tag["content"] for tag in page.find_all("meta", content=True)}
    assert page.find("link", rel="canonical")["href"] == facts["og:url"] == own
    assert facts["twitter:card"] == "summary_large_image"
    assert facts["og:title"] in page.h1.get_text() or facts["og:title"] in page.title.get_text()
    assert facts["og:image"].startswith(BASE)
    assert jpeg_size(SITE / facts["og:image"].removeprefix(BASE)) == (1200, 630)
    if name != TOC["root"]:
        entry = page.select_one("details.cite-this-page pre").get_text()
        assert f"url       = {{{own}}}" in entry
        assert f"title     = {{{facts['og:title']}}}" in entry
        assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]["year"]) in entry


@pytest.mark.parametrize(
    ("repository", "site"),
    [
        ("https://github.com/Someone/a-book", "https://someone.github.io/a-book/"),
        ("https://github.com/Someone/someone.github.io", "https://someone.github.io/"),
    ],
)
def test_the_address_of_the_site_follows_from_the_repository(repository: str, site: str) -> None:
    assert site_address(repository) == site


def test_search_engines_find_every_page() -> None:
    assert f"Sitemap: {BASE}sitemap.xml" in (SITE / "robots.txt").read_text().splitlines()
    places = re.findall("<loc>(.*?)</loc>", (SITE / "sitemap.xml").read_text())
    assert places == [f"{BASE}{name}.html" for name in [TOC["root"], *CHAPTERS]]


@pytest.mark.parametrize("below", ["/" + BASE.split("/", 3)[3], "/"], ids=["on GitHub Pages", "anywhere else"])
def test_a_missing_page_says_so_at_any_depth(browser, below: str) -> None:
    server, address = serve(SITE, below, missing="404.html")
    page, wrong = visit(browser, f"{address}{below}some/where/deep.html")
    assert len([line for line in wrong if "answer 404" in line]) == 1  # the page itself, and nothing that it loads
    assert not [line for line in wrong if "asks another" in line or "script error" in line]
    links = page.evaluate("[...document.links].map((link) => link.href)")
    assert len(links) > len(CHAPTERS)
    assert {page.request.get(link).status for link in links} == {200}
    page.context.close()
    server.shutdown()


def test_what_is_laid_out_late_is_laid_out_soon_and_then_nothing_moves(browser, site: str) -> None:
    page, _ = visit(browser, f"{site}/notebooks/06_linear_models.html")
    late = "[...document.querySelectorAll('.bd-article > section section')]"
    page.wait_for_function(f"{late}.every((part) => getComputedStyle(part).contentVisibility === 'visible')")
    height = page.evaluate("document.documentElement.scrollHeight")
    last = page.locator("#references")
    last.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert abs(page.evaluate("document.documentElement.scrollHeight") - height) < 5
    page.context.close()


def test_a_page_prints(browser, site: str) -> None:
    page, _ = visit(browser, f"{site}/book/cheat_sheet.html", color_scheme="dark")
    page.emulate_media(media="print")
    assert page.locator("article h1").is_visible()
    for part in (
        "#pst-primary-sidebar",
        "#pst-secondary-sidebar",
        ".prev-next-footer",
        ".bd-header-article",
        ".copybtn",
    ):
        assert page.locator(part).first.is_hidden(), part
    assert page.evaluate("getComputedStyle(document.querySelector('article')).color") == "rgb(34, 40, 50)"
    pdf = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 2
    assert {round(float(side)) for side in re.search(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", pdf).groups()} == {
        595,
        842,
    }
    page.context.close()


# The checks themselves, tried on pages that are bad on purpose

GOOD = """<!DOCTYPE html><html lang="en"><title>T</title><meta name="description" content="D">
<style>@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } }</style>
<main><h1>One</h1>{}</main></html>"""
DOT = bytes.fromhex("47494638396101000100800000ffffff00000021f90400000000002c00000000010001000002024401003b")


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
        ('<div style="width: 1900px">wide</div>', "pixels wide"),
        (
            "<p>Word</p><script>requestAnimationFrame(() => requestAnimationFrame(() =>"
            "setTimeout(() => document.body.style.paddingTop = '400px', 100)))</script>",
            "shift",
        ),
        ("<script>for (let i = 0; i < 30; i++) fetch('page.html?' + i)</script>", "requests"),
        (f"<!-- {'x' * 2_600_000} -->", "bytes"),
        ('<div class="cell"><div class="cell_output"><img alt="A dot" src="dot.gif"></div></div>', "without a caption"),
        ('<p style="color: #aaa">Pale words on white</p>', "color-contrast"),
        ('<p style="color: #333">Words that are dark in the dark</p>', "in the dark"),
        ("<style>html, body { background: white !important }</style>", "bright in the dark"),
        ("<button></button>", "button-name"),
        ('<div class="drawn-widget">drawn twice</div>', "1 widgets drawn, 0 stored"),
    ],
)
def test_the_checks_notice_what_is_planted(browser, tmp_path: Path, body: str, complaint: str | None) -> None:
    (tmp_path / "page.html").write_text(GOOD.replace("{}", body))
    (tmp_path / "favicon.ico").touch()
    (tmp_path / "dot.gif").write_bytes(DOT)
    server, address = serve(tmp_path)
    wrong = problems(browser, f"{address}/page.html", axe=True)
    server.shutdown()
    assert any(complaint in line for line in wrong) if complaint else not wrong, wrong


def test_the_link_check_notices_what_is_planted(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="top">A</h1><a href="b.html"></a><a href="#top"></a><a href="#gone"></a>')
    assert len(broken_links(tmp_path, "a.html")) == 2
    assert foreign_parts(BeautifulSoup('<link rel="stylesheet" href="//elsewhere.example/a.css">', "html.parser"))


def test_a_browser_that_hangs_is_killed_and_the_next_test_has_another(chromium) -> None:
    with patience(1), pytest.raises(PlaywrightError, match="closed"):
        chromium().new_page().evaluate("new Promise(() => {})")
    assert chromium().new_page().evaluate("6 * 7") == 42
