"""The checks of chapter 11."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from helpers.exercises._check import Case, check
from helpers.smoothing import certified_radius, lower_bound


def check_radius(radius: Callable[[Tensor, int, float, float], Tensor], solution: bool = False) -> None:
    """Exercise 11.1: takes hits (N,), n, sigma and alpha; returns the certified radii, (N,), 0 where it abstains."""
    hits, n, sigma, alpha = torch.tensor([1000, 990, 800, 520, 100]), 1000, 0.5, 0.001
    quantile = torch.special.ndtri

    def radii(p: Tensor) -> Tensor:
        return certified_radius(p, sigma).float()

    p = lower_bound(hits, n, alpha)
    share = hits.double() / n
    mistakes = [
        (radii(share), "You took the share of hits for the probability. It is above it half of the time."),
        (radii(lower_bound(hits, n, alpha / 2)), "That bound is two-sided: you need only the lower end, at alpha."),
        (radii(lower_bound(hits, n, 1 - alpha)), "That is an upper end: alpha and 1 - alpha are exchanged."),
        (radii(p) / sigma, "Sigma is missing: R = sigma Phi^-1(p)."),
        ((sigma * quantile(p)).float(), "At p of 1/2 or below it abstains. A radius is never negative: make it 0."),
        (torch.where(p > 0.5, p, 0).float(), "That is the bound of p; the radius is sigma Phi^-1 of it."),
    ]
    hint = "lower_bound(hits, n, alpha), then sigma times torch.special.ndtri of it, and 0 where it is 1/2 or less."
    told = "The fourth image has 520 hits of 1,000, more than half, and no certificate: they could be luck."
    case = Case((hits, n, sigma, alpha), radii(p), hint, mistakes, 1e-4)
    check("11.1", radius, [case], told, solution=solution)


def check_draws_needed(draws: Callable[[float, float, float], Tensor], solution: bool = False) -> None:
    """Exercise 11.2: takes a radius, sigma and alpha; returns the least n with which all hits certify this radius."""
    cases = []
    for radius, sigma, alpha in [(0.5, 0.25, 0.001), (1.0, 0.5, 0.001), (1.0, 0.25, 0.001), (0.5, 0.5, 0.05)]:
        p = torch.special.ndtr(torch.tensor(radius / sigma).double()).item()
        exactly = math.log(alpha) / math.log(p)
        mistakes = [
            (torch.tensor(math.floor(exactly)), "One draw too few: round up. With fewer the cap is below the radius."),
            (
                torch.tensor(math.ceil(math.log(alpha) / math.log(torch.special.ndtr(torch.tensor(radius)).item()))),
                "Sigma is missing: R = sigma Phi^-1(p), so p = Phi(R / sigma).",
            ),
        ]
        hint = "All hits give p = alpha^(1/n), and p must be Phi(R / sigma). Take logarithms."
        cases.append(Case((radius, sigma, alpha), torch.tensor(math.ceil(exactly)), hint, mistakes))
    told = "At sigma 0.25 a radius of 0.5 takes 301 draws, and 1.0 takes 218,105. The factor grows with the radius."
    check("11.2", draws, cases, told, solution=solution)


def check_linf_radius(linf_radius: Callable[[Tensor, tuple[int, ...]], Tensor], solution: bool = False) -> None:
    """Exercise 11.3: takes l2 radii (N,) and an image's shape; returns the l-inf radii that they prove, (N,)."""
    cases = []
    for shape in [(1, 28, 28), (3, 224, 224)]:
        radius, d = torch.tensor([1.0, 0.0, 0.35]), math.prod(shape)
        mistakes = [
            (radius, "The l-inf ball of that radius is not inside the l2 ball: its corners stick out."),
            (radius / d, "Divide by the square root of the number of values: a corner has the length R sqrt(d)."),
            (radius * math.sqrt(d), "The other way round: that cube contains the ball. The cube must be inside."),
            (radius / math.sqrt(d / shape[0]), "Count the values, not the pixels: each channel is one."),
            (radius / math.sqrt(shape[1]), "Count all values, not one side."),
        ]
        hint = "A corner of the cube with half side r is r sqrt(d) away from its middle."
        cases.append(Case((radius, shape), radius / math.sqrt(d), hint, mistakes, 1e-7))
    told = (
        "On a photograph this leaves less than a third of a grey level: that is what an l2 certificate says of l-inf."
    )
    check("11.3", linf_radius, cases, told, solution=solution)
