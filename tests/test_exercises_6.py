"""Exercises of chapter 6: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import math

import pytest
import torch
from conftest import answer_tests

from helpers.perturbations import L1

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def support(w, x, eps):
    room = torch.where(w > 0, 1 - x, x)
    order = w.abs().argsort(descending=True)
    before = room[order].cumsum(0) - room[order]
    return (w.abs()[order] * (eps - before).clamp(min=0).minimum(room[order])).sum()


def greedy(w, x, eps, order):
    room, total = torch.where(w > 0, 1 - x, x), 0.0
    for i in order:
        step = min(eps, float(room[i]))
        total, eps = total + float(w[i].abs()) * step, eps - step
    return total


def all_distances(weight, bias, x, y, norm=1):
    logits = x @ weight.T + bias
    lead = logits.gather(1, y[:, None]) - logits
    return lead / torch.linalg.vector_norm(weight[y][:, None] - weight, norm, dim=2)


def distance(weight, bias, x, y, norm=1):
    return all_distances(weight, bias, x, y, norm).scatter(1, y[:, None], torch.inf).amin(1)


def runner_up(weight, bias, x, y):
    logits = (x @ weight.T + bias).scatter(1, y[:, None], -torch.inf)
    k = logits.argmax(1)
    lead = (x @ weight.T + bias).gather(1, y[:, None])[:, 0] - logits.amax(1)
    return lead / (weight[y] - weight[k]).abs().sum(1)


def phi(z):
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def accuracy(v, d, eta, p, eps, strong=None, scale=None):
    strong = eps if strong is None else strong
    scale = d**0.5 if scale is None else scale
    good, bad = v * (1 - strong) + eta - eps, v * (-1 - strong) + eta - eps
    return p * phi(scale * good) + (1 - p) * phi(scale * bad)


RIGHT = [
    ("check_support_l1", support),
    ("check_support_l1", lambda w, x, eps: L1(eps).support(w, x[None])[0]),
    ("check_support_l1", lambda w, x, eps: greedy(w, x, eps, w.abs().argsort(descending=True))),
    ("check_distance", distance),
    ("check_distance", lambda *a: [float(d) for d in distance(*a)]),
    ("check_robust_gaussian", accuracy),
    ("check_robust_gaussian", lambda *a: torch.tensor(accuracy(*a))),
]

WRONG = [
    ("check_support_l1", lambda w, x, eps: eps * w.abs().max(), "the value without the box"),
    ("check_support_l1", lambda w, x, eps: (w.abs() * torch.where(w > 0, 1 - x, x).clamp(max=eps)).sum(), "share it"),
    (
        "check_support_l1",
        lambda w, x, eps: greedy(w, x, eps, (w.abs() * torch.where(w > 0, 1 - x, x)).argsort(descending=True)),
        "by |w_i|, what a unit",
    ),
    ("check_support_l1", lambda w, x, eps: greedy(w, x, eps, w.argsort(descending=True)), "not by |w_i|"),
    ("check_support_l1", lambda w, x, eps: -support(w, x, eps), "the smallest product"),
    ("check_support_l1", lambda w, x, eps: w * x, "shape ()"),
    ("check_distance", runner_up, "runner-up only"),
    ("check_distance", lambda *a: distance(*a, norm=2), "l2 distance"),
    ("check_distance", lambda *a: distance(*a, norm=torch.inf), "distance in l1"),
    ("check_distance", lambda *a: -distance(*a), "other way round"),
    ("check_distance", lambda *a: distance(*a).clamp(min=0), "do not cut"),
    ("check_distance", lambda *a: distance(*a).abs(), "absolute value"),
    ("check_distance", lambda *a: all_distances(*a).nan_to_num(0).amin(1), "leave it out"),
    (
        "check_distance",
        lambda weight, bias, x, y: distance(weight, bias, x, y) * (weight[y][:, None] - weight).abs().sum(2).amax(1),
        "The smallest of them counts",
    ),
    ("check_distance", lambda *a: all_distances(*a), "shape (6,); yours has (6, 4)"),
    ("check_robust_gaussian", lambda *a: 1 - accuracy(*a), "That is the error"),
    ("check_robust_gaussian", lambda *a: 100 * accuracy(*a), "not percent"),
    ("check_robust_gaussian", lambda v, d, eta, p, eps: accuracy(v, d, eta, p, 0.0), "has not moved anything"),
    ("check_robust_gaussian", lambda *a: accuracy(*a, strong=0.0), "moves the strong feature, too"),
    ("check_robust_gaussian", lambda v, d, eta, p, eps: accuracy(v, d, eta, p, 0.0, strong=eps), "weak features, too"),
    ("check_robust_gaussian", lambda v, d, eta, p, eps: accuracy(v, d, eta, p, -eps), "That adversary helps"),
    ("check_robust_gaussian", lambda *a: accuracy(*a, scale=1), "standard deviation 1 / sqrt(d): divide"),
    ("check_robust_gaussian", lambda v, d, *a: accuracy(v, d, *a, scale=d), "not 1 / d"),
    ("check_robust_gaussian", lambda v, d, eta, p, eps: accuracy(v, d, eta, 1 - p, eps), "is right"),
    ("check_robust_gaussian", lambda v, d, eta, p, eps: accuracy(v, d, eta, 1.0, eps), "add that case"),
]

test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
