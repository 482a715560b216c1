"""The checks of chapter 7, and the defence that nobody explains."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from helpers.attacks import Model, frozen
from helpers.exercises._check import Case, _report, _trouble, check

ROUNDING = 1e-6  # how far outside of Delta(x) an attacked image may be


def check_straight_through(
    straight_through: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor], solution: bool = False
) -> None:
    """Exercise 7.1: `straight_through` takes a function and x, returns function(x) with the gradient of x."""

    def step(x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    def value(x: Tensor) -> Tensor:
        return straight_through(step, x)

    def gradient(x: Tensor) -> Tensor:
        point = x.clone().requires_grad_()
        result = straight_through(step, point)
        if not result.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad((weights * result).sum(), point)[0]

    x, weights = torch.tensor([[0.1, 0.3], [0.55, 0.9]]), torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    lost = "What is added up forward must be the step's result: x, plus a correction that stands in detach()."
    cut = "Backward nothing gets through. x itself must stand outside of detach(), and only the correction inside."
    values = [(x, "That is x: the step is lost. " + lost), (x + step(x), "One x too many. " + lost)]
    slopes = [(0 * x, cut), (2 * weights, "Twice the gradient: x stands outside of detach() twice.")]
    trouble = _trouble(value, Case((x,), step(x), lost, values)) or _trouble(
        gradient, Case((x,), weights, "Backward it should be as if nothing had been done to x.", slopes)
    )
    told = "The value is that of the step, the slope that of doing nothing."
    _report("7.1", trouble, told, solution)


def check_eleventh(eleventh: Callable[[Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 7.2: `eleventh` takes logits (N, K) and alarm (N,), returns (N, K + 1): "detected" as a last class."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [-4.0, -3.0, -1.0], [0.0, 3.0, 1.0]])
    alarm = torch.tensor([1.5, -0.5, -2.0])
    top = logits.amax(1)

    def with_last(last: Tensor) -> Tensor:
        return torch.cat([logits, last[:, None]], 1)

    mistakes = [
        (with_last(alarm), "The alarm alone is on another scale than the logits: add it to the highest of them."),
        (with_last(top - alarm), "The other way round: an alarm above 0 must put the new class on top."),
        (with_last(logits.mean(1) + alarm), "Above the mean is not above the rest: take the highest logit."),
        (
            with_last(top * (1 + alarm)),
            "That is Carlini and Wagner's form. Where the highest logit is negative (second row) it turns around.",
        ),
        (
            torch.cat([(top + alarm)[:, None], logits], 1),
            "The new class comes last, or the others change their numbers.",
        ),
    ]
    hint = "K + 1 columns: the logits as they are, then the highest of them plus the alarm."
    told = "The highest of the eleven is the new one exactly where the alarm rings."
    check("7.2", eleventh, [Case((logits, alarm), with_last(top + alarm), hint, mistakes)], told, solution=solution)


class MysteryDefence(nn.Module):
    """A classifier behind a defence. What it does is for the reader of chapter 7 to find out, from outside.

    Args:
        network: the classifier, images (N, 1, 28, 28) in [0, 1] to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        phase = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(7))
        self.register_buffer("phase", 2 * math.pi * phase)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) of the images `x`."""
        return self.network(x + 0.03 * torch.sin(500 * x + self.phase.to(x)))


def check_mystery(
    attack: Callable[[Model, Tensor, Tensor, float], Tensor],
    model: MysteryDefence,
    x: Tensor,
    y: Tensor,
    eps: float,
    solution: bool = False,
) -> None:
    """Exercise 7.3: `attack` takes model, x, y and eps, returns images in Delta(x) that `model` misreads."""
    told = "Whichever way you went: the defence had hidden the way and had not closed it."
    _report("7.3", _not_broken(attack, model, x, y, eps), told, solution)


def _not_broken(attack: Callable, model: MysteryDefence, x: Tensor, y: Tensor, eps: float) -> str:
    """Return what is wrong with an attack on the mysterious defence, or an empty string."""

    results, weights = [], [parameter.detach().clone() for parameter in model.parameters()]

    def attacked(x: Tensor) -> Tensor:
        results.append(attack(model, x, y, eps))
        return results[-1]

    trouble = _trouble(attacked, Case((x,), x, "", tolerance=math.inf))  # whatever it returns, if it is like x
    if trouble:
        return trouble
    x_adv = results[-1]
    if any(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True)):
        return "your attack changed the model's weights; an attacker has the image, not the model."
    change = (x_adv - x).abs().amax().item()
    if x_adv.abs().amax() <= eps + ROUNDING:
        return "that looks like delta. Return the image, x + delta."
    if change > eps + ROUNDING:
        return f"a pixel changes by {change:.3g}, more than eps = {eps:g}: these images are not in Delta(x)."
    if x_adv.amin() < -ROUNDING or x_adv.amax() > 1 + ROUNDING:
        return f"pixels from {x_adv.amin():.3g} to {x_adv.amax():.3g}: clamp x_adv to [0, 1], too."
    with frozen(model), torch.no_grad():
        error = 100 * (model(x_adv).argmax(1) != y).double().mean().item()
    if error > 60:
        return ""
    wanted = "of your images, and more than 60 % are wanted. "
    if error < 15:
        return f"the defended model misreads fewer than 15 % {wanted}" + (
            "That is about what plain PGD finds. Do its gradients tell the truth? Compare one with the change of the "
            "margin when the image is really moved."
        )
    return f"the defended model misreads {error:.0f} % {wanted}" + (
        "You are on the way. More queries or draws? Or a gradient that the defence does not touch?"
    )
