"""The cheat sheet's code does what the book's own does."""

import re

import pytest
import torch
from conftest import ROOT
from networks import random_images, random_network, rng

from helpers import attacks

TEXT = (ROOT / "book" / "cheat_sheet.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("seed", range(5))
def test_the_loop_finds_what_helpers_finds(seed: int) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(code, names)
    generator = rng(seed)
    x = random_images(20, (1, 4, 4), torch.float64, generator)
    model = random_network((1, 4, 4), 3, torch.float64, generator)
    y = model(x).argmax(1)
    y[:5] = (y[:5] + 1) % 3  # some are wrong to begin with
    eps, steps = 0.05, 7
    found = names["pgd"](model, x, y, eps, 2.5 * eps / steps, steps)
    expected = attacks.pgd(model, x, y, eps, loss="cross_entropy", steps=steps)
    assert 0 < (model(found).argmax(1) != y).sum() < len(y)
    assert torch.allclose(found, expected, atol=1e-12)


def test_the_call_that_it_names_works() -> None:
    (call,) = re.findall(r"`(pgd\(.*?\))`", TEXT)
    generator = rng(0)
    x = random_images(4, (1, 4, 4), torch.float64, generator)
    model = random_network((1, 4, 4), 3, torch.float64, generator)
    y = torch.zeros(4, dtype=torch.int64)
    found = eval(call, {"pgd": attacks.pgd, "model": model, "x": x, "y": y, "eps": 0.5})
    assert found.shape == x.shape
