"""Checks of arguments, shared by the modules. Each raises an error that says what was given and what is allowed."""

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

ROUNDING = 1e-5  # how far outside [0, 1] a pixel may be: resizing float images overshoots by about 1e-7


def check_images(x: Tensor, name: str = "x", *, half: bool = False) -> None:
    """Check that `x` holds floating-point images (N, ...) with N >= 1 and every value in [0, 1].

    Images in half precision are allowed only with `half`. It rounds bright pixels to steps of up to half a grey level:
    an attack's budget of a few levels would not be kept.

    Raises:
        TypeError: `x` is not a tensor of float32 or float64, or float16 or bfloat16 with `half`.
        ValueError: there is no batch axis, no example, or a value outside [0, 1] by more than rounding.
    """
    if isinstance(x, DataLoader) or (isinstance(x, Iterable) and not isinstance(x, Sized)):
        raise TypeError(
            f"{name} must be one tensor of images; got {type(x).__name__}, which holds batches. Take one: "
            "x, y = next(iter(batches)). All of them: helpers.risk.worst_losses or helpers.report.evaluate."
        )
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor with values in [0, 1]; got {got}. 8-bit images: x.float() / 255."
        )
    if x.dtype not in (torch.float32, torch.float64) and not half:
        raise TypeError(
            f"{name} must be in float32 or float64; got {x.dtype}, too coarse for small changes. Keep the images in "
            f"float32 and convert on the way into the model: lambda x: model(x.to({x.dtype})).float()."
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} must have shape (N, ...) with N >= 1; got {tuple(x.shape)}. One image: x[None].")
    low, high = x.aminmax()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # written so that NaN fails too
        raise ValueError(
            f"{name} must have values in [0, 1], black to white; got values from {low:.4g} to {high:.4g}. "
            "Do not normalise images yourself: the model does that. 8-bit images: x.float() / 255."
        )


def check_attacked(x_adv: Tensor, x: Tensor) -> None:
    """Check that what an attack returned for the images `x` are images like them.

    Raises:
        TypeError, ValueError: they are no images, or of another shape.
    """
    check_images(x_adv, "what an attack returns")
    if x_adv.shape != x.shape:
        raise ValueError(
            f"what an attack returns must have the shape of its images, {tuple(x.shape)}; got {tuple(x_adv.shape)}"
        )


def check_labels(y: Tensor, x: Tensor, name: str = "y") -> None:
    """Check that `y` holds one int64 class index for each example of `x`, on the same device.

    Raises:
        TypeError: `y` is not a tensor of int64.
        ValueError: the shape is not (N,), or the device is not that of `x`.
    """
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        got = f"a tensor of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        hint = f"Convert them: {name}.long()." if whole else "One label: torch.tensor([967])."
        raise TypeError(f"{name} must be a tensor of int64 class indices; got {got}. {hint}")
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must have shape ({x.shape[0]},), one label for each of the images of shape {tuple(x.shape)}; "
            f"got {tuple(y.shape)}"
        )
    if y.device != x.device:
        raise ValueError(f"{name} must be on the same device as x, {x.device}; got {y.device}")


def check_logits(logits: Tensor, n: int, *, probabilities: bool = False) -> None:
    """Check that a model's output looks like logits (N, K) for `n` images.

    Where only the largest of them counts, they may be `probabilities` as well.

    Raises:
        TypeError: `logits` is not a floating-point tensor.
        ValueError: the shape is not (n, K) with K >= 2, a value is NaN or infinite, or the rows are probabilities and
            these are not allowed.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        if isinstance(logits, dict):
            name = "logits" if "logits" in logits else next(iter(logits), "logits")
            got += f" of {list(logits)}. Take its part: lambda x: model(x)[{name!r}]."
        raise TypeError(f"model must return a floating-point tensor of logits; got {got}")
    if logits.ndim != 2 or logits.shape[0] != n or logits.shape[1] < 2:
        one = logits.ndim > 0 and logits.numel() == len(logits) == n
        hint = ". One logit z, of class 1: return torch.stack([0 * z, z], 1) with z = model(x).flatten()" if one else ""
        raise ValueError(
            f"model must return logits of shape ({n}, K) with K >= 2 classes; got {tuple(logits.shape)}{hint}"
        )
    if not logits.isfinite().all():
        raise ValueError("model returned NaN or infinite logits: a number computed from them would mean nothing")
    if not probabilities and (logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 1e-4:
        raise ValueError(
            "model must return logits; it returned probabilities (no negative value, each row sums to 1). "
            "Remove its softmax: the losses take the logits and apply it themselves."
        )


@contextmanager
def explained_dtype(model: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[None]:
    """Where a model in another precision than `x` fails on it, say so, and what to do.

    Raises:
        TypeError: in place of PyTorch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        parameters = model.parameters() if isinstance(model, nn.Module) else []
        dtype = next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), x.dtype)
        if dtype == x.dtype or "type" not in str(error):
            raise
        wrap = f"lambda x: model(x.to({dtype})).to({x.dtype})"
        raise TypeError(
            f"x must have the model's dtype, {dtype}; got {x.dtype}. Convert the model, model.to({x.dtype}), or wrap "
            f"it, which gradients pass through: {wrap}."
        ) from error


def check_classes(y: Tensor, num_classes: int, name: str = "y") -> None:
    """Check that every label is a class that the model knows.

    Raises:
        ValueError: a label is below 0, or `num_classes` or more.
    """
    low, high = y.aminmax()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} must have labels from 0 to {num_classes - 1}, the model's classes; got {low} to {high}"
        )


def check_number(value: float, name: str, *, low: float, high: float, hint: str = "", open_low: bool = False) -> None:
    """Check that `value` is a number in [low, high], or in (low, high] with `open_low`.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is NaN or outside the interval.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if math.isnan(value) or value < low or value > high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise ValueError(f"{name} must be in {bracket}{low:g}, {high:g}]; got {value:g}. {hint}".rstrip())


def check_eps(eps: float | Tensor, *, high: float, hint: str = "", x: Tensor | None = None) -> None:
    """Check that `eps` is a number in [0, high], or a tensor of such numbers, one for each example (of `x` if given).

    Raises:
        TypeError: it is neither a real number nor a floating-point tensor with one axis.
        ValueError: a value is NaN or outside the interval, or there are not as many as examples.
    """
    if not isinstance(eps, Tensor):
        return check_number(eps, "eps", low=0, high=high, hint=hint)
    if eps.ndim != 1 or not eps.is_floating_point():
        got = f"a Tensor of shape {tuple(eps.shape)} and {eps.dtype}"
        raise TypeError(f"eps must be a number, or a floating-point tensor (N,), one for each image; got {got}")
    if len(eps) != (len(eps) if x is None else len(x)) or len(eps) == 0:
        n = "N" if x is None else len(x)
        raise ValueError(f"eps must be a number or have shape ({n},), one for each image; got {tuple(eps.shape)}")
    low, most = eps.aminmax()
    if not (low >= 0 and most <= high):  # written so that NaN fails too
        raise ValueError(f"eps must be in [0, {high:g}]; got values from {low:g} to {most:g}. {hint}".rstrip())


def check_count(value: int, name: str, *, low: int = 1, high: int | None = None) -> None:
    """Check that `value` is a whole number of at least `low`, and at most `high` if that is given.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is outside these bounds.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number; got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        upper = f" and at most {high}" if high is not None else ""
        raise ValueError(f"{name} must be at least {low}{upper}; got {value}")
