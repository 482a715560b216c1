"""Checks for the exercises. Each tries the reader's function and prints what it did, and a hint if it is not right."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.attacks import difference, pgd
from helpers.perturbations import Linf
from helpers.risk import linear_worst_margin, wilson_interval


class _Case(NamedTuple):
    arguments: tuple[Any, ...]
    expected: Tensor
    hint: str  # what to think about when this case fails
    tolerance: float = 1e-5


def _check(number: str, answer: Callable[..., Tensor], cases: Sequence[_Case], solved: str) -> None:
    for case in cases:
        trouble = _trouble(answer, case)
        if trouble:
            print(f"Exercise {number}, not yet: {trouble}")
            return
    print(f"Exercise {number}, solved. {solved}")


def _trouble(answer: Callable[..., Tensor], case: _Case) -> str:
    """Return what is wrong with the answer in this case, or an empty string."""
    kept = [a.clone() if isinstance(a, Tensor) else a for a in case.arguments]
    try:
        got = answer(*case.arguments)
    except Exception as error:  # whatever the reader's code raises is shown to the reader
        return f"your function raised {type(error).__name__}: {error}"
    if got is None or got is ...:
        return "your function returns nothing so far."
    if isinstance(got, int | float | tuple | list):
        with suppress(TypeError, ValueError, RuntimeError):  # numbers will do; a list of something else is told below
            got = torch.tensor([float(number) for number in got] if isinstance(got, tuple | list) else float(got))
    if not isinstance(got, Tensor):
        return f"return a tensor of shape {tuple(case.expected.shape)}; yours is a {type(got).__name__}."
    if got.shape != case.expected.shape:
        return f"the result should have shape {tuple(case.expected.shape)}; yours has {tuple(got.shape)}. {case.hint}"
    if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(case.arguments, kept, strict=True)):
        return "your function changed its argument in place; return a new tensor instead."
    if not torch.allclose(got.to(case.expected.dtype), case.expected, atol=case.tolerance):
        return f"expected {_short(case.expected)}, got {_short(got)}. {case.hint}"
    return ""


def _short(values: Tensor) -> str:
    shown = [f"{v:.4g}" for v in values.detach().flatten()[:6].tolist()]
    return "[" + ", ".join(shown) + (", ...]" if values.numel() > 6 else "]")


def check_softmax(softmax: Callable[[Tensor], Tensor]) -> None:
    """Exercise 1.1: `softmax` takes logits (N, K) and returns probabilities (N, K)."""
    plain = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    large = torch.tensor([[1000.0, 999.0, 0.0]])
    _check(
        "1.1",
        softmax,
        [
            _Case((plain,), plain.softmax(1), "Each row is exp(logits) divided by its own sum over the K classes."),
            _Case(
                (large,), large.softmax(1), "exp(1000) overflows. Which number can you subtract from a row for free?"
            ),
        ],
        "Subtracting the largest logit first changes nothing in exact arithmetic and everything in floating point.",
    )


def check_cross_entropy(cross_entropy: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 1.2: `cross_entropy` takes logits (N, K) and labels (N,) and returns the loss of each example (N,)."""
    logits, y = torch.tensor([[2.0, 1.0, -1.0], [0.5, 0.5, 0.5]]), torch.tensor([0, 2])
    far, wrong = torch.tensor([[0.0, 500.0]]), torch.tensor([0])
    _check(
        "1.2",
        cross_entropy,
        [
            _Case((logits, y), F.cross_entropy(logits, y, reduction="none"), "Log-sum-exp of the row minus logit y."),
            _Case(
                (far, wrong),
                F.cross_entropy(far, wrong, reduction="none"),
                "The probability of class 0 rounds to zero here, and log(0) is minus infinity: use torch.logsumexp.",
            ),
        ],
        "It works where the probability itself rounds to zero, because it never leaves the log scale.",
    )


def check_eps_in_normalized_units(convert: Callable[[float, Sequence[float]], Tensor]) -> None:
    """Exercise 1.3: `convert` takes eps in pixel units and one std a channel, and returns one eps a channel."""
    half, imagenet = (0.5, 0.5, 0.5), (0.229, 0.224, 0.225)
    hint = "A pixel that moves by eps moves its normalised value, (pixel - mean) / std, by how much?"
    _check(
        "1.3",
        convert,
        [
            _Case((2 / 255, half), 2 / 255 / torch.tensor(half), hint),
            _Case((8 / 255, imagenet), 8 / 255 / torch.tensor(imagenet), hint + " Each channel has its own std."),
        ],
        "With ImageNet's usual std, one number for all channels cannot even be right.",
    )


def check_wilson(wilson: Callable[[int, int], tuple[float, float]]) -> None:
    """Exercise 2.1: `wilson` takes the number of errors and of examples, and returns the 95 % interval's two ends."""
    hint = "With p = wrong / n and z = 1.96: centre (p + z^2 / 2n) / (1 + z^2 / n); see the formula above for the rest."
    none = "With no error seen, the lower end is 0 and the upper one is not: about z^2 / n."
    cases = [
        _Case(arguments, torch.tensor(wilson_interval(*arguments)), why, tolerance=1e-3)
        for arguments, why in (((10, 200), hint), ((60, 100), hint), ((0, 100), none))
    ]
    _check("2.1", wilson, cases, "No error in 100 examples is compatible with an error rate of almost 4 %.")


def check_worst_margin_l2(worst: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Exercise 2.2: `worst` takes w (d,), b (), x (N, d), s (N,) and eps, and returns min over delta of the score."""
    generator = torch.Generator().manual_seed(0)
    w, b, x = torch.randn(6, generator=generator), torch.tensor(0.3), torch.rand(3, 6, generator=generator)
    s = torch.tensor([1.0, -1.0, 1.0])
    score = s * (x @ w + b)
    hint = "Among all delta of length eps, which one makes s (w . delta) smallest? How large is w . delta there?"
    cases = [
        _Case((w, b, x, s, 0.0), score, "With eps = 0 it is the score itself, s (w . x + b)."),
        _Case((w, b, x, s, 0.5), score - 0.5 * w.norm(), hint),
        _Case((3 * w, b, x, -s, 0.5), -(x @ (3 * w) + b) * s - 0.5 * (3 * w).norm(), hint),
    ]
    _check("2.2", worst, cases, "The Euclidean norm is its own dual; the dual of the largest entry is the sum of all.")


def check_robust_error(rates: Callable[[Tensor, Tensor], tuple[float, float]]) -> None:
    """Exercise 2.3: `rates` takes wrong_before and wrong_after (N,), and returns robust error and success rate."""
    before = torch.tensor([True, True, False, False, False, False, False, False])
    after = torch.tensor([True, False, True, True, False, False, False, False])
    cases = [
        _Case(
            (before, after),
            torch.tensor([4 / 8, 2 / 6]),
            "Robust error: wrong before or after, out of all. Success rate: newly wrong, out of those right before.",
        ),
        _Case(
            (before & False, after),
            torch.tensor([3 / 8, 3 / 8]),
            "With no clean error the two conventions agree.",
        ),
    ]
    _check("2.3", rates, cases, "One experiment, two numbers. Whenever you read one of them, ask which.")


def check_project(project: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Exercise 3.1: `project` takes delta, x (same shape) and eps, and returns the nearest point of the l-inf set."""
    x = torch.tensor([[0.0, 0.5, 1.0, 0.95]])
    delta = torch.tensor([[-0.3, 0.3, 0.3, 0.08]])
    inside = torch.tensor([[0.05, -0.05, -0.05, 0.0]])
    _check(
        "3.1",
        project,
        [
            _Case((inside, x, 0.1), inside, "This delta is in the set already and must come back unchanged."),
            _Case(
                (delta, x, 0.1),
                Linf(0.1).project(delta, x),
                "Two limits hold for each pixel: |delta| <= eps and 0 <= x + delta <= 1. Pixels at 0, 1 and 0.95 "
                "cannot move by eps in both directions.",
            ),
        ],
        "Both limits act on each pixel alone, which is why two clamps are an exact projection.",
    )


def check_pgd_step(
    pgd_step: Callable[[nn.Module, Tensor, Tensor, Tensor, float, float], Tensor],
) -> None:
    """Exercise 3.2: `pgd_step` takes model, x, y, delta, eps, step_size and returns the next delta."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
        x, y = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    eps, step_size = 0.1, 0.04
    trace: list = []
    pgd(model, x, y, eps, steps=4, step_size=step_size, trace=trace)
    hints = (
        "The first step is step_size * sign(gradient of the cross-entropy with respect to delta), uphill.",
        "From this delta the step leaves the set: project onto |delta| <= eps and 0 <= x + delta <= 1.",
    )
    cases = [
        _Case((model, x, y, before.delta, eps, step_size), after.delta, hint)
        for before, after, hint in zip((trace[0], trace[3]), (trace[1], trace[4]), hints, strict=True)
    ]
    _check("3.2", pgd_step, cases, "Put it in a loop and you have PGD.")
    if any(p.grad is not None for p in model.parameters()):
        print("One more thing: backward() has filled the .grad of the parameters. torch.autograd.grad does not.")


def check_smallest_eps(eps: float | None, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Exercise 3.3: `eps` should be the smallest budget, within 20 %, at which 30-step PGD fools `model` on `x`."""
    if not isinstance(eps, float) or not math.isfinite(eps) or not 0 < eps <= 1:
        print(f"Exercise 3.3, not yet: eps should be a number in (0, 1], such as 0.5 / 255; yours is {eps}.")
        return

    def fools(budget: float) -> bool:
        return bool((model(pgd(model, x, y, budget, steps=30)).argmax(1) != y).all())

    if not fools(eps):
        print(f"Exercise 3.3, not yet: at {255 * eps:.2f}/255 thirty steps of PGD do not fool the model. Go up.")
    elif fools(0.8 * eps):
        print(f"Exercise 3.3, not yet: {255 * 0.8 * eps:.2f}/255 is enough too. Go down: halve the interval again.")
    else:
        print("Exercise 3.3, solved. Far less than one grey level: such a change does not survive saving as 8 bits.")


def check_difference(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 4.1: `loss` takes logits (N, K), y (N,) and target (N,), returns logit_target - logit_y, (N,)."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
    y, target = torch.tensor([0, 2]), torch.tensor([1, 0])
    huge = 1e4 * logits
    _check(
        "4.1",
        loss,
        [
            _Case((logits, y, target), difference(logits, y, target), "Pick two entries of each row: tensor.gather."),
            _Case((huge, y, target), difference(huge, y, target), "No softmax: it would round to 0 and 1 here."),
        ],
        "Two numbers of each row are all that is left when the two cross-entropies are subtracted.",
    )


def check_least_likely(least_likely: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 4.2: `least_likely` takes logits (N, K) and y (N,), returns each row's least likely wrong class (N,)."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0], [-5.0, 0.0, 1.0]])
    y = torch.tensor([0, 2, 0])
    hint = "The class of the smallest logit; but a target must not be the true class (third row)."
    cases = [_Case((logits, y), torch.tensor([1, 0, 1]), hint)]
    _check("4.2", least_likely, cases, "The hardest target, as a rule: a strict test of a targeted attack.")


def check_trades_loss(loss: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Exercise 5.1: `loss` takes clean and attacked logits (N, K), y (N,) and beta, and returns the mean loss, ()."""
    generator = torch.Generator().manual_seed(0)
    clean, attacked = torch.randn(2, 4, 3, generator=generator)
    y = torch.tensor([0, 1, 2, 0])
    plain = F.cross_entropy(clean, y)
    apart = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
    hint = "KL(p_clean || p_attacked) = sum over k of p_clean (log p_clean - log p_attacked), averaged over the batch."
    cases = [
        _Case((clean, attacked, y, 0.0), plain, "With beta = 0 it is the clean cross-entropy, averaged."),
        _Case((clean, clean, y, 6.0), plain, "When the attack changes nothing, the second term is 0."),
        _Case((clean, attacked, y, 6.0), plain + 6 * apart, hint),
    ]
    _check(
        "5.1", loss, cases, "One term asks for right answers, the other for answers that stay; beta is the exchange."
    )


def check_danskin(gradient: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Exercise 5.2: `gradient` takes w (d,), x (d,), s () and eps, returns the worst loss's gradient in w, (d,)."""
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(5, generator=generator), torch.rand(5, generator=generator)
    cases = []
    for s, eps in ((1.0, 0.0), (1.0, 0.1), (-1.0, 0.3)):
        linear = nn.Linear(5, 2, bias=False)
        linear.weight.data = torch.stack([torch.zeros(5), w])
        y = torch.tensor([int(s > 0)])
        worst = linear_worst_margin(linear, x[None], y, eps, box=False)  # of the wrong class over the right one
        x_adv = x - s * eps * w.sign()
        expected = -s * torch.sigmoid(worst) * x_adv
        hint = "Danskin: put the worst delta, -s eps sign(w), in first; then differentiate in w with delta held fixed."
        cases.append(_Case((w, x, torch.tensor(s), eps), expected, hint))
    _check("5.2", gradient, cases, "You never had to differentiate the maximiser.")
