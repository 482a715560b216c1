"""Our strongest attack, and the whole protocol, beside AutoAttack, the field's standard (Croce and Hein 2020)."""

from functools import partial

import pytest
import torch
from networks import rng

from helpers.attacks import pgd
from helpers.data import digits
from helpers.report import evaluate
from helpers.risk import adversarial_risk, risk
from helpers.training import book_network

torch.set_num_threads(1)

EPS = 0.1
COUNT = 200  # test digits; AutoAttack takes half a second for each that it cannot fool


def strongest() -> list:
    """Return the chapter's strongest: from the image itself, and from five random starts with either loss."""
    losses = enumerate(5 * ["cross_entropy", "margin"])
    return [pgd, *(partial(pgd, loss=loss, random_start=True, generator=rng(seed)) for seed, loss in losses)]


@pytest.mark.parametrize(("name", "low", "high"), [("standard", 0.1, 0.45), ("robust", 0.75, 1.0)])
def test_autoattack_finds_at_most_two_points_more_than_our_strongest_attack_and_no_more_than_evaluate(name, low, high):
    from pyautoattack import AutoAttack

    data = digits()
    x, y = data.x_test[:COUNT], data.y_test[:COUNT]
    network = book_network(name, "cpu").requires_grad_(False)
    ours = 1 - adversarial_risk(network, x, y, EPS, attacks=strongest()).value
    with torch.random.fork_rng(devices=[]):
        theirs = AutoAttack(network, norm="Linf", eps=EPS, version="standard", device="cpu", seed=0)
        x_adv, _ = theirs.run_standard_evaluation(x, y, batch_size=COUNT)
    assert x_adv.min() >= 0 and x_adv.max() <= 1  # the comparison is fair: the same set,
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    auto = 1 - risk(network, x_adv, y).value
    reports = [evaluate(lambda x, by=by: by * network(x), (x, y), EPS, curve=0) for by in (1, 100)]
    whole, louder = (1 - report.robust_error.value for report in reports)
    print(f"{name}: robust accuracy {ours:.3f} by ours, {whole:.3f} by evaluate, {auto:.3f} by AutoAttack")
    assert low < ours < high  # a network worth the comparison,
    assert auto <= ours + 0.05  # and an AutoAttack that was really at work
    assert auto >= ours - 0.02
    assert abs(whole - auto) <= 1 / COUNT + 1e-9  # one digit; of a thousand digits, two
    assert louder == whole  # the scale of the logits says nothing about a classifier's decisions
