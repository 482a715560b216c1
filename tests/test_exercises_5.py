"""Exercises of chapter 5: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
import torch.nn.functional as F
from conftest import answer_tests

from helpers import exercises

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


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


def danskin_by_func(w, x, s, eps):
    return torch.func.grad(lambda w: F.softplus(-s * (w @ (x - s * eps * w.sign().detach()))))(w)


def danskin_by_backward(w, x, s, eps):
    w = w.clone().requires_grad_()
    F.softplus(-s * (w @ (x - s * eps * w.sign().detach()))).backward()
    return w.grad


def sigmoid_of_minus_u(w, x, s, eps):
    x_adv = x - s * eps * w.sign()
    return -s * torch.sigmoid(s * (w @ x_adv)) * x_adv


def trades_by_log_of_softmax(clean, attacked, y, beta):
    p, q = clean.softmax(1), attacked.softmax(1)
    return F.cross_entropy(clean, y) + beta * (p * (p.log() - q.log())).sum(1).mean()


def trades_by_kl_div(clean, attacked, y, beta):
    kl = F.kl_div(attacked.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")
    return F.cross_entropy(clean, y) + beta * kl


def step_with(loss, *, clear=True, learn=True, eps=None, late=False):
    """One step of training down loss(logits on x, logits on x_adv, y), made wrong in one way."""

    def step(network, optimizer, x, y, attack, budget):
        x_adv = x if late else attack(network, x, y, budget if eps is None else eps)
        if clear:
            optimizer.zero_grad()
        if learn:
            loss(network(x), network(x_adv), y).backward()
        optimizer.step()
        if late:
            attack(network, x, y, budget)

    return step


def on_attacked(clean, attacked, y):
    return F.cross_entropy(attacked, y)


def step_before_backward(network, optimizer, x, y, attack, eps):
    x_adv = attack(network, x, y, eps)
    optimizer.step()
    F.cross_entropy(network(x_adv), y).backward()


def step_before_the_attack(network, optimizer, x, y, attack, eps):
    step_with(on_attacked, late=True)(network, optimizer, x, y, attack, eps)


RIGHT = [
    ("check_trades_loss", trades),
    ("check_trades_loss", trades_by_kl_div),
    ("check_trades_loss", lambda *arguments: trades(*arguments).item()),
    ("check_danskin", danskin),
    ("check_robust_step", step_with(on_attacked)),
]

WRONG = [
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
    ("check_trades_loss", trades_by_log_of_softmax, "120 apart"),
    ("check_danskin", danskin_by_autograd, "no autograd"),
    ("check_danskin", danskin_by_func, "no autograd"),
    ("check_danskin", danskin_by_backward, "no autograd"),
    ("check_danskin", sigmoid_of_minus_u, "yours is taken at -u"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, 0.0), "with no adversary"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, -eps), "put the worst delta"),
    ("check_danskin", lambda w, x, s, eps: -danskin(w, x, s, eps), "The sign"),
    ("check_danskin", lambda w, x, s, eps: s * danskin(w, x, s, eps), "A factor s is missing"),
    ("check_danskin", lambda w, x, s, eps: -s * (x - s * eps * w.sign()), "The outer derivative is missing"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, eps) / (x - s * eps * w.sign()) * x, "not -s x"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x + s * eps * w.sign(), s, eps), "with no adversary"),
    ("check_danskin", lambda w, x, s, eps: danskin(w, x, s, eps).norm(), "shape (5,)"),
    ("check_robust_step", None, "without calling it"),
    ("check_robust_step", lambda *arguments: ..., "no weight has changed"),
    ("check_robust_step", lambda network, *arguments: network(1), "your function raised"),
    ("check_robust_step", step_with(on_attacked, learn=False), "no weight has changed"),
    ("check_robust_step", step_with(on_attacked, clear=False), "Gradients of an earlier step"),
    ("check_robust_step", step_with(on_attacked, eps=0.1), "called with eps = 0.1"),
    ("check_robust_step", step_before_backward, "backward() comes before step()"),
    ("check_robust_step", step_before_the_attack, "attack the weights of this step"),
    ("check_robust_step", step_with(lambda clean, attacked, y: F.cross_entropy(clean, y)), "the clean images"),
    ("check_robust_step", step_with(lambda c, a, y: F.cross_entropy(c, y), clear=False), "zero_grad()"),
    ("check_robust_step", step_with(lambda c, a, y: F.cross_entropy(c, y) + F.cross_entropy(a, y)), "as well"),
    ("check_robust_step", step_with(lambda c, a, y: F.cross_entropy(torch.cat([c, a]), y.repeat(2))), "Half of"),
    ("check_robust_step", step_with(lambda c, a, y: -F.cross_entropy(a, y)), "uphill"),
    ("check_robust_step", step_with(lambda c, a, y: F.cross_entropy(a, y, reduction="sum")), "summed"),
    ("check_robust_step", step_with(lambda c, a, y: 3 * F.cross_entropy(a, y)), "Attack the batch"),
]


test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)


def test_a_loss_that_cannot_be_trained_with_gets_a_remark(capsys):
    exercises.check_trades_loss(lambda *arguments: trades(*arguments).item())
    assert "keep its gradient" in capsys.readouterr().out
    exercises.check_trades_loss(trades)
    assert "keep its gradient" not in capsys.readouterr().out
