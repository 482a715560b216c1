"""The teacher's page: what it says about exercises and lists as plans is what the chapters have."""

import ast
import re

import nbformat
from conftest import ROOT

TEXT = (ROOT / "book" / "teach.md").read_text(encoding="utf-8")
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_the_table_of_exercises_is_that_of_the_chapters() -> None:
    found = []
    for path in CHAPTERS:
        (last,) = (cell for cell in nbformat.read(path, 4).cells if "progress" in cell.metadata.get("tags", []))
        call = ast.parse(last.source).body[-1].value
        checked, unchecked = (ast.literal_eval(keyword.value) for keyword in call.keywords)
        found.append((str(int(path.stem[:2])), ", ".join(checked), ", ".join(unchecked)))
    assert re.findall(r"^\| (\d+) \| ([\d., ]*) \| ([\d., ]*) \|$", TEXT, re.MULTILINE) == found


def test_the_plan_of_a_term_takes_every_chapter_once_and_in_order() -> None:
    plan = TEXT.split("## Twelve weeks")[1].split("\n## ")[0]
    weeks = re.findall(r"^\| (\d+) \| (.+?) \|", plan, re.MULTILINE)
    assert [int(number) for number, _ in weeks] == list(range(1, 13))
    named = re.findall(r"\.\./notebooks/(\w+)\.ipynb", " ".join(chapter for _, chapter in weeks))
    assert named == [path.stem for path in CHAPTERS]
