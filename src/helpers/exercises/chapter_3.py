"""The checks of chapter 3."""

import math
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.attacks import pgd
from helpers.exercises._check import Case, _close, _report, check
from helpers.perturbations import Linf


def check_project(project: Callable[[Tensor, Tensor, float], Tensor], solution: bool = False) -> None:
    """Exercise 3.1: `project` takes delta, x (same shape) and eps, and returns the nearest point of the l-inf set."""
    x = torch.tensor([[0.0, 0.5, 1.0, 0.95]])
    delta = torch.tensor([[-0.3, 0.3, 0.3, 0.08]])
    inside = torch.tensor([[0.05, -0.05, -0.05, 0.0]])
    image = "That is the image x + delta; the projection returns delta."
    nearest = Linf(0.1).project(delta, x)
    cases = [
        Case(
            (inside, x, 0.1),
            inside,
            "This delta is in the set already and must come back unchanged.",
            [
                (x + inside, image),
                (inside.clamp(0, 1), "A perturbation may be negative: it is x + delta that has to lie in [0, 1]."),
                (0.1 * inside.sign(), "The nearest point, not a corner: what is inside stays where it is."),
            ],
        ),
        Case(
            (delta, x, 0.1),
            nearest,
            "Two limits hold for each pixel: |delta| <= eps and 0 <= x + delta <= 1. Pixels at 0, 1 and 0.95 "
            "cannot move by eps in both directions.",
            [
                (
                    delta.clamp(-0.1, 0.1),
                    "|delta| <= eps holds now, but x + delta leaves [0, 1]: the other of the two "
                    "limits, a clamp of delta between -x and 1 - x, is missing.",
                ),
                (
                    delta.clamp(-x, 1 - x),
                    "x + delta lies in [0, 1] now, but |delta| exceeds eps: the other of the two limits is missing.",
                ),
                (x + nearest, image),
            ],
        ),
    ]
    told = "Both limits act on each pixel alone, which is why two clamps are an exact projection."
    check("3.1", project, cases, told, solution=solution)


def check_pgd_step(
    pgd_step: Callable[[nn.Module, Tensor, Tensor, Tensor, float, float], Tensor], solution: bool = False
) -> None:
    """Exercise 3.2: `pgd_step` takes model, x, y, delta, eps, step_size and returns the next delta."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Linear(12, 5)
        model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(5, 3))
        x, y = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        first.weight *= 12  # so curved that the gradient at x is not the one at x + delta
    eps, step_size = 0.1, 0.04
    trace: list = []
    pgd(model, x, y, eps, loss="cross_entropy", steps=4, step_size=step_size, trace=trace)
    hints = (
        "The first step is step_size * sign(gradient of the cross-entropy with respect to delta), uphill.",
        "The first step was right, this one is not: a sign step from the delta that you are given, uphill on the loss "
        "at x + delta, then the projection onto |delta| <= eps and 0 <= x + delta <= 1.",
    )

    def direction(delta: Tensor) -> Tensor:
        delta = delta.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(x + delta), y, reduction="sum"), delta)[0]

    cases = []
    for before, after, hint in zip((trace[0], trace[3]), (trace[1], trace[4]), hints, strict=True):
        grad, at_x = direction(before.delta), direction(torch.zeros_like(x))
        project, step = Linf(eps).project, step_size * grad.sign()
        size = "That is the gradient itself, without its sign: its length says nothing about pixels."
        mistakes = [
            (project(before.delta - step, x), "The other way: an attack goes uphill on the loss."),
            (project(before.delta + step_size * grad, x), size),
            (project(before.delta + step_size * grad / len(x), x), size),
            (
                project(before.delta + step_size * at_x.sign(), x),
                "That is the gradient at x. You stand at x + delta: the model has to see x + delta.",
            ),
            (x + after.delta, "That is the image x + delta; return delta."),
            ((before.delta + step).clamp(-eps, eps), "|delta| <= eps holds, but x + delta leaves [0, 1]: project."),
            ((before.delta + step).clamp(-x, 1 - x), "x + delta lies in [0, 1], but |delta| exceeds eps: project."),
            (before.delta + step, "This step leaves the set: project onto |delta| <= eps and 0 <= x + delta <= 1."),
            (project(step, x), "The step starts at the delta that you are given: add it."),
        ]
        # Where the two agree, as they do inside the set, it is no mistake.
        mistakes = [(wrong, told) for wrong, told in mistakes if not _close(wrong, after.delta, 1e-5)]
        cases.append(Case((model, x, y, before.delta, eps, step_size), after.delta, hint, mistakes))
    check("3.2", pgd_step, cases, "Put it in a loop and you have PGD.", solution=solution)


def check_smallest_eps(eps: float | None, model: nn.Module, x: Tensor, y: Tensor, solution: bool = False) -> None:
    """Exercise 3.3: `eps` should be the smallest budget, within 20 %, at which 30-step PGD fools `model` on `x`."""

    def fools(budget: float) -> bool:
        return bool((model(pgd(model, x, y, budget, steps=30, keep="first")).argmax(1) != y).all())

    with suppress(TypeError, ValueError, RuntimeError):  # 0-dimensional tensors and NumPy's numbers will do
        eps = eps if eps is None else float(eps)
    trouble = ""
    if not isinstance(eps, float) or not math.isfinite(eps) or eps <= 0:
        trouble = f"eps should be a number in (0, 1], such as 0.5 / 255; yours is {eps}."
    elif eps > 1:
        trouble = f"eps should be a number in (0, 1]; {eps:g} looks like a number of grey levels: divide it by 255."
    elif not fools(eps):
        trouble = f"at {255 * eps:.2f}/255 thirty steps of PGD do not fool the model. Go up."
    elif fools(0.8 * eps):
        trouble = f"{255 * 0.8 * eps:.2f}/255 is enough too. Go down: halve the interval again."
    told = "Far less than one grey level: such a change does not survive saving as 8 bits."
    _report("3.3", trouble, told, solution)
