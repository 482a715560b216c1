"""Upper bounds of the margin over all perturbations at once: what proves that no attack can succeed.

The network is cut at its ReLUs into affine parts. Intervals go forwards through the parts. CROWN goes backwards: it
replaces each ReLU by two straight lines, one above and one below, so that what is left is linear in the image, and the
largest value of a linear function over a box is known. Sources: Gowal et al. 2018 (intervals), Zhang et al. 2018
(CROWN), Zhang et al. 2020 (CROWN-IBP), Xu et al. 2021 (slopes that are optimised).

Rounding. Every bound is moved outwards by as much as rounding can move it: a sum of n terms, added up in any order, is
off by n / 2 machine epsilons times the sum of the terms' absolute values at most, up to terms of second order (Higham
2002, section 4.2). Long sums are added up in blocks, so that n stays small. So a bound holds for the network as a
function of real numbers, in whatever order a processor adds, if convolutions are such sums: not by way of TF32 on a
GPU, or of Winograd's or Fourier's transform. Numbers so small that they are rounded to 0 are not counted. What the
network computes in floating point may differ from that function, by its own rounding.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from helpers._validation import check_classes, check_images, check_labels, check_logits, check_number, explained_dtype
from helpers.models import Normalize, NormalizedModel

Method = Literal["interval", "crown-ibp", "crown", "alpha"]
METHODS = ("interval", "crown-ibp", "crown", "alpha")
SUPPORTED = (nn.Linear, nn.Conv2d, nn.ReLU, nn.Flatten, nn.PixelUnshuffle, nn.ZeroPad2d, Normalize)
BLOCK = 64  # of a long sum
CHUNK = 2048  # neurons whose step back through their own layer is held at a time
GROUP = 512  # rows that go further back at a time: few enough for the processor's cache


class Layer(NamedTuple):
    """What is known about the outputs of an affine part, that is, the inputs of a ReLU or the logits; (N, *shape)."""

    low: Tensor
    high: Tensor
    room: Tensor  # for rounding, of each output on the way back through the part, in the units of the output


# ------------------------------------------------------------------------------------------------ the network in parts


def pieces(network: nn.Module) -> list[nn.Sequential]:
    """Return the affine parts of `network` between its ReLUs, in order: one more than it has ReLUs.

    They are copies, with frozen parameters, so that nothing is done to the network.

    Args:
        network: in eval mode, made of Linear, Conv2d, ReLU, Flatten, PixelUnshuffle, ZeroPad2d, `Normalize` and
            Identity, inside of `nn.Sequential` and `NormalizedModel`.

    Raises:
        TypeError: `network` is no module, or has a layer that is none of these.
        ValueError: it is in training mode.
    """
    if isinstance(network, nn.Module) and any(module.training for module in network.modules()):
        raise ValueError("network must be in eval mode, for that is what a bound would be about: network.eval()")
    return [nn.Sequential(*map(deepcopy, part)).requires_grad_(False).eval() for part in _parts(network)]


def _parts(network: nn.Module) -> list[list[nn.Module]]:
    """Return the affine layers between the ReLUs: the network's own, not copies, in whatever mode they are."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module; got {type(network).__name__}")
    parts: list[list[nn.Module]] = [[]]
    for layer in _layers(network, "network"):
        if isinstance(layer, nn.ReLU):
            parts.append([])
        else:
            parts[-1].append(layer)
    return parts


def _layers(module: nn.Module, name: str) -> Iterator[nn.Module]:
    if isinstance(module, NormalizedModel) or type(module).forward is nn.Sequential.forward:
        for child_name, child in module._modules.items():  # named_children leaves out a layer that comes again
            yield from _layers(child, f"{name}.{child_name}")
    elif type(module) is Normalize:  # as a convolution with one number for each channel: x / std - mean / std
        scale = 1 / module.std.flatten()
        layer = nn.Conv2d(len(scale), len(scale), 1, groups=len(scale))
        layer.weight, layer.bias = (nn.Parameter(t) for t in (scale.view(-1, 1, 1, 1), -module.mean.flatten() * scale))
        yield layer.requires_grad_(False)
    elif type(module) in SUPPORTED:
        yield module
    elif type(module) is not nn.Identity:
        names = ", ".join(kind.__name__ for kind in SUPPORTED)
        hint = ""
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            hint = " In eval mode batch normalisation is affine: helpers.models.fold_batch_norm merges it."
        raise TypeError(
            f"network must be made of {names}, in nn.Sequential; {name} is {type(module).__name__}, for which there is "
            f"no bound here.{hint}"
        )


def box(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value of each pixel in l-inf Delta(x): two tensors like `x`."""
    return (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)


# ------------------------------------------------------------------------------------------------- forwards: intervals


def interval_bounds(network: nn.Module, low: Tensor, high: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return intervals for the input of every ReLU and for the logits, while each pixel is between `low` and `high`.

    Args:
        network: as in `pieces`. low, high: (N, ...), in its dtype.

    Returns:
        For each ReLU and then for the logits, its lower and its upper bounds, (N, *shape) each.

    Raises:
        TypeError, ValueError: an argument is not allowed.
    """
    check_box(low, high)
    parts = pieces(network)
    with torch.no_grad(), explained_dtype(network, low):
        layers = [interval_step(parts[0], low, high)]
        for part in parts[1:]:
            layers.append(interval_step(part, layers[-1].low.relu(), layers[-1].high.relu()))
    return [(layer.low, layer.high) for layer in layers]


def interval_step(part: nn.Sequential, low: Tensor, high: Tensor) -> Layer:
    """Return bounds of an affine part's outputs, exact where it has one layer: centre W c + b, radius |W| r."""
    center, radius, size = (high + low) / 2, (high - low) / 2, low.abs().maximum(high.abs())
    forwards, back = 0, BLOCK + center.shape[1:].numel() // BLOCK  # terms of a sum, at most
    for layer in part:
        weights = {name: parameter.abs() for name, parameter in layer.named_parameters()}
        no_bias = {name: weight * (name == "weight") for name, weight in weights.items()}
        center = layer(center)
        radius = functional_call(layer, no_bias, radius)
        size = functional_call(layer, weights, size)
        if weights:
            into, out_of = _terms(layer)
            forwards, back = forwards + into, back + out_of + center.shape[1:].numel() // BLOCK
    room = rounding(forwards, size.dtype) * size
    return Layer(center - radius - room, center + radius + room, rounding(back, size.dtype) * size)


def interval_margins(network: nn.Module, low: Tensor, high: Tensor, y: Tensor) -> Tensor:
    """Return upper bounds of logits_k - logits_y over the box, by intervals, to be differentiated: for training.

    The gradient goes to the network's own parameters. As the last layer's rows are subtracted first, W_k - W_y, what
    the two logits share does not count twice (Gowal et al. 2018). There is no room for rounding in these bounds: train
    with them, and certify with `upper_margins`.

    Args:
        network: of the layers that `pieces` takes, the last of them Linear; in training or in eval mode.
        low, high: (N, ...), the smallest and largest value of each pixel, as `box` returns them, values in [0, 1].
        y: (N,), int64, 0 to K - 1.

    Returns:
        (N, K), in units of the logits; 0 at k = y. As logits of a cross-entropy they give the largest one that the
        intervals allow.

    Raises:
        TypeError, ValueError: an argument is not allowed, the network has a layer without a bound, or ends otherwise.
    """
    check_box(low, high)
    check_labels(y, low)
    parts = _parts(network)
    last = parts[-1].pop() if parts[-1] else None
    if not isinstance(last, nn.Linear):
        raise TypeError(f"network must end with a Linear layer; got {'ReLU' if last is None else type(last).__name__}")
    check_classes(y, last.out_features)
    center, radius = (high + low) / 2, (high - low) / 2
    with explained_dtype(network, low):
        for i, part in enumerate(parts):
            if i > 0:
                low, high = (center - radius).relu(), (center + radius).relu()
                center, radius = (high + low) / 2, (high - low) / 2
            for layer in part:
                absolute = {
                    name: parameter.abs() if name == "weight" else torch.zeros_like(parameter)
                    for name, parameter in layer.named_parameters()
                }
                center, radius = layer(center), functional_call(layer, absolute, radius)
        logits = last(center)
        if logits.ndim != 2:
            raise ValueError(f"network must return logits of shape (N, K); got {tuple(logits.shape)}")
        reach = ((last.weight - last.weight[y][:, None]).abs() @ radius[:, :, None])[:, :, 0]
        return logits - logits.gather(1, y[:, None]) + reach


def _terms(layer: nn.Module) -> tuple[int, int]:
    """Return how many terms an output of a layer with weights has, and how many a coefficient has on the way back."""
    into = layer.weight[0].numel() + 2  # a bias, and the ends of an interval
    if isinstance(layer, nn.Linear):
        return into, layer.out_features + 2
    places = math.prod(-(-k // s) for k, s in zip(layer.kernel_size, layer.stride, strict=True))
    return into, layer.out_channels // layer.groups * places + 2


def rounding(terms: int, dtype: torch.dtype) -> float:
    """Return how far a sum of so many products may be off, as a share of the sum of their absolute values."""
    share = (terms / 2 + 4) * torch.finfo(dtype).eps
    return share / (1 - share)


def add_up(products: Tensor) -> Tensor:
    """Return the sum of each row, (R, ...) to (R,), in blocks: of n products no sum has more than n / 64 + 64 terms."""
    products = products.flatten(1)
    whole = products.shape[1] // BLOCK * BLOCK
    return products[:, :whole].unflatten(1, (-1, BLOCK)).sum(2).sum(1) + products[:, whole:].sum(1)


# ---------------------------------------------------------------------------------------------------- backwards: CROWN


def upper_bounds(
    parts: list[nn.Sequential],
    low: Tensor,
    high: Tensor,
    layers: list[Layer],
    rows: Tensor,
    image: Tensor,
    *,
    slopes: list[Tensor] | None = None,
) -> Tensor:
    """Return CROWN's upper bounds of <row, outputs of the last part> over the box, for many rows at a time.

    Args:
        parts: the first of the network's parts, one or more. layers: what is known about the outputs of each.
        low, high: (N, ...), the box of each image.
        rows: (R, *shape), coefficients of the last part's outputs. image: (R,), which of the N each row is about, or
            (1,) if all are about one.
        slopes: of the lower line of each ReLU, (R, *shape) from 0 to 1 for each layer but the last; without them 1
            where the upper line is steeper than 1/2, else 0, which leaves the smaller gap (Zhang et al. 2018).

    Returns:
        (R,).
    """
    total, room = 0.0, 0.0
    for i in reversed(range(len(parts))):
        if len(parts[i]):  # an empty part changes nothing
            room = room + _dot(rows.abs(), layers[i].room[image])
            rows, constant = _back(parts[i], rows, low if i == 0 else layers[i - 1].low)
            total = total + constant
        if i > 0:
            # The ReLU lies below the line through (l, 0) and (u, u), and above any line through 0 with slope 0 to 1. A
            # positive coefficient takes the upper line, a negative one the lower. Closed neurons have one line: 0 or z.
            left, right = layers[i - 1].low[image].clamp(max=0), layers[i - 1].high[image].clamp(min=0)
            above = right / (right - left).clamp(min=torch.finfo(right.dtype).tiny)
            below = (above > 0.5).to(above)
            if slopes is not None:
                below = torch.where((left < 0) & (right > 0), slopes[i - 1], below)
            positive = rows.clamp(min=0)
            total = total - _dot(positive, above * left)
            rows = torch.addcmul((rows - positive) * below, positive, above)
    center, radius = ((high + low) / 2)[image], ((high - low) / 2)[image]
    terms = BLOCK + center.shape[1:].numel() // BLOCK
    own = rounding(terms, center.dtype) * (center.abs() + radius)
    return total + _dot(rows, center) + _dot(rows.abs(), radius + own) + room


def _back(part: nn.Sequential, rows: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return W^T times each row and <row, b>, for a part that takes `inputs` (N, ...) to W times them plus b."""
    bias, pull = vjp(part, torch.zeros_like(inputs[:1]))
    return vmap(lambda row: pull(row)[0])(rows[:, None])[:, 0], _dot(rows, bias)


def _dot(rows: Tensor, values: Tensor) -> Tensor:
    """Return the inner product of each row with its values, or with the only ones there are."""
    return add_up(rows * values)


def optimised_bounds(
    parts: list[nn.Sequential],
    low: Tensor,
    high: Tensor,
    layers: list[Layer],
    rows: Tensor,
    image: Tensor,
    *,
    steps: int = 20,
    lr: float = 0.2,
) -> Tensor:
    """Return `upper_bounds` with the best slopes that so many steps of Adam find; never looser than without steps.

    Any slopes from 0 to 1 give a bound, so nothing can go wrong. The best ones give the optimum of the linear programme
    that has a triangle for each ReLU (Salman et al. 2019). Each row has its own slopes.
    """
    if len(parts) == 1:  # no ReLU, no slopes
        return upper_bounds(parts, low, high, layers, rows, image)
    slopes = []
    for layer in layers[:-1]:
        start = (layer.high > -layer.low).to(low)[image]
        slopes.append(start.expand(len(rows), *start.shape[1:]).clone().requires_grad_())
    adam = torch.optim.Adam(slopes, lr=lr)
    best = rows.new_full((len(rows),), torch.inf)
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            bounds = upper_bounds(parts, low, high, layers, rows, image, slopes=slopes)
            total = bounds.sum()
        best = best.minimum(bounds.detach())
        if not total.requires_grad:
            break
        for slope, grad in zip(slopes, torch.autograd.grad(total, slopes), strict=True):
            slope.grad = grad
        adam.step()
        with torch.no_grad():
            for slope in slopes:
                slope.clamp_(0, 1)
    return best


def hidden_layers(parts: list[nn.Sequential], low: Tensor, high: Tensor, *, crown: bool = True) -> list[Layer]:
    """Return what is known about the outputs of each part over the box: intervals, and the better of them and CROWN.

    Args:
        crown: bound by CROWN, too, what intervals leave open, that is, the hidden neurons that may be on either side of
            their ReLU's kink. The others' lines are exact.
    """
    layers: list[Layer] = []
    for i, part in enumerate(parts):
        before = (layers[-1].low.relu(), layers[-1].high.relu()) if layers else (low, high)
        layers.append(interval_step(part, *before))
        if crown and 0 < i < len(parts) - 1:
            layers[-1] = _tighten(parts[: i + 1], low, high, layers)
    return layers


def _tighten(parts: list[nn.Sequential], low: Tensor, high: Tensor, layers: list[Layer]) -> Layer:
    """Return the last of the layers with better bounds of its open neurons.

    The first step back, through the last part, is the same for all images and for both signs: it is taken once.
    """
    lows, highs, rooms = (values.flatten(1).clone() for values in layers[-1])
    shape, before = layers[-1].low.shape, layers[-2].low
    rest = [*parts[:-1], nn.Sequential()], low, high, [*layers[:-1], layers[-2]]
    open_ = (lows < 0) & (highs > 0)
    for neurons in open_.any(0).nonzero()[:, 0].split(CHUNK):
        unit = lows.new_zeros(len(neurons), lows.shape[1]).scatter_(1, neurons[:, None], 1)
        back, constant = _back(parts[-1], unit.view(-1, *shape[1:]), before)
        pairs = open_[:, neurons].nonzero()  # (image, which of these neurons)
        many = len(pairs) > 16 * len(lows)  # then image by image: the lines of its ReLUs are found once for all rows
        groups = pairs.split([n for n in pairs[:, 0].bincount().tolist() if n]) if many else [pairs]
        for image, row in (part.T for group in groups for part in group.split(GROUP // 2)):
            rows, whose = torch.cat([back[row], -back[row]]), image[:1] if many else torch.cat([image, image])
            above, below = upper_bounds(*rest, rows, whose).chunk(2)
            at = image, neurons[row]
            highs[at] = highs[at].minimum(constant[row] + above + rooms[at])
            lows[at] = lows[at].maximum(constant[row] - below - rooms[at])
    return Layer(lows.view(shape), highs.view(shape), layers[-1].room)


# --------------------------------------------------------------------------------------------------------- the margins


def upper_margins(network: nn.Module, x: Tensor, y: Tensor, eps: float, *, method: Method = "crown") -> Tensor:
    """Return upper bounds of logits_k - logits_y over the l-inf perturbations of each image.

    Below 0 for every k, they prove that no perturbation changes the network's answer. Of a bound that goes back through
    the network and the one by the last layer's intervals, the better one is reported.

    Args:
        network: as in `pieces`; takes images like `x`, returns logits (N, K).
        x: (N, ...), float32 or float64 as the network is, values in [0, 1]. y: (N,), int64, 0 to K - 1.
        eps: the budget, in pixel units from 0 to 1.
        method: "interval"; "crown-ibp", CROWN for the margins with intervals for the hidden neurons; "crown", CROWN for
            the hidden neurons, too; "alpha", "crown" with the slopes of the lower lines optimised for each margin.

    Returns:
        (N, K), in units of the logits; minus infinity at k = y.

    Raises:
        TypeError, ValueError: an argument is not allowed, or the network has a layer without a bound.
    """
    check_images(x)
    check_number(eps, "eps", low=0, high=1, hint="Pixels go from 0 to 1: for 8 of 255 levels write 8/255.")
    return upper_margins_in_box(network, *box(x, eps), y, method=method)


def upper_margins_in_box(
    network: nn.Module, low: Tensor, high: Tensor, y: Tensor, *, method: Method = "crown"
) -> Tensor:
    """Return `upper_margins` where each pixel may be anything between its own `low` and `high`, (N, ...) each."""
    check_box(low, high)
    check_labels(y, low)
    if method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}; got {method!r}")
    parts = pieces(network)
    with torch.no_grad(), explained_dtype(network, low):
        logits = network(low)
        check_logits(logits, len(low))
        classes = logits.shape[1]
        check_classes(y, classes)
        layers = hidden_layers(parts, low, high, crown=method in ("crown", "alpha"))
        image, k = (y[:, None] != torch.arange(classes, device=y.device)).nonzero(as_tuple=True)
        unit = torch.eye(classes, dtype=low.dtype, device=low.device)
        rows = unit[k] - unit[y[image]]
        before = (layers[-2].low.relu(), layers[-2].high.relu()) if len(layers) > 1 else (low, high)
        bounds = upper_bounds(parts[-1:], *before, layers[-1:], rows, image)
        if method != "interval":
            backwards = optimised_bounds if method == "alpha" else upper_bounds
            for some in torch.arange(len(rows), device=rows.device).split(GROUP):
                bounds[some] = bounds[some].minimum(backwards(parts, low, high, layers, rows[some], image[some]))
    margins = torch.full_like(logits, -torch.inf)
    margins[image, k] = bounds
    return margins


def proves(network: nn.Module, x: Tensor, y: Tensor, eps: float, *, method: Method = "crown") -> Tensor:
    """Return which images are proved: classified as `y`, and no l-inf perturbation within `eps` can change it.

    Arguments and errors as in `upper_margins`; fits `helpers.risk.certified_risk`. False means that this method does
    not know.

    Returns:
        (N,), bool.
    """
    return (upper_margins(network, x, y, eps, method=method) < 0).all(1)


def check_box(low: Tensor, high: Tensor) -> None:
    """Check that `low` and `high` are images of one shape and dtype, and low <= high."""
    check_images(low, "low")
    check_images(high, "high")
    if low.shape != high.shape or low.dtype != high.dtype:
        raise ValueError(
            f"high must have the shape and dtype of low, {tuple(low.shape)} and {low.dtype}; "
            f"got {tuple(high.shape)} and {high.dtype}"
        )
    if (low > high).any():
        raise ValueError(f"high must be at least low; it is less for {int((low > high).sum())} of {low.numel()} pixels")
