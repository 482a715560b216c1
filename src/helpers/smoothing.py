"""Randomized smoothing: a classifier that votes under Gaussian noise, and the radius that the vote proves.

The smoothed classifier g says of an image x what the base classifier says most often of x + noise, with noise from
N(0, sigma^2) on every pixel. If it says so with probability p > 1/2, then g says the same of every image that is nearer
to x than R = sigma * Phi^-1(p) in l2, with Phi the normal distribution function (Cohen, Rosenfeld and Kolter 2019,
theorem 1). Nobody knows p; draws give a lower bound of it that fails with a stated probability, and R is computed from
the bound. What is proved is proved of g, not of the base classifier.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from helpers._validation import check_count, check_images, check_labels, check_logits, check_number, explained_dtype
from helpers.attacks import Model, frozen
from helpers.models import NormalizedModel

SELECT, ESTIMATE, PREDICT, ATTACK = range(4)  # stages: each has a stream of noise of its own
BLOCK = 2**16  # numbers drawn from one generator: 83 digits, or a part of a photograph


@dataclass(frozen=True)
class Certificates:
    """What `certify` proved of each of N images. Each statement on its own holds with probability 1 - alpha."""

    label: Tensor  # (N,), int64: what the smoothed classifier says of the image, and of all that are nearer than radius
    radius: Tensor  # (N,), float64: in l2 and pixel units, below sigma * Phi^-1(alpha^(1/n)); -1, 0 where it abstains
    hits: Tensor  # (N,), int64: how many of the n draws said the class that the first n0 draws selected
    n: int
    sigma: float
    alpha: float

    def proves(self, y: Tensor, eps: float) -> Tensor:
        """Return where g is proved to say `y` of every image within `eps` in l2: (N,), bool. Abstaining proves nothing.

        Args:
            y: (N,), int64. eps: at least 0, in pixel units.
        """
        check_labels(y.cpu() if isinstance(y, Tensor) else y, self.label)
        check_number(eps, "eps", low=0, high=math.inf)
        return (self.label == y.cpu()) & (self.radius > eps)


def lower_bound(hits: int | Tensor, n: int, alpha: float) -> Tensor:
    """Return a number that is below the true probability with probability 1 - alpha (Clopper and Pearson 1934).

    It is the p at which `hits` or more in n draws would happen with probability alpha. With all n hits: alpha^(1/n).

    Args:
        hits: 0 to n, one count or a tensor of any shape. n: draws, at least 1. alpha: in (0, 1).

    Returns:
        Like `hits`, float64, on the CPU.

    Raises:
        TypeError, ValueError: these are not such numbers.
    """
    from scipy.stats import beta

    check_count(n, "n")
    _check_alpha(alpha)
    counts = torch.as_tensor(hits).cpu()
    if counts.is_floating_point() or counts.dtype == torch.bool:
        raise TypeError(f"hits must be whole numbers; got {counts.dtype}")
    if counts.numel() and not 0 <= counts.min() <= counts.max() <= n:
        raise ValueError(f"hits must be from 0 to n = {n}; got {counts.min()} to {counts.max()}")
    k = counts.double().numpy()
    return torch.as_tensor(np.where(k > 0, beta.ppf(alpha, np.maximum(k, 1), n - k + 1), 0.0))


def certified_radius(p: Tensor, sigma: float) -> Tensor:
    """Return sigma * Phi^-1(p), the l2 radius that follows from a probability p of the class; 0 where p <= 1/2.

    Args:
        p: in [0, 1], a lower bound of the probability. sigma: above 0, in pixel units.

    Returns:
        Like `p`, float64.
    """
    return sigma * torch.special.ndtri(p.double().clamp(min=0.5))


@torch.no_grad()
def certify(
    model: Model,
    x: Tensor,
    sigma: float,
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    memory: float = 16,
) -> Certificates:
    """Say for each image what the smoothed classifier says of it, and in which l2 radius it is proved to say the same.

    n0 draws select a class. n other draws estimate how often the base classifier says it; of this probability the
    Clopper-Pearson lower bound is taken, at confidence 1 - alpha. At 1/2 or below it abstains, else the radius is sigma
    * Phi^-1(bound) (Cohen et al. 2019, CERTIFY). The two sets of draws must be different: of draws that chose the class
    the bound is not true.

    The noise is not clipped, though it leaves [0, 1]: that would smooth another classifier (if you want that one, make
    the clipping a part of it, `lambda z: model(z.clamp(0, 1))`, here and in `predict`). So a `NormalizedModel`, which
    refuses such pixels, is called as `network(normalize(x))`. Noise is made on the CPU, from the seed, the place of the
    image in x and the number of the draw. So the same seed and the same x give the same answer on any device and
    within any memory (but for draws on which two logits are equal up to rounding); x[3:] alone gets other draws.

    Meanwhile a model that is an `nn.Module` is in eval mode; it comes back as it was. Only the largest of its outputs
    counts, so they may be probabilities. Shows a progress bar.

    Args:
        model: takes images like `x`, also with pixels outside [0, 1], and returns logits (N, K).
        x: (N, ...), float32 or float64 as the model is, values in [0, 1].
        sigma: standard deviation of the noise, in pixel units, above 0, at most 10.
        n0: draws that select, at least 1.
        n: draws that estimate; so many that all of them as hits would prove something: alpha^(1/n) > 1/2.
        alpha: in (0, 1), the probability with which an image's certificate may be false.
        seed: of the noise, at least 0.
        memory: MiB for the noisy images of one call of the model, whose own needs come on top.

    Returns:
        The certificates, on the CPU.

    Raises:
        TypeError, ValueError: an argument is not allowed, the model does not return logits, or it is random itself, or
            what it says of an image depends on the rest of its batch: then a seed does not fix the answer, and draws of
            one call may share their luck, which no bound here allows.
    """
    check_count(n0, "n0")
    check_count(n, "n")
    _check_alpha(alpha)
    needed = next(k for k in count(max(1, int(-math.log2(alpha)))) if lower_bound(k, k, alpha) > 0.5)
    if n < needed:
        raise ValueError(f"n must be at least {needed} with alpha {alpha:g}: fewer prove nothing, all hits; got {n}")
    with _prepared(model, x, sigma, seed, memory) as base, tqdm(total=len(x) * (n0 + n), desc="draws") as bar:
        chosen = _counts(base, x, sigma, n0, seed, SELECT, memory, bar).argmax(1)
        hits = _counts(base, x, sigma, n, seed, ESTIMATE, memory, bar).gather(1, chosen[:, None])[:, 0]
    p = lower_bound(hits, n, alpha)
    abstains = p <= 0.5
    return Certificates(
        chosen.masked_fill(abstains, -1), certified_radius(p, sigma), hits, int(n), float(sigma), float(alpha)
    )


@torch.no_grad()
def predict(
    model: Model,
    x: Tensor,
    sigma: float,
    *,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    memory: float = 16,
) -> Tensor:
    """Return what the smoothed classifier says of each image, or -1 where the draws do not decide it: (N,), int64.

    It abstains unless a two-sided binomial test tells the two classes with the most draws apart at level alpha. So it
    says a class that the smoothed classifier does not say with probability alpha at most (Cohen et al. 2019, PREDICT).
    Its draws are others than those of `certify` with the same seed. All else is as in `certify`.

    Args:
        model, x, sigma, seed, memory: as in `certify`.
        n: draws; so many that all of them for one class would decide: 2^(1-n) <= alpha.
        alpha: in (0, 1), the probability with which an image's answer may be false.

    Raises:
        TypeError, ValueError: as in `certify`.
    """
    from scipy.stats import binomtest

    check_count(n, "n")
    _check_alpha(alpha)
    needed = next(k for k in count(max(1, int(-math.log2(alpha)))) if 2.0 ** (1 - k) <= alpha)
    if n < needed:
        raise ValueError(f"n must be at least {needed} with alpha {alpha:g}: fewer decide nothing, all equal; got {n}")
    with _prepared(model, x, sigma, seed, memory) as base, tqdm(total=len(x) * n, desc="draws") as bar:
        top = _counts(base, x, sigma, n, seed, PREDICT, memory, bar).topk(2)
    sure = [binomtest(a, a + b).pvalue <= alpha for a, b in top.values.tolist()]
    return top.indices[:, 0].masked_fill(~torch.tensor(sure), -1)


class Smoothed(nn.Module):
    """The smoothed classifier as a function with a gradient: the log of the mean probability over fixed draws.

    For attacks: `pgd(Smoothed(model, sigma), x, y, eps, norm="l2")`. A vote is a step function without a gradient; the
    mean probability stands in for it (Salman et al. 2019). All images and all calls meet the same draws, so the attack
    chases one target. What it finds must be judged by `predict`, which draws anew: an image may fool these draws only.

    `helpers.adaptive.Expectation` is its cousin for a model that draws random numbers: it averages logits, over new
    draws in each call. A vote counts each draw once, however sure it is, so here it is probabilities that are averaged;
    the logarithm, computed by logsumexp, keeps the gradient from dying where all draws are sure of the same class.

    Args:
        model: takes images like x, also with pixels outside [0, 1], and returns logits (N, K), not probabilities. A
            `NormalizedModel` is called as `network(normalize(x))`.
        sigma: standard deviation of the noise, in pixel units, above 0, at most 10.
        draws: how many are averaged, at least 1. Time and memory grow with them: one call is N * draws images.
        seed: of the draws, at least 0.

    Raises:
        TypeError, ValueError: an argument is not allowed; when it is called, that the model returns probabilities, or
            is random itself, as with dropout in train mode.
    """

    def __init__(self, model: Model, sigma: float, *, draws: int = 50, seed: int = 0) -> None:
        super().__init__()
        _check(model, sigma, seed)
        check_count(draws, "draws")
        self.model, self.sigma, self.draws, self.seed = model, float(sigma), int(draws), int(seed)
        self._noise, self._looked = None, False

    def forward(self, x: Tensor) -> Tensor:
        """Return the logs of the mean probabilities, (N, K)."""
        noise = self._noise
        if noise is None or noise.shape[1:] != x.shape[1:] or (noise.dtype, noise.device) != (x.dtype, x.device):
            blocks = _blocks(x[0].detach(), self.draws, self.seed, ATTACK, 0)
            noise = self._noise = self.sigma * torch.cat(list(blocks)).to(x.device)
        noisy = (x[:, None] + noise).flatten(0, 1)
        base = _unwrapped(self.model)
        with explained_dtype(self.model, x):
            logits = base(noisy)
        check_logits(logits, len(noisy))
        if self.training or not self._looked:
            _check_fixed(base, noisy[:8].detach())
            self._looked = True
        return F.log_softmax(logits, 1).unflatten(0, (len(x), self.draws)).logsumexp(1) - math.log(self.draws)


# ------------------------------------------------------------------------------------------------------------ the draws


def _blocks(image: Tensor, n: int, seed: int, stage: int, number: int) -> Iterator[Tensor]:
    """Yield n draws from N(0, 1) for one image, (M, ...) at a time, on the CPU: a generator for each block.

    How large a block is depends on the image alone, not on the memory, so the numbers do not depend on it either.
    """
    size = max(1, BLOCK // image.numel())
    for block, start in enumerate(range(0, n, size)):
        # Not PyTorch's generator: on a CPU it keeps 32 bits of its seed, so a long run would meet a stream twice.
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stage, number, block])))
        kind = np.float64 if image.dtype == torch.float64 else np.float32
        noise = stream.standard_normal((size, *image.shape), dtype=kind)
        yield torch.from_numpy(noise).to(image.dtype)[: n - start]


def _counts(base: Model, x: Tensor, sigma: float, n: int, seed: int, stage: int, memory: float, bar: tqdm) -> Tensor:
    """Return how often the base classifier says each class of each image under noise: (N, K), int64, on the CPU."""
    most = max(1, int(memory * 2**20 // (x[0].numel() * x.element_size())))
    rows = []
    for number, image in enumerate(x):
        votes, waiting = 0, []

        def vote(waiting: list[Tensor], image: Tensor = image) -> Tensor:
            noisy = image + sigma * torch.cat(waiting).to(x.device)
            scores = base(noisy)
            check_logits(scores, len(noisy), probabilities=True)
            bar.update(len(noisy))
            return torch.bincount(scores.argmax(1).cpu(), minlength=scores.shape[1])

        for block in _blocks(image, n, seed, stage, number):
            if waiting and sum(map(len, waiting)) + len(block) > most:
                votes, waiting = votes + vote(waiting), []
            waiting.append(block)
        rows.append(votes + vote(waiting))
    return torch.stack(rows)


# ----------------------------------------------------------------------------------------------------------- the checks


@contextmanager
def _prepared(model: Model, x: Tensor, sigma: float, seed: int, memory: float) -> Iterator[Model]:
    """Check what `certify` and `predict` have in common; yield the function of noisy images, frozen."""
    _check(model, sigma, seed)
    check_images(x)
    block = max(1, BLOCK // x[0].numel())
    least = block * x[0].numel() * x.element_size() / 2**20
    hint = f"One call holds at least {block} noisy image{'s' if block > 1 else ''} of shape {tuple(x.shape[1:])}."
    check_number(memory, "memory", low=math.ceil(1e4 * least) / 1e4, high=math.inf, hint=hint)
    base = _unwrapped(model)
    with frozen(model), explained_dtype(model, x):
        check_logits(model(x[:1]), 1, probabilities=True)  # its own complaints about a shape come from here
        first = torch.cat(list(_blocks(x[0], min(8, max(2, block)), seed, SELECT, 0)))  # two at least: a batch
        _check_fixed(base, x[0] + sigma * first.to(x.device))
        yield base


def _unwrapped(model: Model) -> Model:
    """Return the function of noisy images: that of a `NormalizedModel` without its check of the pixels."""
    return nn.Sequential(model.normalize, model.network) if isinstance(model, NormalizedModel) else model


def _check(model: Model, sigma: float, seed: int) -> None:
    if not callable(model):
        raise TypeError(f"model must be a function of images that returns logits; got {type(model).__name__}")
    check_number(sigma, "sigma", low=0, high=10, open_low=True, hint="Pixels go from 0 to 1, not to 255.")
    check_count(seed, "seed", low=0)


def _check_alpha(alpha: float) -> None:
    check_number(alpha, "alpha", low=0, high=1, open_low=True)
    if alpha == 1:
        raise ValueError("alpha must be below 1; got 1: a statement that may always be false says nothing")


@torch.no_grad()
def _check_fixed(base: Model, noisy: Tensor) -> None:
    once, again, alone = base(noisy), base(noisy), base(noisy[:1])
    room = 1e-3 * once.abs().max()
    if (once - again).abs().max() > room:
        raise ValueError(
            "model must say the same of the same noisy images when it is asked again; it is random itself. Smoothing "
            "brings the noise: take the model's own out, or put it in eval mode."
        )
    if (once[:1] - alone).abs().max() > room:
        raise ValueError(
            "model must say the same of an image whatever else is in its batch, or the votes are not independent; put "
            "batch normalisation in eval mode."
        )
