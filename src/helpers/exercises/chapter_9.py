"""The checks of chapter 9."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.exercises._check import Case, check


def check_both_ends(both_ends: Callable[[Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 9.1: takes broken and proved (N,), bool; returns the two ends of the adversarial error, (2,)."""
    broken = torch.tensor([True, True, False, False, False, False, False, False, False, False])
    proved = torch.tensor([False, False, True, True, True, False, False, True, True, True])
    ends = torch.tensor([2 / 10, 4 / 10])
    mistakes = [
        (torch.tensor([2 / 10, 6 / 10]), "The second number is the share that is proved; the upper end is the rest."),
        (ends[[0, 0]], "You count the two unknown ones as robust. A time-out proves nothing."),
        (ends[[1, 1]], "You count the two unknown ones as broken. Nobody has broken them."),
        (torch.tensor([2 / 8, 2 / 8]), "You left the unknown ones out. They are images, too: divide by all N."),
        (ends.flip(0), "The lower end first."),
        (torch.tensor([6 / 10, 8 / 10]), "These are the ends of the robust accuracy; the error is one minus that."),
        (torch.tensor([2.0, 4.0]), "Shares, not counts: divide by N."),
        (100 * ends, "That is in percent. The check wants shares, from 0 to 1."),
    ]
    hint = "At least what is broken; at most all that is not proved."
    told = "Three answers, two ends. They meet when nothing is unknown."
    check("9.1", both_ends, [Case((broken, proved), ends, hint, mistakes)], told, solution=solution)


def check_two_cases(two_cases: Callable[[Tensor, Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 9.2: takes low and high (d,) and a neuron's number (); returns the bounds in both cases, (2, 2, d)."""
    low, high = torch.tensor([-2.0, -1.0, 0.5, -3.0]), torch.tensor([1.0, 3.0, 2.0, -1.0])
    j = torch.tensor(1)
    on_low, off_high = low.clone(), high.clone()
    on_low[1], off_high[1] = 0, 0
    expected = torch.stack([torch.stack([on_low, high]), torch.stack([low, off_high])])
    both_zero = torch.stack([torch.stack([on_low, off_high])] * 2)
    all_on = torch.stack([torch.stack([low.clamp(min=0), high]), torch.stack([low, high.clamp(max=0)])])
    crossed = torch.stack([torch.stack([low, off_high]), torch.stack([on_low, high])])
    mistakes = [
        (crossed, "The other way round: first the case z >= 0 (on), then z <= 0 (off)."),
        (both_zero, "You changed both ends in both cases: that fixes z = 0. In each case only one end moves."),
        (all_on, "Only neuron j is split; the others keep their bounds."),
    ]
    hint = "On: the lower bound of neuron j becomes 0. Off: its upper bound becomes 0. Nothing else changes."
    told = "Every perturbation falls into one of the two cases, so the larger of their two bounds holds for all."
    check("9.2", two_cases, [Case((low, high, j), expected, hint, mistakes)], told, solution=solution)
