"""Distances: exact on linear models, always those of images that fool, and nearer the better the attack."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import PROBE_X, PROBE_Y, SEEDS, cases, probe, random_images, random_network, rng, same, snapshot
from torch import Tensor, nn

from helpers.attacks import AttackWarning, fgsm, pgd
from helpers.blackbox import square
from helpers.distance import Nearest, ddn, deepfool, smallest_eps
from helpers.perturbations import Linf
from helpers.risk import linear_worst_margin

torch.set_num_threads(1)

METHODS: dict[str, tuple[str, Callable[..., Nearest]]] = {
    "bisection, linf": ("linf", partial(smallest_eps, norm="linf")),
    "bisection, l2": ("l2", partial(smallest_eps, norm="l2")),
    "bisection with FGSM": ("linf", partial(smallest_eps, attack=fgsm)),
    "bisection with Square": (
        "linf",
        partial(smallest_eps, attack=lambda *a: square(*a, queries=20, generator=rng(0))),
    ),
    "DeepFool, linf": ("linf", partial(deepfool, norm="linf")),
    "DeepFool, l2": ("l2", partial(deepfool, norm="l2")),
    "DDN": ("l2", partial(ddn, steps=30)),
}
SHAPES = st.sampled_from([(2,), (7,), (1, 3, 3), (3, 4, 4)])


def size(delta: Tensor, norm: str) -> Tensor:
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


def linear(
    generator: torch.Generator, classes: int, size: int = 8, wide: bool = True
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a linear model and images: where it is cut through the middle of the box, `wide` from its edges."""
    model = random_network((size,), classes, torch.float64, generator, hidden=0)
    with torch.no_grad():
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
        x = random_images(6, (size,), torch.float64, generator)
        x = 0.5 + 0.02 * (x - 0.5) if wide else x
        return model, x, model(x).argmax(1)


# --------------------------------------------------------------------------------------------- what is known exactly


def boundaries(model: nn.Sequential, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Return the exact distance to the nearest boundary of a linear model, without the box."""
    w = model[1].weight[None] - model[1].weight[y][:, None]  # (N, K, d)
    logits = model(x)
    dual = w.abs().sum(2) if norm == "linf" else w.norm(dim=2)
    away = (logits.gather(1, y[:, None]) - logits) / dual
    return away.scatter(1, y[:, None], torch.inf).amin(1).detach()


@cases(60)
@given(SEEDS, st.integers(2, 5), st.sampled_from(["linf", "l2"]))
def test_deepfool_is_exact_on_linear_models_where_the_box_does_not_bind(seed, classes, norm):
    model, x, y = linear(rng(seed), classes)
    exact = boundaries(model, x, y, norm)
    found = deepfool(model, x, y, norm=norm, overshoot=1e-5)
    inside = exact < 0.45  # so that the box is nowhere near
    assert inside.any()
    torch.testing.assert_close(found.distance[inside], exact[inside], rtol=2e-5, atol=2e-6)
    first = deepfool(model, x, y, norm=norm, overshoot=1e-5, steps=1)  # and it takes one step
    assert torch.equal(first.distance[inside], found.distance[inside])


@cases(40)
@given(SEEDS, st.integers(2, 4))
def test_bisection_finds_the_exact_linf_distance_of_a_linear_model_box_included(seed, classes):
    model, x, y = linear(rng(seed), classes, wide=False)

    def best(model, x, y, eps):  # exact, pair by pair: the corner that each wrong class asks for
        w = model[1].weight.detach()
        tries = [x + Linf(eps).farthest(w[k] - w[y], x) for k in range(classes)]
        hits = torch.stack([wrong(model, each, y) for each in tries]).float().argmax(0)
        return torch.stack(tries)[hits, torch.arange(len(x))]

    found = smallest_eps(model, x, y, attack=best, tolerance=1e-4)
    for i, distance in enumerate(found.distance.tolist()):
        assert math.isfinite(distance)
        above, below = min(1, distance * (1 + 1e-6) + 1e-9), distance * (1 - 2e-4)
        assert linear_worst_margin(model[1], x[i : i + 1], y[i : i + 1], above) >= -1e-9
        assert linear_worst_margin(model[1], x[i : i + 1], y[i : i + 1], below) <= 1e-9


@cases(15)
@given(SEEDS)
def test_on_a_linear_model_bisection_and_ddn_come_to_the_exact_l2_distance(seed):
    model, x, y = linear(rng(seed), 2)
    exact = boundaries(model, x, y, "l2")
    inside = exact < 0.45
    for found, far in ((smallest_eps(model, x, y, norm="l2"), 1.01), (ddn(model, x, y, steps=200), 1.06)):
        assert (found.distance[inside] >= exact[inside] * (1 - 1e-9)).all()
        assert (found.distance[inside] <= exact[inside] * far + 1e-6).all()


# ---------------------------------------------------------------------------------------------------- for any model


@st.composite
def problems(draw) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Draw a small model, images, and labels of which some are wrong from the start."""
    seed, shape, classes = draw(SEEDS), draw(SHAPES), draw(st.integers(2, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = rng(seed)
    model = random_network(shape, classes, dtype, generator)
    model[-1].weight.data *= draw(st.sampled_from([1e-2, 1.0, 1e3]))
    x = random_images(draw(st.integers(1, 4)), shape, dtype, generator)
    return model, x, torch.randint(classes, (len(x),), generator=generator)


@pytest.mark.parametrize("name", METHODS)
@cases(20)
@given(problems())
def test_every_distance_is_that_of_an_image_that_fools(name, problem):
    (model, x, y), (norm, method) = problem, METHODS[name]
    found = method(model, x, y)
    assert found.distance.shape == y.shape and found.x_adv.shape == x.shape
    assert found.distance.dtype == found.x_adv.dtype == x.dtype
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    already, never = wrong(model, x, y), found.distance.isinf()
    assert torch.equal(found.distance == 0, already)
    assert torch.equal(found.x_adv[already | never], x[already | never])
    torch.testing.assert_close(size(found.x_adv - x, norm)[~never], found.distance[~never])
    assert wrong(model, found.x_adv, y)[~never].double().mean().nan_to_num(1) > 0.99  # a batch of another size rounds


@cases(40)
@given(problems())
def test_a_longer_path_and_a_smaller_tolerance_never_end_farther_away(problem):
    model, x, y = problem
    coarse, fine = (smallest_eps(model, x, y, tolerance=tolerance).distance for tolerance in (0.3, 0.01))
    assert (fine <= coarse).all()
    few, more = (deepfool(model, x, y, steps=steps).distance for steps in (2, 20))
    assert (more <= few).all()


@cases(15)
@given(problems())
def test_a_batch_finds_what_its_images_find_alone(problem):
    model, x, y = problem
    model.double()
    x = x.double()
    for method in (smallest_eps, partial(smallest_eps, norm="l2"), deepfool, partial(ddn, steps=30)):
        alone = torch.cat([method(model, x[i : i + 1], y[i : i + 1]).distance for i in range(len(x))])
        torch.testing.assert_close(method(model, x, y).distance, alone, rtol=1e-4, atol=1e-9)


@cases(30)
@given(problems())
def test_a_successful_bisection_stops_within_its_tolerance_of_a_failure(problem):
    model, x, y = problem
    failed, tried = torch.zeros(len(x), dtype=torch.float64), []

    def attack(model, images, labels, eps):
        x_adv = pgd(model, images, labels, eps, keep="first", steps=5)
        rows = torch.stack([(x == image).flatten(1).all(1).double().argmax() for image in images])
        lost = ~wrong(model, x_adv, labels)
        failed[rows[lost]] = torch.maximum(failed[rows[lost]], eps[lost].double())
        tried.append(len(rows))
        return x_adv

    distance = smallest_eps(model, x, y, attack=attack, tolerance=0.05).distance.double()
    done = distance.isfinite() & (distance > 1e-6)
    assert (failed[done] <= distance[done]).all()
    assert (distance[done] - failed[done] <= 0.05 * distance[done] + 1e-7).all()
    assert tried == sorted(tried, reverse=True)  # who is done has left the batch


def constant(x: Tensor) -> Tensor:
    return x @ torch.zeros(6, 3) + torch.tensor([1.0, 0, -1])


@pytest.mark.filterwarnings("ignore::helpers.attacks.AttackWarning")
@pytest.mark.parametrize("name", METHODS)
def test_a_constant_model_is_infinitely_far_from_fooled(name):
    x, y = torch.rand(2, 6, generator=rng(0)), torch.tensor([0, 1])
    found = METHODS[name][1](constant, x, y)
    assert found.distance.tolist() == [math.inf, 0] and torch.equal(found.x_adv, x)


def test_what_the_attack_warns_of_in_every_round_is_said_once_at_the_callers_line():
    x, y = torch.rand(2, 6, generator=rng(0)), torch.tensor([0, 0])
    with pytest.warns(AttackWarning) as caught:
        smallest_eps(constant, x, y)
    assert [str(warning.message)[:44] for warning in caught] == ["The gradient is exactly zero at the start fo"]
    assert caught[0].filename == __file__


# ------------------------------------------------------------------------------------------------ a caller's property


@pytest.mark.parametrize("name", METHODS)
def test_model_and_tensors_come_back_as_they_were_also_after_a_failure(name):
    _, method = METHODS[name]
    model, x = probe(), PROBE_X.clone()
    before = snapshot(model)
    with torch.no_grad():
        found = method(model, x, PROBE_Y)
    assert same(snapshot(model), before) and torch.equal(x, PROBE_X)
    assert model.modes == {(False,) * 8} and not found.x_adv.requires_grad and not found.distance.requires_grad
    model.raise_at = 2
    model.calls = 0
    with pytest.raises(RuntimeError, match="broken pipe"):
        method(model, x, PROBE_Y)
    assert same(snapshot(model), before)


def logits(x: Tensor) -> Tensor:
    return torch.stack([x.sum(1), 3 - x.sum(1), x[:, 0]], 1)


X, Y = torch.rand(4, 6, generator=rng(0)), torch.tensor([0, 1, 2, 0])
COMMON = {
    "images up to 255": ({"x": 255 * X}, ValueError, ["x must", "[0, 1]"]),
    "images in half precision": ({"x": X.half()}, TypeError, ["x must", "float16"]),
    "labels of int32": ({"y": Y.int()}, TypeError, ["y must", "int32"]),
    "labels out of range": ({"y": Y + 1}, ValueError, ["y must", "0 to 2"]),
    "probabilities": ({"model": lambda x: logits(x).softmax(1)}, ValueError, ["model must", "probabilities"]),
    "NaN": ({"model": lambda x: logits(x) * torch.nan}, ValueError, ["model", "NaN"]),
    "norm": ({"norm": "l1"}, ValueError, ["norm must", "'l1'"]),
    "no gradient": ({"model": lambda x: logits(x.detach())}, ValueError, ["model must", "differentiable"]),
}
BAD = [(method, *COMMON[name]) for name in COMMON for method in (smallest_eps, deepfool)]
BAD += [(ddn, *COMMON[name]) for name in COMMON if name != "norm"]
BAD += [
    (smallest_eps, {"tolerance": 0}, ValueError, ["tolerance must", "(0, 1]"]),
    (smallest_eps, {"tolerance": "1"}, TypeError, ["tolerance must", "number"]),
    (smallest_eps, {"attack": 3}, TypeError, ["attack must", "int"]),
    (smallest_eps, {"attack": lambda *_: None}, TypeError, ["what an attack returns", "NoneType"]),
    (smallest_eps, {"attack": lambda m, x, y, e: x[:1]}, ValueError, ["what an attack returns", "shape"]),
    (smallest_eps, {"attack": lambda m, x, y, e: x + 9}, ValueError, ["what an attack returns", "[0, 1]"]),
    (deepfool, {"steps": 0}, ValueError, ["steps must", "at least 1"]),
    (deepfool, {"classes": 0}, ValueError, ["classes must", "at least 1"]),
    (deepfool, {"overshoot": 0}, ValueError, ["overshoot must", "(0, 1]"]),
    (ddn, {"steps": 1.5}, TypeError, ["steps must", "whole number"]),
    (ddn, {"gamma": 0}, ValueError, ["gamma must", "(0, 1]"]),
]


@pytest.mark.parametrize(("method", "changes", "error", "words"), BAD)
def test_bad_argument_gets_an_error_that_names_it(method, changes, error, words):
    with pytest.raises(error) as caught:
        method(**{"model": logits, "x": X, "y": Y, **changes})
    assert [word for word in words if word not in str(caught.value)] == []
