"""Attacks: approximate answers to "which perturbation in the set hurts this classifier most?".

The parts are the losses, steps that find their own size, and one loop, `pgd`. The sets are in `helpers.perturbations`.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers._validation import (
    check_classes,
    check_count,
    check_eps,
    check_images,
    check_labels,
    check_logits,
    check_number,
    explained_dtype,
)
from helpers.perturbations import L2, Budget, Linf, perturbation_set, seeds

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class AttackWarning(UserWarning):
    """An attack's result means less than it seems to; the book's checklist explains each case."""


# ---------------------------------------------------------------------------------------------------------- losses


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return max over k != y of logits_k, minus logits_y, for each example: above 0 where it is misclassified.

    Args:
        logits: (N, K). y: (N,), int64, 0 to K - 1.

    Returns:
        (N,), in units of the logits; 0 in a tie. Carlini and Wagner 2017, f_6 without its floor.
    """
    return _others(logits, y).amax(1) - _own(logits, y)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy -log softmax(logits)_y of each example, with a gradient that does not die.

    The cross-entropy is log(1 + e^s), with s the log-sum-exp of the other logits minus logits_y, and its gradient is
    sigmoid(s) times that of s. For a confident model the factor rounds to 0 in float32: an attack that climbs stands
    still, and the model looks robust. Its direction never dies, so below s = -10 the factor stays what it is there.

    Args:
        logits: (N, K). y: (N,), int64, 0 to K - 1.

    Returns:
        (N,), in nats.
    """
    plain = F.cross_entropy(logits, y, reduction="none")
    s = _others(logits, y).logsumexp(1) - _own(logits, y)
    return torch.where(s > -10, plain, plain.detach() + math.exp(-10) * (s - s.detach()))


def soft_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the margin with its max replaced by T * logsumexp(. / T), with a T that follows the logits' own scale.

    Climbing it with T = 1 is climbing the cross-entropy; T = 0 is the margin. Which is better depends on the scale of
    the logits, which says nothing about a classifier's decisions. So T is a tenth of how far the highest logit is above
    their mean (not differentiated): multiply all logits by 100, and the attack takes the same steps.

    Args:
        logits: (N, K). y: (N,), int64, 0 to K - 1.

    Returns:
        (N,), in units of the logits: at least the margin, more by at most T * log(K - 1).
    """
    t = (logits.amax(1) - logits.mean(1)).detach() / 10
    t = t.where(t > 0, 1)
    return t * (_others(logits, y) / t[:, None]).logsumexp(1) - _own(logits, y)


def difference(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return logits_target minus logits_y for each example: the cross-entropy at y minus that at the target.

    Above 0 the target is ahead of the true class, though a third class may be ahead of both.

    Args:
        logits: (N, K). y, target: (N,), int64, 0 to K - 1.

    Returns:
        (N,), in units of the logits. Kolter and Madry 2018, chapter 1.
    """
    return _own(logits, target) - _own(logits, y)


def _own(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf)


LOSSES: dict[str, Loss] = {"soft_margin": soft_margin, "cross_entropy": cross_entropy, "margin": margin}


# ----------------------------------------------------------------------------------------------------------- steps


class AutoSteps:
    """Steps with momentum whose size, 2 * eps at first, is halved where progress stalls: no step size to choose.

    Progress is looked at, example by example, at intervals that shrink. Where the loss has risen in less than three
    quarters of the steps since the last look, or there was no new best point since then at an unchanged size, the size
    is halved and the path goes on from its best point so far. After APGD (Croce and Hein 2020, algorithm 1).
    """

    def __init__(self, allowed: Linf | L2, steps: int) -> None:
        self.allowed, self.step = allowed, 0
        self.looks, share, gap = set(), 0.0, 0.22
        while share < 1:
            share, gap = share + gap, max(gap - 0.03, 0.06)
            self.looks.add(math.ceil(share * steps))

    def next(self, x: Tensor, delta: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        """Return the next perturbation of `x`, given the loss (N,) and the gradient at `delta`."""
        if self.step == 0:
            self.rises, self.look = torch.zeros_like(loss), 0
            self.size = self.rises + 2 * self.allowed.eps
            self.before = self.peak = delta
            self.peak_grad, self.halved = grad, torch.ones_like(loss, dtype=torch.bool)
            self.last_loss = self.peak_loss = self.peak_at_look = loss
        self.rises = self.rises + (loss > self.last_loss)
        higher = loss > self.peak_loss
        self.peak, self.peak_grad = _where(higher, delta, self.peak), _where(higher, grad, self.peak_grad)
        self.peak_loss, self.last_loss = torch.maximum(loss, self.peak_loss), loss
        if self.step in self.looks:
            stuck = ~self.halved & (self.peak_loss == self.peak_at_look)
            self.halved = (self.rises < 0.75 * (self.step - self.look)) | stuck
            self.size = torch.where(self.halved, self.size / 2, self.size)
            delta, grad = _where(self.halved, self.peak, delta), _where(self.halved, self.peak_grad, grad)
            self.before = _where(self.halved, self.peak, self.before)
            self.peak_at_look, self.rises, self.look = self.peak_loss, torch.zeros_like(loss), self.step
        goal = self.allowed.project(delta + _columns(self.size, x) * self.allowed.steepest(grad), x)
        if self.step > 0:
            goal = self.allowed.project(delta + 0.75 * (goal - delta) + 0.25 * (delta - self.before), x)
        self.before, self.step = delta, self.step + 1
        return goal

    def keep(self, rows: Tensor) -> None:
        """Go on with these examples only, given as indices."""
        self.allowed = self.allowed.of(rows)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


def _columns(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _where(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(_columns(rows, a), a, b)


# --------------------------------------------------------------------------------------------------------- the loop


class Iterate(NamedTuple):
    """What `pgd` saw at one point of its path."""

    restart: int  # 0, 1, ...
    step: int  # 0 at the start, then 1 to `steps`
    delta: Tensor  # (M, ...), in Delta(x)
    logits: Tensor  # (M, K), of x + delta
    loss: Tensor  # (M,), what the attack maximises
    fooled: Tensor  # (M,), bool: misclassified, or with a target: classified as the target
    rows: Tensor  # (M,), which of the N examples these are: all of them, until some have left


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: Budget,
    *,
    norm: Literal["linf", "l2"] = "linf",
    target: Tensor | None = None,
    loss: str | Loss = "soft_margin",
    steps: int = 40,
    step_size: float | Literal["auto"] | None = None,
    random_start: bool = False,
    restarts: int = 1,
    keep: Literal["best", "last", "first"] = "best",
    generator: torch.Generator | None = None,
    trace: list[Iterate] | None = None,
) -> Tensor:
    """Return adversarial images found by projected gradient descent on minus the loss (Madry et al. 2018).

    Repeats delta <- project(delta + step_size * steepest(grad)), where grad is the gradient of the loss with respect to
    delta, project goes to the nearest point of Delta(x), and steepest is the steepest direction of the norm.

    Of all iterates the result is the best for each example: one that fools the model if there is one, and of those (or
    else of all) the one of highest loss. An example that is fooled takes no part in further restarts. So more steps of
    the same size, or more restarts, never fool fewer. The first restart begins at x itself unless `random_start`; then
    a fooled x stays fooled.

    Meanwhile a model that is an `nn.Module` is in eval mode with frozen parameters; each module and parameter is put
    back as it was, also after an exception. No `.grad` is touched. Works under `torch.no_grad()`.

    Args:
        model: takes images like `x`, returns logits (N, K); what it says of an image must not depend on the others.
        x: (N, ...), float32 or float64 as the model is, values in [0, 1]. Not written to. A model in half precision is
            wrapped: `lambda x: model(x.half()).float()`.
        y: (N,), int64, the true labels.
        eps: size of the perturbation set, in pixel units from 0 to 1: 8 of 255 grey levels are 8/255. One for all
            images, or a tensor (N,) with one for each.
        norm: of the perturbation set, "linf" or "l2".
        target: (N,), int64; if given, the attack is targeted: it wants the model to say `target`, not just not `y`.
        loss: maximised on `y`, or minimised on `target`: "soft_margin", "cross_entropy", "margin", or a function of
            logits (N, K) and labels (N,) that returns (N,). With a target also "difference", which is maximised.
        steps: gradient steps in each restart, at least 1.
        step_size: length of a step in the norm, in pixel units; 2.5 * eps / steps if not given (Madry et al. 2018);
            "auto" for momentum and a size that is halved when progress stalls (`AutoSteps`).
        random_start: begin the first restart at a random point of Delta(x) too; the others always do.
        restarts: how often to run the loop, at least 1.
        keep: "best"; "first" for the first iterate that fools, with which an example leaves the batch: for when only
            the error is wanted; or "last" for the last iterate whatever it is worth (one restart only).
        generator: for the random starts, else the global one; each example has its own stream (`perturbations.seeds`).
        trace: a list, to which an `Iterate` is appended for each point on the path.

    Returns:
        x_adv, like `x`: in [0, 1], and x_adv - x in Delta(x) up to rounding.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value is not allowed (the message says which and why), or the model returns probabilities, NaN,
            or something of the wrong shape.

    Warns:
        AttackWarning: an example's gradient is exactly zero at the start, or the attack still gains at the end.
    """
    _check_arguments(x, y, eps, norm, target, loss, steps, step_size, restarts, keep)
    steps, everyones = int(steps), perturbation_set(norm, eps.to(x) if isinstance(eps, Tensor) else eps)
    targeted, late = target is not None, 3 * steps // 4
    with frozen(model), explained_dtype(model, x), torch.inference_mode(False):
        x, y = x.detach().clone(), y.clone()  # ours, and fit for autograd also when the caller is in inference mode
        goals = target.clone() if targeted else y
        found = torch.zeros_like(x), x.new_full(y.shape, -torch.inf), torch.zeros_like(y, dtype=torch.bool)
        heights = x.new_zeros(3, len(x))  # each example's margin at the start, late, and at the end: how far it came
        seed = seeds(len(x), generator) if random_start or restarts > 1 else None
        for restart in range(restarts):
            rows = (~found[2]).nonzero()[:, 0]
            if len(rows) == 0:
                break
            image, label, goal, *best = (part[rows] for part in (x, y, goals, *found))
            allowed, random = everyones.of(rows), random_start or restart > 0
            delta = allowed.random(image, seed[rows.cpu()] + restart) if random else torch.zeros_like(image)
            project = allowed.around(image)
            delta = project(delta)
            auto = AutoSteps(allowed, steps) if step_size == "auto" else None
            for step in range(steps + 1):
                with torch.set_grad_enabled(step < steps):  # the last iterate is judged, but not left
                    delta.requires_grad_(step < steps)
                    logits = model(image + delta)
                    _check_output(logits, label, goal, first=restart == step == 0)
                    value = _objective(loss, logits, label, goal, targeted)
                fooled = (logits.detach().argmax(1) == goal) == targeted
                now = Iterate(restart, step, delta.detach(), logits.detach(), value.detach(), fooled, rows)
                if trace is not None:
                    trace.append(now)
                best = [now.delta, now.loss, fooled] if keep == "last" else _better(now, *best)
                if step in (0, late, steps):
                    heights[(0, late, steps).index(step), rows] = margin(now.logits, goal) * (-1 if targeted else 1)
                if step == steps or (keep == "first" and fooled.all()):
                    break
                delta, grad = now.delta, gradient(value, delta)
                if restart == step == 0:
                    _warn_of_zeros(grad, fooled)
                if keep == "first" and fooled.any():
                    for whole, part in zip(found, best, strict=True):
                        whole[rows] = part
                    stay = (~fooled).nonzero()[:, 0]
                    rows, image, label, goal, delta, value, grad, *best = (
                        part[stay] for part in (rows, image, label, goal, delta, value, grad, *best)
                    )
                    allowed = allowed.of(stay)
                    project = allowed.around(image)
                    if auto:
                        auto.keep(stay)
                if auto:
                    delta = auto.next(image, delta, value.detach(), grad)
                else:
                    size = 2.5 * allowed.eps / steps if step_size is None else step_size
                    delta = project(_step(delta, allowed.steepest(grad), size))
            for whole, part in zip(found, best, strict=True):
                whole[rows] = part
        if keep != "last" and steps >= 10:
            _warn_of_rise(heights[:, ~found[2]], len(x))
        return x + found[0]


def fgsm(model: Model, x: Tensor, y: Tensor, eps: Budget, *, target: Tensor | None = None) -> Tensor:
    """Return x + eps * sign(gradient of the cross-entropy), cut to [0, 1]: the fast gradient sign method.

    Goodfellow et al. 2015, section 4. With `target`, the step goes down the target's cross-entropy. It
    is one step of l-inf `pgd`, whose arguments and errors it shares, and reaches the edge of the set. As published it
    keeps no best point, so its result may be weaker than x itself.
    """
    return pgd(model, x, y, eps, target=target, loss="cross_entropy", steps=1, keep="last")


def _check_arguments(x, y, eps, norm, target, loss, steps, step_size, restarts, keep) -> None:
    check_images(x)
    check_labels(y, x)
    if target is not None:
        check_labels(target, x, "target")
        if (same := target == y).any():
            raise ValueError(f"target must differ from y; {int(same.sum())} of {len(y)} are equal")
    perturbation_set(norm, eps)
    widest = 1.0 if norm == "linf" else math.sqrt(x[0].numel())
    hint = "Pixels go from 0 to 1, not to 255."
    check_eps(eps, high=widest, hint=hint, x=x)
    check_count(steps, "steps")
    if isinstance(step_size, str) and step_size != "auto":
        raise ValueError(f"step_size must be a number, 'auto' or None; got {step_size!r}")
    if not isinstance(step_size, str | None):
        check_number(step_size, "step_size", low=0, high=widest, hint=hint, open_low=True)
    check_count(restarts, "restarts")
    if keep not in ("best", "first", "last") or (keep == "last" and restarts > 1):
        raise ValueError(
            f"keep must be 'best', 'first', or 'last' with one restart; got {keep!r} with {restarts} restarts"
        )
    names = [*LOSSES, *(["difference"] if target is not None else [])]
    if not callable(loss) and loss not in names:
        hint = ", which needs a target" if loss == "difference" else ""
        raise ValueError(f"loss must be one of {names} or a function; got {loss!r}{hint}")


def _check_output(logits: Tensor, y: Tensor, goal: Tensor, first: bool) -> None:
    if first or not logits.sum().isfinite():
        check_logits(logits, len(y))
    if first:
        check_classes(y, logits.shape[1])
        check_classes(goal, logits.shape[1], "target")


def _objective(loss: str | Loss, logits: Tensor, y: Tensor, goal: Tensor, targeted: bool) -> Tensor:
    """Return what the attack maximises, (N,)."""
    if loss == "difference":
        return difference(logits, y, goal)
    value = (loss if callable(loss) else LOSSES[loss])(logits, goal)
    if value.shape != y.shape or value.sum().isnan():
        got = "NaN" if value.shape == y.shape else f"shape {tuple(value.shape)}"
        raise ValueError(f"loss must return a number for each example, shape {tuple(y.shape)}; got {got}")
    return -value if targeted else value


def _step(delta: Tensor, direction: Tensor, size: Budget) -> Tensor:
    if isinstance(size, Tensor):
        return delta + _columns(size, delta) * direction
    return delta.add(direction, alpha=size)


def gradient(value: Tensor, point: Tensor, *, again: bool = False) -> Tensor:
    """Return the gradient of the sum of `value`, that is, each example's own gradient, like `point`.

    Args:
        value: (N,), computed from `point`. point: (N, ...). again: keep the graph, for another gradient.

    Raises:
        ValueError: there is no path from `value` back to `point`, or the gradient is NaN.
    """
    inputs = {"allow_unused": True, "retain_graph": again}
    grad = torch.autograd.grad(value.sum(), point, **inputs)[0] if value.requires_grad else None
    if grad is None:
        raise ValueError(
            "model must be differentiable: autograd finds no path from its logits back to x. A step without a gradient "
            "(rounding, JPEG, NumPy) can be given that of the identity, straight-through, by "
            "helpers.adaptive.StraightThrough(step)"
        )
    if grad.sum().isnan() and grad.isnan().any():  # a sum is quick, but may be NaN where no term is
        raise ValueError("model must have a gradient at every point of the path; the one with respect to x is NaN")
    return grad


def _better(now: Iterate, delta: Tensor, loss: Tensor, fooled: Tensor) -> list[Tensor]:
    """Return the better of two points example by example: fooled first, then the higher loss; ties go to `now`."""
    take = (now.fooled & ~fooled) | ((now.fooled == fooled) & (now.loss >= loss))
    return [_where(take, now.delta, delta), torch.where(take, now.loss, loss), now.fooled | fooled]


def _warn_of_zeros(grad: Tensor, fooled: Tensor) -> None:
    if zero := int((~grad.flatten(1).any(1) & ~fooled).sum()):
        _warn(f"The gradient is exactly zero at the start for {zero} of {len(grad)} examples: the attack stands still")


def _warn_of_rise(heights: Tensor, n: int) -> None:
    """Warn if the examples that were not fooled, `heights` (3, M), were on their way: on a straight line 25 %."""
    start, late, end = heights.mean(1)
    if end - late > 0.2 * (end - start) and end > start:
        _warn(f"The attack still gains at the last step, on {heights.shape[1]} of {n} examples that are not fooled yet")


def _warn(what: str) -> None:
    what += ". The model may only look robust: see 'When an attack warns you' in the book's checklist."
    warnings.warn(what, AttackWarning, stacklevel=4)


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Put `model` in eval mode with frozen parameters, and on leaving put back every module and parameter."""
    is_module = isinstance(model, nn.Module)
    modes = [(module, module.training) for module in model.modules()] if is_module else []
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()] if is_module else []
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
