"""The house: one address, pinned packages, a Makefile that explains itself, hooks that need no network."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from new_chapter import begin, listed
from repository import address, carriers, move, owner_and_name, site_address

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_and_prose(path: Path) -> str:
    """A file's text; of a notebook only what people wrote."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def test_the_address_is_wherever_it_must_be() -> None:
    url = address()
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"):
        assert owner_and_name(url) in code_and_prose(ROOT / name), name
    for path in NOTEBOOKS:
        text = code_and_prose(path)
        colab = f"https://colab.research.google.com/github/{owner_and_name(url)}/blob/main/notebooks/{path.name}"
        assert colab in text, path
        assert f"git+{url}@" in text, path


@pytest.mark.site
def test_buttons_of_a_page_open_and_download_the_same_chapter() -> None:
    for path in NOTEBOOKS:
        page = (ROOT / "_build" / "html" / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        links = re.findall(r'<a href="([^"]+)"[^>]*btn btn-sm', page)
        colab = "https://colab.research.google.com/github"
        assert f"{colab}/{owner_and_name(address())}/blob/main/notebooks/{path.name}" in links, path
        assert f"../_sources/notebooks/{path.name}" in links, path


def test_no_other_address_of_the_book_is_left() -> None:
    own = owner_and_name(address())
    name = own.split("/")[1]
    for path in carriers():
        text = code_and_prose(path)
        assert set(re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)", text)) <= {own}, path
        assert set(re.findall(rf"github\.com/([\w.-]+/{re.escape(name)})(?![\w-])", text)) <= {own}, path
        assert set(re.findall(r"git\+https://github\.com/([\w.-]+/[\w-]+)", text)) <= {own}, path


def test_a_fork_moves_with_one_command(tmp_path: Path) -> None:
    for path in carriers():
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    old = owner_and_name(address())
    assert move("https://github.com/someone/a-fork.git", tmp_path)
    assert address(tmp_path) == "https://github.com/someone/a-fork"
    theirs = old, site_address(f"https://github.com/{old}")
    assert not [path for path in carriers(tmp_path) if any(name in path.read_text("utf-8") for name in theirs)]
    assert "https://someone.github.io/a-fork/book/" in (tmp_path / "notebooks/03_untargeted_pgd.ipynb").read_text(
        "utf-8"
    )
    assert move("https://github.com/someone/a-fork", tmp_path) == []


@pytest.mark.parametrize("url", ["", "somewhere", "https://elsewhere.example/a/b", "https://github.com/only-owner"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SystemExit, match="usage"):
        owner_and_name(url)


def test_everything_asked_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    assert {"include-group": "site"} in groups["dev"], "what builds the site is locked with the rest"
    asked = project["project"]["dependencies"] + groups["site"] + groups["dev"]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in asked if isinstance(line, str)}
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert names <= pinned, "run `make lock`"
    package, lock = (json.loads((ROOT / name).read_text()) for name in ("package.json", "package-lock.json"))
    for kind in ("dependencies", "devDependencies"):
        assert package[kind] == lock["packages"][""][kind], "run `make lock`"
        assert all(re.fullmatch(r"[\d.]+", version) for version in package[kind].values())


def test_what_colab_has_is_pinned() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["colab"]
    pinned = re.findall(r"^[\w.-]+==[\w.]+", (ROOT / "tests" / "colab.txt").read_text(), re.MULTILINE)
    assert {line for line in asked if "==" in line} <= set(pinned), "run `make lock`"


def test_pins_name_no_registry() -> None:
    assert "--index" not in (ROOT / "requirements.txt").read_text() + (ROOT / "tests" / "colab.txt").read_text()
    assert '"resolved": "http' not in (ROOT / "package-lock.json").read_text()


def test_make_alone_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[0] for line in shown.splitlines()] == phony


def test_ci_and_the_contributors_guide_call_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflows = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    steps = {
        name: [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        for name, workflow in workflows.items()
    }
    assert "make test" in steps["test"] and "make book" in steps["publish"]
    assert (ROOT / ".ci" / "run").read_text().endswith("exec make test\n")
    called = [line for lines in steps.values() for line in lines if line.startswith("make ")]
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "book/how_to_use.md")]
    called += [found for text in texts for found in re.findall(r"(?:^|`)(make [a-z-]+)", text, re.MULTILINE)]
    assert {line.split()[1] for line in called} <= targets


def test_workflows_try_every_python_that_the_book_promises() -> None:
    pythons = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    matrix = pythons["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert matrix == ["3.11", "3.12", "3.13"]
    assert f"Python {matrix[0]}, {matrix[1]} or {matrix[2]}" in (ROOT / "README.md").read_text()
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert asked == f">={matrix[0]}"


def test_a_changed_chapter_is_shown_as_text(tmp_path: Path) -> None:
    # With the command that CONTRIBUTING.md gives, and the attributes that the repository has.
    found = re.search(
        r'^git config (diff\.\w+\.textconv) "(.+)"$', (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    chapter = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.ipynb").write_text(json.dumps(chapter), encoding="utf-8")
        chapter["cells"][0]["source"] = "# Another title"
    git = ["git", "-c", f"{found[1]}={found[2].replace('.venv/bin/jupyter', f'{sys.executable} -m jupyter')}"]
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    diff = subprocess.run(
        [*git, "diff", "--no-index", "--textconv", "before", "after"], cwd=tmp_path, capture_output=True, text=True
    ).stdout
    changed = [line for line in diff.splitlines() if re.match(r"[+-](?![+-])", line)]
    assert "+# Another title" in changed
    assert all(line.startswith("-") for line in changed if line != "+# Another title"), diff
    assert "cell_type" not in diff


def test_a_new_chapter_has_its_parts_runs_and_is_in_the_contents(tmp_path: Path) -> None:
    copy = tmp_path / "book"
    leave = shutil.ignore_patterns(".git", ".venv", "_build", "node_modules", ".*_cache", ".hypothesis", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=leave)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    make = ["make", "-o", ".venv/.ready", "new-chapter", "NAME=90_next_question"]
    subprocess.run(make, cwd=copy, check=True, capture_output=True)
    assert "- file: notebooks/90_next_question\n" in (copy / "_toc.yml").read_text()
    written = code_and_prose(copy / "notebooks" / "90_next_question.ipynb")
    assert "# 90. Next question\n" in written and "99" not in written
    form = ["-m", "pytest", "-q", "-rA", "tests/test_notebooks.py", "-k", "90_next_question or contents or set_up"]
    done = subprocess.run([sys.executable, *form], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "has_the_parts_of_a_chapter[90_next_question]" in done.stdout
    for check in (("check",), ("format", "--check")):
        subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=copy, check=True, capture_output=True)
    again = subprocess.run(make, cwd=copy, capture_output=True, text=True)
    assert again.returncode != 0 and "there is a chapter 90 already" in again.stderr


@pytest.mark.parametrize("name", ["", "linear_models", "6_linear", "06-linear", "06_Linear", "99_last"])
def test_a_chapter_without_a_proper_name_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match="usage"):
        begin(name)


def test_a_chapter_is_listed_where_it_belongs() -> None:
    contents = "a:\n      - file: notebooks/02_b\n      - file: notebooks/04_d\nb:\n"
    for name, place in (("01_a", 0), ("03_c", 1), ("05_e", 2)):
        found = re.findall(r"notebooks/(\w+)", listed(name, contents))
        assert found.index(name) == place and len(found) == 3


def test_hooks_need_no_network() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}
    assert {hook["language"] for repo in hooks for hook in repo["hooks"]} == {"system"}
