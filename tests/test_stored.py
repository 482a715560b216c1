"""Stored experiments: nothing is run unless it is asked for, and what is kept is what the experiment returned."""

import json
import re

import pytest
from conftest import ROOT

from helpers import stored as module
from helpers.stored import stored


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.delenv("RECOMPUTE", raising=False)
    return tmp_path


def never():
    raise AssertionError("the experiment was run")


def test_an_experiment_is_run_only_where_it_is_asked_for(folder, monkeypatch, capsys):
    monkeypatch.setenv("RECOMPUTE", "1")
    assert stored("lengths", lambda: {"a": [1, 2.5]}) == {"a": [1, 2.5]}
    assert stored("lengths", lambda: {"a": (1, 3)}) == {"a": [1, 3]}, "run again, and as JSON gives it back"
    for wish in ("", "0"):
        monkeypatch.setenv("RECOMPUTE", wish)
        assert stored("lengths", never) == {"a": [1, 3]}
    monkeypatch.delenv("RECOMPUTE")
    capsys.readouterr()
    assert stored("lengths", never) == {"a": [1, 3]}
    assert re.fullmatch(
        r"Stored: computed on \d{4}-\d\d-\d\d in 0 CPU s\.\nRECOMPUTE=1 runs it again\.\n", capsys.readouterr().out
    )


def test_what_is_not_kept_is_an_error_that_names_the_variable(folder):
    with pytest.raises(FileNotFoundError, match="nothing is stored as 'lengths': set RECOMPUTE=1"):
        stored("lengths", never)


def test_another_wish_is_refused(folder, monkeypatch):
    monkeypatch.setenv("RECOMPUTE", "yes")
    with pytest.raises(ValueError, match=r"RECOMPUTE must be 1 .* got 'yes'"):
        stored("lengths", never)


def test_a_result_that_json_cannot_hold_is_not_kept(folder, monkeypatch):
    monkeypatch.setenv("RECOMPUTE", "1")
    with pytest.raises(TypeError):
        stored("lengths", lambda: {1, 2})
    assert not list(folder.iterdir())


def test_every_stored_experiment_is_used_by_a_chapter_and_every_chapter_has_what_it_uses():
    chapters = "\n".join(
        "".join(cell["source"])
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    )
    used = set(re.findall(r'\bstored\(\s*"([^"]+)"', chapters))
    assert used == {path.stem for path in module.FOLDER.glob("*.json")}
