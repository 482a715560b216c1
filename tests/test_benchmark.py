"""The benchmark: the race is fair, every part of it runs, and it leaves the prose of its page alone."""

import re
import sys
from pathlib import Path

import compare
import page
import pytest
import torch
from conftest import ROOT
from contenders import CONTENDERS
from networks import random_images, rng
from torch import Tensor, nn

from helpers.attacks import pgd

PAGE = ROOT / "book" / "comparison.md"


class Counting(nn.Module):
    """A linear classifier that counts how often a gradient comes back through it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gradients = nn.Linear(12, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x.flatten(1))
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, _: Tensor) -> None:
        self.gradients += 1


@pytest.mark.parametrize("attack", [*CONTENDERS.values(), pgd], ids=[*CONTENDERS, "ours"])
def test_all_contenders_take_as_many_gradients_as_they_are_told(attack):
    model = Counting().eval()
    attack(
        model,
        random_images(4, (3, 2, 2), torch.float32, rng(0)),
        torch.tensor([0, 1, 2, 0]),
        0.1,
        steps=7,
        step_size=0.05,
    )
    assert model.gradients == 7


def outside_of_marks(text: str) -> list[str]:
    return re.split(r"(?s)(?<=<!-- begin: )(.+?) -->.*?(?=<!-- end: \1 -->)", text)


def test_every_part_runs_and_only_what_is_between_the_marks_changes(tmp_path: Path, monkeypatch):
    path = tmp_path / "page.md"
    before = re.sub(r"(<!-- begin: (.+?) -->).*?(<!-- end: \2 -->)", r"\1\3", PAGE.read_text(), flags=re.DOTALL)
    path.write_text(before)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--quick", "--page", str(path)])
    compare.main()
    after = path.read_text()
    assert outside_of_marks(after) == outside_of_marks(before)
    blocks = dict(re.findall(r"(?s)<!-- begin: (.+?) -->\n?(.*?)<!-- end: \1 -->", after))
    assert {name for name, content in blocks.items() if not content.strip()} == {"gpu"}
    for name in (*CONTENDERS, page.OURS):
        for table in ("speed", "strength"):
            row = next(line for line in blocks[table].splitlines() if line.startswith(f"| {name} |"))
            assert len(re.findall(r"\d", row)) > 3, row
    assert (tmp_path / "images" / "comparison.png").stat().st_size > 10_000


def test_a_page_without_marks_is_refused(tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text("Nothing to replace.")
    where = {"processor": "", "threads": 1, "system": "", "packages": {}, "date": ""}
    found = {"machine": where, "speed": [{"title": "", "ratios": {"ours": [1.0, 2.0]}}] * 2, "peaks": {}}
    with pytest.raises(ValueError, match="must have the marks <!-- begin: gpu -->"):
        page.write(found, path)


def test_the_page_in_the_book_was_measured():
    blocks = dict(re.findall(r"(?s)<!-- begin: (.+?) -->\n(.*?)<!-- end: \1 -->", PAGE.read_text()))
    assert len(blocks) == 7 and {name for name, content in blocks.items() if not content.strip()} <= {"gpu"}
    assert "`make bench` writes this" not in PAGE.read_text(), "run `make bench`"
    assert (PAGE.parent / "images" / "comparison.png").is_file()
