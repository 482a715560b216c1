"""The checks of chapter 10."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from helpers.exercises._check import Case, check


def check_worst_inputs(
    worst_inputs: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], solution: bool = False
) -> None:
    """Exercise 10.1: takes W (K, d), low and high (N, d), y (N,); returns the worst input for each class, (N, K, d)."""
    W = torch.tensor([[1.0, -2.0], [3.0, 1.0], [2.0, -1.5]])
    low = torch.tensor([[0.0, 1.0], [-1.0, 0.5], [0.25, 0.25]])
    high = torch.tensor([[1.0, 1.5], [1.0, 2.5], [0.25, 0.75]])
    y = torch.tensor([0, 2, 1])
    D, lower, upper = W - W[y][:, None], low[:, None], high[:, None]
    expected = torch.where(D > 0, upper, lower)
    alone = torch.where(W > 0, upper, lower)
    hint = "Where W_k - W_y is positive the worst input is the upper end, elsewhere the lower one."
    smallest = "At these inputs the margins are smallest. An attacker wants z_k - z_y large."
    mistakes = [
        (
            alone,
            "These make logit k alone as large as it can be. The margin is z_k - z_y: subtract row y of W first, then "
            "look at the signs.",
        ),
        (torch.where(D < 0, upper, lower), smallest),
        (torch.where(D > 0, lower, upper), smallest),
        (torch.where(D >= 0, upper, lower), "Where the two rows agree, take the lower end: D > 0, not D >= 0."),
        (expected.amax(1), "Each class has a worst input of its own: shape (N, K, d)."),
    ]
    told = (
        "At these corners the bound is reached: for its box the last layer is exact. Whether any image in Delta(x) "
        "leads to such a corner is another question."
    )
    check("10.1", worst_inputs, [Case((W, low, high, y), expected, hint, mistakes)], told, solution=solution)


def check_mixed_loss(mixed_loss: Callable[[Tensor, Tensor, Tensor, float], Tensor], solution: bool = False) -> None:
    """Exercise 10.2: takes logits and margins (N, K), y (N,), kappa; returns the mean loss, ()."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    margins = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, -4.0]])
    y = torch.tensor([0, 1])
    clean, worst = cross_entropy(logits, y), cross_entropy(margins, y)

    def case(kappa: float, hint: str) -> Case:
        mistakes = [
            (kappa * worst + (1 - kappa) * clean, "kappa is the share of the clean loss; you have it the other way."),
            (clean + kappa * worst, "The two shares add up to 1: kappa and 1 - kappa."),
            (kappa * clean + worst, "The two shares add up to 1: kappa and 1 - kappa."),
            (
                kappa * clean + (1 - kappa) * cross_entropy(-margins, y),
                "The bounds are large where the wrong class may win. They go into the cross-entropy as they are, "
                "in place of logits, without a minus.",
            ),
            (
                cross_entropy(kappa * logits + (1 - kappa) * margins, y),
                "Mix the two losses, not the logits with the bounds.",
            ),
            (2 * (kappa * clean + (1 - kappa) * worst), "The mean over the batch, not the sum."),
            (
                torch.stack([cross_entropy(t, y, reduction="none") for t in (logits, margins)]).T
                @ torch.tensor([kappa, 1 - kappa]),
                "One number for the batch, its mean: shape ().",
            ),
        ]
        return Case((logits, margins, y, kappa), kappa * clean + (1 - kappa) * worst, hint, mistakes)

    cases = [
        case(0.25, "kappa times the cross-entropy of the logits, plus 1 - kappa times that of the bounds."),
        case(0.0, "With kappa 0 only the bounds count."),
        case(1.0, "With kappa 1 only the logits count: standard training."),
    ]
    told = "With kappa 1 it is standard training, with kappa 0 it is that of this chapter."
    check("10.2", mixed_loss, cases, told, solution=solution)


def check_small_box(small_box: Callable[[Tensor, Tensor, float, float], Tensor], solution: bool = False) -> None:
    """Exercise 10.3: takes x and x_adv (N, d), eps, share; returns low and high of the small box, (2, N, d)."""
    x = torch.tensor([[0.5, 0.5, 0.5, 0.05], [0.9, 0.5, 0.3, 0.0]])
    x_adv = torch.tensor([[0.7, 0.3, 0.55, 0.0], [1.0, 0.6, 0.3, 0.2]])
    eps, share = 0.2, 0.25
    size = share * eps
    center = x + (x_adv - x).clamp(size - eps, eps - size)

    def around(middle: Tensor, radius: float, cut: bool = True) -> Tensor:
        ends = torch.stack([middle - radius, middle + radius])
        return ends.clamp(0, 1) if cut else ends

    meet = torch.stack([(x_adv - size).maximum(x - eps), (x_adv + size).minimum(x + eps)]).clamp(0, 1)
    mistakes = [
        (around(x_adv, size), "Around x_adv itself the box sticks out of Delta(x): move its centre inwards first."),
        (
            meet,
            "You cut off what sticks out, and the box has lost half its width there. Move the centre inwards instead: "
            "at most (1 - share) eps from x.",
        ),
        (around(center, size, cut=False), "The pixel box is forgotten: 0 to 1."),
        (around(center, eps), "The half-width is share * eps, not eps."),
        (around(x, size), "The box lies around x; it belongs near the attacked image."),
        (
            around(x + (1 - share) * (x_adv - x), size),
            "You shrank all of delta. Only what is beyond (1 - share) eps must move: clamp it.",
        ),
        (around(center, size).flip(0), "low first: these are the other way round."),
    ]
    hint = "Clamp x_adv - x to (1 - share) eps, add share * eps on either side, and stay within 0 and 1."
    cases = [
        Case((x, x_adv, eps, share), around(center, size), hint, mistakes),
        Case((x, x_adv, eps, 1.0), around(x, eps), "With share 1 it is all of Delta(x): the centre is x."),
    ]
    told = "A centre at most (1 - share) eps from x, and share * eps more: at most eps, in Delta(x)."
    check("10.3", small_box, cases, told, solution=solution)
