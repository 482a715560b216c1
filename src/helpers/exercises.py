"""Checks for the exercises. Each tries the reader's function and prints what it did, and a hint if it is not right.

A check that fails says what was expected, what came instead and, where the answer is a mistake that many make, which
one. `progress` sums up a chapter. A new chapter can begin with checks of its own, made of `Case` and `check`.
"""

import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.attacks import difference, pgd
from helpers.perturbations import Linf
from helpers.risk import linear_worst_margin, wilson_interval

_solved: dict[str, bool] = {}  # the exercises whose checks were called with the reader's own code, since the start


class Case(NamedTuple):
    """Arguments for the reader's function, what it should return for them, and what to say if it does not."""

    arguments: tuple[Any, ...]
    expected: Tensor
    hint: str  # what to think about when this case fails
    mistakes: Sequence[tuple[Tensor, str]] = ()  # what a known mistake returns, and the hint for that mistake
    tolerance: float = 1e-5


def check(
    number: str, answer: Callable[..., Any], cases: Sequence[Case], solved: str, *, solution: bool = False
) -> bool:
    """Try a function on some cases, and print the first thing that is wrong with it, or that nothing is.

    Args:
        number: of the exercise, such as `"1.1"`. answer: the function. cases: tried in this order.
        solved: a sentence for those who got it right.
        solution: whether `answer` is the book's own, which must not count as the reader's.

    Returns:
        Whether all cases passed.
    """
    trouble = next(filter(None, (_trouble(answer, case) for case in cases)), "")
    return _report(number, trouble, solved, solution)


def progress(checked: Sequence[str], unchecked: Sequence[str] = ()) -> None:
    """Print which exercises of a chapter the reader has solved since the kernel started, and what to do next.

    Only checks called with the reader's own code count; the folded solutions call them with `solution=True`.

    Args:
        checked: the numbers of the exercises that have a check, such as `["1.1", "1.2"]`.
        unchecked: the numbers of those that have none.

    Raises:
        ValueError: `checked` is empty.
    """
    if not checked:
        raise ValueError('checked must name at least one exercise, such as ["1.1"]; got none')
    states = {number: {True: "solved", False: "not yet"}.get(_solved.get(number), "not run") for number in checked}
    left = [number for number in checked if states[number] != "solved"]
    chapter = checked[0].split(".")[0]
    lines = [f"Chapter {chapter}: {len(checked) - len(left)} of {len(checked)} checked exercises solved"]
    lines += [f"  {number}  {state}" for number, state in states.items()]
    lines += [f"  {number}  no check: you are the judge" for number in unchecked]
    if left:
        lines += [f"Next: exercise {left[0]}. Its check says what is missing."]
    elif unchecked:
        lines += [f"All checks pass. Next: exercise {unchecked[0]}."]
    else:
        lines += ["All checks pass. On to the next chapter."]
    print("\n".join(lines))


def _report(number: str, trouble: str, solved: str, solution: bool) -> bool:
    """Print the outcome of a check and remember it, unless it was the book's own solution that was tried."""
    if not solution:
        _solved[number] = _solved.get(number, False) or not trouble
    good = f"Solution {number} passes. {solved}" if solution else f"Exercise {number}, solved. {solved}"
    print(f"Exercise {number}, not yet: {trouble}" if trouble else good)
    return not trouble


def _trouble(answer: Callable[..., Any], case: Case) -> str:
    """Return what is wrong with the answer in this case, or an empty string."""
    if not callable(answer):
        return "give the check your function itself, without calling it: its name and no parentheses after it."
    kept = [a.detach().clone() if isinstance(a, Tensor) else a for a in case.arguments]
    try:
        got = answer(*case.arguments)
    except Exception as error:  # whatever the reader's code raises is shown to the reader
        return f"your function raised {type(error).__name__}{_line(answer, error)}: {error}"
    for i, (argument, before) in enumerate(zip(case.arguments, kept, strict=True)):
        if isinstance(argument, Tensor) and not torch.equal(argument, before):
            return (
                f"your function changed its argument `{_parameter(answer, i)}` in place, as `+=` and the methods whose "
                "names end in _ do; return a new tensor instead."
            )
    if got is None or got is ...:
        return "your function returns nothing so far. End it with `return` and the result."
    if isinstance(got, int | float | tuple | list):
        with suppress(TypeError, ValueError, RuntimeError):  # numbers will do; a list of something else is told below
            got = torch.tensor([float(number) for number in got] if isinstance(got, tuple | list) else float(got))
            got = got if case.expected.is_floating_point() else got.to(case.expected.dtype)
    if not isinstance(got, Tensor):
        kind = type(got).__name__
        stay = " Stay with PyTorch's functions, or end with torch.from_numpy." if kind == "ndarray" else ""
        return f"return a tensor of shape {tuple(case.expected.shape)}; yours is a {kind}.{stay}"
    if got.shape != case.expected.shape:
        shapes = f"the result should have shape {tuple(case.expected.shape)}; yours has {tuple(got.shape)}."
        return f"{shapes} {_about_shape(got, case.expected)}{case.hint}"
    if got.requires_grad:
        return (
            "your result still remembers how it was computed (requires_grad is True). In a loop that memory grows with "
            "every step: use tensor.detach()."
        )
    if got.is_floating_point() > case.expected.is_floating_point():
        return f"the result should be whole numbers, dtype {case.expected.dtype}; yours is {got.dtype}. {case.hint}"
    if _close(got, case.expected, case.tolerance):
        return ""
    hint = next((hint for wrong, hint in case.mistakes if _close(got, wrong, case.tolerance)), case.hint)
    if got.is_floating_point() < case.expected.is_floating_point():
        hint = f"Yours has dtype {got.dtype}, which keeps no fractions. {hint}"
    return f"expected {_short(case.expected)}, got {_short(got)}. {hint}"


def _about_shape(got: Tensor, expected: Tensor) -> str:
    """Return what a wrong shape usually means, with a space after it, or nothing."""
    if got.numel() == expected.numel():
        return "As many numbers as there should be, but other axes: see keepdim, squeeze and [:, None]. "
    if got.dim() < expected.dim():
        return "Something is summed, averaged or picked over an axis that should stay. "
    if got.dim() == 2 and expected.dim() == 1 and got.shape == 2 * expected.shape:
        return "That is one result for each pair of examples, by indexing or broadcasting, not one for each example. "
    return ""


def _line(answer: Callable[..., Any], error: Exception) -> str:
    """Return the line of the reader's function in which the error arose, for a message."""
    file = getattr(getattr(answer, "__code__", None), "co_filename", None)
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" at `{lines[-1]}`" if lines and lines[-1] else ""


def _parameter(answer: Callable[..., Any], i: int) -> str:
    """Return what a function calls its argument number i, counted from 0."""
    with suppress(TypeError, ValueError, IndexError):
        return list(inspect.signature(answer).parameters)[i]
    return f"number {i + 1}"


def _close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    return torch.allclose(got.to(expected.dtype), expected, atol=tolerance)


def _short(values: Tensor) -> str:
    shown = [f"{v:.4g}" for v in values.detach().flatten()[:6].tolist()]
    return "[" + ", ".join(shown) + (", ...]" if values.numel() > 6 else "]")


def check_softmax(softmax: Callable[[Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 1.1: `softmax` takes logits (N, K) and returns probabilities (N, K)."""
    plain = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    large = torch.tensor([[1000.0, 999.0, 0.0]])
    small = torch.tensor([[-1000.0, -999.0, -2000.0]])
    free = "Which number can you subtract from a row for free?"
    cases = [
        Case(
            (plain,),
            plain.softmax(1),
            "Each row is exp(logits) divided by its own sum over the K classes.",
            [
                (plain.softmax(0), "Your columns sum to 1, and the rows should: sum over dim=1, with keepdim=True."),
                (plain.exp() / plain.exp().sum(), "You divided by the sum of the whole batch; each row has its own."),
                (plain.exp(), "These are the exponentials; divide each row by its sum."),
                (plain / plain.sum(1, keepdim=True), "The exponentials are missing."),
                (plain.log_softmax(1), "These are the logarithms of the probabilities."),
            ],
        ),
        Case((large,), large.softmax(1), f"exp(1000) overflows. {free}"),
        Case((small,), small.softmax(1), f"exp(-1000) is 0, and 0 / 0 is not a number. {free} Its largest logit."),
    ]
    told = "Subtracting the largest logit first changes nothing in exact arithmetic and everything in floating point."
    check("1.1", softmax, cases, told, solution=solution)


def check_cross_entropy(cross_entropy: Callable[[Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 1.2: `cross_entropy` takes logits (N, K) and labels (N,) and returns the loss of each example (N,)."""
    logits, y = torch.tensor([[2.0, 1.0, -1.0], [0.5, 0.5, 0.5]]), torch.tensor([0, 2])
    far, wrong = torch.tensor([[0.0, 500.0]]), torch.tensor([0])
    each = F.cross_entropy(logits, y, reduction="none")
    cases = [
        Case(
            (logits, y),
            each,
            "Log-sum-exp of the row minus logit y.",
            [
                (-each, "The sign: a loss is large where the probability is small, so it is minus the logarithm."),
                (torch.exp(-each), "These are the probabilities of the true classes; the loss is minus their log."),
                (logits.logsumexp(1), "This is the log-sum-exp; the logit of the true class is still to subtract."),
            ],
        ),
        Case(
            (far, wrong),
            F.cross_entropy(far, wrong, reduction="none"),
            "The probability of class 0 rounds to zero here, and log(0) is minus infinity: use torch.logsumexp.",
        ),
    ]
    told = "It works where the probability itself rounds to zero, because it never leaves the log scale."
    check("1.2", cross_entropy, cases, told, solution=solution)


def check_eps_in_normalized_units(convert: Callable[[float, Sequence[float]], Tensor], solution: bool = False) -> None:
    """Exercise 1.3: `convert` takes eps in pixel units and one std a channel, and returns one eps a channel."""
    half, imagenet = (0.5, 0.5, 0.5), (0.229, 0.224, 0.225)
    hint = "A pixel that moves by eps moves its normalised value, (pixel - mean) / std, by how much?"
    cases = []
    for eps, std in ((2 / 255, half), (8 / 255, imagenet)):
        scale = torch.tensor(std)
        mistakes = [
            (eps * scale, "You multiplied by std, and normalising divides by it."),
            ((eps - scale) / scale, "A difference of two pixels is not shifted: the mean cancels, and only std stays."),
            (255 * eps / scale, "eps is in pixel units, 0 to 1, already: no factor of 255."),
        ]
        cases.append(Case((eps, std), eps / scale, hint + " Each channel has its own std.", mistakes))
    told = "With ImageNet's usual std, one number for all channels cannot even be right."
    check("1.3", convert, cases, told, solution=solution)


def check_wilson(wilson: Callable[[int, int], tuple[float, float]], solution: bool = False) -> None:
    """Exercise 2.1: `wilson` takes the number of errors and of examples, and returns the 95 % interval's two ends."""
    hint = "With p = wrong / n and z = 1.96: centre (p + z^2 / 2n) / (1 + z^2 / n); see the formula above for the rest."
    none = "With no error seen, the lower end is 0 and the upper one is not: about z^2 / n."
    cases = []
    for (wrong, n), why in (((10, 200), hint), ((60, 100), hint), ((0, 100), none)):
        ends, p = torch.tensor(wilson_interval(wrong, n)), wrong / n
        half = 1.96 * math.sqrt(p * (1 - p) / n)
        mistakes = [
            (ends.flip(0), "The lower end comes first."),
            (100 * ends, "Return rates between 0 and 1, not percent."),
            (ends * (1 + 1.96**2 / n), "The last step is missing: divide both ends by 1 + z^2 / n."),
        ]
        if wrong:
            textbook = "This is p plus or minus z sqrt(p (1 - p) / n), whose centre is p. Wilson's is not: " + hint
            mistakes += [(torch.tensor([p - half, p + half]), textbook)]
        cases.append(Case((wrong, n), ends, why, mistakes, tolerance=1e-3))
    told = "No error in 100 examples is compatible with an error rate of almost 4 %."
    check("2.1", wilson, cases, told, solution=solution)


def check_worst_margin_l2(
    worst: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor], solution: bool = False
) -> None:
    """Exercise 2.2: `worst` takes w (d,), b (), x (N, d), s (N,) and eps, and returns min over delta of the score."""
    generator = torch.Generator().manual_seed(0)
    w, b, x = torch.randn(6, generator=generator), torch.tensor(0.3), torch.rand(3, 6, generator=generator)
    s = torch.tensor([1.0, -1.0, 1.0])
    score = s * (x @ w + b)
    hint = "Among all delta of length eps, which one makes s (w . delta) smallest? How large is w . delta there?"
    cases = [
        Case(
            (w, b, x, s, 0.0),
            score,
            "With eps = 0 it is the score itself, s (w . x + b).",
            [
                (x @ w + b, "With eps = 0 it is the score itself, s (w . x + b): the sign s is missing."),
                (s * (x @ w), "With eps = 0 it is the score itself, s (w . x + b): b is missing."),
                (s * (x @ w) + b, "With eps = 0 it is the score itself, s (w . x + b): s multiplies b, too."),
            ],
        ),
        Case(
            (w, b, x, s, 0.5),
            score - 0.5 * w.norm(),
            hint,
            [
                (score + 0.5 * w.norm(), "That is the largest score; the adversary wants the smallest."),
                (
                    score - 0.5 * w.abs().sum(),
                    "The sum of |w| is for a bound on each entry; delta has length eps.",
                ),
                (score - 0.5 * (w @ w), "That is the squared length of w. The worst delta, of length eps, is along w."),
                (
                    s * (x @ w + b - 0.5 * w.norm()),
                    "The drop is one for both classes: it does not change sign with s.",
                ),
                (score, "That is the score of x itself; the adversary has not moved yet."),
            ],
        ),
        Case((3 * w, b, x, -s, 0.5), -(x @ (3 * w) + b) * s - 0.5 * (3 * w).norm(), hint),
    ]
    told = "The Euclidean norm is its own dual; the dual of the largest entry is the sum of all."
    check("2.2", worst, cases, told, solution=solution)


def check_robust_error(rates: Callable[[Tensor, Tensor], tuple[float, float]], solution: bool = False) -> None:
    """Exercise 2.3: `rates` takes wrong_before and wrong_after (N,), and returns robust error and success rate."""
    before = torch.tensor([True, True, False, False, False, False, False, False])
    after = torch.tensor([True, False, True, True, False, False, False, False])
    cases = [
        Case(
            (before, after),
            torch.tensor([4 / 8, 2 / 6]),
            "Robust error: wrong before or after, out of all. Success rate: newly wrong, out of those right before.",
            [
                (torch.tensor([2 / 6, 4 / 8]), "Those are the two numbers, the other way round."),
                (
                    torch.tensor([3 / 8, 2 / 6]),
                    "Robust error counts those wrong before or after: an attack that "
                    "happens to repair an example does not make the classifier right about it.",
                ),
                (torch.tensor([4 / 8, 2 / 8]), "The success rate is out of those right before, not out of all."),
                (torch.tensor([4 / 8, 3 / 6]), "The success rate counts the newly wrong only, not all that are wrong."),
                (torch.tensor([50.0, 100 / 3]), "Return rates between 0 and 1, not percent."),
            ],
        ),
        Case((before & False, after), torch.tensor([3 / 8, 3 / 8]), "With no clean error the two conventions agree."),
    ]
    check(
        "2.3", rates, cases, "One experiment, two numbers. Whenever you read one of them, ask which.", solution=solution
    )


def check_project(project: Callable[[Tensor, Tensor, float], Tensor], solution: bool = False) -> None:
    """Exercise 3.1: `project` takes delta, x (same shape) and eps, and returns the nearest point of the l-inf set."""
    x = torch.tensor([[0.0, 0.5, 1.0, 0.95]])
    delta = torch.tensor([[-0.3, 0.3, 0.3, 0.08]])
    inside = torch.tensor([[0.05, -0.05, -0.05, 0.0]])
    image = "That is the image x + delta; the projection returns delta."
    nearest = Linf(0.1).project(delta, x)
    cases = [
        Case(
            (inside, x, 0.1),
            inside,
            "This delta is in the set already and must come back unchanged.",
            [
                (x + inside, image),
                (inside.clamp(0, 1), "A perturbation may be negative: it is x + delta that has to lie in [0, 1]."),
                (0.1 * inside.sign(), "The nearest point, not a corner: what is inside stays where it is."),
            ],
        ),
        Case(
            (delta, x, 0.1),
            nearest,
            "Two limits hold for each pixel: |delta| <= eps and 0 <= x + delta <= 1. Pixels at 0, 1 and 0.95 "
            "cannot move by eps in both directions.",
            [
                (
                    delta.clamp(-0.1, 0.1),
                    "|delta| <= eps holds now, but x + delta leaves [0, 1]: the other of the two "
                    "limits, a clamp of delta between -x and 1 - x, is missing.",
                ),
                (
                    delta.clamp(-x, 1 - x),
                    "x + delta lies in [0, 1] now, but |delta| exceeds eps: the other of the two limits is missing.",
                ),
                (x + nearest, image),
            ],
        ),
    ]
    told = "Both limits act on each pixel alone, which is why two clamps are an exact projection."
    check("3.1", project, cases, told, solution=solution)


def check_pgd_step(
    pgd_step: Callable[[nn.Module, Tensor, Tensor, Tensor, float, float], Tensor], solution: bool = False
) -> None:
    """Exercise 3.2: `pgd_step` takes model, x, y, delta, eps, step_size and returns the next delta."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
        x, y = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    eps, step_size = 0.1, 0.04
    trace: list = []
    pgd(model, x, y, eps, loss="cross_entropy", steps=4, step_size=step_size, trace=trace)
    hints = (
        "The first step is step_size * sign(gradient of the cross-entropy with respect to delta), uphill.",
        "From this delta the step leaves the set: project onto |delta| <= eps and 0 <= x + delta <= 1.",
    )
    cases = []
    for before, after, hint in zip((trace[0], trace[3]), (trace[1], trace[4]), hints, strict=True):
        delta = before.delta.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y, reduction="sum"), delta)
        project, step = Linf(eps).project, step_size * grad.sign()
        size = "That is the gradient itself, without its sign; it is so small that you would hardly move."
        mistakes = [
            (project(before.delta - step, x), "The other way: an attack goes uphill on the loss."),
            (project(before.delta + step_size * grad, x), size),
            (project(before.delta + step_size * grad / len(x), x), size),
            (x + after.delta, "That is the image x + delta; return delta."),
            ((before.delta + step).clamp(-eps, eps), "|delta| <= eps holds, but x + delta leaves [0, 1]: project."),
            ((before.delta + step).clamp(-x, 1 - x), "x + delta lies in [0, 1], but |delta| exceeds eps: project."),
            (project(step, x), "The step starts at the delta that you are given: add it."),
        ]
        # Where the two agree, as they do inside the set, it is no mistake.
        mistakes = [(wrong, told) for wrong, told in mistakes if not _close(wrong, after.delta, 1e-5)]
        cases.append(Case((model, x, y, before.delta, eps, step_size), after.delta, hint, mistakes))
    if check("3.2", pgd_step, cases, "Put it in a loop and you have PGD.", solution=solution) and any(
        parameter.grad is not None for parameter in model.parameters()
    ):
        print("One more thing: backward() has filled the .grad of the parameters. torch.autograd.grad does not.")


def check_smallest_eps(eps: float | None, model: nn.Module, x: Tensor, y: Tensor, solution: bool = False) -> None:
    """Exercise 3.3: `eps` should be the smallest budget, within 20 %, at which 30-step PGD fools `model` on `x`."""

    def fools(budget: float) -> bool:
        return bool((model(pgd(model, x, y, budget, steps=30)).argmax(1) != y).all())

    with suppress(TypeError, ValueError, RuntimeError):  # 0-dimensional tensors and NumPy's numbers will do
        eps = eps if eps is None else float(eps)
    trouble = ""
    if not isinstance(eps, float) or not math.isfinite(eps) or eps <= 0:
        trouble = f"eps should be a number in (0, 1], such as 0.5 / 255; yours is {eps}."
    elif eps > 1:
        trouble = f"eps should be a number in (0, 1]; {eps:g} looks like a number of grey levels: divide it by 255."
    elif not fools(eps):
        trouble = f"at {255 * eps:.2f}/255 thirty steps of PGD do not fool the model. Go up."
    elif fools(0.8 * eps):
        trouble = f"{255 * 0.8 * eps:.2f}/255 is enough too. Go down: halve the interval again."
    told = "Far less than one grey level: such a change does not survive saving as 8 bits."
    _report("3.3", trouble, told, solution)


def check_difference(loss: Callable[[Tensor, Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 4.1: `loss` takes logits (N, K), y (N,) and target (N,), returns logit_target - logit_y, (N,)."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
    y, target = torch.tensor([0, 2]), torch.tensor([1, 0])
    huge = 1e4 * logits
    gain, p = difference(logits, y, target), logits.softmax(1)
    pick = "Pick two entries of each row: tensor.gather."
    cases = [
        Case(
            (logits, y, target),
            gain,
            pick,
            [
                (-gain, "The other way round: it should rise when the target's logit rises."),
                (
                    p.gather(1, target[:, None])[:, 0] - p.gather(1, y[:, None])[:, 0],
                    "These are differences of probabilities; take the logits as they are, without softmax.",
                ),
                (logits.gather(1, target[:, None])[:, 0], "That is the target's logit; the true one is to subtract."),
                (-F.cross_entropy(logits, target, reduction="none"), "That is log p of the target alone; " + pick),
            ],
        ),
        Case((huge, y, target), difference(huge, y, target), "No softmax: it would round to 0 and 1 here."),
    ]
    told = "Two numbers of each row are all that is left when the two cross-entropies are subtracted."
    check("4.1", loss, cases, told, solution=solution)


def check_least_likely(least_likely: Callable[[Tensor, Tensor], Tensor], solution: bool = False) -> None:
    """Exercise 4.2: `least_likely` takes logits (N, K) and y (N,), returns each row's least likely wrong class (N,)."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0], [-5.0, 0.0, 1.0]])
    y = torch.tensor([0, 2, 0])
    hint = "The class of the smallest logit; but a target must not be the true class (third row). Use argmin."
    mistakes = [
        (logits.argmin(1), "In the third row that is the true class, which cannot be a target: rule it out first."),
        (logits.argmax(1), "That is the most likely class; the smallest logit is wanted."),
        (logits.argsort(1)[:, 1], "Not always the second smallest: only where the smallest is the true class."),
        (logits.scatter(1, y[:, None], 0.0).argmin(1), hint),
        (
            logits.scatter(1, y[:, None], -torch.inf).argmin(1),
            "With minus infinity the true class becomes the smallest logit. Which value can never be the smallest?",
        ),
    ]
    cases = [Case((logits, y), torch.tensor([1, 0, 1]), hint, mistakes)]
    told = "The hardest target, as a rule: a strict test of a targeted attack."
    check("4.2", least_likely, cases, told, solution=solution)


def check_trades_loss(loss: Callable[[Tensor, Tensor, Tensor, float], Tensor], solution: bool = False) -> None:
    """Exercise 5.1: `loss` takes clean and attacked logits (N, K), y (N,) and beta, and returns the mean loss, ()."""
    generator = torch.Generator().manual_seed(0)
    clean, attacked = torch.randn(2, 4, 3, generator=generator)
    y = torch.tensor([0, 1, 2, 0])
    plain, on_attacked = F.cross_entropy(clean, y), F.cross_entropy(attacked, y)
    apart = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
    swapped = F.kl_div(clean.log_softmax(1), attacked.softmax(1), reduction="batchmean")
    hint = "KL(p_clean || p_attacked) = sum over k of p_clean (log p_clean - log p_attacked), averaged over the batch."
    sums = "You summed over the batch; the mean is wanted, so that the loss does not grow with the batch."
    cases = [
        Case(
            (clean, attacked, y, 0.0),
            plain,
            "With beta = 0 it is the clean cross-entropy, averaged.",
            [
                (
                    on_attacked,
                    "With beta = 0 it is the cross-entropy on clean images; yours is on attacked ones.",
                ),
                (4 * plain, sums),
            ],
        ),
        Case((clean, clean, y, 6.0), plain, "When the attack changes nothing, the second term is 0."),
        Case(
            (clean, attacked, y, 6.0),
            plain + 6 * apart,
            hint,
            [
                (plain + 6 * swapped, "Yours is KL(p_attacked || p_clean): the two are swapped. " + hint),
                (plain - 6 * apart, "The sign: KL is never negative, and the loss should grow with it. " + hint),
                (plain + 6 * 4 * apart, "The second term: " + sums[0].lower() + sums[1:]),
                (
                    plain + 6 * apart / 3,
                    "Sum over the K classes, then average over the batch; yours averages over both "
                    '(F.kl_div\'s reduction="mean" does so, too).',
                ),
                (plain + apart, "beta is missing."),
            ],
        ),
    ]
    told = "One term asks for right answers, the other for answers that stay; beta is the exchange."
    if check("5.1", loss, cases, told, solution=solution):
        trained = loss(clean.clone().requires_grad_(), attacked, y, 6.0)
        if not isinstance(trained, Tensor) or not trained.requires_grad:
            print("One more thing: to train with it, the loss has to keep its gradient: no item(), no detach().")


def check_danskin(gradient: Callable[[Tensor, Tensor, Tensor, float], Tensor], solution: bool = False) -> None:
    """Exercise 5.2: `gradient` takes w (d,), x (d,), s () and eps, returns the worst loss's gradient in w, (d,)."""
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(5, generator=generator), torch.rand(5, generator=generator)
    hint = "Danskin: put the worst delta, -s eps sign(w), in first; then differentiate in w with delta held fixed."
    cases = []
    for s, eps in ((1.0, 0.0), (1.0, 0.1), (-1.0, 0.3)):
        linear = nn.Linear(5, 2, bias=False)
        linear.weight.data = torch.stack([torch.zeros(5), w])
        y = torch.tensor([int(s > 0)])
        # The worst margin of the wrong class over the right one, without the box; its sigmoid is the loss's slope.
        slope = torch.sigmoid(linear_worst_margin(linear, x[None], y, eps, box=False).detach())
        x_adv = x - s * eps * w.sign()
        expected = -s * slope * x_adv
        mistakes = [
            (-s * x_adv, "The outer derivative is missing: that of log(1 + exp(u)), the sigmoid of u."),
            (-slope * x_adv, "A factor s is missing: the derivative of u = -s w . (x + delta) in w."),
            (-expected, "The sign: the derivative of u = -s w . (x + delta) in w has a factor -s."),
        ]
        if eps:
            mistakes += [
                (
                    -s * slope * x,
                    "The derivative of u = -s w . (x + delta) in w is -s (x + delta), not -s x.",
                ),
                (-s * torch.sigmoid(-s * (w @ x)) * x, "This is the gradient at x itself, with no adversary. " + hint),
            ]
        cases.append(Case((w, x, torch.tensor(s), eps), expected, hint, mistakes))
    check("5.2", gradient, cases, "You never had to differentiate the maximiser.", solution=solution)
