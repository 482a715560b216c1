"""Distances: how small a perturbation fools the model, image by image, instead of how many images fall at one eps.

Each function returns the nearest misclassified images that it found, and how far away they are: an upper bound of the
true distance, as an attack's error is a lower bound of the true error. All distances together are the whole curve of
error against eps: at eps, the errors that were found are the images whose distance is at most eps.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from helpers._validation import (
    check_attacked,
    check_classes,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_number,
    explained_dtype,
)
from helpers.attacks import Loss, Model, frozen, gradient, pgd, soft_margin
from helpers.perturbations import perturbation_set

Norm = Literal["linf", "l2"]
ROUNDS = 30  # of bisection at most: then an interval is a billion times shorter than at first


class Nearest(NamedTuple):
    """The nearest misclassified images that were found."""

    distance: Tensor  # (N,), of x_adv from x: 0 where x itself is misclassified, inf where nothing was found
    x_adv: Tensor  # (N, ...), values in [0, 1]; x itself in these two cases


def smallest_eps(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "linf",
    attack: Callable[[Model, Tensor, Tensor, Tensor], Tensor] | None = None,
    tolerance: float = 0.01,
) -> Nearest:
    """Return the smallest eps at which an attack succeeds, for each image, by bisection in one batch.

    Every image has an interval of its own, at first from 0 to the eps within which any image can become any other. The
    attack tries the middle. A success brings the upper end down to the distance of the image that was found, a failure
    brings the lower end up. So every distance is that of an image that does fool the model, and the better the attack,
    the nearer it is.

    Args:
        model: takes images like `x`, returns logits (N, K).
        x: (N, ...), values in [0, 1]. y: (N,), int64, the true labels.
        norm: of the distance, "linf" or "l2".
        attack: a function of (model, x, y, eps), with eps (N,), that returns images like `x`, such as
            `partial(pgd, norm="l2", restarts=3)`, in the same norm. If not given: `pgd` with `step_size="auto"` (steps
            of one size find less) and `keep="first"`.
        tolerance: an image is done when its interval is this short, as a share of its upper end.

    Returns:
        Distances (N,), in pixel units, and images.

    Raises:
        TypeError, ValueError: an argument is not allowed, the model does not return logits, or the attack does not
            return images.

    Warns:
        AttackWarning: what the attack warned of in some round, each kind once.
    """
    _check(x, y, norm)
    check_number(tolerance, "tolerance", low=0, high=1, open_low=True)
    attack = partial(pgd, norm=norm, step_size="auto", keep="first") if attack is None else attack
    if not callable(attack):
        raise TypeError(f"attack must be a function of (model, x, y, eps); got {type(attack).__name__}")
    with frozen(model), explained_dtype(model, x), torch.inference_mode(False), _each_warning_once():
        x, y = x.detach().clone(), y.clone()
        found = _start(model, x, y)
        low = torch.zeros_like(found.distance)
        high = low + (1 if norm == "linf" else math.sqrt(x[0].numel()))
        for _ in range(ROUNDS):
            rows = ((found.distance > 0) & (high - low > tolerance * high)).nonzero()[:, 0]
            if len(rows) == 0:
                break
            eps = (low + high)[rows] / 2
            x_adv = attack(model, x[rows], y[rows], eps)
            check_attacked(x_adv, x[rows])
            fooled = _wrong(model(x_adv).detach(), y[rows])
            _keep(found, rows, x, x_adv.detach(), fooled, norm)
            low[rows] = low[rows].where(fooled, eps)
            high[rows] = high[rows].where(~fooled, eps.minimum(found.distance[rows]))
        return found


def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "linf",
    steps: int = 50,
    overshoot: float = 0.02,
    classes: int = 10,
) -> Nearest:
    """Return what DeepFool finds: the step to the nearest boundary of a linear model, taken again and again.

    At each point the logits are replaced by linear functions, their tangents. There the boundary to class k is as far
    away as logits_y is above logits_k, over the dual norm of the gradient of the difference, and the shortest way leads
    in the steepest direction. The step to the nearest of the boundaries is added to those before it; their sum, a
    little longer, is cut to the pixel box. On a linear model it is exact, up to the overshoot, where the box does not
    bind. On others it is quick, and not far from the best.

    Source: Moosavi-Dezfooli et al. 2016, algorithm 2 and equation 12, without the box.

    Args:
        model, x, y, norm: as in `smallest_eps`; the model has a gradient.
        steps: at most so many, at least 1. Each costs a backward pass for every class.
        overshoot: how much longer the sum is made, as a share of its length, above 0.
        classes: how many of the wrong classes are looked at, the likeliest at the point, at least 1.

    Returns:
        Distances (N,), in pixel units, and images.

    Raises:
        TypeError, ValueError: an argument is not allowed, or the model does not return logits or has no gradient.
    """
    _check(x, y, norm)
    check_count(steps, "steps")
    check_count(classes, "classes")
    check_number(overshoot, "overshoot", low=0, high=1, open_low=True)
    steepest = perturbation_set(norm, 0.0).steepest
    with frozen(model), explained_dtype(model, x), torch.inference_mode(False):
        x, y = x.detach().clone(), y.clone()
        found = _start(model, x, y)
        rows = (found.distance > 0).nonzero()[:, 0]
        image, label, total = x[rows], y[rows], torch.zeros_like(x[rows])
        for step in range(steps + 1 if len(rows) else 0):
            point = (image + (1 + overshoot) * total).clamp(0, 1).requires_grad_()
            with torch.set_grad_enabled(step < steps):  # the last point is judged, but not left
                logits = model(point)
            fooled = _wrong(logits, label)
            _keep(found, rows, x, point.detach(), fooled, norm)
            if step == steps or fooled.all():
                break
            with torch.enable_grad():
                gaps = logits - logits.gather(1, label[:, None])
            others = gaps.detach().scatter(1, label[:, None], -torch.inf)
            nearest, shortest = torch.full_like(others[:, 0], torch.inf), torch.zeros_like(image)
            for k in others.topk(min(classes, logits.shape[1] - 1)).indices.T:
                with torch.enable_grad():
                    gap = gaps.gather(1, k[:, None])[:, 0]
                grad = gradient(gap, point, again=True)
                direction = steepest(grad)
                away = -gap.detach() / (grad * direction).flatten(1).sum(1)  # the sum is the dual norm of grad
                closer = away < nearest
                nearest = away.where(closer, nearest)
                step_to_k = _columns(away.clamp(min=1e-6), x) * direction  # in a tie, too, there is a step
                shortest = step_to_k.where(_columns(closer, x), shortest)
            stay = ~fooled
            rows, image, label, total = rows[stay], image[stay], label[stay], (total + shortest)[stay]
        return found


def ddn(
    model: Model, x: Tensor, y: Tensor, *, steps: int = 100, gamma: float = 0.05, loss: Loss = soft_margin
) -> Nearest:
    """Return what DDN finds, in l2: steps up the loss on a sphere that shrinks while it fools and grows while not.

    Direction and norm are decoupled: a gradient step, long at first and short in the end, says where to, and then the
    point is put on a sphere around x. If the last point fooled, the radius is smaller by the share `gamma`, and if not,
    larger. So the path follows the boundary, and of all its points the nearest that fools is kept. A hundred gradients
    find about what a bisection finds, which takes several times as many.

    Source: Rony et al. 2019, algorithm 1, there with the cross-entropy, and rounded to grey levels.

    Args:
        model, x, y: as in `smallest_eps`; the model has a gradient.
        steps: at least 1. gamma: in (0, 1).
        loss: climbed, a function of logits (N, K) and labels (N,) that returns (N,).

    Returns:
        Distances (N,), l2 in pixel units, and images.

    Raises:
        TypeError, ValueError: an argument is not allowed, or the model does not return logits or has no gradient.
    """
    _check(x, y, "l2")
    check_count(steps, "steps")
    check_number(gamma, "gamma", low=0, high=1, open_low=True)
    steepest = perturbation_set("l2", 0.0).steepest
    with frozen(model), explained_dtype(model, x), torch.inference_mode(False):
        x, y = x.detach().clone(), y.clone()
        found = _start(model, x, y)
        rows = (found.distance > 0).nonzero()[:, 0]
        image, label, delta = x[rows], y[rows], torch.zeros_like(x[rows])
        radius = torch.ones_like(found.distance[rows])
        for step in range(steps + 1 if len(rows) else 0):
            point = (image + delta).requires_grad_()
            with torch.set_grad_enabled(step < steps):
                logits = model(point)
                value = loss(logits, label)
            fooled = _wrong(logits, label)
            _keep(found, rows, x, point.detach(), fooled, "l2")
            if step == steps:
                break
            size = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
            direction = steepest(delta + size * steepest(gradient(value, point)))
            radius = radius * torch.where(fooled, 1 - gamma, 1 + gamma)
            delta = (image + _columns(radius, x) * direction).clamp(0, 1) - image
        return found


def _check(x: Tensor, y: Tensor, norm: str) -> None:
    check_images(x)
    check_labels(y, x)
    perturbation_set(norm, 0.0)


def _start(model: Model, x: Tensor, y: Tensor) -> Nearest:
    """Return what is known before any attack."""
    with torch.no_grad():
        logits = model(x)
    wrong = _wrong(logits, y)
    check_classes(y, logits.shape[1])
    return Nearest(x.new_full(y.shape, torch.inf).masked_fill(wrong, 0), x.clone())


def _wrong(logits: Tensor, y: Tensor) -> Tensor:
    check_logits(logits, len(y))
    return logits.argmax(1) != y


def _keep(found: Nearest, rows: Tensor, x: Tensor, x_adv: Tensor, fooled: Tensor, norm: str) -> None:
    """Keep those of `x_adv`, images for some rows, that fool and are nearer than what was found before."""
    change = (x_adv - x[rows]).flatten(1)
    distance = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    nearer = fooled & (distance < found.distance[rows])
    found.distance[rows[nearer]], found.x_adv[rows[nearer]] = distance[nearer], x_adv[nearer]


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """Hold back the warnings, and in the end pass on the first of each kind: they differ in their numbers only."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in {re.sub(r"\d+", "#", str(each.message)): each for each in reversed(caught)}.values():
        warnings.warn(warning.message, warning.category, stacklevel=4)


def _columns(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
