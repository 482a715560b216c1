"""The checks of chapter 8."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.exercises._check import Case, check


def check_interval_layer(
    interval_layer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], solution: bool = False
) -> None:
    """Exercise 8.1: takes W (m, d), b (m,), low and high (N, d); returns the outputs' bounds, (2, N, m)."""
    W = torch.tensor([[1.0, -2.0, 0.5], [-1.0, -3.0, 4.0]])
    b = torch.tensor([0.25, -1.0])
    low = torch.tensor([[0.0, 0.25, 0.5], [-1.0, 0.0, 0.25], [0.5, 0.5, 0.5]])
    high = low + torch.tensor([[0.5, 0.25, 0.25], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    center, radius = (low + high) / 2, (high - low) / 2
    middle, reach = center @ W.T + b, radius @ W.abs().T
    expected = torch.stack([middle - reach, middle + reach])
    ends = torch.stack([low @ W.T + b, high @ W.T + b])
    plus, minus = W.clamp(min=0), W.clamp(max=0)
    parts = torch.stack([low @ plus.T + high @ minus.T, high @ plus.T + low @ minus.T])
    hint = "Each weight takes the end that makes the output small, or large: which one depends on its sign."
    mistakes = [
        (
            ends,
            "You put all inputs at one end. A negative weight makes the output small where its input is large. (With "
            "centre and radius: radii add up whatever the sign of the weight, |W| r and not W r.)",
        ),
        (ends.sort(0).values, "Sorting the two ends does not help: the worst input mixes low and high ones."),
        (expected.flip(0), "Lowest first: these are the other way round."),
        (parts, "The constant b is missing: it moves both bounds."),
        (torch.stack([parts[0] - b, parts[1] + b]), "b moves both bounds in the same direction; it is known exactly."),
        (
            torch.stack([middle - 2 * reach, middle + 2 * reach]),
            "Twice too wide: the radius is half of high - low.",
        ),
    ]
    told = "By signs of the weights or by centre and radius: the numbers are the same."
    check("8.1", interval_layer, [Case((W, b, low, high), expected, hint, mistakes)], told, solution=solution)


def check_relax_relu(relax_relu: Callable[[Tensor, Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 8.2: takes c, low and high (d,); returns a linear upper bound's slopes and its constant, (d + 1,)."""
    c = torch.tensor([2.0, -2.0, -1.0, 0.5])
    low = torch.tensor([-1.0, -1.0, -3.0, -1.5])
    high = torch.tensor([3.0, 3.0, 1.0, 0.5])
    upper = high / (high - low)
    lower = (high > -low).float()
    plus, minus = c.clamp(min=0), c.clamp(max=0)
    offset = -(plus * upper * low).sum()[None]

    def answer(s: Tensor, t: Tensor) -> Tensor:
        return torch.cat([s, t])

    everywhere = -(c * upper * low).sum()[None]
    mistakes = [
        (answer(c * upper, everywhere), "Upper lines everywhere: a negative coefficient needs the lower line."),
        (
            answer(plus * lower + minus * upper, -(minus * upper * low).sum()[None]),
            "The other way round: to stay above, a positive coefficient takes the upper line.",
        ),
        (answer(plus * upper + minus * lower, 0 * offset), "The upper line does not go through 0: its constant is t."),
        (answer(plus * upper + minus * lower, -offset), "The sign of t: the upper line is above 0 at z = 0."),
        (
            answer(plus * upper + minus * lower, -(upper * low).sum()[None]),
            "In t each upper line counts with its coefficient, and lower lines have no constant.",
        ),
        (
            answer(plus * upper + minus * upper, offset),
            "The lower line here has slope 1 or 0, not that of the upper line.",
        ),
        (answer(plus * upper + minus * (1 - lower), offset), "Slope 1 where high > -low, else 0: the other way round."),
    ]
    hint = "Positive coefficients: slope u / (u - l) and constant -u l / (u - l). Negative ones: slope 1 or 0."
    stable = (
        torch.tensor([1.0, -1.0, 2.0, -2.0]),
        torch.tensor([1.0, 0.5, -3.0, -2.0]),
        torch.tensor([3.0, 2, -1, -1]),
    )
    unclamped = stable[2] / (stable[2] - stable[1])
    wrong = stable[0].clamp(min=0) * unclamped + stable[0].clamp(max=0) * (stable[2] > -stable[1]).float()
    zero = torch.zeros(2)
    cases = [
        Case((c, low, high), answer(plus * upper + minus * lower, offset), hint, mistakes),
        Case(
            stable,
            torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0]),
            "All four neurons are stable: two are on, a = z, and two are off, a = 0, whatever the coefficient.",
            [
                (
                    answer(wrong, -(stable[0].clamp(min=0) * unclamped * stable[1]).sum()[None]),
                    "The formula of the upper line is for l < 0 < u. Clamp first: l to at most 0, u to at least 0.",
                )
            ],
        ),
        Case(
            (torch.tensor([1.0, -1.0]), zero, zero),
            torch.zeros(3),
            "Here l = u = 0, and u / (u - l) is 0 / 0: keep the divisor above 0, for example by clamp(min=1e-30).",
        ),
    ]
    told = "This is the step that CROWN repeats, layer by layer."
    check("8.2", relax_relu, cases, told, solution=solution)


def check_proved_by_any(proved_by_any: Callable[[Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 8.3: takes upper margins (methods, N, K) and y (N,); returns which are proved, (N,) bool."""
    bounds = torch.tensor(
        [
            [[0.0, -1.0, 2.0], [-1.0, 0.0, -2.0], [-3.0, 1.0, 0.0], [0.0, -1.0, -1.0], [-0.5, 0.0, 0.0]],
            [[0.0, 1.0, -1.0], [-2.0, 0.0, 1.0], [-2.0, 2.0, 0.0], [0.0, -3.0, -2.0], [-0.1, 0.5, 0.0]],
        ]
    )
    y = torch.tensor([0, 1, 2, 0, 2])
    expected = torch.tensor([True, True, False, True, False])
    kept = bounds.scatter(2, y[None, :, None].expand(2, -1, 1), -torch.inf)
    mistakes = [
        (
            (kept < 0).all(2).any(0),
            "Nearly: one method must exclude all classes there. But in the first row each of the two methods excludes "
            "another class, and together they prove it: take the smaller bound of each class first.",
        ),
        ((kept < 0).all(2).all(0), "One proof is enough; you ask for one by every method."),
        ((bounds.amin(0) < 0).all(1), "The margin of the true class is 0 by definition: leave it out."),
        ((kept.amin(0) <= 0).all(1), "A bound of exactly 0 allows a tie: that is no proof. Below 0."),
        ((kept.amin(0) < 0).any(1), "Every wrong class must be excluded, not just one."),
    ]
    hint = "For each class the smallest bound; then all classes but the true one must be below 0."
    told = "The minimum of two upper bounds is an upper bound, class by class."
    cases = [Case((bounds, y), expected, hint, mistakes)]
    check("8.3", proved_by_any, cases, told, solution=solution)
