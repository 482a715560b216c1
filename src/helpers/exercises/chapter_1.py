"""The checks of chapter 1."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.exercises._check import Case, check


def check_softmax(softmax: Callable[[Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 1.1: `softmax` takes logits (N, K) and returns probabilities (N, K)."""
    plain = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    large = torch.tensor([[1000.0, 999.0, 0.0]])
    small = torch.tensor([[-1000.0, -999.0, -2000.0]])
    apart = torch.tensor([[1000.0, 999.0, 0.0], [0.0, 1.0, 2.0]])
    free = "Which number can you subtract from a row for free?"
    cases = [
        Case(
            (plain,),
            plain.softmax(1),
            "Each row is exp(logits) divided by its own sum over the K classes.",
            [
                (plain.softmax(0), "Your columns sum to 1, and the rows should: sum over dim=1, with keepdim=True."),
                (plain.exp() / plain.exp().sum(), "You divided by the sum of the whole batch; each row has its own."),
                (plain.exp(), "These are the exponentials; divide each row by its sum."),
                (plain / plain.sum(1, keepdim=True), "The exponentials are missing."),
                (plain.log_softmax(1), "These are the logarithms of the probabilities."),
            ],
        ),
        Case((large,), large.softmax(1), f"exp(1000) overflows. {free}"),
        Case((small,), small.softmax(1), f"exp(-1000) is 0, and 0 / 0 is not a number. {free} Its largest logit."),
        Case(
            (apart,),
            apart.softmax(1),
            "The rows are far apart here, and one of them became 0 / 0. Subtract from each row its own largest logit, "
            "not that of the whole batch: dim=1, with keepdim=True.",
        ),
    ]
    told = "Subtracting the largest logit first changes nothing in exact arithmetic and everything in floating point."
    check("1.1", softmax, cases, told, solution=solution)


def check_cross_entropy(cross_entropy: Callable[[Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 1.2: `cross_entropy` takes logits (N, K) and labels (N,) and returns the loss of each example (N,)."""
    logits, y = torch.tensor([[2.0, 1.0, -1.0], [0.5, 0.5, 0.5]]), torch.tensor([0, 2])
    far, wrong = torch.tensor([[0.0, 500.0]]), torch.tensor([0])
    each = F.cross_entropy(logits, y, reduction="none")
    cases = [
        Case(
            (logits, y),
            each,
            "Log-sum-exp of the row minus logit y.",
            [
                (-each, "The sign: a loss is large where the probability is small, so it is minus the logarithm."),
                (torch.exp(-each), "These are the probabilities of the true classes; the loss is minus their log."),
                (logits.logsumexp(1), "This is the log-sum-exp; the logit of the true class is still to subtract."),
            ],
        ),
        Case(
            (far, wrong),
            F.cross_entropy(far, wrong, reduction="none"),
            "The probability of class 0 rounds to zero here, and log(0) is minus infinity: use torch.logsumexp.",
        ),
    ]
    told = "It works where the probability itself rounds to zero, because it never leaves the log scale."
    check("1.2", cross_entropy, cases, told, solution=solution)


def check_eps_in_normalized_units(convert: Callable[[float, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 1.3: `convert` takes eps in pixel units and std (C,), and returns one eps per channel, (C,)."""
    half, imagenet = torch.full((3,), 0.5), torch.tensor([0.229, 0.224, 0.225])
    hint = "A pixel that moves by eps moves its normalised value, (pixel - mean) / std, by how much?"
    cases = []
    for eps, std in ((2 / 255, half), (8 / 255, imagenet)):
        mistakes = [
            (eps * std, "You multiplied by std, and normalising divides by it."),
            ((eps - std) / std, "A difference of two pixels is not shifted: the mean cancels, and only std stays."),
            (255 * eps / std, "eps is in pixel units, 0 to 1, already: no factor of 255."),
        ]
        cases.append(Case((eps, std), eps / std, hint + " Each channel has its own std.", mistakes))
    told = "With ImageNet's usual std, one number for all channels cannot even be right."
    check("1.3", convert, cases, told, solution=solution)
