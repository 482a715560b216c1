"""Exercises of chapter 10: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
from conftest import answer_tests
from torch.nn.functional import cross_entropy

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def worst_inputs(W, low, high, y):
    return torch.where(W - W[y][:, None] > 0, high[:, None], low[:, None])


def one_by_one(W, low, high, y):
    rows = [[low[i] + (high[i] - low[i]) * (W[k] > W[y[i]]) for k in range(len(W))] for i in range(len(y))]
    return torch.stack([torch.stack(row) for row in rows])


def mixed_loss(logits, margins, y, kappa):
    return kappa * cross_entropy(logits, y) + (1 - kappa) * cross_entropy(margins, y)


def each(logits, margins, y, kappa):
    clean, worst = (cross_entropy(t, y, reduction="none") for t in (logits, margins))
    return kappa * clean + (1 - kappa) * worst


def small_box(x, x_adv, eps, share):
    size = share * eps
    c = torch.maximum(torch.minimum(x_adv, x + eps - size), x - eps + size)
    return torch.stack([c - size, c + size]).clamp(0, 1)


def ends(c, size):
    return torch.stack([c - size, c + size])


def cut_off(x, a, eps, share):
    low, high = ends(a, share * eps)
    return torch.stack([low.maximum(x - eps), high.minimum(x + eps)]).clamp(0, 1)


def center(x, a, eps, share):
    return x + (a - x).clamp(-(1 - share) * eps, (1 - share) * eps)


RIGHT = [
    ("check_worst_inputs", worst_inputs),
    ("check_worst_inputs", one_by_one),
    ("check_mixed_loss", mixed_loss),
    ("check_mixed_loss", lambda *args: each(*args).mean()),
    ("check_small_box", small_box),
]

WRONG = [
    ("check_worst_inputs", lambda W, a, b, y: torch.where(W > 0, b[:, None], a[:, None]), "subtract row y of W first"),
    ("check_worst_inputs", lambda W, a, b, y: worst_inputs(W, b, a, y), "smallest"),
    ("check_worst_inputs", lambda W, a, b, y: torch.where(W >= W[y][:, None], b[:, None], a[:, None]), "rows agree"),
    ("check_worst_inputs", lambda *args: worst_inputs(*args).amax(1), "shape (3, 3, 2)"),
    ("check_worst_inputs", lambda W, a, b, y: (a + b)[:, None].expand(3, 3, 2) / 2, "is the upper end"),
    ("check_mixed_loss", lambda a, b, y, kappa: mixed_loss(a, b, y, 1 - kappa), "other way"),
    ("check_mixed_loss", lambda a, b, y, k: cross_entropy(a, y) + k * cross_entropy(b, y), "add up to 1"),
    ("check_mixed_loss", lambda a, b, y, k: k * cross_entropy(a, y) + cross_entropy(b, y), "add up to 1"),
    ("check_mixed_loss", lambda a, b, y, k: mixed_loss(a, -b, y, k), "without a minus"),
    ("check_mixed_loss", lambda a, b, y, k: cross_entropy(k * a + (1 - k) * b, y), "Mix the two losses"),
    ("check_mixed_loss", lambda *args: each(*args).sum(), "mean over the batch"),
    ("check_mixed_loss", each, "shape ()"),
    ("check_small_box", lambda x, a, eps, share: ends(a, share * eps).clamp(0, 1), "sticks out"),
    ("check_small_box", cut_off, "Move the centre inwards"),
    (
        "check_small_box",
        lambda x, a, eps, share: ends(center(x, a, eps, share), share * eps),
        "pixel box is forgotten",
    ),
    ("check_small_box", lambda x, a, eps, share: ends(center(x, a, eps, share), eps).clamp(0, 1), "not eps"),
    ("check_small_box", lambda x, a, eps, share: ends(x, share * eps).clamp(0, 1), "around x"),
    (
        "check_small_box",
        lambda x, a, eps, share: ends(x + (1 - share) * (a - x), share * eps).clamp(0, 1),
        "Only what is beyond",
    ),
    ("check_small_box", lambda *args: small_box(*args).flip(0), "other way round"),
]


test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
