"""The wrappers for defences: what goes forward, what comes back, and that they open what they are for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import SEEDS, cases, probe, random_images, random_network, rng, same, snapshot
from torch import Tensor, nn

from helpers.adaptive import Expectation, StraightThrough
from helpers.attacks import AttackWarning, difference, pgd

torch.set_num_threads(1)


def rounded(x: Tensor) -> Tensor:
    return (7 * x).round() / 7


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy((7 * x.numpy()).round() / 7)


# ------------------------------------------------------------------------------------------------ straight through


def in_place(x: Tensor) -> Tensor:
    return x.mul_(7).round_().div_(7)


@cases(60)
@given(SEEDS, st.sampled_from([torch.float32, torch.float64]), st.sampled_from([rounded, through_numpy, in_place]))
def test_forward_it_is_the_function_to_the_bit_and_backward_the_identity(seed, dtype, function):
    x = random_images(3, (2, 4), dtype, rng(seed)).requires_grad_()
    step, weights = StraightThrough(function), torch.randn(3, 2, 4, generator=rng(seed), dtype=dtype)
    result = step(x)
    assert torch.equal(result, rounded(x.detach()))
    (grad,) = torch.autograd.grad((weights * result).sum(), x)
    assert torch.equal(grad, weights)


def test_with_it_the_gradient_is_the_networks_own_at_what_the_function_made():
    network = random_network((6,), 3, torch.float64, rng(0))
    x = torch.rand(4, 6, generator=rng(1), dtype=torch.float64)
    grads = []
    for model, point in ((nn.Sequential(StraightThrough(rounded), network), x), (network, rounded(x))):
        leaf = point.clone().requires_grad_()
        grads.append(torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)[0])
    assert torch.equal(*grads)


def test_an_attack_that_stands_still_before_rounding_moves_with_it():
    network, x = random_network((30,), 3, torch.float32, rng(0)), torch.rand(40, 30, generator=rng(1))
    with torch.no_grad():
        y = network(rounded(x)).argmax(1)

    def errors(model) -> int:
        x_adv = pgd(model, x, y, 0.15)
        with torch.no_grad():
            return int((network(rounded(x_adv)).argmax(1) != y).sum())

    with pytest.warns(AttackWarning, match="exactly zero at the start for 40 of 40"):
        assert errors(lambda images: network(rounded(images))) == 0
    assert errors(nn.Sequential(StraightThrough(rounded), network)) > 20


def test_a_module_inside_is_frozen_and_comes_back_as_it_was():
    inner = probe()
    model = nn.Sequential(StraightThrough(lambda x: x), inner)
    before = snapshot(inner)
    pgd(model, torch.rand(2, 1, 4, 4, generator=rng(5)), torch.tensor([0, 2]), 0.1, steps=2)
    assert same(snapshot(inner), before)
    assert inner.modes == {(False,) * 8}
    assert len(list(StraightThrough(inner).parameters())) == len(list(inner.parameters()))


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda x: x[:, :2], ValueError, ["function must", "(3, 4)", "(3, 2)"]),
        (lambda x: x[:1], ValueError, ["function must", "(3, 4)", "(1, 4)"]),
        (lambda x: x.sum(), ValueError, ["function must", "(3, 4)", "got ()"]),
        (lambda x: x.to("meta"), ValueError, ["function must", "on cpu", "on meta"]),
        (lambda x: x.double(), TypeError, ["function must", "float32", "float64"]),
        (lambda x: (255 * x).byte(), TypeError, ["function must", "float32", "uint8"]),
        (lambda x: x.numpy(), TypeError, ["function must", "tensor", "ndarray"]),
        (lambda x: None, TypeError, ["function must", "tensor", "NoneType"]),
        (3, TypeError, ["function must", "int"]),
    ],
)
def test_a_function_that_the_identity_cannot_stand_in_for_is_refused(function, error, words):
    with pytest.raises(error) as caught:
        StraightThrough(function)(torch.rand(3, 4))
    assert [word for word in words if word not in str(caught.value)] == []


# ------------------------------------------------------------------------------------------------------ expectation


class Noisy(nn.Module):
    """A linear model whose input is shaken, with draws that can be repeated."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network, self.generator = random_network((6,), 3, torch.float64, rng(0), hidden=0), rng(seed)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.network(x + torch.randn(x.shape, generator=self.generator, dtype=x.dtype))


@cases(30)
@given(SEEDS, st.integers(1, 7))
def test_it_is_the_average_of_as_many_calls_and_its_gradient_that_of_the_expected_difference(seed, draws):
    x = torch.rand(4, 6, generator=rng(1), dtype=torch.float64)
    y, target = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2])
    single, leaf = Noisy(seed), x.clone().requires_grad_()
    calls = [single(leaf) for _ in range(draws)]
    model, point = Expectation(Noisy(seed), draws), x.clone().requires_grad_()
    logits = model(point)
    torch.testing.assert_close(logits, sum(calls) / draws, rtol=1e-12, atol=1e-12)
    assert model.model.calls == draws
    mean = sum(difference(each, y, target).sum() for each in calls) / draws
    ours = torch.autograd.grad(difference(logits, y, target).sum(), point)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(mean, leaf)[0])


def test_more_draws_bring_it_nearer_to_the_expectation():
    x = torch.rand(200, 6, generator=rng(1), dtype=torch.float64)
    with torch.no_grad():
        far = [float((Expectation(Noisy(2), n)(x) - Noisy(2).network(x)).square().mean()) for n in (1, 100)]
    assert far[1] < far[0] / 50


def test_the_average_of_a_model_without_chance_is_that_model():
    network, x = random_network((6,), 3, torch.float64, rng(0)), torch.rand(4, 6, dtype=torch.float64)
    torch.testing.assert_close(Expectation(network, 3)(x), network(x))


@pytest.mark.parametrize(
    ("model", "draws", "error", "words"),
    [
        (None, 5, TypeError, ["model must", "NoneType"]),
        (lambda x: x, 0, ValueError, ["draws must", "at least 1", "0"]),
        (lambda x: x, 2.0, TypeError, ["draws must", "whole number", "float"]),
    ],
)
def test_bad_arguments_of_the_expectation_are_refused(model, draws, error, words):
    with pytest.raises(error) as caught:
        Expectation(model, draws)
    assert [word for word in words if word not in str(caught.value)] == []
