"""Risk and adversarial risk: what counts as an error, how sure the number is, and its exact value on linear models."""

import itertools
import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import PROBE_X, PROBE_Y, SEEDS, cases, probe, random_images, random_network, rng, same, snapshot
from scipy.stats import binom
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.attacks import AttackWarning, fgsm, margin, pgd
from helpers.data import digits
from helpers.risk import (
    adversarial_risk,
    certified_risk,
    estimate,
    linear_worst_margin,
    risk,
    wilson_interval,
    worst_losses,
)
from helpers.training import train

torch.set_num_threads(1)  # tiny networks again

LOSSES = st.sampled_from(["zero_one", "cross_entropy"])


# ------------------------------------------------------------------------------------------------------- the interval

Z = 1.959963984540054  # 97.5 % of the normal distribution lies below it


@cases(200)
@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_the_closed_formula_and_holds_the_observed_rate(case):
    wrong, n = case
    p = wrong / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = wilson_interval(wrong, n)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert 0 <= low <= p <= high <= 1


@pytest.mark.parametrize("n", [1, 7, 100])
def test_wilson_interval_of_none_and_of_all_ends_at_zero_and_at_one(n):
    assert wilson_interval(0, n) == pytest.approx((0, Z**2 / (n + Z**2)))
    assert wilson_interval(n, n) == pytest.approx((n / (n + Z**2), 1))


@pytest.mark.parametrize("n", [20, 100, 500])
def test_wilson_interval_covers_the_probability_95_times_in_100_on_average(n):
    ends = [wilson_interval(wrong, n) for wrong in range(n + 1)]
    coverage = []
    for p in (torch.arange(400) + 0.5) / 400:
        inside = [wrong for wrong, (low, high) in enumerate(ends) if low <= p <= high]
        coverage.append(binom.pmf(inside, n, p).sum())
    assert 0.94 <= sum(coverage) / len(coverage) <= 0.965


@pytest.mark.parametrize(
    ("wrong", "n", "error", "words"),
    [
        (0, 0, ValueError, ["n must", "at least 1", "0"]),
        (0, -5, ValueError, ["n must", "at least 1", "-5"]),
        (3, 2, ValueError, ["wrong must", "at most 2", "3"]),
        (-1, 2, ValueError, ["wrong must", "at least 0", "-1"]),
        (0.5, 2, TypeError, ["wrong must", "whole number", "float"]),
        (True, 2, TypeError, ["wrong must", "whole number", "bool"]),
        (1, "2", TypeError, ["n must", "whole number", "str"]),
    ],
)
def test_wilson_interval_refuses_what_cannot_be_counts(wrong, n, error, words):
    with pytest.raises(error) as caught:
        wilson_interval(wrong, n)
    assert [word for word in words if word not in str(caught.value)] == []


# ------------------------------------------------------------------------------------------------------- the estimate


def test_estimate_of_errors_is_their_rate_with_wilson_s_interval():
    each = torch.arange(300) < 24
    found = estimate(each)
    assert (found.value, found.low, found.high) == (24 / 300, *wilson_interval(24, 300))
    assert torch.equal(found.each, each)
    assert str(found) == "8.0 % (95 % interval 5.4 to 11.6 %, Wilson, N = 300)"


def test_estimate_of_losses_is_their_mean_with_1_96_standard_errors():
    each = torch.tensor([0.0, 1.0, 2.0, 5.0], requires_grad=True)
    found = estimate(each)
    half = 1.96 * math.sqrt((4 + 1 + 0 + 9) / 3 / 4)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))
    assert not found.each.requires_grad
    assert str(found) == f"2.000 (95 % interval {2 - half:.3f} to {2 + half:.3f}, normal, N = 4)"


def test_what_an_attack_found_has_a_one_sided_lower_end_and_nothing_above():
    found = estimate(torch.arange(200) < 54, side="at least")
    assert (found.low, found.high) == (wilson_interval(54, 200, confidence=0.9)[0], 1)
    assert str(found) == "at least 27.0 % (95 %: 22.2 % or more, Wilson, N = 200)"
    each = torch.tensor([0.0, 1.0, 2.0, 5.0])
    found = estimate(each, side="at least", warnings=["look out", "look out"])
    assert (found.low, found.high) == (pytest.approx(2 - 1.645 * each.std().item() / 2), math.inf)
    assert found.warnings == ("look out",)
    assert str(found) == f"at least 2.000 (95 %: {found.low:.3f} or more, normal, N = 4; the attack warned)"


@pytest.mark.parametrize("p", [0.02, 0.1, 0.3])
def test_the_one_sided_end_is_below_the_truth_about_95_times_in_100(p):
    n = 200
    below = [wrong for wrong in range(n + 1) if estimate(torch.arange(n) < wrong, side="at least").low <= p]
    assert 0.92 < binom.pmf(below, n, p).sum() < 0.98


def test_risk_is_two_sided_and_adversarial_risk_says_at_least():
    args = threshold, PIXELS, ZEROS
    assert risk(*args).side == adversarial_risk(*args, 0.2, attacks=[]).side == "two-sided"
    found = adversarial_risk(*args, 0.2, attacks=[brighter])
    assert (found.side, found.value, found.high) == ("at least", 0.75, 1)
    assert adversarial_risk(*args, 0.2, attacks=[brighter], loss="cross_entropy").high == math.inf


def test_the_estimate_keeps_what_the_attack_warned_of_and_the_caller_hears_it_too():
    def flat(x: Tensor) -> Tensor:
        return torch.stack([2 + 0 * x[:, 0], 0 * x[:, 0]], dim=1)

    with pytest.warns(AttackWarning, match="exactly zero") as heard:
        found = adversarial_risk(flat, PIXELS, ZEROS, 0.1, attacks=[pgd], batch_size=2)
    assert [str(warning.message) for warning in heard] == 2 * list(found.warnings)  # of two batches, kept once
    assert str(found).endswith("N = 4; the attack warned)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AttackWarning, match="exactly zero"):
            adversarial_risk(flat, PIXELS, ZEROS, 0.1, attacks=[pgd])


def test_an_estimate_has_one_of_three_sides_and_only_errors_can_be_excluded():
    with pytest.raises(ValueError, match="side must be 'two-sided', 'at least' or 'at most'; got 'below'"):
        estimate(torch.tensor([True]), side="below")
    with pytest.raises(ValueError, match=r"each must hold errors, bool, with side 'at most'; got torch.float32"):
        estimate(torch.tensor([1.0]), side="at most")


def test_one_example_says_little():
    assert (estimate(torch.tensor([0.5])).low, estimate(torch.tensor([0.5])).high) == (-math.inf, math.inf)
    right = estimate(torch.tensor([False]))
    assert right.low == 0 and right.high > 0.79


@pytest.mark.parametrize(
    "each", [torch.tensor([]), torch.ones(2, 2), torch.tensor(1.0), torch.tensor([1, torch.nan]), torch.tensor([1e999])]
)
def test_estimate_refuses_what_has_no_average(each):
    with pytest.raises(ValueError, match=r"each must hold N >= 1 finite numbers, shape \(N,\)"):
        estimate(each)


def test_estimate_refuses_a_list():
    with pytest.raises(TypeError, match="each must be a tensor; got list"):
        estimate([True, False])


# --------------------------------------------------------------------------------------------- what counts as an error


def shift(amount: float, model, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """An attack that does not look at the model: brighter or darker by a share of eps, each other pixel unchanged."""
    pattern = (torch.arange(x[0].numel()) % 2).view(x[0].shape)
    return (x + amount * eps * pattern).clamp(0, 1)


SHIFTS = [partial(shift, amount) for amount in (-1, -0.3, 0.5, 1)]


def losses(model, x: Tensor, y: Tensor, loss: str) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    return (logits.argmax(1) != y).double() if loss == "zero_one" else F.cross_entropy(logits, y, reduction="none")


@st.composite
def problems(draw) -> tuple[nn.Module, Tensor, Tensor, float, list, str, int]:
    """Draw a random model in double precision, labelled images, a budget, attacks, a loss and a batch size."""
    generator, classes, n = rng(draw(SEEDS)), draw(st.integers(2, 4)), draw(st.integers(1, 12))
    model = random_network((6,), classes, torch.float64, generator)
    x = random_images(n, (6,), torch.float64, generator)
    y = torch.randint(classes, (n,), generator=generator)
    attacks = draw(st.lists(st.sampled_from([*SHIFTS, partial(pgd, steps=3)]), max_size=3))
    return model, x, y, draw(st.floats(0, 1)), attacks, draw(LOSSES), draw(st.integers(1, 13))


@cases(150)
@given(problems())
def test_adversarial_risk_is_the_average_over_examples_of_the_largest_loss_found(problem):
    model, x, y, eps, attacks, loss, size = problem
    seen = [losses(model, x, y, loss)] + [losses(model, attack(model, x, y, eps), y, loss) for attack in attacks]
    worst = torch.stack(seen).amax(0)
    found = adversarial_risk(model, x, y, eps, attacks=attacks, loss=loss, batch_size=size)
    assert found.interval == ("Wilson" if loss == "zero_one" else "normal")
    torch.testing.assert_close(found.each.double(), worst)
    assert found.value == pytest.approx(worst.mean().item())


@cases(60)
@given(problems())
def test_risk_is_the_average_loss_and_no_attack_goes_below_it(problem):
    model, x, y, eps, attacks, loss, size = problem
    found = risk(model, x, y, loss=loss, batch_size=size)
    torch.testing.assert_close(found.each.double(), losses(model, x, y, loss))
    attacked = adversarial_risk(model, x, y, eps, attacks=attacks, loss=loss, batch_size=size)
    assert (attacked.each >= found.each).all()
    assert attacked.value >= found.value


@cases(60)
@given(problems(), st.integers(1, 13))
def test_batch_size_does_not_change_the_result(problem, other):
    model, x, y, eps, attacks, loss, size = problem
    first, second = (
        adversarial_risk(model, x, y, eps, attacks=attacks, loss=loss, batch_size=b) for b in (size, other)
    )
    torch.testing.assert_close(first.each, second.each, rtol=1e-12, atol=1e-12)


def threshold(x: Tensor) -> Tensor:
    """Says 1 where the only pixel is above a half, else 0."""
    return torch.cat([0.5 - x, x - 0.5], dim=1)


PIXELS = torch.tensor([[0.2], [0.4], [0.6], [0.8]])
ZEROS = torch.zeros(4, dtype=torch.int64)  # so the last two are wrong as they are


def darker(model, x, y, eps):
    return (x - eps).clamp(min=0)


def brighter(model, x, y, eps):
    return (x + eps).clamp(max=1)


@pytest.mark.parametrize("loss", ["zero_one", "cross_entropy"])
def test_attack_that_repairs_a_wrong_example_lowers_nothing(loss):
    assert losses(threshold, darker(None, PIXELS, ZEROS, 0.2), ZEROS, "zero_one").tolist() == [0, 0, 0, 1]
    found = adversarial_risk(threshold, PIXELS, ZEROS, 0.2, attacks=[darker], loss=loss)
    assert torch.equal(found.each, risk(threshold, PIXELS, ZEROS, loss=loss).each)


def test_attacks_are_joined_example_by_example_not_the_best_attack_taken():
    y = torch.tensor([0, 0, 1, 1])  # all right as they are; each attack fools one of the middle two
    values = [adversarial_risk(threshold, PIXELS, y, 0.2, attacks=a).value for a in ([darker], [brighter])]
    assert values == [0.25, 0.25]
    both = adversarial_risk(threshold, PIXELS, y, 0.2, attacks=[darker, brighter])
    assert both.each.tolist() == [False, True, True, False]


class Recorder:
    """An attack that writes down what it was given, and then does as another one."""

    def __init__(self, attack) -> None:
        self.attack, self.seen = attack, []

    def __call__(self, model, x, y, eps):
        self.seen.append((x.flatten().tolist(), y.tolist(), eps))
        return self.attack(model, x, y, eps)


def test_examples_that_are_wrong_already_are_not_attacked_again():
    first, second, third = Recorder(brighter), Recorder(brighter), Recorder(brighter)
    found = adversarial_risk(threshold, PIXELS, ZEROS, 0.2, attacks=[first, second], batch_size=4)
    assert first.seen == [(PIXELS[:2, 0].tolist(), [0, 0], 0.2)]
    assert second.seen == [(PIXELS[:1, 0].tolist(), [0], 0.2)]
    assert found.value == 0.75
    adversarial_risk(threshold, PIXELS[2:], ZEROS[2:], 0.2, attacks=[third])
    assert third.seen == []


def test_with_the_cross_entropy_every_attack_sees_every_example():
    attacks = [Recorder(brighter), Recorder(darker)]
    adversarial_risk(threshold, PIXELS, ZEROS, 0.2, attacks=attacks, loss="cross_entropy", batch_size=3)
    rows = [(PIXELS[:3, 0].tolist(), [0, 0, 0], 0.2), (PIXELS[3:, 0].tolist(), [0], 0.2)]
    assert [attack.seen for attack in attacks] == [rows, rows]


# ------------------------------------------------------------------------------------------------ a caller's property


@pytest.mark.parametrize("loss", ["zero_one", "cross_entropy"])
@pytest.mark.parametrize("attacks", [[], [pgd], [lambda model, x, y, eps: x + 0 * model(x).sum()]])
def test_model_comes_back_exactly_as_it_was(loss, attacks):
    model = probe()
    before = snapshot(model)
    adversarial_risk(model, PROBE_X, PROBE_Y, 0.1, attacks=attacks, loss=loss, batch_size=1)
    assert model.modes == {(False,) * 8}
    assert model.frozen == {True}
    assert same(snapshot(model), before)


def fail(model, x, y, eps):
    raise KeyError("a slip in the attack")


@pytest.mark.parametrize(
    ("failure", "attacks"), [(None, [fail]), (None, [pgd, fail]), ("raise_at", [pgd]), ("nan_at", [pgd])]
)
def test_model_comes_back_exactly_as_it_was_after_a_failure_in_mid_run(failure, attacks):
    model = probe()
    if failure:
        setattr(model, failure, 3)
    before = snapshot(model)
    with pytest.raises((KeyError, RuntimeError, ValueError), match=r"slip|broken pipe|NaN"):
        adversarial_risk(model, PROBE_X, PROBE_Y, 0.1, attacks=attacks, loss="cross_entropy")
    assert same(snapshot(model), before)


@pytest.mark.parametrize("loss", ["zero_one", "cross_entropy"])
def test_caller_s_tensors_stay_what_they_are_even_if_an_attack_writes_to_its_own(loss):
    def vandal(model, x, y, eps):
        with torch.no_grad():
            y.fill_(1)
            return x.fill_(0)

    x, y = PIXELS.clone().requires_grad_(), ZEROS.clone()
    found = adversarial_risk(threshold, x, y, 0.1, attacks=[vandal, pgd], loss=loss)
    assert torch.equal(x, PIXELS) and torch.equal(y, ZEROS)
    assert x.grad is None and not found.each.requires_grad
    expected = adversarial_risk(threshold, PIXELS, ZEROS, 0.1, attacks=[pgd], loss=loss)
    assert torch.equal(found.each, expected.each)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_result_does_not_depend_on_the_caller_s_grad_mode(guard):
    model = random_network((6,), 3, torch.float32, rng(0))
    x, y = torch.rand(20, 6, generator=rng(1)), torch.arange(20) % 3
    expected = adversarial_risk(model, x, y, 0.1, attacks=[pgd], loss="cross_entropy")
    with guard():
        found = adversarial_risk(model, x.clone(), y.clone(), 0.1, attacks=[pgd], loss="cross_entropy")
    assert torch.equal(found.each, expected.each)


# -------------------------------------------------------------------------------------------------------- bad input

X, Y = torch.rand(4, 3, generator=rng(0)), torch.tensor([0, 1, 0, 1])


def zero(x: Tensor) -> Tensor:
    """Logits that say 0 whatever the image, so that an attack has every example to itself."""
    return torch.stack([2 + x[:, 0], x[:, 1] - 2], dim=1)


BAD_ARGUMENTS = {
    "no example": ({"x": X[:0], "y": Y[:0]}, ValueError, ["x must", "N >= 1", "(0, 3)"]),
    "image above 1": ({"x": X * 255}, ValueError, ["x must", "[0, 1]"]),
    "image of 8 bits": ({"x": (X * 255).byte()}, TypeError, ["x must", "torch.uint8"]),
    "batches": (
        {"x": DataLoader(TensorDataset(X, Y))}, TypeError, ["x must", "DataLoader", "worst_losses", "evaluate"]),
    "label too large": ({"y": Y + 1}, ValueError, ["y must", "0 to 1", "1 to 2"]),
    "label negative": ({"y": Y - 1}, ValueError, ["y must", "0 to 1", "-1 to 0"]),
    "label too large, in a later batch": (
        {"y": torch.tensor([0, 1, 0, 2]), "batch_size": 3}, ValueError, ["y must", "0 to 1", "2"]),
    "label of float": ({"y": Y.float()}, TypeError, ["y must", "int64"]),
    "label of int32": ({"y": Y.int()}, TypeError, ["y must", "int64", "y.long()"]),
    "image in half precision": ({"x": X.half()}, TypeError, ["x must", "float32 or float64", "model(x.to("]),
    "model in double precision": (
        {"model": nn.Linear(X.shape[1], 2).double()}, TypeError, ["model's dtype", "float64", "model(x.to("]),
    "model of one logit": ({"model": lambda x: x[:, 0]}, ValueError, ["model must", "(4,)", "torch.stack([0 * z, z]"]),
    "label too few": ({"y": Y[:2]}, ValueError, ["y must", "(4,)", "(2,)"]),
    "eps negative": ({"eps": -0.1}, ValueError, ["eps must", "-0.1"]),
    "eps NaN": ({"eps": math.nan}, ValueError, ["eps must", "nan"]),
    "eps infinite": ({"eps": math.inf}, ValueError, ["eps must", "inf"]),
    "eps in 0 to 255 units": ({"eps": 8}, ValueError, ["eps must", "[0, 1]", "8/255"]),
    "eps a string": ({"eps": "0.1"}, TypeError, ["eps must", "number", "str"]),
    "attack without its list": ({"attacks": pgd}, TypeError, ["attacks must", "list", "[pgd]"]),
    "attacks none at all": ({"attacks": None}, TypeError, ["attacks must", "list", "[pgd]"]),
    "attacks that are used up when they are looked at": (
        {"attacks": (attack for attack in [pgd])}, TypeError, ["attacks must", "list", "[pgd]"]),
    "attack by name": ({"attacks": ["pgd"]}, TypeError, ["attacks must", "list", "[pgd]"]),
    "loss unknown": ({"loss": "hinge"}, ValueError, ["loss must", "zero_one", "cross_entropy", "'hinge'"]),
    "loss a function": ({"loss": F.cross_entropy}, ValueError, ["loss must", "zero_one", "cross_entropy"]),
    "batch size zero": ({"batch_size": 0}, ValueError, ["batch_size must", "at least 1", "0"]),
    "batch size a float": ({"batch_size": 2.0}, TypeError, ["batch_size must", "whole number", "float"]),
    "model of probabilities": (
        {"model": lambda x: zero(x).softmax(1)}, ValueError, ["model must", "logits", "probabilities", "softmax"]),
    "model of NaN": ({"model": lambda x: zero(x) * torch.nan}, ValueError, ["model", "NaN"]),
    "attack that leaves the box": (
        {"attacks": [lambda model, x, y, eps: x + 1]}, ValueError, ["attack returns", "[0, 1]"]),
    "attack that returns delta": (
        {"attacks": [lambda model, x, y, eps: pgd(model, x, y, eps) - x]}, ValueError, ["attack returns", "[0, 1]"]),
    "attack that returns nothing": (
        {"attacks": [lambda model, x, y, eps: None]}, TypeError, ["attack returns", "NoneType"]),
    "attack that loses images": (
        {"attacks": [lambda model, x, y, eps: x[:2]]}, ValueError, ["attack returns", "(4, 3)", "(2, 3)"]),
    "attack that returns one image for all": (
        {"attacks": [lambda model, x, y, eps: x[:1]]}, ValueError, ["attack returns", "(4, 3)", "(1, 3)"]),
    "attack that returns other images": (
        {"attacks": [lambda model, x, y, eps: x[:, :2]]}, ValueError, ["attack returns", "(4, 3)", "(4, 2)"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument_gets_an_error_that_names_it_and_says_what_is_allowed(case):
    changes, error, words = BAD_ARGUMENTS[case]
    good = {"model": zero, "x": X, "y": ZEROS, "eps": 0.1, "attacks": [pgd]}
    with pytest.raises(error) as caught:
        adversarial_risk(**{**good, **changes})
    assert [word for word in words if word not in str(caught.value)] == []


# --------------------------------------------------------------------------------------------------- what is proved


def proves_dark(model, x, y, eps):
    """What `threshold` says of dark pixels cannot be changed by less than what is missing to 0.5."""
    return (x[:, 0] + eps < 0.5) & (y == 0)


def test_what_was_not_proved_has_a_one_sided_upper_end_and_nothing_below():
    found = estimate(torch.arange(200) < 54, side="at most")
    assert (found.low, found.high) == (0, wilson_interval(54, 200, confidence=0.9)[1])
    assert str(found) == "at most 27.0 % (95 %: 32.4 % or less, Wilson, N = 200)"


@pytest.mark.parametrize("p", [0.02, 0.1, 0.3])
def test_the_one_sided_upper_end_is_above_the_truth_about_95_times_in_100(p):
    n = 1000  # with fewer, and a small p, it is above more often
    above = [wrong for wrong in range(n + 1) if estimate(torch.arange(n) < wrong, side="at most").high >= p]
    assert 0.94 < binom.pmf(above, n, p).sum() < 0.97


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_certified_risk_counts_what_is_wrong_or_not_proved_and_is_above_any_attack(batch_size):
    found = certified_risk(threshold, PIXELS, ZEROS, 0.2, certify=[proves_dark], batch_size=batch_size)
    attacked = adversarial_risk(threshold, PIXELS, ZEROS, 0.2, attacks=[brighter])
    assert found.side == "at most"
    assert found.each.tolist() == [not bool(x + 0.2 < 0.5) for x in PIXELS[:, 0]]
    assert (attacked.each <= found.each).all()


def test_the_next_proof_sees_only_what_is_right_and_still_open():
    seen = []

    def watch(model, x, y, eps):
        seen.append(len(x))
        return proves_dark(model, x, y, 0.0)

    found = certified_risk(threshold, PIXELS, ZEROS, 0.2, certify=[proves_dark, watch])
    right = risk(threshold, PIXELS, ZEROS).each.logical_not()
    assert seen == [int((right & (PIXELS[:, 0] + 0.2 >= 0.5)).sum())]
    assert torch.equal(found.each, ~right)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"certify": []}, TypeError, ["certify must", "proves"]),
        ({"certify": proves_dark}, TypeError, ["certify must", "list"]),
        ({"certify": [lambda *args: True]}, ValueError, ["a proof returns must be bool", "bool"]),
        ({"certify": [lambda m, x, y, eps: x[:, 0]]}, ValueError, ["a proof returns must be bool", "float32"]),
        ({"certify": [lambda m, x, y, eps: x > 0]}, ValueError, ["a proof returns must be bool", "(2,)", "(2, 1)"]),
        ({"x": PIXELS + 1}, ValueError, ["x must", "[0, 1]"]),
        ({"eps": -0.1}, ValueError, ["eps must", "-0.1"]),
        ({"batch_size": 0}, ValueError, ["batch_size must", "at least 1"]),
    ],
)
def test_certified_risk_refuses_a_bad_argument(changes, error, words):
    good = {"model": threshold, "x": PIXELS, "y": ZEROS, "eps": 0.1, "certify": [proves_dark]}
    with pytest.raises(error) as caught:
        certified_risk(**{**good, **changes})
    assert [word for word in words if word not in str(caught.value)] == []


# ----------------------------------------------------------------------------------- linear models, exactly


def corners(x: Tensor, eps: float, box: bool) -> Tensor:
    """Return every image whose pixels are each at an end of their own interval, (2^d, d), for one image (d,)."""
    low, high = x - eps, x + eps
    ends = [(low.clamp(min=0), high.clamp(max=1)), (low, high)][not box]
    return torch.stack([torch.stack(choice) for choice in itertools.product(*zip(*ends, strict=True))])


@st.composite
def linear_problems(draw) -> tuple[nn.Linear, Tensor, Tensor, float]:
    generator, classes = rng(draw(SEEDS)), draw(st.sampled_from([2, 3]))
    size = draw(st.integers(1, 5))
    linear = random_network((size,), classes, torch.float64, generator, hidden=0)[1]
    x = random_images(3, (size,), torch.float64, generator)
    return linear, x, torch.randint(classes, (3,), generator=generator), draw(st.floats(0, 1))


@cases(100)
@given(linear_problems(), st.booleans())
def test_worst_margin_is_the_largest_over_the_corners_of_the_set(problem, box):
    linear, x, y, eps = problem
    found = linear_worst_margin(linear, x, y, eps, box=box)
    for i in range(len(x)):
        attacked = corners(x[i], eps, box)
        with torch.no_grad():
            best = margin(linear(attacked), y[i].expand(len(attacked))).max()
        torch.testing.assert_close(found[i], best)


@cases(100)
@given(linear_problems(), st.floats(0, 1))
def test_worst_margin_starts_at_the_margin_grows_with_eps_and_is_smaller_with_the_box(problem, other):
    linear, x, y, eps = problem
    small, large = sorted([eps, other])
    for box in (True, False):
        clean, less, more = (linear_worst_margin(linear, x, y, e, box=box) for e in (0.0, small, large))
        torch.testing.assert_close(clean, margin(linear(x), y).detach())
        assert (clean <= less + 1e-12).all() and (less <= more + 1e-12).all()
    assert (linear_worst_margin(linear, x, y, eps) <= linear_worst_margin(linear, x, y, eps, box=False) + 1e-12).all()


@pytest.fixture(scope="module")
def zero_or_one() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A trained linear classifier of two digits, and test images."""
    data = digits()
    rows, test = data.y_train < 2, data.y_test < 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    train(model, data.x_train[rows], data.y_train[rows], epochs=5)
    return model, data.x_test[test], data.y_test[test]


def test_pgd_reaches_the_worst_margin_of_a_linear_classifier_of_digits(zero_or_one):
    model, x, y = zero_or_one
    worst = linear_worst_margin(model[1], x, y, 0.2)
    error, loss = (
        adversarial_risk(model, x, y, 0.2, attacks=[pgd], loss=name) for name in ("zero_one", "cross_entropy")
    )
    assert torch.equal(error.each, worst > 0)
    assert 0.05 < error.value < 0.95  # so that there is something to agree about
    assert loss.value == pytest.approx(F.softplus(worst).mean().item(), abs=1e-4)
    assert risk(model, x, y).value < 0.02


def test_without_the_box_the_worst_case_is_another_and_far_larger_number(zero_or_one):
    model, x, y = zero_or_one
    with_box, without = (
        (linear_worst_margin(model[1], x, y, 0.2, box=box) > 0).double().mean() for box in (True, False)
    )
    assert without > with_box + 0.2


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"eps": 8}, ValueError, ["eps must", "[0, 1]", "8"]),
        ({"eps": -0.1}, ValueError, ["eps must", "[0, 1]", "-0.1"]),
        ({"eps": math.nan}, ValueError, ["eps must", "[0, 1]", "nan"]),
        ({"x": X * 255}, ValueError, ["x must", "[0, 1]"]),
        ({"y": Y + 1}, ValueError, ["y must", "0 to 1", "1 to 2"]),
        ({"y": Y.float()}, TypeError, ["y must", "int64"]),
        ({"linear": nn.Sequential(nn.Linear(3, 2))}, TypeError, ["linear must", "Linear", "Sequential"]),
        ({"linear": nn.Linear(4, 2)}, ValueError, ["linear must", "3 values", "4"]),
        ({"linear": nn.Linear(3, 1)}, ValueError, ["linear must", "K >= 2", "1"]),
    ],
)
def test_worst_margin_refuses_a_bad_argument(changes, error, words):
    with pytest.raises(error) as caught:
        linear_worst_margin(**{"linear": nn.Linear(3, 2), "x": X, "y": Y, "eps": 0.1, **changes})
    assert [word for word in words if word not in str(caught.value)] == []


# ------------------------------------------------------------------------------------ batch by batch, for large data


def test_worst_losses_of_a_stream_of_batches_are_what_adversarial_risk_averages():
    network = random_network((6,), 3, torch.float64, rng(0))
    x, y = torch.rand(10, 6, generator=rng(1), dtype=torch.float64), torch.randint(3, (10,), generator=rng(2))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    for loss in ("zero_one", "cross_entropy"):
        options = {"attacks": [partial(pgd, steps=3)], "loss": loss}
        found = list(worst_losses(network, loader, 0.1, **options))
        assert [len(part) for part in found] == [4, 4, 2]
        whole = adversarial_risk(network, x, y, 0.1, batch_size=4, **options)
        assert torch.equal(torch.cat(found), whole.each)
        assert estimate(torch.cat(found)).value == whole.value


def test_a_run_that_was_cut_off_goes_on_where_it_stopped_and_holds_one_batch_at_a_time():
    network = random_network((6,), 3, torch.float64, rng(0))
    asked = []

    def stream():
        for number in range(5):
            asked.append(number)
            yield torch.rand(3, 6, generator=rng(number), dtype=torch.float64), torch.tensor([0, 1, 2])

    whole = list(worst_losses(network, stream(), 0.2, attacks=[pgd]))
    asked.clear()
    run = worst_losses(network, stream(), 0.2, attacks=[pgd])
    found = [next(run), next(run)]
    assert asked == [0, 1]  # nothing was fetched ahead
    run.close()
    found += worst_losses(network, itertools.islice(stream(), 2, None), 0.2, attacks=[pgd])
    assert torch.equal(torch.cat(found), torch.cat(whole))


def test_between_two_batches_the_model_is_the_caller_s():
    model = probe()
    before = snapshot(model)
    run = worst_losses(model, [(PROBE_X, PROBE_Y)] * 2, 0.1, attacks=[partial(pgd, steps=2)])
    next(run)
    assert same(snapshot(model), before)


@pytest.mark.parametrize(("random", "warns"), [(True, 1), (False, 0)])
def test_a_model_that_changes_its_mind_is_warned_of(random, warns):
    def model(images):
        return images[:, :3] + (torch.rand(len(images), 3, generator=generator) if random else 0)

    generator = rng(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adversarial_risk(model, torch.rand(4, 6, generator=rng(1)), torch.tensor([0, 1, 2, 0]), 0.1, attacks=[fgsm])
    assert len([w for w in caught if "The model is random" in str(w.message)]) == warns
