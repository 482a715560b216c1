"""Exercises of chapter 11: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import math

import pytest
import torch
from conftest import answer_tests
from scipy.stats import norm

from helpers.smoothing import certified_radius, lower_bound

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def radius(hits, n, sigma, alpha):
    p = lower_bound(hits, n, alpha)
    return torch.where(p > 0.5, sigma * torch.special.ndtri(p), 0.0)


def draws(radius, sigma, alpha):
    return math.ceil(math.log(alpha) / norm.logcdf(radius / sigma))


def linf(radius, shape):
    return radius / math.sqrt(math.prod(shape))


RIGHT = [
    ("check_radius", radius),
    ("check_radius", lambda h, n, s, a: certified_radius(lower_bound(h, n, a), s).float()),
    ("check_draws_needed", draws),
    ("check_draws_needed", lambda r, s, a: torch.tensor(draws(r, s, a))),
    ("check_linf_radius", linf),
]
WRONG = [
    ("check_radius", lambda h, n, s, a: certified_radius(h / n, s), "share of hits"),
    ("check_radius", lambda h, n, s, a: certified_radius(lower_bound(h, n, a / 2), s), "two-sided"),
    ("check_radius", lambda h, n, s, a: certified_radius(lower_bound(h, n, 1 - a), s), "exchanged"),
    ("check_radius", lambda h, n, s, a: certified_radius(lower_bound(h, n, a), 1), "Sigma is missing"),
    ("check_radius", lambda h, n, s, a: s * torch.special.ndtri(lower_bound(h, n, a)), "never negative"),
    ("check_radius", lambda h, n, s, a: lower_bound(h, n, a).where(lower_bound(h, n, a) > 0.5, 0.0), "bound of p"),
    ("check_radius", lambda h, n, s, a: None, "returns nothing"),
    ("check_draws_needed", lambda r, s, a: draws(r, s, a) - 1, "round up"),
    ("check_draws_needed", lambda r, s, a: math.log(a) / norm.logcdf(r / s), "round up"),
    ("check_draws_needed", lambda r, s, a: draws(r, 1, a), "Sigma is missing"),
    ("check_draws_needed", lambda r, s, a: 1000, "Take logarithms"),
    ("check_linf_radius", lambda r, shape: r, "corners stick out"),
    ("check_linf_radius", lambda r, shape: r / math.prod(shape), "square root"),
    ("check_linf_radius", lambda r, shape: r * math.sqrt(math.prod(shape)), "other way round"),
    ("check_linf_radius", lambda r, shape: r / math.sqrt(shape[1] * shape[2]), "each channel is one"),
]

test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
