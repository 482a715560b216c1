"""The checks of chapter 2."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from helpers.exercises._check import Case, check
from helpers.risk import wilson_interval


def check_wilson(wilson: Callable[[int, int], tuple[float, float]], solution: bool = False) -> None:
    """Exercise 2.1: `wilson` takes the number of errors and of examples, and returns the 95 % interval's two ends."""
    hint = "With p = wrong / n and z = 1.96: centre (p + z^2 / 2n) / (1 + z^2 / n); see the formula above for the rest."
    none = "With no error seen, the lower end is 0 and the upper one is not: about z^2 / n."
    cases = []
    for (wrong, n), why in (((10, 200), hint), ((60, 100), hint), ((0, 100), none)):
        ends, p = torch.tensor(wilson_interval(wrong, n)), wrong / n
        half = 1.96 * math.sqrt(p * (1 - p) / n)
        mistakes = [
            (ends.flip(0), "The lower end comes first."),
            (100 * ends, "Return rates between 0 and 1, not percent."),
            (ends * (1 + 1.96**2 / n), "The last step is missing: divide both ends by 1 + z^2 / n."),
        ]
        if wrong:
            textbook = "This is p plus or minus z sqrt(p (1 - p) / n), whose centre is p. Wilson's is not: " + hint
            mistakes += [(torch.tensor([p - half, p + half]), textbook)]
        cases.append(Case((wrong, n), ends, why, mistakes, tolerance=1e-3))
    told = "No error in 100 examples is compatible with an error rate of almost 4 %."
    check("2.1", wilson, cases, told, solution=solution)


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
