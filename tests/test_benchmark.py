"""The benchmark: the race is fair, every part of it runs, and it leaves the prose of its page alone."""

import re
import sys
from pathlib import Path

import bounds
import compare
import page
import pytest
import torch
from conftest import ROOT
from contenders import CONTENDERS
from networks import random_images, rng
from torch import Tensor, nn

from helpers.attacks import pgd
from helpers.risk import adversarial_risk
from helpers.training import book_network

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
    assert {name for name, content in blocks.items() if not content.strip()} == {"bounds", "gpu"}
    for name in (*CONTENDERS, page.OURS):
        for table in ("speed", "strength"):
            row = next(line for line in blocks[table].splitlines() if line.startswith(f"| {name} |"))
            assert len(re.findall(r"\d", row)) > 3, row
    for name in (page.STRONG, page.AUTOATTACK):
        row = next(line for line in blocks["strength"].splitlines() if line.startswith(f"| {name} |"))
        cells = row.split("|")[2:-1]
        asked = cells[::2] if name == page.AUTOATTACK else cells  # not with the logits multiplied
        assert all(re.search(r"\d", cell) for cell in asked), row
    drawing = (tmp_path / "images" / "comparison.svg").read_text()
    assert all(part in drawing for part in ("<svg", "figure_1", "axes_2"))


def test_our_strongest_attacks_do_not_see_the_scale_of_the_logits():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    network[1].load_state_dict({"weight": torch.randn(3, 12, generator=rng(1)), "bias": torch.zeros(3)})
    x = random_images(20, (3, 2, 2), torch.float32, rng(0))
    y = network(x).argmax(1)
    plain, scaled = (
        adversarial_risk(compare.Times(network, factor), x, y, 0.1, attacks=compare.strongest(10, 4)).each
        for factor in (1, 128)
    )
    assert plain.any() and torch.equal(plain, scaled)


def test_the_rows_are_compared_digit_by_digit():
    def row(*wrong: bool, seconds: float = 1.0) -> dict:
        return {"wrong": dict.fromkeys(page.CASES, wrong), "seconds": dict.fromkeys(page.CASES, seconds)}

    ours, theirs = row(True, True, False, False), row(True, False, True, True, seconds=20.0)
    ours["wrong"]["robust x 1"] = (True, True, False, True)
    lines = [line.split(" | ")[1:] for line in page._beside_autoattack([ours, ours, theirs]).splitlines()]
    assert lines[2] == ["+25.0", "+0.0 |"]
    assert lines[3] == ["1", "1 |"] and lines[4] == ["2", "1 |"]
    assert lines[5] == ["20.0", "20.0 |"]
    assert "took 20.0 times as long" in page._beside_autoattack([ours, ours, theirs])
    assert "changes our result of 1 digits" in page._beside_autoattack([ours, ours, theirs])
    assert page._between([94.2, 94.4]) == "94" and page._between([92.4, 94.4]) == "92 to 94"


def test_the_bounds_are_compared_on_the_same_digits(tmp_path: Path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text("Before.\n<!-- begin: bounds -->\n<!-- end: bounds -->\nAfter.")
    network = book_network("small", "cpu")
    monkeypatch.setattr(bounds, "book_network", lambda *_: network)
    monkeypatch.setattr(sys, "argv", ["bounds.py", "--quick", "--page", str(path)])
    bounds.main()
    text = path.read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.")
    for name in ("intervals", "CROWN-IBP", "CROWN"):
        rows = [line.split("|")[2:-1] for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert len(rows) == 2
        for ours, mean, _, theirs, other, *_ in rows:
            # Ours make room for rounding, a share of the size of the sums; theirs do not.
            assert ours == theirs and float(mean) == pytest.approx(float(other), abs=2e-3 + 1e-3 * abs(float(other)))
    assert re.search(r"HiGHS took \d+ times as long", text)


def test_a_page_without_marks_is_refused(tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text("Nothing to replace.")
    where = {"processor": "", "threads": 1, "system": "", "packages": {}, "date": "", "load": []}
    found = {"machine": where, "speed": [{"title": "", "ratios": {"ours": [1.0, 2.0]}}] * 2, "peaks": {}}
    with pytest.raises(ValueError, match="must have the marks <!-- begin: gpu -->"):
        page.write(found, path)


def test_the_page_in_the_book_was_measured():
    blocks = dict(re.findall(r"(?s)<!-- begin: (.+?) -->\n(.*?)<!-- end: \1 -->", PAGE.read_text()))
    assert {name for name, content in blocks.items() if not content.strip()} <= {"gpu"}
    assert "`make bench` writes this" not in PAGE.read_text(), "run `make bench`"
    assert (PAGE.parent / "images" / "comparison.svg").is_file()
