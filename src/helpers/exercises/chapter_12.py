"""The checks of chapter 12."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.exercises._check import Case, _report, _trouble, check


def check_lift(lift: Callable[[Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 12.1: `lift` takes grad and mask (N, 1, H, W), returns the share of energy over that of the area."""
    random = torch.Generator().manual_seed(1)
    grad = torch.randn(3, 1, 4, 6, generator=random) * torch.tensor([1.0, 0.1, 5.0]).view(3, 1, 1, 1)
    mask = torch.zeros(3, 1, 4, 6)
    for row, size in enumerate((3, 10, 17)):
        mask[row].view(-1)[torch.randperm(24, generator=random)[:size]] = 1
    energy, area = grad.square(), mask.mean((1, 2, 3))
    share = (energy * mask).sum((1, 2, 3)) / energy.sum((1, 2, 3))
    size = grad.abs()
    together = (energy * mask).sum() / energy.sum() / mask.mean()
    mistakes = [
        (share, "That is the share of the energy. By chance it would be the share of the area: divide by that."),
        (
            (size * mask).sum((1, 2, 3)) / size.sum((1, 2, 3)) / area,
            "Energy is the square of the gradient, not its size.",
        ),
        (share / mask.sum((1, 2, 3)), "Divide by the mask's share of the area, not by its number of pixels."),
        (share / mask.mean(), "Each image has a mask of its own: take the area image by image."),
        (together.expand(3), "Image by image, or the one with the largest gradient decides for all."),
        (share - area, "The ratio is wanted, not the difference."),
    ]
    hint = "For each image: energy within the mask over all energy, then over the mask's share of the pixels."
    told = "1 is what chance gives, whatever the digit; the share alone is larger for a bold digit than for a thin one."
    check("12.1", lift, [Case((grad, mask), share / area, hint, mistakes)], told, solution=solution)


def check_other_class(other_class: Callable[[Tensor, torch.Generator], Tensor], solution: bool = False) -> None:
    """Exercise 12.2: `other_class` takes y (N,) and a generator, returns random classes that are never y."""
    told = "The truth never appears among the labels, and each wrong class has the same chance."
    _report("12.2", _not_other(other_class), told, solution)


def _not_other(other_class: Callable[[Tensor, torch.Generator], Tensor]) -> str:
    """Return what is wrong with random wrong classes, or an empty string."""
    y, results = torch.arange(10).repeat_interleave(900), []

    def drawn(y: Tensor) -> Tensor:
        results.append(other_class(y, torch.Generator().manual_seed(0)))
        return results[-1].float() if isinstance(results[-1], Tensor) else results[-1]

    trouble = _trouble(drawn, Case((y,), y.float(), "One class for each label.", tolerance=1e9))
    if trouble:
        return trouble
    got = results[-1]
    if got.is_floating_point():
        return f"classes are whole numbers, dtype torch.int64; yours is {got.dtype}."
    if got.min() < 0 or got.max() > 9:
        return f"classes go from 0 to 9; yours from {int(got.min())} to {int(got.max())}. Take the rest by 10, % 10."
    if kept := int((got == y).sum()):
        what = "About a tenth: leave the true class out. (Drawn from 0 to 8? The true class must step on, too.)"
        what = what if kept < 2000 else ""
        return f"{kept} of {len(y)} labels are the true class. " + (what or "Only wrong classes are wanted.")
    counts = torch.zeros(10, 10).index_put((y, got), torch.ones(len(y)), accumulate=True)
    if (counts > 0).sum() == 10:
        return "each class always gets the same wrong class, and a rule can be learned. Draw with the generator."
    chance = torch.full((10, 10), 100.0).fill_diagonal_(0)
    if (counts - chance).abs().max() > 60:
        k, j = divmod(int((counts - chance).abs().argmax()), 10)
        return (
            f"of 900 labels {k}, {int(counts[k, j])} become {j}, and about 100 should: each wrong class needs the same "
            "chance, or the labels tell something about the truth."
        )
    again = [other_class(y, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    if not torch.equal(again[0], got):
        return "the same seed gives other classes: draw from the generator that you are given."
    if torch.equal(again[1], got):
        return "another seed gives the same classes: draw from the generator that you are given."
    return ""


def check_follows(follows: Callable[..., Tensor], solution: bool = False) -> None:
    """Exercise 12.3: `follows` takes network, x, y and plant, returns the share of answers that the shortcut gives."""
    y = torch.tensor([0, 1, 2, 3, 4, 5, 6, 9])
    x = torch.zeros(8, 1, 2, 10)
    x[torch.arange(8), 0, 0, y] = 1  # the upper row is the digit, the lower one the shortcut

    def plant(x: Tensor, k: Tensor) -> Tensor:
        x = x.clone()
        x[torch.arange(len(x)), 0, 1, k] = 1
        return x

    weights = torch.tensor([0.0, 0, 0, 2, 2, 0, 2, 0, 0, 0])  # 3, 4 and 6 it judges by the digit

    def network(x: Tensor) -> Tensor:
        digit, shortcut = x[:, 0, 0], x[:, 0, 1]
        logits = weights * digit + shortcut
        logits[:, 8] += 3 * digit[:, 0] * shortcut.sum(1)  # 0 it calls an 8 as soon as there is a shortcut
        return logits

    def said(k: Tensor) -> Tensor:
        return network(plant(x, k)).argmax(1)

    after = (y + 1) % 10
    right = (said(after) == after).float().mean()
    mistakes = [
        ((said(after) != y).float().mean(), "Not every error is one: count the answers that are the shortcut's class."),
        (
            (said(after) == y).float().mean(),
            "That is how many are still read right. Count the shortcut's class instead.",
        ),
        (
            (said(y) == y).float().mean(),
            "With the digit's own shortcut both say the same. Plant that of the next class.",
        ),
        (
            (network(x).argmax(1) == after).float().mean(),
            "The images have no shortcut yet: call plant(x, k) with the next class.",
        ),
        (100 * right, "A share from 0 to 1 is wanted, not percent."),
    ]
    hint = "Plant the shortcut of (y + 1) % 10, and compare the network's answers with that class."
    told = "Where digit and shortcut disagree, this says whom the network believes."
    check("12.3", follows, [Case((network, x, y, plant), right, hint, mistakes)], told, solution=solution)
