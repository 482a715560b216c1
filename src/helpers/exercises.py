"""Checks for the exercises. Each tries the reader's function and prints what it did, and a hint if it is not right."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.attacks import Linf, pgd


class _Case(NamedTuple):
    arguments: tuple[Any, ...]
    expected: Tensor
    hint: str  # what to think about when this case fails


def _check(number: str, answer: Callable[..., Tensor], cases: Sequence[_Case], solved: str) -> None:
    for case in cases:
        trouble = _trouble(answer, case)
        if trouble:
            print(f"Exercise {number}, not yet: {trouble}")
            return
    print(f"Exercise {number}, solved. {solved}")


def _trouble(answer: Callable[..., Tensor], case: _Case) -> str:
    """Return what is wrong with the answer in this case, or an empty string."""
    kept = [a.clone() if isinstance(a, Tensor) else a for a in case.arguments]
    try:
        got = answer(*case.arguments)
    except Exception as error:  # whatever the reader's code raises is shown to the reader
        return f"your function raised {type(error).__name__}: {error}"
    if got is None or got is ...:
        return "your function returns nothing so far."
    if not isinstance(got, Tensor):
        return f"return a tensor of shape {tuple(case.expected.shape)}; yours is a {type(got).__name__}."
    if got.shape != case.expected.shape:
        return f"the result should have shape {tuple(case.expected.shape)}; yours has {tuple(got.shape)}. {case.hint}"
    if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(case.arguments, kept, strict=True)):
        return "your function changed its argument in place; return a new tensor instead."
    if not torch.allclose(got.to(case.expected.dtype), case.expected, atol=1e-5):
        return f"expected {_short(case.expected)}, got {_short(got)}. {case.hint}"
    return ""


def _short(values: Tensor) -> str:
    shown = [f"{v:.4g}" for v in values.detach().flatten()[:6].tolist()]
    return "[" + ", ".join(shown) + (", ...]" if values.numel() > 6 else "]")


def check_softmax(softmax: Callable[[Tensor], Tensor]) -> None:
    """Exercise 1.1: `softmax` takes logits (N, K) and returns probabilities (N, K)."""
    plain = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    large = torch.tensor([[1000.0, 999.0, 0.0]])
    _check(
        "1.1",
        softmax,
        [
            _Case((plain,), plain.softmax(1), "Each row is exp(logits) divided by its own sum over the K classes."),
            _Case(
                (large,), large.softmax(1), "exp(1000) overflows. Which number can you subtract from a row for free?"
            ),
        ],
        "Subtracting the largest logit first changes nothing in exact arithmetic and everything in floating point.",
    )


def check_cross_entropy(cross_entropy: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 1.2: `cross_entropy` takes logits (N, K) and labels (N,) and returns the loss of each example (N,)."""
    logits, y = torch.tensor([[2.0, 1.0, -1.0], [0.5, 0.5, 0.5]]), torch.tensor([0, 2])
    far, wrong = torch.tensor([[0.0, 500.0]]), torch.tensor([0])
    _check(
        "1.2",
        cross_entropy,
        [
            _Case((logits, y), F.cross_entropy(logits, y, reduction="none"), "Log-sum-exp of the row minus logit y."),
            _Case(
                (far, wrong),
                F.cross_entropy(far, wrong, reduction="none"),
                "The probability of class 0 rounds to zero here, and log(0) is minus infinity: use torch.logsumexp.",
            ),
        ],
        "It works where the probability itself rounds to zero, because it never leaves the log scale.",
    )


def check_eps_in_normalized_units(convert: Callable[[float, Sequence[float]], Tensor]) -> None:
    """Exercise 1.3: `convert` takes eps in pixel units and one std a channel, and returns one eps a channel."""
    half, imagenet = (0.5, 0.5, 0.5), (0.229, 0.224, 0.225)
    hint = "A pixel that moves by eps moves its normalised value, (pixel - mean) / std, by how much?"
    _check(
        "1.3",
        convert,
        [
            _Case((2 / 255, half), 2 / 255 / torch.tensor(half), hint),
            _Case((8 / 255, imagenet), 8 / 255 / torch.tensor(imagenet), hint + " Each channel has its own std."),
        ],
        "With ImageNet's usual std, one number for all channels cannot even be right.",
    )


def check_project(project: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Exercise 3.1: `project` takes delta, x (same shape) and eps, and returns the nearest point of the l-inf set."""
    x = torch.tensor([[0.0, 0.5, 1.0, 0.95]])
    delta = torch.tensor([[-0.3, 0.3, 0.3, 0.08]])
    inside = torch.tensor([[0.05, -0.05, -0.05, 0.0]])
    _check(
        "3.1",
        project,
        [
            _Case((inside, x, 0.1), inside, "This delta is in the set already and must come back unchanged."),
            _Case(
                (delta, x, 0.1),
                Linf(0.1).project(delta, x),
                "Two limits hold for each pixel: |delta| <= eps and 0 <= x + delta <= 1. Pixels at 0, 1 and 0.95 "
                "cannot move by eps in both directions.",
            ),
        ],
        "Both limits act on each pixel alone, which is why two clamps are an exact projection.",
    )


def check_pgd_step(
    pgd_step: Callable[[nn.Module, Tensor, Tensor, Tensor, float, float], Tensor],
) -> None:
    """Exercise 3.2: `pgd_step` takes model, x, y, delta, eps, step_size and returns the next delta."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
        x, y = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    eps, step_size = 0.1, 0.04
    trace: list = []
    pgd(model, x, y, eps, steps=4, step_size=step_size, trace=trace)
    hints = (
        "The first step is step_size * sign(gradient of the cross-entropy with respect to delta), uphill.",
        "From this delta the step leaves the set: project onto |delta| <= eps and 0 <= x + delta <= 1.",
    )
    cases = [
        _Case((model, x, y, before.delta, eps, step_size), after.delta, hint)
        for before, after, hint in zip((trace[0], trace[3]), (trace[1], trace[4]), hints, strict=True)
    ]
    _check("3.2", pgd_step, cases, "Put it in a loop and you have PGD.")
    if any(p.grad is not None for p in model.parameters()):
        print("One more thing: backward() has filled the .grad of the parameters. torch.autograd.grad does not.")


def check_smallest_eps(eps: float | None, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Exercise 3.3: `eps` should be the smallest budget, within 20 %, at which 30-step PGD fools `model` on `x`."""
    if not isinstance(eps, float) or not math.isfinite(eps) or not 0 < eps <= 1:
        print(f"Exercise 3.3, not yet: eps should be a number in (0, 1], such as 0.5 / 255; yours is {eps}.")
        return

    def fools(budget: float) -> bool:
        return bool((model(pgd(model, x, y, budget, steps=30)).argmax(1) != y).all())

    if not fools(eps):
        print(f"Exercise 3.3, not yet: at {255 * eps:.2f}/255 thirty steps of PGD do not fool the model. Go up.")
    elif fools(0.8 * eps):
        print(f"Exercise 3.3, not yet: {255 * 0.8 * eps:.2f}/255 is enough too. Go down: halve the interval again.")
    else:
        print("Exercise 3.3, solved. Far less than one grey level: such a change does not survive saving as 8 bits.")
