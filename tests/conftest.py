"""What several test files share: the repository's paths, the built site on a local port, a headless browser."""

import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
# Without these Chromium looks for Google's hosts on its own account.
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"]
NO_BROWSER = "no Chromium on PATH, and the variable CHROMIUM names none"


def serve(folder: Path, below: str = "/", missing: str | None = None) -> tuple[ThreadingHTTPServer, str]:
    """Serve a folder on a free port of this machine, `below` a path; return the server and the host's address.

    With `missing`, that file of the folder answers for files that do not exist, as on GitHub Pages.
    """

    class Quiet(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return super().translate_path("/" + path.removeprefix(below))

        def send_error(self, code: int, *words: str | None) -> None:
            if code != 404 or missing is None:
                return super().send_error(code, *words)
            self.send_response(404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write((folder / missing).read_bytes())

        def log_message(self, *_: object) -> None:
            """Say nothing: the tests' own report is what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address of the built site."""
    assert (SITE / "index.html").is_file(), "there is no built site: run `make book` first"
    server, address = serve(SITE)
    yield address
    server.shutdown()


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Kill this process's browsers if what happens inside lasts longer: Playwright waits for some answers for ever."""

    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            if "chrom" in process.name():
                process.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Callable]:
    """Return a function that gives the running headless Chromium, or starts one.

    With no Chromium on the machine the test is skipped, which the report's last lines say; in CI it fails.
    """
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        if os.environ.get("CI") == "true":
            pytest.fail(NO_BROWSER)
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    started = []

    def running():
        if not started or not started[-1].is_connected():
            started.append(playwright.chromium.launch(executable_path=executable, args=FLAGS))
        return started[-1]

    with sync_playwright() as playwright:
        yield running
        for browser in started:
            browser.close()


@pytest.fixture
def browser(chromium: Callable):
    """A headless Chromium that lives through many tests, but dies with one that takes ten minutes."""
    with patience(600):
        yield chromium()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly that the site was not tested."""
    skipped = terminalreporter.stats.get("skipped", [])  # of all workers
    if any(NO_BROWSER in str(report.longrepr) for report in skipped):
        terminalreporter.section("THE SITE WAS NOT TESTED: there is no browser", red=True, bold=True)
        terminalreporter.write_line(
            "Install Chromium (Debian, Ubuntu: apt install chromium) or set CHROMIUM=/path/to/chrome, and try again."
        )


@pytest.fixture
def nothing_solved_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget, for one test, which exercises were solved before it."""
    monkeypatch.setattr("helpers.exercises._check._solved", {})


def answer_tests(right: list[tuple], wrong: list[tuple]) -> tuple[Callable, Callable]:
    """Return two tests of a chapter's checks: right answers pass, and each mistake gets the hint that fits.

    Args:
        right: (name of the check, answer). wrong: (name of the check, answer, words of the hint).
    """
    from helpers import exercises

    @pytest.mark.parametrize(("check", "answer"), right)
    def passes(check, answer, capsys):
        getattr(exercises, check)(answer)
        assert ", solved." in capsys.readouterr().out

    @pytest.mark.parametrize(("check", "answer", "hint"), wrong)
    def gets_the_hint(check, answer, hint, capsys):
        getattr(exercises, check)(answer)
        said = capsys.readouterr().out
        assert "not yet" in said and hint in said

    return passes, gets_the_hint
