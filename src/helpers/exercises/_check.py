"""How an exercise is checked: cases, the mistakes that many make, and the count of what is solved."""

import inspect
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
    flags = [isinstance(a, Tensor) and a.requires_grad for a in case.arguments]
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
    for i, (argument, flag) in enumerate(zip(case.arguments, flags, strict=True)):
        if isinstance(argument, Tensor) and argument.requires_grad and not flag:
            return (
                f"your function called requires_grad_() on its argument `{_parameter(answer, i)}`, which belongs to "
                "the caller. Work on a copy: tensor.detach().clone().requires_grad_()."
            )
        if isinstance(argument, nn.Module) and any(parameter.grad is not None for parameter in argument.parameters()):
            return (
                f"your function filled the .grad of the parameters of `{_parameter(answer, i)}`, as backward() does: "
                "whoever trains next has them in the next step. torch.autograd.grad(loss, tensor) touches nothing else."
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
    return f"{_difference(got, case.expected, case.tolerance)}. {hint}"


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


def _difference(got: Tensor, expected: Tensor, tolerance: float) -> str:
    """Return both results in words, or of long ones the first place where they differ."""
    if expected.numel() <= 6:
        return f"expected {_short(expected)}, got {_short(got)}"
    differs = ~torch.isclose(got.to(expected.dtype), expected, atol=tolerance)
    place = tuple(differs.nonzero()[0].tolist())
    count = f"{int(differs.sum())} of {expected.numel()} values differ"
    return f"{count}; the first, at {list(place)}, should be {expected[place]:.4g} and is {got[place]:.4g}"


def _short(values: Tensor) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in values.detach().flatten().tolist()) + "]"
