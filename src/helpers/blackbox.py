"""Square: a random search that asks the model for its logits, and never for a gradient."""

import math
from typing import Any

import torch
from torch import Tensor

from helpers._validation import (
    check_classes,
    check_count,
    check_eps,
    check_images,
    check_labels,
    check_logits,
    explained_dtype,
)
from helpers.attacks import Iterate, Model, frozen, margin
from helpers.perturbations import Budget, Linf, draw, seeds

CHUNK = 100  # the random numbers of so many queries are drawn at a time


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: Budget,
    *,
    queries: int = 1000,
    generator: torch.Generator | None = None,
    return_queries: bool = False,
    trace: Any = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return adversarial images, in l-inf, found by random search (Andriushchenko et al. 2020, algorithm 1).

    The first query is the image itself; the second is the image with vertical stripes at random, each channel of each
    column moved as far as it may go, up or down. Then a rectangle at a random place, small and ever smaller, is moved
    to one end of its interval, each channel to its own. If the margin has not fallen, the change stays. An image that
    fools the model is left alone.

    So a model with zero, useless or no gradients is attacked like any other, and only the order of the margins counts:
    a factor on all logits changes nothing. Each image has its own stream of random numbers, so that the split into
    batches does not matter, and the path does not depend on how many queries there will be: more never find less. The
    authors' rectangles shrink with the share of the queries that is used up, and a change that changes nothing is asked
    about too; here it is turned to the other end.

    Args:
        model: takes images like `x`, returns logits (N, K); what it says of an image must not depend on the others.
        x: (N, ..., H, W), or (N, D) for what is no picture: values in [0, 1]. y: (N,), int64, the true labels.
        eps: the l-inf budget, in pixel units from 0 to 1: one for all images, or a tensor (N,).
        queries: how often the model is asked about each image, at least 1.
        generator: of the random numbers, else the global one.
        return_queries: also return how often each image was asked about: until it fooled the model, or `queries` times.
        trace: something with an `append`, which gets an `Iterate` at every query, as in `pgd`. (In a list, thousands of
            queries fill the memory.)

    Returns:
        x_adv, like `x`: in [0, 1], and x_adv - x in Delta(x) up to rounding. With `return_queries` (x_adv, (N,) int64).

    Raises:
        TypeError, ValueError: an argument is not allowed, or the model does not return logits.
    """
    check_images(x)
    check_labels(y, x)
    check_eps(eps, high=1, hint="Pixels go from 0 to 1: for 8 of 255 levels write 8/255.", x=x)
    check_count(queries, "queries")
    with frozen(model), explained_dtype(model, x), torch.no_grad():
        allowed, ones = Linf(eps), torch.ones_like(x[0])
        ends = torch.stack([allowed.farthest(sign * ones, x) for sign in (-1, 1)]).view(2, *_as_pictures(x))
        _, n, channels, height, width = ends.shape
        delta, value = torch.zeros_like(ends[0]), x.new_full((n,), -torch.inf)
        rows, spent, seed = torch.arange(n, device=x.device), torch.zeros_like(y), seeds(n, generator)
        for query in range(int(queries)):
            before, (low, high) = delta[rows], ends[:, rows]
            if query == 0:
                new = before
            elif query == 1:
                up = draw(torch.rand, x, channels * width, seed + query).view(n, channels, 1, width)[rows] < 0.5
                new = high.where(up, low)
            else:
                if (query - 2) % CHUNK == 0:
                    numbers = draw(torch.rand, x, CHUNK * (2 + channels), seed + query).view(n, CHUNK, 2 + channels)
                now = numbers[rows, (query - 2) % CHUNK]
                window, up = _window(now[:, :2], query - 2, height, width), now[:, 2:, None, None] < 0.5
                new = high.where(up, low).where(window, before)
                idle = (new == before).flatten(1).all(1)[:, None, None, None]
                new = high.where(up ^ idle, low).where(window, before)
            logits = model(x[rows] + new.view_as(x[rows]))
            check_logits(logits, len(rows))
            if query == 0:
                check_classes(y, logits.shape[1])
            loss, fooled = margin(logits, y[rows]), logits.argmax(1) != y[rows]
            if trace is not None:
                trace.append(Iterate(0, query, new.view_as(x[rows]), logits, loss, fooled, rows))
            spent[rows] += 1
            better = fooled | (loss >= value[rows])
            delta[rows[better]], value[rows[better]] = new[better], loss[better]
            rows = rows[~fooled]
            if len(rows) == 0:
                break
        x_adv = x + delta.view_as(x)
        return (x_adv, spent) if return_queries else x_adv


def _as_pictures(x: Tensor) -> tuple[int, int, int, int]:
    """Return the shape of `x` as (N, channels, height, width); a vector is a picture of height 1."""
    height = x.shape[-2] if x.ndim > 2 else 1
    return len(x), math.prod(x.shape[1:-2]), height, x.shape[-1]


def _window(at: Tensor, step: int, height: int, width: int) -> Tensor:
    """Return (M, 1, height, width), bool: a rectangle for each image, as near to a square as its area and edges allow.

    Its share of the picture falls from 0.8 to 0.12 after 40 steps, and to 0.014 after 1,000.

    Args:
        at: (M, 2), from 0 to 1, where. step: 0 for the first rectangle.
    """
    area = 0.8 / (1 + step / 3) ** 0.7 * height * width
    tall = max(1, min(height, round(area**0.5)))
    wide = max(1, min(width, round(area / tall)))
    spans = []
    for place, size, whole in ((at[:, 0], tall, height), (at[:, 1], wide, width)):
        start = (place * (whole - size + 1)).floor()[:, None]
        line = torch.arange(whole, device=at.device)
        spans.append((line >= start) & (line < start + size))
    return spans[0][:, None, :, None] & spans[1][:, None, None, :]
