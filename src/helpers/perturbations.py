"""Perturbation sets: what counts as a small change to an image. The geometry that an attack needs, and nothing else.

Each set is a ball cut by the pixel box. `Linf` and `L2` know what an attack needs: the nearest of their points, the
steepest direction of their norm, and how to draw one of their points at random. All sets, `L1` among them, know their
farthest point in a given direction, so that on a linear model nothing has to be searched. The budget eps is one number
for all images, or a tensor with one for each.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers._validation import check_eps, check_images

Budget = float | Tensor  # one for all images, or (N,), floating point, one for each
Source = torch.Generator | Tensor | None  # of random numbers: a generator, seeds, or the global generator


class _Set:
    """What all sets have in common."""

    def of(self, rows: Tensor) -> Self:
        """Return the set for some of the images, given as indices or as (N,) bool."""
        return replace(self, eps=self.eps[rows]) if isinstance(self.eps, Tensor) else self

    def farthest(self, w: Tensor, x: Tensor) -> Tensor:
        """Return the delta in Delta(x) with the largest <w, delta>, in the shape of `x`: exact.

        Args:
            w: the direction, one for each image, like `x`, or one for all, like `x[0]`.
            x: (N, ...), values in [0, 1].

        Raises:
            TypeError, ValueError: `x` is not such a tensor, or `w` is not finite or has another shape, dtype or device.
        """
        check_images(x)
        check_eps(self.eps, high=torch.inf, x=x)
        if not isinstance(w, Tensor) or w.shape not in (x.shape, x.shape[1:]):
            got = tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__
            raise ValueError(f"w must be a tensor of shape {tuple(x.shape)} or {tuple(x.shape[1:])}; got {got}")
        if (w.dtype, w.device) != (x.dtype, x.device) or not w.isfinite().all():
            raise ValueError(f"w must be finite, of {x.dtype} on {x.device} as x is; got {w.dtype} on {w.device}")
        with torch.no_grad():
            return self._farthest(w.expand_as(x).flatten(1), x.flatten(1)).view_as(x)

    def support(self, w: Tensor, x: Tensor) -> Tensor:
        """Return the largest <w, delta> over Delta(x) for each image, (N,): the set's support function, exact.

        Where the box is far it is eps times the dual norm of w: l1 for l-inf, l2 for l2, l-inf for l1. It can be
        differentiated in w, for training: the gradient is the farthest point (Danskin 1966). Arguments as in
        `farthest`.
        """
        return (w * self.farthest(w, x)).flatten(1).sum(1)


@dataclass(frozen=True)
class Linf(_Set):
    """Delta(x) = {delta : max |delta_i| <= eps and 0 <= x + delta <= 1}: no pixel changes by more than eps.

    Args:
        eps: the budget, in pixel units from 0 to 1; 8 of 255 grey levels are 8/255. With 0 only delta = 0 is left.
            One for all images, or (N,), one for each.

    Raises:
        TypeError, ValueError: eps is not a number in [0, 1], nor a tensor (N,) of them.
    """

    eps: Budget

    def __post_init__(self) -> None:
        check_eps(self.eps, high=1, hint="Pixels go from 0 to 1: for 8 of 255 levels write 8/255.")

    def project(self, delta: Tensor, x: Tensor) -> Tensor:
        """Return the point of Delta(x) nearest to `delta`; both have the shape of the images `x`."""
        return delta.clamp(*self._interval(x))

    def around(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return `project` for these `x`, as a function of delta alone, which is quicker where it is used often."""
        low, high = self._interval(x)
        return lambda delta: delta.clamp(low, high)

    def steepest(self, grad: Tensor) -> Tensor:
        """Return the direction v with max |v_i| <= 1 that maximises <v, grad>: its sign (Madry et al. 2018)."""
        return grad.sign()

    def random(self, x: Tensor, source: Source = None) -> Tensor:
        """Return a perturbation for each image of `x`, uniform on Delta(x); `source` as in `seeds`."""
        low, high = self._interval(x)
        return low + (high - low) * draw(torch.rand, x, x[0].numel(), source).view_as(x)

    def _farthest(self, w: Tensor, x: Tensor) -> Tensor:
        low, high = self._interval(x)  # no pixel depends on another: each goes to the better of its two ends
        return torch.where(w > 0, high, low)

    def _interval(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eps = _columns(self.eps, x)
        low, high = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)
        return low, high.maximum(-x)  # where x itself oversteps the box by rounding, the box wins


@dataclass(frozen=True)
class L2(_Set):
    """Delta(x) = {delta : ||delta||_2 <= eps and 0 <= x + delta <= 1}: the whole change has length at most eps.

    Args:
        eps: the budget, the Euclidean length over all pixels and channels of an image with values in [0, 1].
            One for all images, or (N,), one for each.

    Raises:
        TypeError, ValueError: eps is not a finite number of at least 0, nor a tensor (N,) of them.
    """

    eps: Budget

    def __post_init__(self) -> None:
        check_eps(self.eps, high=torch.finfo(torch.float32).max)

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
            left = _columns(self.eps, x) ** 2 - _lengths(delta.clamp(low, high).masked_fill(free, 0)) ** 2
            scale = left.clamp(min=0).sqrt() / _lengths(delta * free).clamp(min=torch.finfo(delta.dtype).tiny)
            scaled = scale.clamp(max=1) * delta
            hit = free & ((scaled < low) | (scaled > high))
            if not hit.any():
                return scaled.clamp(low, high)
            free &= ~hit

    def around(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return `project` for these `x`, as a function of delta alone."""
        return lambda delta: self.project(delta, x)

    def steepest(self, grad: Tensor) -> Tensor:
        """Return the direction of length 1 that maximises <v, grad>: grad / ||grad||, and 0 where grad is 0."""
        largest = grad.abs().flatten(1).amax(1).view(-1, *[1] * (grad.ndim - 1))
        grad = grad / torch.where(largest > 0, largest, 1)  # first, so that squares of tiny gradients do not vanish
        length = _lengths(grad)
        return grad / torch.where(length > 0, length, 1)

    def random(self, x: Tensor, source: Source = None) -> Tensor:
        """Return a perturbation for each image of `x`: uniform on the ball, then projected; `source` as in `seeds`.

        The first d coordinates of a point drawn uniformly from the sphere in d + 2 dimensions are uniform on the ball
        in d (Barthe et al. 2005), so no radius has to be drawn.
        """
        point = self.steepest(draw(torch.randn, x, x[0].numel() + 2, source))
        return self.project(_columns(self.eps, x) * point[:, :-2].view_as(x), x)

    def _farthest(self, w: Tensor, x: Tensor) -> Tensor:
        # With a multiplier 1 / t for the length, each pixel goes to t * |w_i| or, sooner, to the end of its room. The
        # length grows with t. So sort the pixels by the t at which their room ends, look for the first of them at which
        # the length would exceed eps, and solve for t: a search for one number, over d candidates.
        eps, room = _columns(self.eps, x), _room(w, x)
        size = w.abs().where(room > 0, 0)
        size = size / size.amax(1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)  # so that squares do not vanish
        end, order = (room / size).where(size > 0, torch.inf).sort(1)
        rest = (size.gather(1, order) ** 2).flip(1).cumsum(1).flip(1)  # of the pixels from this one on
        left = (eps**2 - _before(room.gather(1, order) ** 2)).clamp(min=0)  # what the pixels before it leave
        fits = left <= end**2 * rest
        first = fits.int().argmax(1, keepdim=True)
        t = (left / rest).gather(1, first).sqrt().where(fits.any(1, keepdim=True), torch.inf)
        delta = (t * size).nan_to_num(0).minimum(room) * w.sign()
        return delta * (eps / _lengths(delta)).nan_to_num(1).clamp(max=1)  # rounding must not leave the ball


@dataclass(frozen=True)
class L1(_Set):
    """Delta(x) = {delta : sum |delta_i| <= eps and 0 <= x + delta <= 1}: the changes add up to at most eps.

    No attack of this book works in this set, so it knows its farthest point only.

    Args:
        eps: the budget, the sum of all changes of an image with values in [0, 1]: 10 turns ten black pixels white.
            One for all images, or (N,), one for each.

    Raises:
        TypeError, ValueError: eps is not a finite number of at least 0, nor a tensor (N,) of them.
    """

    eps: Budget

    def __post_init__(self) -> None:
        check_eps(self.eps, high=torch.finfo(torch.float32).max)

    def _farthest(self, w: Tensor, x: Tensor) -> Tensor:
        # A change of the same size gains most where |w_i| is largest. So be greedy: fill the pixels in that order, each
        # as far as it has room, until the budget is spent.
        order = w.abs().argsort(dim=1, descending=True)
        room = _room(w, x).gather(1, order)
        spent = (_columns(self.eps, x) - _before(room)).clamp(min=0).minimum(room)
        return torch.zeros_like(x).scatter(1, order, spent) * w.sign()


def _columns(eps: Budget, x: Tensor) -> Budget:
    """Return a budget in the form in which it meets the images `x`: (N, 1, ..., 1) if there is one for each."""
    return eps.to(x).view(-1, *[1] * (x.ndim - 1)) if isinstance(eps, Tensor) else eps


def _room(w: Tensor, x: Tensor) -> Tensor:
    """Return how far each pixel of `x` can go along `w` before it leaves the box."""
    return torch.where(w > 0, 1 - x, x).clamp(min=0) * (w != 0)


def _before(values: Tensor) -> Tensor:
    """Return for each number of a row the sum of those before it."""
    return F.pad(values.cumsum(1)[:, :-1], (1, 0))


def _lengths(delta: Tensor) -> Tensor:
    """Return the Euclidean length of each example, shape (N, 1, ..., 1)."""
    return torch.linalg.vector_norm(delta, dim=tuple(range(1, delta.ndim)), keepdim=True)


def seeds(n: int, source: Source = None) -> Tensor:
    """Return `n` seeds, one for each example: `source` itself if it is that already, else drawn from it.

    Each example has a stream of random numbers of its own. So the same seed gives the same perturbations however the
    examples are split into batches, whichever of them are left out later, and wherever the images are.

    Args:
        n: how many. source: a generator, none for the global one, or (n,) seeds, int64.
    """
    if isinstance(source, Tensor):
        return source
    device = source.device if source is not None else None
    return torch.randint(2**32, (n,), generator=source, device=device).cpu()


def draw(sampler: Callable[..., Tensor], x: Tensor, count: int, source: Source) -> Tensor:
    """Draw `count` numbers for each example of `x`, (N, count), each from its own stream."""
    stream = torch.Generator()
    draws = [
        sampler(count, generator=stream.manual_seed(seed), dtype=x.dtype) for seed in seeds(len(x), source).tolist()
    ]
    return torch.stack(draws).to(x.device)


def perturbation_set(norm: str, eps: Budget) -> Linf | L2:
    """Return `Linf(eps)` for norm "linf" and `L2(eps)` for norm "l2".

    Raises:
        ValueError: another norm, or an eps that the set does not allow.
    """
    sets = {"linf": Linf, "l2": L2}
    if norm not in sets:
        raise ValueError(f"norm must be one of {list(sets)}; got {norm!r}")
    return sets[norm](eps)
