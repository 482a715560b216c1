"""The exercises' checks: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
import torch.nn.functional as F

from helpers import exercises
from helpers.attacks import Linf


def softmax(logits):
    shifted = (logits - logits.max(dim=1, keepdim=True).values).exp()
    return shifted / shifted.sum(dim=1, keepdim=True)


def step(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y, reduction="sum"), delta)
    return (delta.detach() + step_size * grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)


def step_with_backward(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    F.cross_entropy(model(x + delta), y, reduction="sum").backward()
    return (delta.detach() + step_size * delta.grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)


def in_place(delta, x, eps):
    delta += 0.1
    return delta


RIGHT = [
    ("check_softmax", softmax),
    ("check_cross_entropy", lambda z, y: z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]),
    ("check_eps_in_normalized_units", lambda eps, std: eps / torch.tensor(std)),
    ("check_project", lambda delta, x, eps: delta.clamp(-eps, eps).clamp(-x, 1 - x)),
    ("check_pgd_step", step),
    ("check_pgd_step", step_with_backward),
]
WRONG = [
    ("check_softmax", lambda z: None, "returns nothing"),
    ("check_softmax", lambda z: 3.0, "yours is a float"),
    ("check_softmax", lambda z: z.exp() / z.exp().sum(), "its own sum"),
    ("check_softmax", lambda z: z.exp() / z.exp().sum(1, keepdim=True), "overflows"),
    ("check_softmax", lambda z: 1 / 0, "ZeroDivisionError"),
    ("check_cross_entropy", lambda z, y: F.cross_entropy(z, y), "shape (2,)"),
    ("check_cross_entropy", lambda z, y: -z.softmax(1).gather(1, y[:, None])[:, 0].log(), "logsumexp"),
    ("check_eps_in_normalized_units", lambda eps, std: eps * torch.tensor(std), "moves by eps"),
    ("check_project", lambda delta, x, eps: delta.clamp(-eps, eps), "Two limits"),
    ("check_project", in_place, "in place"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: step(m, x, y, delta, 1.0, size), "leaves the set"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: step(m, x, y, delta, eps, -size), "uphill"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer, capsys):
    getattr(exercises, check)(answer)
    said = capsys.readouterr().out
    assert ", solved." in said
    assert ("backward()" in said) == (answer is step_with_backward)


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG)
def test_mistakes_get_the_hint_that_fits(check, answer, hint, capsys):
    getattr(exercises, check)(answer)
    said = capsys.readouterr().out
    assert "not yet" in said and hint in said


@pytest.mark.parametrize(
    ("eps", "message"),
    [(None, "a number in (0, 1]"), (8.0, "a number in (0, 1]"), (0.05, "Go up"), (0.5, "Go down"), (0.105, "solved")],
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
