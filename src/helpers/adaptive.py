"""Adaptive attacks: two wrappers that turn a standard attack into one that is made for a defence.

A defence with a step that has no gradient, or with random numbers, makes an attack by gradients fail and is none the
more robust for it. Wrap the step, or the model, and attack what comes out with `helpers.attacks.pgd`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from helpers._validation import check_count
from helpers.attacks import Model


class StraightThrough(nn.Module):
    """A function that goes forward as it is, and backward as if it changed nothing.

    For the steps of a defence that have no gradient, or a useless one, and whose result is close to what they are
    given: rounding, JPEG, a filter in NumPy. What comes out is exactly `function(x)`; its gradient with respect to x is
    that of the identity. It is the simplest case of BPDA (Athalye, Carlini and Wagner 2018, section 4.1).

    Args:
        function: takes images (N, ...) and returns images like them, in shape, dtype and device. It is called without
            gradients, so it may leave PyTorch on the way.

    Raises:
        TypeError: `function` is none, or does not return a tensor of the images' dtype.
        ValueError: it changes the shape or the device: then the identity cannot stand in for its gradient.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function must be a function of images; got {type(function).__name__}")
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return `function(x)`, with the gradient of `x`."""
        with torch.no_grad():
            result = self.function(x.detach().clone())  # ours: it may write to it
        if not isinstance(result, Tensor) or result.dtype != x.dtype:
            got = result.dtype if isinstance(result, Tensor) else type(result).__name__
            raise TypeError(f"function must return a tensor of {x.dtype} like its images; got {got}")
        if result.shape != x.shape or result.device != x.device:
            raise ValueError(
                f"function must return images of shape {tuple(x.shape)} on {x.device}, like those it is given; "
                f"got {tuple(result.shape)} on {result.device}"
            )
        return result + (x - x.detach())  # plus exactly 0, whose gradient is that of x


class Expectation(nn.Module):
    """The average of a random model's logits over several calls: what to attack if the model draws random numbers.

    An attack on a single draw follows the accidents of that draw. The gradient of an average points to what works for
    most draws: expectation over transformation, EoT (Athalye et al. 2018). Call it with new draws at each step of the
    attack, keep the last iterate (`keep="last"`: the best one is only the luckiest), and judge the result with fresh
    draws of the model itself.

    It is the logits that are averaged, not the probabilities. Differences of logits are linear, so each draw counts
    alike in the gradient, a constant factor on all logits changes nothing, and the loss `"difference"` of the average
    is the expected loss, as EoT wants it. A mean of probabilities is blind to draws that are sure: their softmax is
    flat, and in single precision its gradient rounds to 0, which is the very trap that the losses here avoid.

    Args:
        model: takes images (N, ...), returns logits (N, K), and draws anew in every call.
        draws: how many calls are averaged, at least 1. Time and memory grow with it.

    Raises:
        TypeError, ValueError: `model` is not a function, or `draws` is not such a number.
    """

    def __init__(self, model: Model, draws: int) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be a function of images that returns logits; got {type(model).__name__}")
        check_count(draws, "draws")
        self.model, self.draws = model, int(draws)

    def forward(self, x: Tensor) -> Tensor:
        """Return the average logits (N, K) of `draws` calls of the model."""
        return sum(self.model(x) for _ in range(self.draws)) / self.draws
