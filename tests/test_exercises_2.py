"""Exercises of chapter 2: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import math

import pytest
import torch

from helpers import exercises

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def wilson(wrong, n, z=1.96):
    p = wrong / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (p + z**2 / (2 * n) - half) / (1 + z**2 / n), (p + z**2 / (2 * n) + half) / (1 + z**2 / n)


def wald(wrong, n):
    p = wrong / n
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def worst_score(w, b, x, s, eps):
    return s * (x @ w + b) - eps * w.norm()


def rates(before, after):
    return (before | after).float().mean(), (~before & after).sum() / (~before).sum()


RIGHT = [
    ("check_wilson", wilson),
    ("check_wilson", lambda wrong, n: list(wilson(wrong, n))),
    ("check_wilson", lambda wrong, n: torch.tensor(wilson(wrong, n, z=1.959964), dtype=torch.float64)),
    ("check_worst_margin_l2", worst_score),
    ("check_robust_error", rates),
    ("check_robust_error", lambda before, after: tuple(float(rate) for rate in rates(before, after))),
]

WRONG = [
    ("check_wilson", wald, "whose centre is p"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n) if wrong else (0.0, 0.0), "With no error seen"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n, z=1.645), "With p = wrong / n"),
    ("check_wilson", lambda wrong, n: [100 * end for end in wilson(wrong, n)], "not percent"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n)[::-1], "lower end comes first"),
    ("check_wilson", lambda wrong, n: [end * (1 + 1.96**2 / n) for end in wilson(wrong, n)], "divide both ends"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n)[1], "shape (2,); yours has ()"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: x @ w + b - eps * w.norm(), "the sign s is missing"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w) - eps * w.norm(), "b is missing"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w) + b - eps * w.norm(), "s multiplies b, too"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) + eps * w.norm(), "wants the smallest"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) - eps * w.abs().sum(), "The sum of |w|"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) - eps * (w @ w), "the squared length"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) - eps, "How large is w . delta"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b), "has not moved yet"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b - eps * w.norm()), "does not change sign with s"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: worst_score(w, b, x, s, eps).min(), "shape (3,)"),
    ("check_robust_error", lambda before, after: (after.float().mean(), rates(before, after)[1]), "before or after"),
    ("check_robust_error", lambda before, after: (rates(before, after)[0], after.float().mean()), "newly wrong"),
    (
        "check_robust_error",
        lambda before, after: (rates(before, after)[0], (~before & after).float().mean()),
        "out of those right before",
    ),
    (
        "check_robust_error",
        lambda before, after: (rates(before, after)[0], after.sum() / (~before).sum()),
        "the newly wrong only",
    ),
    ("check_robust_error", lambda before, after: [100 * float(rate) for rate in rates(before, after)], "not percent"),
    ("check_robust_error", lambda before, after: rates(before, after)[::-1], "the other way round"),
    ("check_robust_error", lambda before, after: rates(before, after)[0], "shape (2,); yours has ()"),
    ("check_robust_error", lambda before, after: (before.mean(), after.mean()), "function raised"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer, capsys):
    getattr(exercises, check)(answer)
    assert ", solved." in capsys.readouterr().out


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG)
def test_mistakes_get_the_hint_that_fits(check, answer, hint, capsys):
    getattr(exercises, check)(answer)
    said = capsys.readouterr().out
    assert "not yet" in said and hint in said
