"""Attacks: approximate answers to "which perturbation in the set hurts this classifier most?".

The parts are the perturbation sets (`Linf`, `L2`), the losses (`cross_entropy`, `margin`, `difference`), and one loop,
`pgd`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers._validation import (
    check_classes,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_number,
)

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------- perturbation sets


@dataclass(frozen=True)
class Linf:
    """Delta(x) = {delta : max |delta_i| <= eps and 0 <= x + delta <= 1}: no pixel changes by more than eps.

    Args:
        eps: the budget, in pixel units from 0 to 1; 8 of 255 grey levels are 8/255. With 0 only delta = 0 is left.

    Raises:
        TypeError, ValueError: eps is not a number in [0, 1].
    """

    eps: float

    def __post_init__(self) -> None:
        check_number(self.eps, "eps", low=0, high=1, hint="Pixels go from 0 to 1: for 8 of 255 levels write 8/255.")

    def project(self, delta: Tensor, x: Tensor) -> Tensor:
        """Return the point of Delta(x) nearest to `delta`; both have the shape of the images `x`."""
        return delta.clamp(-self.eps, self.eps).clamp(-x, 1 - x)

    def steepest(self, grad: Tensor) -> Tensor:
        """Return the direction v with max |v_i| <= 1 that maximises <v, grad>: its sign (Madry et al. 2018)."""
        return grad.sign()

    def random(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a perturbation for each image of `x`, uniform on Delta(x)."""
        low, high = (-x).clamp(min=-self.eps), (1 - x).clamp(max=self.eps)
        return low + (high - low) * _draw(torch.rand, x, generator)


@dataclass(frozen=True)
class L2:
    """Delta(x) = {delta : ||delta||_2 <= eps and 0 <= x + delta <= 1}: the whole change has length at most eps.

    Args:
        eps: the budget, the Euclidean length over all pixels and channels of an image with values in [0, 1].

    Raises:
        TypeError, ValueError: eps is not a finite number of at least 0.
    """

    eps: float

    def __post_init__(self) -> None:
        check_number(self.eps, "eps", low=0, high=torch.finfo(torch.float32).max)

    def project(self, delta: Tensor, x: Tensor) -> Tensor:
        """Return the point of Delta(x) nearest to `delta`; both have the shape of the images `x`.

        Scaling and then clipping to the box would land in the set, but not at its nearest point, which is
        clip(scale * delta) for the largest scale up to 1 that keeps the length within eps (set the derivative of the
        Lagrangian to zero, pixel by pixel). So: scale the free pixels to the length that the clipped ones leave, clip
        what now leaves the box, repeat. No pixel is ever freed again, so this ends.
        """
        low, high = -x, 1 - x
        free = torch.ones_like(delta, dtype=torch.bool)
        while True:
            left = self.eps**2 - _lengths(delta.clamp(low, high).masked_fill(free, 0)) ** 2
            scale = left.clamp(min=0).sqrt() / _lengths(delta * free).clamp(min=torch.finfo(delta.dtype).tiny)
            scaled = scale.clamp(max=1) * delta
            hit = free & ((scaled < low) | (scaled > high))
            if not hit.any():
                return scaled.clamp(low, high)
            free &= ~hit

    def steepest(self, grad: Tensor) -> Tensor:
        """Return the direction of length 1 that maximises <v, grad>: grad / ||grad||, and 0 where grad is 0."""
        largest = grad.abs().flatten(1).amax(1).view(-1, *[1] * (grad.ndim - 1))
        grad = grad / torch.where(largest > 0, largest, 1)  # first, so that squares of tiny gradients do not vanish
        length = _lengths(grad)
        return grad / torch.where(length > 0, length, 1)

    def random(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a perturbation for each image of `x`: uniform on the ball, then projected into the box."""
        direction = self.steepest(_draw(torch.randn, x, generator))
        radius = _draw(torch.rand, x.flatten(1)[:, :1], generator) ** (1 / x[0].numel())
        return self.project(self.eps * radius.view_as(_lengths(x)) * direction, x)


def _lengths(delta: Tensor) -> Tensor:
    """Return the Euclidean length of each example, shape (N, 1, ..., 1)."""
    return torch.linalg.vector_norm(delta, dim=tuple(range(1, delta.ndim)), keepdim=True)


def _draw(sampler: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw on the generator's device, so that a seed means the same numbers wherever the images are."""
    device = generator.device if generator is not None else like.device
    return sampler(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def perturbation_set(norm: str, eps: float) -> Linf | L2:
    """Return `Linf(eps)` for norm "linf" and `L2(eps)` for norm "l2".

    Raises:
        ValueError: another norm, or an eps that the set does not allow.
    """
    sets = {"linf": Linf, "l2": L2}
    if norm not in sets:
        raise ValueError(f"norm must be one of {list(sets)}; got {norm!r}")
    return sets[norm](eps)


# ---------------------------------------------------------------------------------------------------------- losses


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return max over k != y of logits_k, minus logits_y, for each example: above 0 where it is misclassified.

    It is below 0 where the label's logit is the highest, and 0 in a tie.

    Args:
        logits: (N, K). y: (N,), int64, 0 to K - 1.

    Returns:
        (N,), in units of the logits. Carlini and Wagner 2017, f_6 without its floor.
    """
    true = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy -log softmax(logits)_y of each example, with a gradient that does not die.

    When logits_y leads by more than about 16, softmax rounds to exactly 1 in float32 and the gradient of the loss to
    exactly 0: an attack that climbs it stands still, and the model looks robust. So where the lead is over 10, the
    gradient is taken at logits scaled down to a lead of 10. The value is the plain cross-entropy everywhere, and so is
    the gradient where the lead is 10 or less.

    Args:
        logits: (N, K). y: (N,), int64, 0 to K - 1.

    Returns:
        (N,), in nats.
    """
    lead = -margin(logits.detach(), y)
    scaled = F.cross_entropy(logits / (lead / 10).clamp(min=1)[:, None], y, reduction="none")
    plain = F.cross_entropy(logits.detach(), y, reduction="none")
    return plain + (scaled - scaled.detach())


def difference(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return logits_target minus logits_y for each example: the loss at y minus the loss at the target.

    The log-sum-exp that both cross-entropies share cancels. Above 0 the target is ahead of the true class, though a
    third class may be ahead of both.

    Args:
        logits: (N, K). y, target: (N,), int64, 0 to K - 1.

    Returns:
        (N,), in units of the logits. Kolter and Madry 2018, chapter 1.
    """
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin}


# --------------------------------------------------------------------------------------------------------- the loop


class Iterate(NamedTuple):
    """What `pgd` saw at one point of its path."""

    restart: int  # 0, 1, ...
    step: int  # 0 at the start, then 1 to `steps`
    delta: Tensor  # (N, ...), in Delta(x)
    logits: Tensor  # (N, K), of x + delta
    loss: Tensor  # (N,), what the attack maximises
    fooled: Tensor  # (N,), bool: misclassified, or with a target: classified as the target


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    norm: Literal["linf", "l2"] = "linf",
    target: Tensor | None = None,
    loss: str | Loss = "cross_entropy",
    steps: int = 40,
    step_size: float | None = None,
    random_start: bool = False,
    restarts: int = 1,
    keep: Literal["best", "last"] = "best",
    generator: torch.Generator | None = None,
    trace: list[Iterate] | None = None,
) -> Tensor:
    """Return adversarial images found by projected gradient descent on minus the loss (Madry et al. 2018).

    Repeats delta <- project(delta + step_size * steepest(grad)), where grad is the gradient of the loss with respect to
    delta, project goes to the nearest point of Delta(x), and steepest is the steepest direction of the norm.

    Of all iterates of all restarts, the result is the best for each example: one that fools the model if there is one,
    and of those (or else of all) the one of highest loss. So more steps of the same size, or more restarts, never give
    less. The first restart begins at x itself unless `random_start`; then a fooled x stays fooled.

    While it runs, a model that is an `nn.Module` is in eval mode with frozen parameters; each module and parameter is
    put back as it was, also after an exception. No `.grad` is touched. Works under `torch.no_grad()`.

    Args:
        model: takes images like `x`, returns logits (N, K).
        x: (N, ...), floating point, values in [0, 1]. Not written to.
        y: (N,), int64, the true labels.
        eps: size of the perturbation set, in pixel units from 0 to 1: 8 of 255 grey levels are 8/255.
        norm: of the perturbation set, "linf" or "l2".
        target: (N,), int64; if given, the attack is targeted: it wants the model to say `target`, not just not `y`.
        loss: maximised on `y`, or minimised on `target`: "cross_entropy", "margin", or a function of logits (N, K) and
            labels (N,) that returns (N,). With a target also "difference", of the two logits, which is maximised.
        steps: gradient steps in each restart, at least 1.
        step_size: length of a step in the norm, in pixel units; 2.5 * eps / steps if not given (Madry et al. 2018).
        random_start: begin the first restart at a random point of Delta(x) too; the others always do.
        restarts: how often to run the loop, at least 1.
        keep: "best", or "last" for the last iterate whatever it is worth (one restart only).
        generator: for the random starts; the global generator if not given.
        trace: a list, to which an `Iterate` is appended for each point on the path.

    Returns:
        x_adv, like `x`: in [0, 1], and x_adv - x in Delta(x) up to rounding.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value is not allowed (the message says which and why), or the model returns probabilities, NaN,
            or something of the wrong shape.
    """
    check_images(x)
    check_labels(y, x)
    if target is not None:
        check_labels(target, x, "target")
        if (same := target == y).any():
            raise ValueError(f"target must differ from y; {int(same.sum())} of {len(y)} are equal")
    allowed = perturbation_set(norm, eps)
    widest = 1.0 if norm == "linf" else math.sqrt(x[0].numel())
    check_number(eps, "eps", low=0, high=widest, hint="Pixels go from 0 to 1, not to 255.")
    check_count(steps, "steps")
    steps = int(steps)  # it may be an integer of numpy's, whose comparisons torch does not take for a bool
    if step_size is None:
        step_size = 2.5 * eps / steps
    else:
        check_number(
            step_size, "step_size", low=0, high=widest, hint="Pixels go from 0 to 1, not to 255.", open_low=True
        )
    check_count(restarts, "restarts")
    if keep not in ("best", "last") or (keep == "last" and restarts > 1):
        raise ValueError(f"keep must be 'best', or 'last' with one restart; got {keep!r} with {restarts} restarts")
    names = [*LOSSES, *(["difference"] if target is not None else [])]
    if not callable(loss) and loss not in names:
        hint = ", which needs a target" if loss == "difference" else ""
        raise ValueError(f"loss must be one of {names} or a function; got {loss!r}{hint}")

    with frozen(model), torch.inference_mode(False):
        x, y = x.detach().clone(), y.clone()  # ours, and fit for autograd also when the caller is in inference mode
        target = target.clone() if target is not None else None
        best: Iterate | None = None
        for restart in range(restarts):
            at_random = random_start or restart > 0
            delta = allowed.random(x, generator) if at_random else torch.zeros_like(x)
            delta = allowed.project(delta, x)
            for step in range(steps + 1):
                with torch.set_grad_enabled(step < steps):  # the last iterate is judged, but not left
                    delta.requires_grad_(step < steps)
                    logits = model(x + delta)
                    if best is None:
                        _check_model_knows(logits, y, target)
                    elif not logits.isfinite().all():
                        check_logits(logits, len(x))
                    value = _objective(loss, logits, y, target)
                    if value.shape != y.shape or value.isnan().any():
                        got = "NaN" if value.shape == y.shape else f"shape {tuple(value.shape)}"
                        raise ValueError(
                            f"loss must return a number for each example, shape {tuple(y.shape)}; got {got}"
                        )
                grad = _gradient(value, delta) if step < steps else None
                guess = logits.detach().argmax(1)
                fooled = guess != y if target is None else guess == target
                now = Iterate(restart, step, delta.detach(), logits.detach(), value.detach(), fooled)
                if trace is not None:
                    trace.append(now)
                best = now if best is None or keep == "last" else _better(now, best)
                if grad is not None:
                    delta = allowed.project(now.delta + step_size * allowed.steepest(grad), x)
        return x + best.delta


def fgsm(model: Model, x: Tensor, y: Tensor, eps: float, *, target: Tensor | None = None) -> Tensor:
    """Return x + eps * sign(gradient of the cross-entropy), cut to [0, 1]: the fast gradient sign method.

    Goodfellow et al. 2015, equation before section 4. With `target`, the step goes down the target's cross-entropy. It
    is one step of l-inf `pgd`, long enough to reach the edge of the set; arguments, result and errors are the same. The
    result may be weaker than x itself: this is the attack as published, and no best point is kept.
    """
    return pgd(model, x, y, eps, target=target, steps=1, keep="last")


def _check_model_knows(logits: Tensor, y: Tensor, target: Tensor | None) -> None:
    check_logits(logits, len(y))
    check_classes(y, logits.shape[1])
    if target is not None:
        check_classes(target, logits.shape[1], "target")


def _objective(loss: str | Loss, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Return what the attack maximises, (N,)."""
    if loss == "difference":
        return difference(logits, y, target)
    function = loss if callable(loss) else LOSSES[loss]
    return function(logits, y) if target is None else -function(logits, target)


def _gradient(value: Tensor, delta: Tensor) -> Tensor:
    """Return the gradient of the sum of `value`, that is, each example's own gradient, like `delta`."""
    grad = torch.autograd.grad(value.sum(), delta, allow_unused=True)[0] if value.requires_grad else None
    if grad is None:
        raise ValueError("model must be differentiable: autograd finds no path from its logits back to x")
    if grad.isnan().any():
        raise ValueError("model must have a gradient at every point of the path; the one with respect to x is NaN")
    return grad


def _better(now: Iterate, best: Iterate) -> Iterate:
    """Return the better of two iterates example by example: fooled first, then the higher loss; ties go to `now`."""
    take = (now.fooled & ~best.fooled) | ((now.fooled == best.fooled) & (now.loss >= best.loss))
    columns = take.view(-1, *[1] * (now.delta.ndim - 1))
    return Iterate(
        now.restart,
        now.step,
        torch.where(columns, now.delta, best.delta),
        torch.where(take[:, None], now.logits, best.logits),
        torch.where(take, now.loss, best.loss),
        torch.where(take, now.fooled, best.fooled),
    )


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
