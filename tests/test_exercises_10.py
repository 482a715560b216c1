"""Exercises of chapter 10: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
from conftest import answer_tests
from torch.nn.functional import cross_entropy

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def merged_last(W, b, low, high, y):
    D = W - W[y][:, None]
    c, r = (low + high) / 2, (high - low) / 2
    return torch.einsum("nkd,nd->nk", D, c) + b - b[y][:, None] + torch.einsum("nkd,nd->nk", D.abs(), r)


def merged_by_signs(W, b, low, high, y):
    rows = []
    for i in range(len(y)):
        D = W - W[y[i]]
        rows.append(D.clamp(min=0) @ high[i] + D.clamp(max=0) @ low[i] + b - b[y[i]])
    return torch.stack(rows)


def subtracted_afterwards(W, b, low, high, y, zero=False):
    c, r = (low + high) / 2, (high - low) / 2
    upper, lower = c @ W.T + b + r @ W.abs().T, c @ W.T + b - r @ W.abs().T
    found = upper - lower.gather(1, y[:, None])
    return found.scatter(1, y[:, None], 0) if zero else found


def upper_ends(W, b, low, high, y):
    return merged_last(W, b, high, high, y)


def lower_bounds(W, b, low, high, y):
    return -merged_last(-W, -b, low, high, y)


def absolute_too_early(W, b, low, high, y):
    D, A = W - W[y][:, None], W.abs() - W[y].abs()[:, None]
    c, r = (low + high) / 2, (high - low) / 2
    return torch.einsum("nkd,nd->nk", D, c) + b - b[y][:, None] + torch.einsum("nkd,nd->nk", A.abs(), r)


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
    ("check_merged_last", merged_last),
    ("check_merged_last", merged_by_signs),
    ("check_mixed_loss", mixed_loss),
    ("check_mixed_loss", lambda *args: each(*args).mean()),
    ("check_small_box", small_box),
]

WRONG = [
    ("check_merged_last", subtracted_afterwards, "subtract the rows first"),
    ("check_merged_last", lambda *args: subtracted_afterwards(*args, zero=True), "subtract the rows first"),
    ("check_merged_last", lower_bounds, "lower bounds"),
    ("check_merged_last", lambda W, b, *rest: merged_last(W, 0 * b, *rest), "constants are missing"),
    (
        "check_merged_last",
        lambda W, b, low, high, y: merged_last(W, b, low, high, y) + b[y][:, None],
        "b_y is subtracted",
    ),
    ("check_merged_last", upper_ends, "All inputs at their upper ends"),
    ("check_merged_last", absolute_too_early, "comes after the difference"),
    ("check_merged_last", lambda *args: -merged_last(*args), "not z_y - z_k"),
    ("check_merged_last", lambda *args: merged_last(*args)[0], "shape (3, 3)"),
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
