"""The house: one address, pinned packages, a Makefile that explains itself, hooks that need no network."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from repository import address, carriers, move, owner_and_name

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_and_prose(path: Path) -> str:
    """A file's text; of a notebook only what people wrote."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def test_the_address_is_wherever_it_must_be() -> None:
    url = address()
    for name in ("README.md", "CITATION.cff", "pyproject.toml"):
        assert owner_and_name(url) in code_and_prose(ROOT / name), name
    for path in NOTEBOOKS:
        text = code_and_prose(path)
        colab = f"https://colab.research.google.com/github/{owner_and_name(url)}/blob/main/notebooks/{path.name}"
        assert colab in text, path
        assert f"git+{url}@" in text, path


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
    assert not [path for path in carriers(tmp_path) if old in path.read_text(encoding="utf-8")]
    assert move("https://github.com/someone/a-fork", tmp_path) == []


@pytest.mark.parametrize("url", ["", "somewhere", "https://elsewhere.example/a/b", "https://github.com/only-owner"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SystemExit, match="usage"):
        owner_and_name(url)


def test_everything_asked_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in asked}
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert names <= pinned, "run `make lock`"
    package, lock = (json.loads((ROOT / name).read_text()) for name in ("package.json", "package-lock.json"))
    for kind in ("dependencies", "devDependencies"):
        assert package[kind] == lock["packages"][""][kind], "run `make lock`"
        assert all(re.fullmatch(r"[\d.]+", version) for version in package[kind].values())


def test_pins_name_no_registry() -> None:
    assert "--index" not in (ROOT / "requirements.txt").read_text()
    assert '"resolved": "http' not in (ROOT / "package-lock.json").read_text()


def test_make_alone_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[0] for line in shown.splitlines()] == phony


def test_hooks_need_no_network() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}
    assert {hook["language"] for repo in hooks for hook in repo["hooks"]} == {"system"}
