"""Risk and adversarial risk: how good a classifier is on average, and in the worst case, with intervals.

What counts as an error is defined once, here: an example is wrong if the model is wrong on x or on any attacked x.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

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
from helpers.attacks import AttackWarning, Model, frozen
from helpers.perturbations import L1, L2, Linf

Attack = Callable[[Model, Tensor, Tensor, float], Tensor]
LossName = Literal["zero_one", "cross_entropy"]
Certify = Callable[[Model, Tensor, Tensor, float], Tensor]
Norm = Literal["linf", "l2", "l1"]
Side = Literal["two-sided", "at least", "at most"]  # an interval, or one end of it


@dataclass(frozen=True)
class Estimate:
    """An average over examples that stands for an expectation, with what the examples say about it at 95 %.

    How good a classifier is on average is known from both sides: an interval. What an attack found is known from one
    side only, since a better attack may find more: "at least", with a lower end that accounts for the choice of the
    examples, and nothing above. What could not be proved is known from the other side, since a better proof may leave
    less: "at most". `str(estimate)` is one line with all of it.
    """

    value: float  # the average
    low: float  # the interval's lower end; with "at least" the one-sided one, exceeded 95 times in 100; "at most": 0
    high: float  # its upper end; with "at most" the one-sided one; "at least": 1 for errors, infinity for losses
    interval: str  # how it was computed: "Wilson" or "normal"
    each: Tensor  # (N,), the loss of each example, on the CPU
    side: Side = "two-sided"
    warnings: tuple[str, ...] = ()  # what the attack warned of, each once

    def __str__(self) -> str:
        scale, unit, digits = (100, " %", 1) if self.interval == "Wilson" else (1, "", 3)
        value, low, high = (f"{scale * number:.{digits}f}" for number in (self.value, self.low, self.high))
        how = f"{self.interval}, N = {len(self.each)}" + ("; the attack warned" if self.warnings else "")
        if self.side == "at least":
            return f"at least {value}{unit} (95 %: {low}{unit} or more, {how})"
        if self.side == "at most":
            return f"at most {value}{unit} (95 %: {high}{unit} or less, {how})"
        return f"{value}{unit} (95 % interval {low} to {high}{unit}, {how})"


def wilson_interval(wrong: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval for a probability of which `wrong` cases were seen in `n` trials (Wilson 1927).

    Args:
        wrong: 0 to n. n: at least 1.
        confidence: in (0, 1). Each end alone holds with (1 + confidence) / 2: with 0.9 the lower end is the one-sided
            95 % one.

    Returns:
        Its two ends, in [0, 1].

    Raises:
        TypeError, ValueError: these are not such numbers.
    """
    from scipy.stats import binomtest

    check_count(n, "n")
    check_count(wrong, "wrong", low=0, high=n)
    check_number(confidence, "confidence", low=0, high=1, open_low=True)
    interval = binomtest(int(wrong), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def estimate(each: Tensor, *, side: Side = "two-sided", warnings: Sequence[str] = ()) -> Estimate:
    """Return the average of `each` with what it says, at 95 %, about its expectation.

    Of true and false (an error for each example) the interval is Wilson's. Of losses it is the normal one, the average
    plus and minus 1.96 standard errors (one-sided: minus 1.645), which wants some hundreds of examples.

    Args:
        each: (N,), bool for errors or floating point for losses; the examples are drawn independently.
        side: "two-sided"; "at least" for what an attack found, as `worst_losses` yields it; or "at most" for errors
            that could not be excluded.
        warnings: of the attack, to be kept with the number.

    Raises:
        TypeError: it is not a tensor.
        ValueError: it has another shape, no example, or a value that is not finite; or `side` is none of the three, or
            "at most" of losses, not errors.
    """
    if not isinstance(each, Tensor):
        raise TypeError(f"each must be a tensor; got {type(each).__name__}")
    if each.ndim != 1 or len(each) == 0 or not each.isfinite().all():
        raise ValueError(f"each must hold N >= 1 finite numbers, shape (N,); got shape {tuple(each.shape)}")
    if side not in ("two-sided", "at least", "at most"):
        raise ValueError(f"side must be 'two-sided', 'at least' or 'at most'; got {side!r}")
    if side == "at most" and each.dtype != torch.bool:
        raise ValueError(f"each must hold errors, bool, with side 'at most'; got {each.dtype}")
    each = each.detach().cpu()
    value, one_sided = each.double().mean().item(), side != "two-sided"
    if each.dtype == torch.bool:
        interval, most = "Wilson", 1.0
        low, high = wilson_interval(int(each.sum()), len(each), confidence=0.9 if one_sided else 0.95)
    else:
        interval, most = "normal", math.inf
        error = each.double().std().item() / math.sqrt(len(each)) if len(each) > 1 else math.inf
        low, high = value - (1.645 if one_sided else 1.96) * error, value + 1.96 * error
    low, high = 0.0 if side == "at most" else low, most if side == "at least" else high
    return Estimate(value, low, high, interval, each, side, tuple(dict.fromkeys(warnings)))


def risk(model: Model, x: Tensor, y: Tensor, *, loss: LossName = "zero_one", batch_size: int = 500) -> Estimate:
    """Return the empirical risk, the average loss of `model` on the examples; arguments as in `adversarial_risk`."""
    return adversarial_risk(model, x, y, 0.0, attacks=(), loss=loss, batch_size=batch_size)


def adversarial_risk(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    attacks: Sequence[Attack],
    loss: LossName = "zero_one",
    batch_size: int = 500,
) -> Estimate:
    """Return the average over examples of the largest loss that was found: on x itself or under any of the attacks.

    It is a lower bound of the empirical adversarial risk, the average of max over Delta(x) of the loss (Madry et al.
    2018, equation 2.1): the attacks find some perturbations, not the worst. So the result says "at least", and keeps
    what the attacks warned of; with no attack it is the empirical risk, known from both sides.

    With the 0-1 loss this is the robust error: an example counts as wrong if the model is wrong on x or on any attacked
    x. An example that is wrong already is not attacked again, so the later attacks have less to do. With the
    cross-entropy every attack sees every example.

    A model that is an `nn.Module` is in eval mode meanwhile, and comes back as it was. Shows a progress bar.

    Args:
        model: takes images like `x`, returns logits (N, K).
        x: (N, ...), values in [0, 1]. y: (N,), int64. Batches are moved to the model's device, if it has parameters.
        eps: the budget, handed to each attack.
        attacks: functions of (model, x, y, eps) that return adversarial images, such as `pgd`, `fgsm`, or
            `partial(pgd, loss="margin", restarts=5)`.
        loss: "zero_one" (1 if misclassified, else 0) or "cross_entropy".
        batch_size: examples at a time, at least 1.

    Raises:
        TypeError, ValueError: an argument is not allowed, the model does not return logits, or an attack does not
            return images.
    """
    if not isinstance(x, Tensor) and isinstance(x, Iterable):
        raise TypeError(
            f"x must be one tensor of images; got {type(x).__name__}. Of a DataLoader, or any other batches, "
            "`worst_losses` takes one after the other, and `helpers.report.evaluate` runs the whole protocol on them."
        )
    check_images(x)
    check_labels(y, x)
    check_count(batch_size, "batch_size")
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AttackWarning)
        each = torch.cat(list(worst_losses(model, batches, eps, attacks=attacks, loss=loss)))
    for warning in caught:  # the caller hears of it too
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, AttackWarning)]
    return estimate(each, side="at least" if attacks else "two-sided", warnings=said)


def worst_losses(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    eps: float,
    *,
    attacks: Sequence[Attack],
    loss: LossName = "zero_one",
) -> Iterator[Tensor]:
    """Yield, batch by batch, the largest loss that was found for each example: what `adversarial_risk` averages.

    For data that does not fit in memory: one batch is held at a time. Keep what comes; if the run is cut off, go on
    with the batches that are missing (`itertools.islice`), and in the end average with
    `estimate(torch.cat(found), side="at least")`.
    What else it takes and raises is as in `adversarial_risk`, raised when the first batch is asked for.

    Args:
        batches: of images (N, ...) and labels (N,), of any lengths, such as a `torch.utils.data.DataLoader`.

    Yields:
        (N,), on the CPU: bool for the 0-1 loss (true where an error was found), in nats for the cross-entropy.

    Warns:
        AttackWarning: the model says something else when it is asked again, so that an attack chases a moving target.
    """
    check_number(eps, "eps", low=0, high=torch.finfo(torch.float32).max)
    if loss not in ("zero_one", "cross_entropy"):
        raise ValueError(f"loss must be 'zero_one' or 'cross_entropy'; got {loss!r}")
    if not isinstance(attacks, Sequence) or not all(map(callable, attacks)):
        raise TypeError("attacks must be a list of functions of (model, x, y, eps), such as [pgd]")
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    for number, (images, labels) in enumerate(tqdm(batches, desc="risk", leave=False)):
        check_images(images)
        check_labels(labels, images)
        device = parameters[0].device if parameters else images.device
        images, labels = images.to(device), labels.to(device)
        with (
            frozen(model),
            explained_dtype(model, images),
        ):  # for each batch anew: between two of them the model is the caller's
            worst = _losses(model, images, labels, loss)
            if number == 0 and attacks:
                _warn_of_randomness(model, images[:8])
            for attack in attacks:
                open_ = (worst < 1 if loss == "zero_one" else torch.ones_like(worst, dtype=torch.bool)).nonzero()[:, 0]
                if len(open_):
                    attacked = attack(model, images[open_], labels[open_], eps)
                    check_attacked(attacked, images[open_])
                    worst[open_] = worst[open_].maximum(_losses(model, attacked, labels[open_], loss))
        worst = worst.cpu()
        yield worst > 0 if loss == "zero_one" else worst


def certified_risk(
    model: Model, x: Tensor, y: Tensor, eps: float, *, certify: Sequence[Certify], batch_size: int = 100
) -> Estimate:
    """Return the share of examples that are not proved to be right on all of Delta(x): the certified error.

    It is an upper bound of the empirical adversarial risk with the 0-1 loss, as `adversarial_risk` is a lower one: a
    weak proof excludes too little. So the result says "at most". An example counts as an error unless the model is
    right on x and one of the proofs excludes every perturbation; the cheap ones come first, since what is proved is not
    proved again. Not proved does not mean broken.

    A model that is an `nn.Module` is in eval mode meanwhile, and comes back as it was. Shows a progress bar.

    Args:
        model: takes images like `x`, returns logits (N, K).
        x: (N, ...), values in [0, 1]. y: (N,), int64. Batches are moved to the model's device, if it has parameters.
        eps: the budget, handed to each proof.
        certify: functions of (model, x, y, eps) that return (N,) bool, true where every perturbation is excluded, such
            as `helpers.bounds.proves`, or `partial(proves, method="interval")`.
        batch_size: examples at a time, at least 1.

    Raises:
        TypeError, ValueError: an argument is not allowed, the model does not return logits, or a proof does not return
            true or false for each example.
    """
    check_images(x)
    check_labels(y, x)
    check_number(eps, "eps", low=0, high=torch.finfo(torch.float32).max)
    check_count(batch_size, "batch_size")
    if not isinstance(certify, Sequence) or not certify or not all(map(callable, certify)):
        raise TypeError("certify must be a list of functions of (model, x, y, eps), such as [proves]")
    device = next(model.parameters(), x).device if isinstance(model, nn.Module) else x.device
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    each = []
    for images, labels in tqdm(batches, desc="proofs", leave=False):
        images, labels = images.to(device), labels.to(device)
        with frozen(model), explained_dtype(model, images):
            wrong = _losses(model, images, labels, "zero_one") > 0
            left = ~wrong
            for proof in certify:
                rows = left.nonzero()[:, 0]
                if len(rows):
                    proved = proof(model, images[rows], labels[rows], eps)
                    if not isinstance(proved, Tensor) or proved.dtype != torch.bool or proved.shape != rows.shape:
                        got = f"{proved.dtype}, {tuple(proved.shape)}" if isinstance(proved, Tensor) else type(proved)
                        raise ValueError(f"what a proof returns must be bool, shape {tuple(rows.shape)}; got {got}")
                    left[rows] = ~proved
        each.append((wrong | left).cpu())
    return estimate(torch.cat(each), side="at most")


@torch.no_grad()
def _warn_of_randomness(model: Model, x: Tensor) -> None:
    once, again = model(x), model(x)
    check_logits(once, len(x))
    check_logits(again, len(x))
    if (once - again).abs().max() > 1e-3 * once.abs().max():
        warnings.warn(
            "The model is random: it says something else when it is asked again, and an attack chases a moving target. "
            "See 'When an attack warns you' in the book's checklist.",
            AttackWarning,
            stacklevel=3,
        )


def linear_worst_margin(
    linear: nn.Linear, x: Tensor, y: Tensor, eps: float, *, norm: Norm = "linf", box: bool = True
) -> Tensor:
    """Return the largest margin, over the perturbations, of a linear classifier: exact, without an attack.

    The margin of class k over y is linear in delta, w . delta plus a constant with w = weight_k - weight_y. So what an
    attack can add is the set's support in the direction w. Without the box that is eps times the dual norm of w; with
    it, pixels that are at 0 or 1 already can only go one way, and it is less.

    The example can be made an error exactly where the result is above 0. With two classes its largest cross-entropy is
    softplus of the result; with more, softplus of it is only a lower bound. Source: Kolter and Madry 2018, chapter 2,
    there for l-inf and without the box.

    Args:
        linear: its output is the classifier's logits, shape (N, K).
        x: (N, ...), values in [0, 1], flattened for `linear`. y: (N,), int64, 0 to K - 1.
        eps: the budget, in pixel units; for l-inf from 0 to 1.
        norm: "linf", "l2" or "l1". box: keep x + delta in [0, 1].

    Returns:
        (N,), in units of the logits.

    Raises:
        TypeError, ValueError: an argument is not allowed.
    """
    check_images(x)
    check_labels(y, x)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be a torch.nn.Linear; got {type(linear).__name__}")
    if linear.in_features != x[0].numel() or linear.out_features < 2:
        raise ValueError(
            f"linear must take the {x[0].numel()} values of an example and return K >= 2 logits; "
            f"it takes {linear.in_features} and returns {linear.out_features}"
        )
    check_classes(y, linear.out_features)
    sets = {"linf": (Linf, 1), "l2": (L2, 2), "l1": (L1, torch.inf)}  # with the dual norm of each
    if norm not in sets:
        raise ValueError(f"norm must be one of {list(sets)}; got {norm!r}")
    allowed, dual = sets[norm][0](eps), sets[norm][1]
    x = x.flatten(1)
    with torch.no_grad():
        logits = linear(x)
        margins = torch.full_like(logits, -torch.inf)
        for k in range(linear.out_features):
            w, others = linear.weight[k] - linear.weight[y], y != k
            gain = allowed.support(w, x) if box else eps * torch.linalg.vector_norm(w, dual, dim=1)
            margins[others, k] = (logits[:, k] - logits.gather(1, y[:, None])[:, 0] + gain)[others]
    return margins.amax(1)


@torch.no_grad()
def _losses(model: Model, x: Tensor, y: Tensor, loss: LossName) -> Tensor:
    logits = model(x)
    check_logits(logits, len(x))
    check_classes(y, logits.shape[1])
    if loss == "zero_one":
        return (logits.argmax(1) != y).float()
    return F.cross_entropy(logits, y, reduction="none")
