"""Exercises of chapter 3: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import answer_tests

from helpers import exercises
from helpers.perturbations import Linf

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def step(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y, reduction="sum"), delta)
    return (delta.detach() + step_size * grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)


def step_with_backward(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    F.cross_entropy(model(x + delta), y, reduction="sum").backward()
    return (delta.detach() + step_size * delta.grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)


def step_uphill_of(find_grad):
    """A step of PGD whose direction is something else made of the gradient."""

    def pgd_step(model, x, y, delta, eps, step_size):
        delta = delta.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
        return Linf(eps).project(delta.detach() + step_size * find_grad(grad), x)

    return pgd_step


def step_with_history(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
    return (delta + step_size * grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)


def step_on_the_callers_delta(model, x, y, delta, eps, step_size):
    delta.requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
    return Linf(eps).project(delta.detach() + step_size * grad.sign(), x)


def step_at_x(model, x, y, delta, eps, step_size):
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    return Linf(eps).project(delta + step_size * grad.sign(), x)


def step_at_x_of_a_leaf(model, x, y, delta, eps, step_size):
    start = torch.zeros_like(delta).requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + start), y), start)
    return Linf(eps).project(delta + step_size * grad.sign(), x)


def step_from_nowhere(model, x, y, delta, eps, step_size):
    return Linf(eps).project(free_step(model, x, y, delta, eps, step_size) - delta, x)


def free_step(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
    return delta.detach() + step_size * grad.sign()


def in_place(delta, x, eps):
    delta += 0.1
    return delta


RIGHT = [
    ("check_project", lambda delta, x, eps: delta.clamp(-eps, eps).clamp(-x, 1 - x)),
    ("check_pgd_step", step),
]

WRONG = [
    ("check_project", in_place, "its argument `delta` in place"),
    ("check_project", lambda *_: _[0].clamp_(-0.01, 0.01), "its argument `_` in place"),
    ("check_project", torch.Tensor.neg_, "TypeError"),
    ("check_project", lambda delta, x, eps: delta.clamp(-eps, eps), "x + delta leaves [0, 1]"),
    ("check_project", lambda delta, x, eps: delta.clamp(-x, 1 - x), "|delta| exceeds eps"),
    ("check_project", lambda delta, x, eps: x + Linf(eps).project(delta, x), "the image x + delta"),
    ("check_project", lambda delta, x, eps: delta.clamp(-eps, eps).clamp(0, 1), "may be negative"),
    ("check_project", lambda delta, x, eps: eps * delta.sign(), "not a corner"),
    ("check_project", lambda delta, x, eps: delta * 0, "come back unchanged"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: step(m, x, y, delta, 1.0, size), "|delta| exceeds eps"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: step(m, x, y, delta, eps, -size), "uphill"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: x + step(m, x, y, delta, eps, size), "the image x + delta"),
    ("check_pgd_step", step_uphill_of(lambda grad: grad), "the gradient itself, without its sign"),
    ("check_pgd_step", step_uphill_of(lambda grad: 4 * grad), "the gradient itself, without its sign"),
    ("check_pgd_step", step_uphill_of(lambda grad: grad / grad.norm()), "step_size * sign(gradient"),
    ("check_pgd_step", step_with_history, "remembers how it was computed"),
    ("check_pgd_step", step_on_the_callers_delta, "requires_grad_() on its argument `delta`"),
    ("check_pgd_step", step_with_backward, "filled the .grad of the parameters of `model`"),
    ("check_pgd_step", step_at_x, "the gradient at x. You stand at x + delta"),
    ("check_pgd_step", step_at_x_of_a_leaf, "the gradient at x. You stand at x + delta"),
    ("check_pgd_step", step_from_nowhere, "add it"),
    ("check_pgd_step", free_step, "x + delta leaves [0, 1]: project"),
    ("check_pgd_step", lambda m, x, y, d, eps, size: free_step(m, x, y, d, 0, size).clamp(-eps, eps), "leaves [0, 1]"),
]


test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)


def test_a_wrong_projection_is_shown_where_it_is_wrong(capsys):
    exercises.check_pgd_step(lambda m, x, y, d, eps, size: free_step(m, x, y, d, 0, size).clamp(-eps, eps))
    said = re.search(r"should be (\S+) and is (\S+)\.", capsys.readouterr().out)
    assert said and said[1] != said[2]


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (None, "a number in (0, 1]"),
        ("half a level", "a number in (0, 1]"),
        (-0.1, "a number in (0, 1]"),
        (math.nan, "a number in (0, 1]"),
        (8, "8 looks like a number of grey levels: divide it by 255"),
        (0.05, "Go up"),
        (0.5, "Go down"),
        (1, "Go down"),
        (0.105, "solved"),
        (torch.tensor(0.105), "solved"),
        (np.float32(0.105), "solved"),
    ],
)
def test_smallest_eps_is_told_from_smaller_and_larger(eps, message, capsys):
    # The decision flips where the mean pixel falls below 0.5, that is, exactly at eps = 0.1.
    def model(x):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean - 0.5, 0.5 - mean], dim=1)

    x, y = torch.full((1, 1, 4, 4), 0.6), torch.tensor([0])
    assert Linf(0.1).project(torch.full_like(x, -1.0), x).mean() == pytest.approx(-0.1)
    exercises.check_smallest_eps(eps, model, x, y)
    assert message in capsys.readouterr().out
