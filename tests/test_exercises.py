"""The exercises' checks: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import math

import pytest
import torch
import torch.nn.functional as F

from helpers import exercises
from helpers.attacks import Linf


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


def in_place(delta, x, eps):
    delta += 0.1
    return delta


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
    ("check_softmax", lambda z: None, "returns nothing"),
    ("check_softmax", lambda z: ..., "returns nothing"),
    ("check_softmax", lambda z: 3.0, "shape (2, 3); yours has ()"),
    ("check_softmax", lambda z: z.softmax(1).tolist(), "yours is a list"),
    ("check_softmax", lambda z: "0.5", "yours is a str"),
    ("check_softmax", lambda z: z.exp() / z.exp().sum(), "its own sum"),
    ("check_softmax", lambda z: z.exp() / z.exp().sum(1, keepdim=True), "overflows"),
    ("check_softmax", lambda z: 1 / 0, "ZeroDivisionError"),
    ("check_cross_entropy", lambda z, y: F.cross_entropy(z, y), "shape (2,)"),
    ("check_cross_entropy", lambda z, y: -z.softmax(1).gather(1, y[:, None])[:, 0].log(), "logsumexp"),
    ("check_eps_in_normalized_units", lambda eps, std: eps * torch.tensor(std), "moves by eps"),
    ("check_wilson", wald, "With p = wrong / n"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n) if wrong else (0.0, 0.0), "With no error seen"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n, z=1.645), "With p = wrong / n"),
    ("check_wilson", lambda wrong, n: [100 * end for end in wilson(wrong, n)], "With p = wrong / n"),
    ("check_wilson", lambda wrong, n: wilson(wrong, n)[1], "shape (2,); yours has ()"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: x @ w + b - eps * w.norm(), "With eps = 0"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w) - eps * w.norm(), "With eps = 0"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) + eps * w.norm(), "smallest"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) - eps * w.abs().sum(), "of length eps"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b) - eps, "How large is w . delta"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: s * (x @ w + b - eps * w.norm()), "smallest"),
    ("check_worst_margin_l2", lambda w, b, x, s, eps: worst_score(w, b, x, s, eps).min(), "shape (3,)"),
    ("check_robust_error", lambda before, after: (after.float().mean(), rates(before, after)[1]), "before or after"),
    ("check_robust_error", lambda before, after: (rates(before, after)[0], after.float().mean()), "newly wrong"),
    (
        "check_robust_error",
        lambda before, after: (rates(before, after)[0], (~before & after).float().mean()),
        "out of those right before",
    ),
    ("check_robust_error", lambda before, after: rates(before, after)[::-1], "out of all"),
    ("check_robust_error", lambda before, after: rates(before, after)[0], "shape (2,); yours has ()"),
    ("check_robust_error", lambda before, after: (before.mean(), after.mean()), "function raised"),
    ("check_project", lambda delta, x, eps: delta.clamp(-eps, eps), "Two limits"),
    ("check_project", in_place, "in place"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: step(m, x, y, delta, 1.0, size), "leaves the set"),
    ("check_pgd_step", lambda m, x, y, delta, eps, size: step(m, x, y, delta, eps, -size), "uphill"),
    ("check_difference", lambda z, y, t: z[:, y] - z[:, t], "shape (2,); yours has (2, 2)"),
    ("check_difference", lambda z, y, t: z.gather(1, y[:, None])[:, 0] - z.gather(1, t[:, None])[:, 0], "two entries"),
    (
        "check_difference",
        lambda z, y, t: (z.softmax(1).gather(1, t[:, None]) / z.softmax(1).gather(1, y[:, None])).log()[:, 0],
        "No softmax",
    ),
    ("check_least_likely", lambda logits, y: logits.argmin(1), "third row"),
    ("check_least_likely", lambda logits, y: logits.argmax(1), "smallest logit"),
    ("check_least_likely", lambda logits, y: logits.scatter(1, y[:, None], -torch.inf).argmin(1), "smallest logit"),
    ("check_least_likely", lambda logits, y: logits.scatter_(1, y[:, None], torch.inf).argmin(1), "in place"),
    ("check_trades_loss", lambda clean, attacked, y, beta: trades(attacked, clean, y, beta), "the clean cross-entropy"),
    ("check_trades_loss", lambda clean, attacked, y, beta: F.cross_entropy(clean, y, reduction="sum"), "averaged"),
    ("check_trades_loss", lambda clean, attacked, y, beta: F.cross_entropy(clean, y, reduction="none"), "shape ()"),
    (
        "check_trades_loss",
        lambda clean, attacked, y, beta: F.cross_entropy(clean, y) + beta * F.cross_entropy(attacked, y),
        "the second term is 0",
    ),
    ("check_trades_loss", swapped_trades, "KL(p_clean || p_attacked)"),
    ("check_trades_loss", trades_over_classes, "averaged over the batch"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, 0.0), "put the worst delta"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, -eps), "put the worst delta"),
    ("check_danskin", lambda w, x, s, eps: -danskin(w, x, s, eps), "differentiate in w"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x + s * eps * w.sign(), s, eps), "put the worst delta"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, eps).norm(), "shape (5,)"),
]


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
    [(None, "a number in (0, 1]"), (8.0, "a number in (0, 1]"), (0.05, "Go up"), (0.5, "Go down"), (0.105, "solved")],
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
