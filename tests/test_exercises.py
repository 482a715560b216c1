"""The exercises' checks: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import exercises
from helpers.perturbations import Linf


def softmax(logits):
    shifted = (logits - logits.max(dim=1, keepdim=True).values).exp()
    return shifted / shifted.sum(dim=1, keepdim=True)


def step(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y, reduction="sum"), delta)
    return (delta.detach() + step_size * grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)


def step_with_backward(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    F.cross_entropy(model(x + delta), y, reduction="sum").backward()
    return (delta.detach() + step_size * delta.grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)


def step_uphill_of(find_grad):
    """A step of PGD whose direction is something else made of the gradient."""

    def pgd_step(model, x, y, delta, eps, step_size):
        delta = delta.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
        return Linf(eps).project(delta.detach() + step_size * find_grad(grad), x)

    return pgd_step


def step_with_history(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
    return (delta + step_size * grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)


def step_with_history_of_the_callers_delta(model, x, y, delta, eps, step_size):
    delta.requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
    return (delta + step_size * grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)


def step_from_nowhere(model, x, y, delta, eps, step_size):
    return Linf(eps).project(free_step(model, x, y, delta, eps, step_size) - delta, x)


def free_step(model, x, y, delta, eps, step_size):
    delta = delta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
    return delta.detach() + step_size * grad.sign()


def in_place(delta, x, eps):
    delta += 0.1
    return delta


def fails_at_a_line(eps, std):
    return eps / std


def wilson(wrong, n, z=1.96):
    p = wrong / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (p + z**2 / (2 * n) - half) / (1 + z**2 / n), (p + z**2 / (2 * n) + half) / (1 + z**2 / n)


def wald(wrong, n):
    p = wrong / n
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def worst_score(w, b, x, s, eps):
    return s * (x @ w + b) - eps * w.norm()


def rates(before, after):
    return (before | after).float().mean(), (~before & after).sum() / (~before).sum()


def least_likely(logits, y):
    return logits.scatter(1, y[:, None], torch.inf).argmin(1)


def trades(clean, attacked, y, beta):
    p, q = clean.log_softmax(1), attacked.log_softmax(1)
    return F.cross_entropy(clean, y) + beta * (p.exp() * (p - q)).sum(1).mean()


def swapped_trades(clean, attacked, y, beta):
    return F.cross_entropy(clean, y) - trades(attacked, clean, y, 0) + trades(attacked, clean, y, beta)


def trades_over_classes(clean, attacked, y, beta):
    return F.cross_entropy(clean, y) + (trades(clean, attacked, y, beta) - F.cross_entropy(clean, y)) / 3


def danskin(w, x, s, eps):
    x_adv = x - s * eps * w.sign()
    return -s * torch.sigmoid(-s * (w @ x_adv)) * x_adv


def danskin_by_autograd(w, x, s, eps):
    delta = -s * eps * w.sign()
    w = w.clone().requires_grad_()
    return torch.autograd.grad(F.softplus(-s * (w @ (x + delta))), w)[0]


RIGHT = [
    ("check_softmax", softmax),
    ("check_cross_entropy", lambda z, y: z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]),
    ("check_eps_in_normalized_units", lambda eps, std: eps / torch.tensor(std)),
    ("check_wilson", wilson),
    ("check_wilson", lambda wrong, n: list(wilson(wrong, n))),
    ("check_wilson", lambda wrong, n: torch.tensor(wilson(wrong, n, z=1.959964), dtype=torch.float64)),
    ("check_worst_margin_l2", worst_score),
    ("check_robust_error", rates),
    ("check_robust_error", lambda before, after: tuple(float(rate) for rate in rates(before, after))),
    ("check_project", lambda delta, x, eps: delta.clamp(-eps, eps).clamp(-x, 1 - x)),
    ("check_pgd_step", step),
    ("check_pgd_step", step_with_backward),
    ("check_difference", lambda z, y, t: z.gather(1, t[:, None])[:, 0] - z.gather(1, y[:, None])[:, 0]),
    (
        "check_difference",
        lambda z, y, t: F.cross_entropy(z, y, reduction="none") - F.cross_entropy(z, t, reduction="none"),
    ),
    ("check_least_likely", least_likely),
    ("check_least_likely", lambda logits, y: least_likely(logits, y).tolist()),
    ("check_trades_loss", trades),
    ("check_trades_loss", lambda *arguments: trades(*arguments).item()),
    ("check_danskin", danskin),
    ("check_danskin", danskin_by_autograd),
]
WRONG = [
    # What can go wrong with any answer.
    ("check_softmax", lambda z: None, "returns nothing"),
    ("check_softmax", lambda z: ..., "returns nothing so far. End it with `return`"),
    ("check_softmax", torch.ones(2, 3), "give the check your function itself"),
    ("check_softmax", lambda z: 3.0, "shape (2, 3); yours has ()"),
    ("check_softmax", lambda z: z.softmax(1).tolist(), "yours is a list"),
    ("check_softmax", lambda z: "0.5", "yours is a str"),
    ("check_softmax", lambda z: z.softmax(1).numpy(), "yours is a ndarray. Stay with PyTorch"),
    ("check_softmax", lambda z: np.float32(0.5), "yours is a float32"),
    ("check_softmax", lambda z: z.softmax(1).round().long(), "dtype torch.int64, which keeps no fractions"),
    ("check_softmax", lambda z: z.softmax(1).requires_grad_(), "remembers how it was computed"),
    ("check_softmax", lambda z: 1 / 0, "ZeroDivisionError"),
    ("check_softmax", lambda: 0, "TypeError"),
    ("check_eps_in_normalized_units", fails_at_a_line, "TypeError at `return eps / std`: unsupported"),
    ("check_project", in_place, "its argument `delta` in place"),
    ("check_project", lambda *_: _[0].clamp_(-0.01, 0.01), "its argument `_` in place"),
    ("check_project", torch.Tensor.neg_, "TypeError"),
    # And with each of them.
    ("check_softmax", lambda z: z.exp() / z.exp().sum(), "the sum of the whole batch"),
    ("check_softmax", lambda z: z.softmax(0), "Your columns sum to 1"),
    ("check_softmax", lambda z: z.exp(), "divide each row by its sum"),
    ("check_softmax", lambda z: z / z.sum(1, keepdim=True), "exponentials are missing"),
    ("check_softmax", lambda z: z.log_softmax(1), "logarithms"),
    ("check_softmax", lambda z: z.exp() / z.exp().sum(1, keepdim=True), "exp(1000) overflows"),
    ("check_softmax", lambda z: (z - 1000).exp() / (z - 1000).exp().sum(1, keepdim=True), "its own sum"),
    (
        "check_softmax",
        lambda z: (z - z[:, :1].clamp(min=0)).exp() / (z - z[:, :1].clamp(min=0)).exp().sum(1, keepdim=True),
        "exp(-1000) is 0",
    ),
    ("check_cross_entropy", lambda z, y: F.cross_entropy(z, y), "averaged or picked over an axis that should stay"),
    ("check_cross_entropy", lambda z, y: -z.softmax(1).gather(1, y[:, None])[:, 0].log(), "logsumexp"),
    ("check_cross_entropy", lambda z, y: z.log_softmax(1).gather(1, y[:, None])[:, 0], "The sign"),
    ("check_cross_entropy", lambda z, y: z.softmax(1).gather(1, y[:, None])[:, 0], "These are the probabilities"),
    ("check_cross_entropy", lambda z, y: z.logsumexp(1), "still to subtract"),
    ("check_cross_entropy", lambda z, y: z.logsumexp(1, True) - z.gather(1, y[:, None]), "but other axes: see keepdim"),
    ("check_cross_entropy", lambda z, y: z.logsumexp(1) - z.gather(1, y[:, None]), "for each pair of examples"),
    ("check_eps_in_normalized_units", lambda eps, std: eps * torch.tensor(std), "You multiplied by std"),
    ("check_eps_in_normalized_units", lambda eps, std: (eps - torch.tensor(std)) / torch.tensor(std), "mean cancels"),
    ("check_eps_in_normalized_units", lambda eps, std: 255 * eps / torch.tensor(std), "no factor of 255"),
    ("check_eps_in_normalized_units", lambda eps, std: eps + torch.tensor(std), "moves by eps"),
    ("check_eps_in_normalized_units", lambda eps, std: eps / std[0], "shape (3,); yours has ()"),
    ("check_eps_in_normalized_units", lambda eps, std: [eps / std[0]] * 3, "Each channel has its own std"),
    ("check_wilson", wald, "whose centre is p"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n) if wrong else (0.0, 0.0), "With no error seen"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n, z=1.645), "With p = wrong / n"),
    ("check_wilson", lambda wrong, n: [100 * end for end in wilson(wrong, n)], "not percent"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n)[::-1], "lower end comes first"),
    ("check_wilson", lambda wrong, n: [end * (1 + 1.96**2 / n) for end in wilson(wrong, n)], "divide both ends"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n)[1], "shape (2,); yours has ()"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: x @ w + b - eps * w.norm(), "the sign s is missing"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w) - eps * w.norm(), "b is missing"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w) + b - eps * w.norm(), "s multiplies b, too"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) + eps * w.norm(), "wants the smallest"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) - eps * w.abs().sum(), "The sum of |w|"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) - eps * (w @ w), "the squared length"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) - eps, "How large is w . delta"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b), "has not moved yet"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b - eps * w.norm()), "does not change sign with s"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: worst_score(w, b, x, s, eps).min(), "shape (3,)"),
    ("check_robust_error", lambda before, after: (after.float().mean(), rates(before, after)[1]), "before or after"),
    ("check_robust_error", lambda before, after: (rates(before, after)[0], after.float().mean()), "newly wrong"),
    (
        "check_robust_error",
        lambda before, after: (rates(before, after)[0], (~before & after).float().mean()),
        "out of those right before",
    ),
    (
        "check_robust_error",
        lambda before, after: (rates(before, after)[0], after.sum() / (~before).sum()),
        "the newly wrong only",
    ),
    ("check_robust_error", lambda before, after: [100 * float(rate) for rate in rates(before, after)], "not percent"),
    ("check_robust_error", lambda before, after: rates(before, after)[::-1], "the other way round"),
    ("check_robust_error", lambda before, after: rates(before, after)[0], "shape (2,); yours has ()"),
    ("check_robust_error", lambda before, after: (before.mean(), after.mean()), "function raised"),
    ("check_project", lambda delta, x, eps: delta.clamp(-eps, eps), "x + delta leaves [0, 1]"),
    ("check_project", lambda delta, x, eps: delta.clamp(-x, 1 - x), "|delta| exceeds eps"),
    ("check_project", lambda delta, x, eps: x + Linf(eps).project(delta, x), "the image x + delta"),
    ("check_project", lambda delta, x, eps: delta.clamp(-eps, eps).clamp(0, 1), "may be negative"),
    ("check_project", lambda delta, x, eps: eps * delta.sign(), "not a corner"),
    ("check_project", lambda delta, x, eps: delta * 0, "come back unchanged"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: step(m, x, y, delta, 1.0, size), "|delta| exceeds eps"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: step(m, x, y, delta, eps, -size), "uphill"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: x + step(m, x, y, delta, eps, size), "the image x + delta"),
    ("check_pgd_step", step_uphill_of(lambda grad: grad), "the gradient itself, without its sign"),
    ("check_pgd_step", step_uphill_of(lambda grad: 4 * grad), "the gradient itself, without its sign"),
    ("check_pgd_step", step_uphill_of(lambda grad: grad / grad.norm()), "step_size * sign(gradient"),
    ("check_pgd_step", step_with_history, "remembers how it was computed"),
    ("check_pgd_step", step_with_history_of_the_callers_delta, "remembers how it was computed"),
    ("check_pgd_step", step_from_nowhere, "add it"),
    ("check_pgd_step", free_step, "x + delta leaves [0, 1]: project"),
    ("check_pgd_step", lambda m, x, y, d, eps, size: free_step(m, x, y, d, 0, size).clamp(-eps, eps), "leaves [0, 1]"),
    ("check_difference", lambda z, y, t: z[:, y] - z[:, t], "shape (2,); yours has (2, 2)"),
    ("check_difference", lambda z, y, t: z.gather(1, y[:, None])[:, 0] - z.gather(1, t[:, None])[:, 0], "other way"),
    ("check_difference", lambda z, y, t: z.gather(1, t[:, None])[:, 0], "the true one is to subtract"),
    ("check_difference", lambda z, y, t: -F.cross_entropy(z, t, reduction="none"), "log p of the target alone"),
    (
        "check_difference",
        lambda z, y, t: (z.softmax(1).gather(1, t[:, None]) - z.softmax(1).gather(1, y[:, None]))[:, 0],
        "differences of probabilities",
    ),
    (
        "check_difference",
        lambda z, y, t: (z.softmax(1).gather(1, t[:, None]) / z.softmax(1).gather(1, y[:, None])).log()[:, 0],
        "No softmax",
    ),
    ("check_least_likely", lambda logits, y: logits.argmin(1), "In the third row"),
    ("check_least_likely", lambda logits, y: logits.argmax(1), "the most likely class"),
    ("check_least_likely", lambda logits, y: logits.argsort(1)[:, 1], "the second smallest"),
    ("check_least_likely", lambda logits, y: logits.min(1).values, "whole numbers"),
    ("check_least_likely", lambda logits, y: least_likely(logits, y).float(), "yours is torch.float32"),
    ("check_least_likely", lambda logits, y: logits.scatter(1, y[:, None], -torch.inf).argmin(1), "minus infinity"),
    ("check_least_likely", lambda logits, y: logits.scatter_(1, y[:, None], torch.inf).argmin(1), "in place"),
    ("check_least_likely", lambda logits, y: y, "smallest logit"),
    ("check_trades_loss", lambda clean, attacked, y, beta: trades(attacked, clean, y, beta), "yours is on attacked"),
    ("check_trades_loss", lambda clean, attacked, y, beta: F.cross_entropy(clean, y, reduction="sum"), "summed"),
    ("check_trades_loss", lambda clean, attacked, y, beta: F.cross_entropy(clean, y, reduction="none"), "shape ()"),
    ("check_trades_loss", lambda clean, attacked, y, beta: 2 * trades(clean, attacked, y, beta), "averaged"),
    (
        "check_trades_loss",
        lambda clean, attacked, y, beta: F.cross_entropy(clean, y) + beta * F.cross_entropy(attacked, y),
        "the second term is 0",
    ),
    ("check_trades_loss", lambda c, a, y, beta: trades(c, a, y, bool(beta)), "beta is missing"),
    ("check_trades_loss", lambda c, a, y, beta: trades(c, a, y, -beta), "The sign"),
    ("check_trades_loss", lambda c, a, y, beta: trades(c, a, y, 4 * beta), "The second term: you summed"),
    ("check_trades_loss", lambda c, a, y, beta: trades(c, a, y, beta / 2), "averaged over the batch"),
    ("check_trades_loss", swapped_trades, "KL(p_attacked || p_clean)"),
    ("check_trades_loss", trades_over_classes, "averages over both"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, 0.0), "with no adversary"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, -eps), "put the worst delta"),
    ("check_danskin", lambda w, x, s, eps: -danskin(w, x, s, eps), "The sign"),
    ("check_danskin", lambda w, x, s, eps: s * danskin(w, x, s, eps), "A factor s is missing"),
    ("check_danskin", lambda w, x, s, eps: -s * (x - s * eps * w.sign()), "The outer derivative is missing"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, eps) / (x - s * eps * w.sign()) * x, "not -s x"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x + s * eps * w.sign(), s, eps), "with no adversary"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, eps).norm(), "shape (5,)"),
]


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch):
    monkeypatch.setattr(exercises, "_solved", {})


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer, capsys):
    getattr(exercises, check)(answer)
    said = capsys.readouterr().out
    assert ", solved." in said
    assert ("backward()" in said) == (answer is step_with_backward)


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG)
def test_mistakes_get_the_hint_that_fits(check, answer, hint, capsys):
    getattr(exercises, check)(answer)
    said = capsys.readouterr().out
    assert "not yet" in said and hint in said


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (None, "a number in (0, 1]"),
        ("half a level", "a number in (0, 1]"),
        (-0.1, "a number in (0, 1]"),
        (math.nan, "a number in (0, 1]"),
        (8, "8 looks like a number of grey levels: divide it by 255"),
        (0.05, "Go up"),
        (0.5, "Go down"),
        (1, "Go down"),
        (0.105, "solved"),
        (torch.tensor(0.105), "solved"),
        (np.float32(0.105), "solved"),
    ],
)
def test_smallest_eps_is_told_from_smaller_and_larger(eps, message, capsys):
    # The decision flips where the mean pixel falls below 0.5, that is, exactly at eps = 0.1.
    def model(x):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean - 0.5, 0.5 - mean], dim=1)

    x, y = torch.full((1, 1, 4, 4), 0.6), torch.tensor([0])
    assert Linf(0.1).project(torch.full_like(x, -1.0), x).mean() == pytest.approx(-0.1)
    exercises.check_smallest_eps(eps, model, x, y)
    assert message in capsys.readouterr().out


def test_a_loss_that_cannot_be_trained_with_gets_a_remark(capsys):
    exercises.check_trades_loss(lambda *arguments: trades(*arguments).item())
    assert "keep its gradient" in capsys.readouterr().out
    exercises.check_trades_loss(trades)
    assert "keep its gradient" not in capsys.readouterr().out


def test_progress_counts_what_the_reader_solved_and_says_what_is_next(capsys):
    def said():
        exercises.progress(checked=["1.1", "1.2"], unchecked=["1.3"])
        return capsys.readouterr().out.splitlines()[-5:]

    assert said() == [
        "Chapter 1: 0 of 2 checked exercises solved",
        "  1.1  not run",
        "  1.2  not run",
        "  1.3  no check: you are the judge",
        "Next: exercise 1.1. Its check says what is missing.",
    ]
    exercises.check_softmax(lambda z: z)
    exercises.check_softmax(softmax, solution=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("Solution 1.1 passes.")
    assert said()[:2] == ["Chapter 1: 0 of 2 checked exercises solved", "  1.1  not yet"]
    exercises.check_softmax(softmax)
    exercises.check_softmax(lambda z: z)
    assert said()[:2] == ["Chapter 1: 1 of 2 checked exercises solved", "  1.1  solved"]
    assert said()[-1].startswith("Next: exercise 1.2.")
    exercises.check_cross_entropy(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    assert said()[-1] == "All checks pass. Next: exercise 1.3."
    exercises.progress(checked=["1.1", "1.2"])
    assert capsys.readouterr().out.endswith("All checks pass. On to the next chapter.\n")


def test_progress_of_nothing_is_refused():
    with pytest.raises(ValueError, match="checked"):
        exercises.progress(checked=[])
