"""The checks of chapter 6."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.exercises._check import Case, check
from helpers.perturbations import L1


def check_support_l1(support: Callable[[Tensor, Tensor, float], Tensor], solution: bool = False) -> None:
    """Exercise 6.1: `support` takes w (d,), x (d,) and eps, returns the largest w . delta in the l1 set, ()."""
    x = torch.tensor([0.0, 1.0, 0.4, 0.5, 0.9, 0.0, 0.9])
    w = torch.tensor([-9.0, 3.0, 2.0, -1.5, 0.0, 0.5, 2.5])  # the first two are at their ends
    room = torch.where(w > 0, 1 - x, x)
    cases = []
    for eps in (0.25, 0.9, 50.0):
        right = L1(eps).support(w, x[None])[0]
        spread = (w.abs() * room.clamp(max=eps)).sum()
        by_gain = _greedy(w, room, (w.abs() * room).argsort(descending=True), eps)
        by_sign = _greedy(w, room, w.argsort(descending=True), eps)
        upwards = _greedy(w, (1 - x).where(w > 0, 0), w.argsort(descending=True), eps)
        mistakes = [
            (eps * w.abs().max(), "That is eps times the largest |w_i|, the value without the box: pixel 0 is black."),
            (spread, "There every pixel has the whole budget to itself, as in l-inf; here they share it."),
            (by_gain, "Fill by |w_i|, what a unit of the budget earns, not by what a whole pixel earns."),
            (by_sign, "Sorted by w_i, not by |w_i|: a large negative weight earns as much, by a darker pixel."),
            (upwards, "Pixels with a negative weight earn, too: they get darker."),
            (-right, "That is the smallest product; the largest is wanted."),
        ]
        told = [(value, why) for value, why in mistakes if abs(float(value - right)) > 1e-3]
        hint = "Take the pixels by |w_i|, the largest first; each as far as it has room, until the budget is spent."
        if eps == 50.0:
            hint = "With a budget this large every pixel goes to its end, and the rest of the budget stays unspent."
        cases.append(Case((w, x, eps), right, hint, told))
    told = "Greedy is optimal: no other way to spend the budget earns more at any point."
    check("6.1", support, cases, told, solution=solution)


def _greedy(w: Tensor, room: Tensor, order: Tensor, eps: float) -> Tensor:
    total, left = torch.tensor(0.0), eps
    for i in order:
        step = min(left, float(room[i]))
        total, left = total + w[i].abs() * step, left - step
    return total


def check_distance(distance: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 6.2: `distance` takes weight (K, d), bias (K,), x (N, d) and y (N,), returns signed distances (N,)."""
    generator = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(4, 5, generator=generator), torch.randn(4, generator=generator)
    x = torch.rand(6, 5, generator=generator)
    y = (x @ weight.T + bias).argmax(1)
    y[4:] = (y[4:] + 1) % 4  # two that are wrong already
    logits = x @ weight.T + bias
    true = torch.nn.functional.one_hot(y, 4).bool()
    lead = logits.gather(1, y[:, None]) - logits
    between = weight[y][:, None] - weight
    ratio = (lead / between.abs().sum(2)).masked_fill(true, torch.inf)
    right = ratio.amin(1)
    runner_up = lead.masked_fill(true, torch.inf).argmin(1, keepdim=True)
    hint = "For each wrong class k: (logit_y - logit_k) / ||w_y - w_k||_1. The smallest of them counts."
    mistakes = [
        (
            ratio.gather(1, runner_up)[:, 0],
            "You divided for the runner-up only. A class that is further behind can be nearer: its ||w_y - w_k||_1 may "
            "be larger.",
        ),
        (
            (lead / between.norm(dim=2)).masked_fill(true, torch.inf).amin(1),
            "That is the l2 distance; an l-inf budget is divided by the l1 norm.",
        ),
        (
            (lead / between.abs().amax(2)).masked_fill(true, torch.inf).amin(1),
            "That is the distance in l1. The dual of l-inf is l1: the sum of all |w_y - w_k|.",
        ),
        (
            (lead / weight[y].abs().sum(1, keepdim=True)).masked_fill(true, torch.inf).amin(1),
            "Divide by the norm of the difference w_y - w_k: delta moves both logits.",
        ),
        (lead.masked_fill(true, torch.inf).amin(1), "That is in units of the logits: divide by ||w_y - w_k||_1."),
        (-right, "The other way round: positive where the answer is right."),
        (right.clamp(min=0), "A wrong answer has a negative distance: do not cut at 0."),
        (right.abs(), "A wrong answer has a negative distance: do not take the absolute value."),
        (ratio.masked_fill(true, -torch.inf).amax(1), "Some wrong class is enough: the smallest counts."),
        (torch.zeros(6), "The true class is at distance 0 from itself: leave it out."),
        (ratio.masked_fill(true, 0.0).amin(1), "The true class is at distance 0 from itself: leave it out."),
        (torch.full((6,), torch.nan), "0 / 0: for the true class both are 0. Leave it out, say by setting it to inf."),
    ]
    cases = [
        Case((weight, bias, x, y), right, hint, mistakes),
        Case((10 * weight, 10 * bias, x, y), right, "Ten times the weights are the same boundary: nothing changes."),
    ]
    told = "Below this eps nothing can go wrong; at it, without the box, something does."
    check("6.2", distance, cases, told, solution=solution)


def check_robust_gaussian(accuracy: Callable[[float, int, float, float, float], float], solution: bool = False) -> None:
    """Exercise 6.3: `accuracy` takes v, d, eta, p and eps, returns the accuracy under attack, 0 to 1."""

    def value(v: float, d: int, eta: float, p: float, strong: float, weak: float) -> Tensor:
        means = torch.tensor([v * (1 - strong) + eta - weak, v * (-1 - strong) + eta - weak], dtype=torch.float64)
        chances = torch.special.ndtr(means * d**0.5)
        return (p * chances[0] + (1 - p) * chances[1]).float()

    cases = []
    for v, d, eta, p, eps in ((0.0, 400, 0.05, 0.9, 0.0), (0.15, 100, 0.1, 0.9, 0.0), (0.2, 100, 0.1, 0.8, 0.15)):
        right = value(v, d, eta, p, eps, eps)
        means = torch.tensor([v * (1 - eps) + eta - eps, v * (-1 - eps) + eta - eps], dtype=torch.float64)
        weights = torch.tensor([p, 1 - p], dtype=torch.float64)
        mistakes = [
            (1 - right, "That is the error; the accuracy is wanted."),
            (100 * right, "Return a rate between 0 and 1, not percent."),
            (value(v, d, eta, p, 0, 0), "That is the clean accuracy: the adversary has not moved anything."),
            (value(v, d, eta, p, 0, eps), "The adversary moves the strong feature, too: 1 - eps, or -1 - eps."),
            (value(v, d, eta, p, eps, 0), "The adversary moves the weak features, too: eta - eps."),
            (value(v, d, eta, p, -eps, -eps), "That adversary helps: it should move every feature towards -s."),
            (value(v, d, eta, p, eps, d**0.5 * eps), "The mean of the weak features moves by eps, not by more."),
            (
                (weights * torch.special.ndtr(means)).sum().float(),
                "The mean of d weak features has standard deviation 1 / sqrt(d): divide by it inside Phi.",
            ),
            (
                (weights * torch.special.ndtr(means * d)).sum().float(),
                "The standard deviation of the mean is 1 / sqrt(d), not 1 / d.",
            ),
            (value(v, d, eta, 1 - p, eps, eps), "p is the chance that the strong feature is right."),
            (value(v, d, eta, 1.0, eps, eps), "With probability 1 - p the strong feature is wrong: add that case."),
            (
                torch.special.ndtr((weights * means).sum() * d**0.5).float(),
                "Average the two probabilities, not what stands inside Phi.",
            ),
        ]
        told = [(wrong, why) for wrong, why in mistakes if abs(float(wrong - right)) > 1e-4]
        hint = "p Phi(sqrt(d) (v (1 - eps) + eta - eps)) + (1 - p) Phi(sqrt(d) (v (-1 - eps) + eta - eps))."
        cases.append(Case((v, d, eta, p, eps), right, hint, told))
    told = "With a large v only the strong feature speaks; with a small one the weak ones do, and they can be moved."
    check("6.3", accuracy, cases, told, solution=solution)
