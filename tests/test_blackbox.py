"""Square: the set is kept, the queries are counted, chance belongs to each image, and no gradient is asked for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import PROBE_X, PROBE_Y, SEEDS, cases, probe, random_images, random_network, rng, same, snapshot
from torch import Tensor, nn

from helpers.attacks import Iterate, margin
from helpers.blackbox import square
from helpers.risk import adversarial_risk, linear_worst_margin

torch.set_num_threads(1)

SHAPES = st.sampled_from([(1,), (7,), (30,), (1, 3, 3), (3, 4, 4), (2, 5), (1, 2, 1, 6), (2, 2, 3, 3)])


@st.composite
def problems(draw) -> tuple[nn.Sequential, Tensor, Tensor, Tensor, int]:
    """Draw a small model in double precision, so that the order of sums does not matter, images, labels and an eps."""
    seed, shape, n, classes = draw(SEEDS), draw(SHAPES), draw(st.integers(1, 5)), draw(st.integers(2, 4))
    generator = rng(seed)
    model = random_network(shape, classes, torch.float64, generator)
    x = random_images(n, shape, torch.float64, generator)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + draw(st.integers(0, 1))) % classes  # the first may be misclassified as it is
    eps = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0])) * torch.rand(n, generator=generator, dtype=torch.float64)
    return model, x, y, eps, seed


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


@cases(100)
@given(problems(), st.integers(1, 130))
def test_result_is_in_the_box_and_in_the_ball_and_no_worse_than_the_image(problem, queries):
    model, x, y, eps, seed = problem
    x_adv, spent = square(model, x, y, eps, queries=queries, generator=rng(seed), return_queries=True)
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and x_adv.min() >= 0 and x_adv.max() <= 1
    assert ((x_adv - x).abs().flatten(1).amax(1) <= eps + 1e-12).all()
    assert (wrong(model, x_adv, y) >= wrong(model, x, y)).all()
    with torch.no_grad():
        assert (margin(model(x_adv), y) >= margin(model(x), y) - 1e-9).all()
    stays = wrong(model, x, y)
    assert torch.equal(x_adv[stays], x[stays]) and (spent[stays] == 1).all()
    assert ((spent == queries) | wrong(model, x_adv, y)).all()


@cases(80)
@given(problems(), st.integers(1, 120), st.integers(1, 120))
def test_more_queries_go_on_where_fewer_stopped_and_never_find_less(problem, queries, extra):
    model, x, y, eps, seed = problem
    (few, spent), (many, spent_more) = (
        square(model, x, y, eps, queries=n, generator=rng(seed), return_queries=True)
        for n in (queries, queries + extra)
    )
    found = wrong(model, few, y)
    assert torch.equal(many[found], few[found]) and torch.equal(spent_more[found], spent[found])
    assert (spent_more[~found] > queries).all()
    with torch.no_grad():
        assert (margin(model(many), y) >= margin(model(few), y) - 1e-9)[~found].all()


@cases(60)
@given(problems(), st.integers(1, 3))
def test_a_split_into_batches_changes_nothing_nor_does_an_eps_for_each_image(problem, size):
    model, x, y, eps, seed = problem
    whole, generator, parts = square(model, x, y, eps, queries=120, generator=rng(seed)), rng(seed), []
    for rows in torch.arange(len(x)).split(size):
        parts.append(square(model, x[rows], y[rows], eps[rows], queries=120, generator=generator))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    generator = rng(seed)
    alone = [
        square(model, x[i : i + 1], y[i : i + 1], float(e), queries=120, generator=generator) for i, e in enumerate(eps)
    ]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=1e-12)


@cases(30)
@given(SEEDS, st.floats(0.01, 0.3))
def test_on_a_linear_model_it_comes_to_the_exact_worst_case(seed, eps):
    generator = rng(seed)
    model = random_network((8,), 2, torch.float64, generator, hidden=0)
    x = random_images(4, (8,), torch.float64, generator)
    with torch.no_grad():
        y = model(x).argmax(1)
    exact = linear_worst_margin(model[1], x, y, eps)
    x_adv = square(model, x, y, eps, queries=500, generator=generator)
    assert torch.equal(wrong(model, x_adv, y), exact > 0)  # with two classes there is one maximum, at a corner
    with torch.no_grad():
        reached = margin(model(x_adv), y)
    torch.testing.assert_close(reached[exact <= 0], exact[exact <= 0])


@pytest.mark.parametrize("factor", [2.0**-7, 2.0**7])
def test_a_factor_on_the_logits_and_a_missing_gradient_change_nothing(factor):
    network, x = random_network((1, 6, 6), 3, torch.float32, rng(0)), torch.rand(20, 1, 6, 6, generator=rng(1))
    with torch.no_grad():
        y = network(x).argmax(1)
    plain, other = (
        square(model, x, y, 0.05, queries=50, generator=rng(2))
        for model in (network, lambda images: factor * network(images.detach()))
    )
    assert torch.equal(plain, other) and 0 < int(wrong(network, plain, y).sum()) < 20


def test_the_trace_has_every_query_and_the_count_is_how_often_the_model_was_asked():
    network, x = (
        random_network((1, 6, 6), 3, torch.float32, rng(0)),
        0.3 + 0.4 * torch.rand(20, 1, 6, 6, generator=rng(1)),
    )
    with torch.no_grad():
        y = network(x).argmax(1)
    asked, trace = [], []

    def model(images: Tensor) -> Tensor:
        asked.append(len(images))
        return network(images)

    _, spent = square(model, x, y, 0.3, queries=150, generator=rng(2), return_queries=True, trace=trace)
    assert sum(asked) == int(spent.sum()) and len(trace) == len(asked) == int(spent.max())
    assert all(isinstance(now, Iterate) for now in trace)
    counted = torch.stack([torch.bincount(now.rows, minlength=20) for now in trace]).sum(0)
    assert torch.equal(counted, spent) and len(spent.unique()) > 3
    stripes = trace[1].delta.sign()
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes)) and stripes.unique().tolist() == [-1, 1]
    for now in trace:
        assert torch.equal(now.logits, network(x[now.rows] + now.delta))
        assert torch.equal(now.fooled, now.logits.argmax(1) != y[now.rows])


def test_seed_decides_and_the_global_generator_serves_without_one():
    network, x = random_network((1, 6, 6), 3, torch.float32, rng(0)), torch.rand(5, 1, 6, 6, generator=rng(1))
    with torch.no_grad():
        y = network(x).argmax(1)

    def attack(generator=None) -> Tensor:
        return square(network, x, y, 1e-3, queries=5, generator=generator)

    state = torch.get_rng_state()
    assert torch.equal(attack(rng(0)), attack(rng(0))) and not torch.equal(attack(rng(0)), attack(rng(1)))
    assert torch.equal(state, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, second = attack(), attack()
        torch.manual_seed(3)
        assert torch.equal(attack(), first) and not torch.equal(first, second)


def test_model_tensors_and_gradients_come_back_as_they_were():
    model, x = probe(), PROBE_X.clone()
    before = snapshot(model)
    x_adv = square(model, x, PROBE_Y, 0.1, queries=5, generator=rng(0))
    assert same(snapshot(model), before) and torch.equal(x, PROBE_X) and not x_adv.requires_grad
    assert model.modes == {(False,) * 8}
    model.raise_at = model.calls + 1
    with pytest.raises(RuntimeError, match="broken pipe"):
        square(model, x, PROBE_Y, 0.1, queries=50)
    assert same(snapshot(model), before)


def test_it_is_an_attack_for_the_adversarial_risk():
    network, x = random_network((1, 6, 6), 3, torch.float32, rng(0)), torch.rand(20, 1, 6, 6, generator=rng(1))
    with torch.no_grad():
        y = network(x).argmax(1)
    found = adversarial_risk(network, x, y, 0.05, attacks=[lambda *a: square(*a, queries=100, generator=rng(0))])
    assert 0 < found.value < 1 and found.side == "at least"


def logits(x: Tensor) -> Tensor:
    return torch.stack([x.sum(1), 3 - x.sum(1), x[:, 0]], 1)


X, Y = torch.rand(4, 6, generator=rng(0)), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": 255 * X}, ValueError, ["x must", "[0, 1]"]),
        ({"x": X.half()}, TypeError, ["x must", "float16"]),
        ({"y": Y.int()}, TypeError, ["y must", "int32"]),
        ({"y": Y + 1}, ValueError, ["y must", "0 to 2"]),
        ({"eps": 8}, ValueError, ["eps must", "8/255"]),
        ({"eps": math.nan}, ValueError, ["eps must", "nan"]),
        ({"eps": torch.rand(3)}, ValueError, ["eps must", "(4,)", "(3,)"]),
        ({"queries": 0}, ValueError, ["queries must", "at least 1"]),
        ({"queries": 10.0}, TypeError, ["queries must", "whole number"]),
        ({"model": lambda x: logits(x).softmax(1)}, ValueError, ["model must", "probabilities"]),
        ({"model": lambda x: logits(x) * torch.nan}, ValueError, ["model", "NaN"]),
        ({"model": lambda x: logits(x)[:2]}, ValueError, ["model must", "(4, K)"]),
    ],
)
def test_bad_argument_gets_an_error_that_names_it(changes, error, words):
    with pytest.raises(error) as caught:
        square(**{"model": logits, "x": X, "y": Y, "eps": 0.1, "queries": 5, **changes})
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_model_in_another_precision_is_explained():
    network = random_network((6,), 3, torch.float64, rng(0))
    with pytest.raises(TypeError, match="x must have the model's dtype"):
        square(network, X, Y, 0.1)
