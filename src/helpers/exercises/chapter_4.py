"""The checks of chapter 4."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.attacks import difference
from helpers.exercises._check import Case, check


def check_difference(loss: Callable[[Tensor, Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 4.1: `loss` takes logits (N, K), y (N,) and target (N,), returns logit_target - logit_y, (N,)."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
    y, target = torch.tensor([0, 2]), torch.tensor([1, 0])
    huge = 1e4 * logits
    gain, p = difference(logits, y, target), logits.softmax(1)
    pick = "Pick two entries of each row: tensor.gather."
    cases = [
        Case(
            (logits, y, target),
            gain,
            pick,
            [
                (-gain, "The other way round: it should rise when the target's logit rises."),
                (
                    p.gather(1, target[:, None])[:, 0] - p.gather(1, y[:, None])[:, 0],
                    "These are differences of probabilities; take the logits as they are, without softmax.",
                ),
                (logits.gather(1, target[:, None])[:, 0], "That is the target's logit; the true one is to subtract."),
                (-F.cross_entropy(logits, target, reduction="none"), "That is log p of the target alone; " + pick),
            ],
        ),
        Case((huge, y, target), difference(huge, y, target), "No softmax: it would round to 0 and 1 here."),
    ]
    told = "Two numbers of each row are all that is left when the two cross-entropies are subtracted."
    check("4.1", loss, cases, told, solution=solution)


def check_least_likely(least_likely: Callable[[Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 4.2: `least_likely` takes logits (N, K) and y (N,), returns each row's least likely wrong class (N,)."""
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.0, 3.0, 1.0, 4.0], [-5.0, 0.0, 1.0, 2.0]])
    y = torch.tensor([0, 2, 0])  # fewer rows than classes, and no example of the last class: neither axis hides a slip
    hint = (
        "In each row the class of the smallest logit, so argmin along the classes (dimension 1); but a target must not "
        "be the true class (third row)."
    )
    mistakes = [
        (logits.argmin(1), "In the third row that is the true class, which cannot be a target: rule it out first."),
        (logits.argmax(1), "That is the most likely class; the smallest logit is wanted."),
        (logits.argsort(1)[:, 1], "Not always the second smallest: only where the smallest is the true class."),
        (logits.scatter(1, y[:, None], 0.0).argmin(1), hint),
        (
            logits.scatter(1, y[:, None], -torch.inf).argmin(1),
            "With minus infinity the true class becomes the smallest logit. Which value can never be the smallest?",
        ),
    ]
    cases = [Case((logits, y), torch.tensor([1, 0, 1]), hint, mistakes)]
    told = "The hardest target, as a rule: a strict test of a targeted attack."
    check("4.2", least_likely, cases, told, solution=solution)


def check_success(success: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 4.3: `success` takes the answers before and after the attack, y and target, all (N,), returns (N,) bool.

    True where a targeted attack has succeeded as the chapter counts it: right before, the target afterwards.
    """
    y = torch.tensor([0, 0, 0, 0, 1, 2])
    target = torch.tensor([3, 3, 3, 3, 2, 0])
    before = torch.tensor([0, 0, 3, 5, 1, 1])  # the third, the fourth and the last are wrong without any attack
    after = torch.tensor([3, 7, 3, 3, 1, 1])
    hint = "Two conditions for each example: `before` is the true class, and `after` is the target."
    mistakes = [
        (after == target, "The third and the fourth were wrong before the attack: they are not its doing."),
        ((before == y) & (after != y), "The second is wrong now, but not the target. That is untargeted success."),
        (after != y, "Any wrong answer counts here. A targeted attack wants the target, of what was right before."),
        (before == y, "Look at the answers after the attack as well."),
        (
            (before != target) & (after == target),
            "The fourth was wrong before, if not yet the target: not counted.",
        ),
        ((before == y) | (after == target), 'Both conditions must hold: "and" (&) instead of "or" (|).'),
    ]
    cases = [Case((before, after, y, target), (before == y) & (after == target), hint, mistakes)]
    told = "Who counts otherwise gets another rate from the same attack: say which one you report."
    check("4.3", success, cases, told, solution=solution)
