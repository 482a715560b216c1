"""The checks of chapter 2."""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from helpers.exercises._check import Case, check
from helpers.risk import wilson_interval


def check_coverage(
    coverage: Callable[[Callable[[int, int], tuple[float, float]], int, float], float], solution: bool = False
) -> None:
    """Exercise 2.1: `coverage` takes a rule for an interval, n and p, and returns how often the interval contains p."""
    hint = "Go through wrong = 0, ..., n, and add binom.pmf(wrong, n, p) where low <= p <= high."
    cases = []
    for rule, n, p in (
        (_textbook, 20, 0.1),
        (wilson_interval, 20, 0.1),
        (_textbook, 200, 0.002),
        (wilson_interval, 3, 0.6),
    ):
        wrong = np.arange(n + 1)
        low, high = np.transpose([rule(int(k), n) for k in wrong])
        hit, chance = (low <= p) & (p <= high), binom.pmf(wrong, n, p)
        right = chance[hit].sum()
        mistakes = [
            (1 - right, "That is how often the interval misses p."),
            (100 * right, "Return a rate between 0 and 1, not percent."),
            (hit.mean(), "Outcomes are not equally likely: each counts with its probability, binom.pmf(wrong, n, p)."),
            (hit.sum(), "You counted the outcomes; add their probabilities, binom.pmf(wrong, n, p)."),
            (chance[hit & (wrong < n)].sum(), "All wrong, wrong = n, is an outcome too: range(n + 1)."),
            (chance[hit & (wrong < n)].sum() - chance[0] * hit[0], "No error at all, wrong = 0, is an outcome too."),
            (chance[low <= p].sum(), "Both ends count: low <= p and p <= high."),
            (chance[p <= high].sum(), "Both ends count: low <= p and p <= high."),
            (
                binom.pmf(wrong, n, wrong / n)[hit].sum(),
                "The outcomes are drawn with the true rate p, not with wrong / n.",
            ),
        ]
        told = [(torch.tensor(float(value)), why) for value, why in mistakes if abs(value - right) > 1e-3]
        cases.append(Case((rule, n, p), torch.tensor(float(right)), hint, told, tolerance=1e-4))
    told = "Near a rate of zero the textbook rule breaks its promise badly, and Wilson's comes close to it."
    check("2.1", coverage, cases, told, solution=solution)


def _textbook(wrong: int, n: int) -> tuple[float, float]:
    p = wrong / n
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def check_worst_margin_l2(
    worst: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor], solution: bool = False
) -> None:
    """Exercise 2.2: `worst` takes w (d,), b (), x (N, d), s (N,) and eps, and returns min over delta of the score."""
    generator = torch.Generator().manual_seed(0)
    w, b, x = torch.randn(6, generator=generator), torch.tensor(0.3), torch.rand(3, 6, generator=generator)
    s = torch.tensor([1.0, -1.0, 1.0])
    score = s * (x @ w + b)
    hint = "Among all delta of length eps, which one makes s (w . delta) smallest? How large is w . delta there?"
    cases = [
        Case(
            (w, b, x, s, 0.0),
            score,
            "With eps = 0 it is the score itself, s (w . x + b).",
            [
                (x @ w + b, "With eps = 0 it is the score itself, s (w . x + b): the sign s is missing."),
                (s * (x @ w), "With eps = 0 it is the score itself, s (w . x + b): b is missing."),
                (s * (x @ w) + b, "With eps = 0 it is the score itself, s (w . x + b): s multiplies b, too."),
            ],
        ),
        Case(
            (w, b, x, s, 0.5),
            score - 0.5 * w.norm(),
            hint,
            [
                (score + 0.5 * w.norm(), "That is the largest score; the adversary wants the smallest."),
                (
                    score - 0.5 * w.abs().sum(),
                    "The sum of |w| is for a bound on each entry; delta has length eps.",
                ),
                (score - 0.5 * (w @ w), "That is the squared length of w. The worst delta, of length eps, is along w."),
                (
                    s * (x @ w + b - 0.5 * w.norm()),
                    "The drop is one for both classes: it does not change sign with s.",
                ),
                (score, "That is the score of x itself; the adversary has not moved yet."),
            ],
        ),
        Case((3 * w, b, x, -s, 0.5), -(x @ (3 * w) + b) * s - 0.5 * (3 * w).norm(), hint),
    ]
    told = "The Euclidean norm is its own dual; the dual of the largest entry is the sum of all."
    check("2.2", worst, cases, told, solution=solution)


def check_robust_error(rates: Callable[[Tensor, Tensor], tuple[float, float]], solution: bool = False) -> None:
    """Exercise 2.3: `rates` takes wrong_before and wrong_after (N,), and returns robust error and success rate."""
    before = torch.tensor([True, True, False, False, False, False, False, False])
    after = torch.tensor([True, False, True, True, False, False, False, False])
    cases = [
        Case(
            (before, after),
            torch.tensor([4 / 8, 2 / 6]),
            "Robust error: wrong before or after, out of all. Success rate: newly wrong, out of those right before.",
            [
                (torch.tensor([2 / 6, 4 / 8]), "Those are the two numbers, the other way round."),
                (
                    torch.tensor([3 / 8, 2 / 6]),
                    "Robust error counts those wrong before or after: an attack that "
                    "happens to repair an example does not make the classifier right about it.",
                ),
                (torch.tensor([4 / 8, 2 / 8]), "The success rate is out of those right before, not out of all."),
                (torch.tensor([4 / 8, 3 / 6]), "The success rate counts the newly wrong only, not all that are wrong."),
                (torch.tensor([50.0, 100 / 3]), "Return rates between 0 and 1, not percent."),
            ],
        ),
        Case((before & False, after), torch.tensor([3 / 8, 3 / 8]), "With no clean error the two conventions agree."),
    ]
    check(
        "2.3", rates, cases, "One experiment, two numbers. Whenever you read one of them, ask which.", solution=solution
    )
