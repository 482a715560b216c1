"""Exercises of chapter 2: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
from conftest import answer_tests
from scipy.stats import binom

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def coverage(interval, n, p):
    total = 0.0
    for wrong in range(n + 1):
        low, high = interval(wrong, n)
        total += binom.pmf(wrong, n, p) if low <= p <= high else 0.0
    return float(total)


def tally(weight, keep=lambda low, high, p: low <= p <= high):
    """A coverage that gives the outcomes other weights, or keeps others."""

    def answer(interval, n, p):
        return float(sum(weight(k, n, p) for k in range(n + 1) if keep(*interval(k, n), p)))

    return answer


def worst_score(w, b, x, s, eps):
    return s * (x @ w + b) - eps * w.norm()


def rates(before, after):
    return (before | after).float().mean(), (~before & after).sum() / (~before).sum()


RIGHT = [
    ("check_coverage", coverage),
    ("check_coverage", lambda interval, n, p: torch.tensor(coverage(interval, n, p), dtype=torch.float64)),
    ("check_worst_margin_l2", worst_score),
    ("check_robust_error", rates),
    ("check_robust_error", lambda before, after: tuple(float(rate) for rate in rates(before, after))),
]

WRONG = [
    ("check_coverage", lambda *_: 0.95, "wrong = 0, ..., n"),
    ("check_coverage", lambda *arguments: 1 - coverage(*arguments), "misses p"),
    ("check_coverage", lambda *arguments: 100 * coverage(*arguments), "not percent"),
    ("check_coverage", tally(lambda k, n, p: 1 / (n + 1)), "not equally likely"),
    ("check_coverage", tally(lambda k, n, p: 1), "You counted the outcomes"),
    ("check_coverage", tally(lambda k, n, p: binom.pmf(k, n, p) if k else 0), "No error at all"),
    ("check_coverage", tally(lambda k, n, p: binom.pmf(k, n, p) if k < n else 0), "All wrong, wrong = n"),
    ("check_coverage", tally(binom.pmf, lambda low, high, p: low <= p), "Both ends count"),
    ("check_coverage", tally(binom.pmf, lambda low, high, p: p <= high), "Both ends count"),
    ("check_coverage", tally(lambda k, n, p: binom.pmf(k, n, k / n)), "not with wrong / n"),
    ("check_coverage", lambda interval, n, p: interval(round(n * p), n), "shape (); yours has (2,)"),
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


test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
