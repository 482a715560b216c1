"""The checks of chapter 13."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.exercises._check import Case, check


def check_universal_step(
    universal_step: Callable[[Tensor, Tensor, float, float], Tensor], solution: bool = False
) -> None:
    """Exercise 13.1: takes delta (H, W), grads (N, H, W), step size and eps; returns the next delta in l2, (H, W)."""
    delta = torch.tensor([[0.2, -0.1, 0.0], [0.05, 0.19, -0.2]])
    grads = torch.tensor(
        [
            [[1.0, -3.0, 0.5], [-0.5, 2.0, -1.0]],
            [[0.5, 1.0, 0.25], [-1.0, -0.5, -2.0]],
            [[-0.25, 1.0, -1.0], [4.0, 0.5, -0.5]],
        ]
    )
    total, lengths = grads.sum(0), grads.norm(dim=(1, 2), keepdim=True)
    votes = (grads / lengths).sum(0)

    def onto(free: Tensor, eps: float) -> Tensor:
        return free * min(1.0, eps / free.norm().item())

    def case(step: float, eps: float, hint: str) -> Case:
        free = delta + step * total / total.norm()
        raw = "The steepest step in l2 is the gradient divided by its length, times the step size."
        mistakes = [
            (free, "The perturbation has become longer than eps: project after the step."),
            (onto(delta - step * total / total.norm(), eps), "That goes down. The attack wants a higher loss."),
            (
                onto(delta + step * votes / votes.norm(), eps),
                "You made each image's gradient equally long first, which lets the images vote and forgets how much "
                "each of them gains. The steepest step for the sum of the losses is the direction of the sum.",
            ),
            (onto(delta + step * votes / 3, eps), "First add the gradients of all images, then divide by one length."),
            (onto(delta + step * total.sign(), eps), f"The sign is the steepest step in l-inf. {raw}"),
            (onto(delta + step * total, eps), raw),
            (onto(delta + step * grads.mean(0), eps), raw),
            (free.clamp(-eps, eps), "Pixel by pixel is the projection of l-inf. In l2 the whole picture is scaled."),
            (free * eps / free.norm(), "Inside the ball there is nothing to project: scale down, never up."),
            (onto(step * total / total.norm(), eps), "You begin at 0 again: add the step to delta."),
        ]
        return Case((delta, grads, step, eps), onto(free, eps), hint, mistakes)

    cases = [
        case(0.05, 0.3, "One delta for all: add up the gradients, divide by the length, make a step, scale it to eps."),
        case(0.05, 1.0, "Inside the ball there is nothing to project."),
    ]
    told = "One direction for all images: the rest is chapter 3."
    check("13.1", universal_step, cases, told, solution=solution)


def check_longest(longest: Callable[[int, int], int], solution: bool = False) -> None:
    """Exercise 13.2: takes the size of an alphabet and a budget; returns how long a string may be to try all."""

    def case(size: int, budget: int, length: int, hint: str, mistakes: dict[int, str]) -> Case:
        told = [(torch.tensor(wrong), text) for wrong, text in mistakes.items()]
        return Case((size, budget), torch.tensor(length), f"{size} letters, {budget:,} tries: {hint}", told)

    above = "That is one too long: all strings of that length are more than the budget."
    cases = [
        case(95, 10_000, 2, "95 * 95 = 9,025 fit.", {3: above, 105: "Strings multiply: size ** length, not times."}),
        case(2, 1024, 10, "exactly 2 ** 10 are allowed.", {9: "A budget that is met exactly is enough: <=, not <."}),
        case(
            10,
            1000,
            3,
            "10 ** 3 is exactly the budget.",
            {2: "In floating point log(1000) / log(10) is a little below 3. Multiply whole numbers instead."},
        ),
        case(200, 199, 0, "not even one letter can be tried.", {1: above}),
    ]
    told = "The exact answer ends where the powers begin."
    check("13.2", longest, cases, told, solution=solution)


def check_best_letters(best_letters: Callable[[Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 13.3: takes a gradient (L, V) and the allowed tokens (A,); returns the best token for each place."""
    gradient = torch.tensor(
        [
            [-9.0, 0.5, -1.0, 2.0, -3.0, 4.0],
            [3.0, -2.0, 1.0, 0.0, 5.0, -4.0],
            [0.0, 1.0, 2.0, -0.5, 3.0, -7.0],
        ]
    )
    allowed = torch.tensor([1, 2, 3, 4])
    expected = torch.tensor([4, 1, 3])
    inside = gradient[:, allowed]
    mistakes = [
        (gradient.argmin(1), "You took a token that is not allowed: choose among gradient[:, allowed]."),
        (inside.argmin(1), "That is the place in `allowed`; the check wants the token itself, allowed[place]."),
        (allowed[inside.argmax(1)], "That raises the loss. Here it is to fall, so take the smallest entry."),
        (allowed[inside.abs().argmax(1)], "The sign matters: a large positive entry raises the loss."),
        (gradient.argmax(1), "Not allowed, and it raises the loss: take the smallest entry among the allowed."),
    ]
    hint = "In row i the gradient says how much the loss grows by each token at place i. Take the smallest allowed one."
    told = "A linear guess for every letter of every place, from one gradient."
    check("13.3", best_letters, [Case((gradient, allowed), expected, hint, mistakes)], told, solution=solution)
