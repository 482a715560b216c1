"""The farthest point of a set in a direction, and its support: exact, so everything else must agree with them."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import SEEDS, cases, random_images, random_network, rng
from scipy.optimize import linprog
from torch import Tensor

from helpers.attacks import pgd
from helpers.perturbations import L1, L2, Linf
from helpers.risk import linear_worst_margin

NORMS = {"linf": (Linf, math.inf), "l2": (L2, 2), "l1": (L1, 1)}
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
EPS = st.one_of(st.sampled_from([0.0, 1e-6, 0.3, 1.0]), st.floats(1e-4, 1))


@st.composite
def directions(draw) -> tuple[Tensor, Tensor]:
    """Draw images, many of whose pixels are at an end of the box, and directions, with zeros and ties among them."""
    generator, shape = rng(draw(SEEDS)), draw(st.sampled_from([(1,), (4,), (30,), (1, 3, 3)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    x = random_images(3, shape, dtype, generator)
    w = torch.randn(x.shape, generator=generator, dtype=dtype)
    kind = torch.randint(5, x.shape, generator=generator)
    w = w.masked_fill(kind == 0, 0).masked_fill(kind == 1, -0.7)
    return draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e4])) * w, x


def size(delta: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(delta.double().flatten(1), NORMS[norm][1], dim=1)


def inner(w: Tensor, delta: Tensor) -> Tensor:
    return (w.double() * delta.double()).flatten(1).sum(1)


def by_program(w: Tensor, x: Tensor, eps: float, norm: str) -> float:
    """Return the support of one image, for l-inf and l1, by a linear program that HiGHS solves."""
    w, x = (t.double().flatten().numpy() for t in (w, x))
    if norm == "linf":
        return -linprog(-w, bounds=[(max(-v, -eps), min(1 - v, eps)) for v in x]).fun
    bounds = [(0, 1 - v) for v in x] + [(0, v) for v in x]  # what is added to each pixel, and what is taken away
    return -linprog([*-w, *w], A_ub=[[1.0] * (2 * len(x))], b_ub=[eps], bounds=bounds).fun


def by_dual(w: Tensor, x: Tensor, eps: float) -> float:
    """Return the l2 support of one image: the smallest value of the dual, by ternary search for the multiplier."""
    w, x = w.double().flatten(), x.double().flatten()

    def dual(power: float) -> float:
        lam = 10.0**power
        delta = torch.minimum(torch.maximum(w / lam, -x), 1 - x)
        return float((w * delta - lam / 2 * delta**2).sum() + lam / 2 * eps**2)

    low, high = -12.0, 12.0
    for _ in range(120):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if dual(a) < dual(b) else (a, high)
    return dual(low)


@cases(80)
@given(directions(), EPS, st.sampled_from(list(NORMS)))
def test_the_farthest_point_is_in_the_set_and_support_is_how_far_it_is(case, eps, norm):
    w, x = case
    allowed, ulp = NORMS[norm][0](eps), torch.finfo(x.dtype).eps
    delta = allowed.farthest(w, x)
    assert delta.shape == x.shape and delta.dtype == x.dtype
    assert (x + delta).min() >= -ulp and (x + delta).max() <= 1 + ulp
    assert size(delta, norm).max() <= eps * (1 + 30 * ulp)
    found = allowed.support(w, x)
    assert found.shape == (len(x),) and (found >= 0).all()
    torch.testing.assert_close(found.double(), inner(w, delta), rtol=1e-4, atol=0)


@cases(60)
@given(directions(), EPS, st.sampled_from(["linf", "l1"]))
def test_support_is_what_a_linear_program_finds(case, eps, norm):
    w, x = case
    w = w / w.abs().max().clamp(min=1e-38)  # the solver's tolerances are absolute
    found = NORMS[norm][0](eps).support(w, x)
    for i in range(len(x)):
        assert float(found[i]) == pytest.approx(by_program(w[i], x[i], eps, norm), abs=1e-5)


@cases(80)
@given(directions(), EPS)
def test_l2_support_is_the_smallest_value_of_the_dual(case, eps):
    w, x = case
    w = w / w.abs().max().clamp(min=1e-38)
    found, tolerance = L2(eps).support(w, x), 1e-5 if x.dtype == torch.float32 else 1e-8
    for i in range(len(x)):
        assert float(found[i]) == pytest.approx(by_dual(w[i], x[i], eps), rel=tolerance, abs=1e-8)


@cases(60)
@given(directions(), EPS, st.sampled_from(["linf", "l2"]), SEEDS)
def test_no_point_of_the_set_goes_farther(case, eps, norm, seed):
    w, x = case
    allowed = NORMS[norm][0](eps)
    found, generator = allowed.support(w, x).double(), rng(seed)
    large = w / w.abs().max().clamp(min=1e-38)
    tries = [allowed.random(x, generator) for _ in range(3)]
    tries += [allowed.project(factor * large, x) for factor in (0.1, 10.0, 1e3)]  # walks along w, and back into the set
    for delta in tries:
        assert (inner(w, delta) <= found * (1 + 1e-5) + 1e-12 * w.abs().max()).all()


@cases(60)
@given(SEEDS, st.floats(1e-3, 1e-2), st.sampled_from(list(NORMS)))
def test_where_the_box_is_far_it_is_eps_times_the_dual_norm(seed, eps, norm):
    w = torch.randn(3, 20, generator=rng(seed), dtype=torch.float64)
    x = torch.full_like(w, 0.5)
    dual = torch.linalg.vector_norm(w, DUAL[norm], dim=1)
    torch.testing.assert_close(NORMS[norm][0](eps).support(w, x), eps * dual)


@cases(60)
@given(directions(), st.sampled_from(list(NORMS)))
def test_support_is_convex_in_w_grows_with_eps_and_ends_at_the_whole_box(case, norm):
    w, x = (t.double() for t in case)
    other = w.flip(0)
    make = NORMS[norm][0]
    middle = make(0.3).support((w + other) / 2, x)
    assert (middle <= (make(0.3).support(w, x) + make(0.3).support(other, x)) / 2 * (1 + 1e-12)).all()
    values = [make(eps).support(w, x) for eps in (0.0, 0.1, 0.5, 1.0)]
    assert values[0].max() == 0
    assert all((a <= b * (1 + 1e-12)).all() for a, b in pairwise(values))
    room = torch.where(w > 0, 1 - x, x)
    whole = (w.abs() * room).flatten(1).sum(1)
    torch.testing.assert_close(make(1.0 if norm == "linf" else 1e3).support(w, x), whole)


@cases(40)
@given(directions(), st.floats(0.05, 1), st.sampled_from(list(NORMS)))
def test_its_gradient_is_the_farthest_point(case, eps, norm):
    w, x = case
    leaf = w.clone().requires_grad_()
    allowed = NORMS[norm][0](eps)
    (grad,) = torch.autograd.grad(allowed.support(leaf, x).sum(), leaf)
    assert torch.equal(grad, allowed.farthest(w, x))
    assert not allowed.farthest(leaf, x).requires_grad


@cases(20)
@given(SEEDS, st.sampled_from(["linf", "l2"]), st.floats(0.05, 1))
def test_pgd_reaches_the_worst_margin_of_two_classes(seed, norm, eps):
    generator = rng(seed)
    model = random_network((12,), 2, torch.float64, generator, hidden=0)
    x = random_images(4, (12,), torch.float64, generator)
    y = torch.randint(2, (4,), generator=generator)
    exact = linear_worst_margin(model[1], x, y, eps, norm=norm)
    x_adv = pgd(model, x, y, eps, norm=norm, steps=200, step_size="auto", loss="margin")
    with torch.no_grad():
        logits = model(x_adv)
    reached = logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])
    assert (reached[:, 0] <= exact + 1e-9).all()
    torch.testing.assert_close(reached[:, 0], exact, rtol=0, atol=1e-6)


@cases(40)
@given(SEEDS, st.sampled_from(list(NORMS)), st.floats(0, 1), st.integers(2, 4))
def test_the_worst_margin_adds_the_support_or_without_the_box_the_dual_norm(seed, norm, eps, classes):
    generator = rng(seed)
    model = random_network((12,), classes, torch.float64, generator, hidden=0)
    x = random_images(4, (12,), torch.float64, generator)
    y = torch.randint(classes, (4,), generator=generator)
    for box in (True, False):
        found = linear_worst_margin(model[1], x, y, eps, norm=norm, box=box)
        for i in range(4):
            others = []
            for k in set(range(classes)) - {int(y[i])}:
                w, b = ((p[k] - p[y[i]]).detach() for p in (model[1].weight, model[1].bias))
                gain = NORMS[norm][0](eps).support(w, x[i : i + 1])[0] if box else eps * w.norm(DUAL[norm])
                others.append(w @ x[i] + b + gain)
            torch.testing.assert_close(found[i], max(others))


def test_the_worst_margin_refuses_another_norm():
    with pytest.raises(ValueError, match=r"norm must be one of \['linf', 'l2', 'l1'\]; got 'l3'"):
        linear_worst_margin(torch.nn.Linear(3, 2), torch.rand(2, 3), torch.tensor([0, 1]), 0.1, norm="l3")


@pytest.mark.parametrize("norm", NORMS)
def test_one_direction_for_all_images_is_that_direction_for_each(norm):
    x = random_images(5, (1, 3, 3), torch.float64, rng(0))
    w = torch.randn(1, 3, 3, generator=rng(1), dtype=torch.float64)
    allowed = NORMS[norm][0](0.4)
    assert torch.equal(allowed.support(w, x), allowed.support(w.expand_as(x), x))
    for one, image in zip(allowed.support(w, x), x, strict=True):
        assert torch.equal(one, allowed.support(w, image[None])[0])


@pytest.mark.parametrize("norm", NORMS)
def test_a_budget_for_each_image_is_that_budget_for_it_alone(norm):
    x = random_images(4, (9,), torch.float64, rng(0))
    w, eps = torch.randn(4, 9, generator=rng(1), dtype=torch.float64), torch.tensor([0.0, 0.1, 0.5, 1.0])
    allowed = NORMS[norm][0](eps)
    for i, found in enumerate(allowed.support(w, x)):
        assert torch.equal(found, NORMS[norm][0](float(eps[i])).support(w[i], x[i : i + 1])[0])
    rows = torch.tensor([3, 1])
    assert torch.equal(allowed.of(rows).support(w[rows], x[rows]), allowed.support(w, x)[rows])
    with pytest.raises(ValueError, match=r"eps must.*shape \(3,\)"):
        allowed.support(w[:3], x[:3])


def test_l1_budget_goes_to_the_largest_weights_that_have_room():
    x = torch.tensor([[0.0, 1.0, 0.4, 0.5]])
    w = torch.tensor([-9.0, 3.0, 2.0, -1.0])  # 9 asks a black pixel to get darker, 3 a white one to get brighter
    assert L1(0.7).farthest(w, x)[0].tolist() == pytest.approx([0, 0, 0.6, -0.1])
    assert L1(0.7).support(w, x).tolist() == pytest.approx([1.3])


@pytest.mark.parametrize("norm", NORMS)
def test_where_an_image_oversteps_the_box_by_rounding_nothing_goes_farther_out(norm):
    x = torch.tensor([[1 + 1e-6, -1e-6, 0.5]])
    delta = NORMS[norm][0](0.2).farthest(torch.tensor([1.0, -1.0, 0.0]), x)
    assert (x + delta).max() <= 1 + 1e-6 and (x + delta).min() >= -1e-6


X = torch.rand(2, 3, generator=rng(0))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("w", "x", "error", "words"),
    [
        ([1.0, 2.0, 3.0], X, ValueError, ["w must", "(2, 3)", "(3,)", "list"]),
        (torch.ones(2), X, ValueError, ["w must", "(2, 3)", "(3,)", "(2,)"]),
        (torch.ones(3).double(), X, ValueError, ["w must", "float32", "float64"]),
        (torch.tensor([1.0, math.nan, 0.0]), X, ValueError, ["w must", "finite"]),
        (torch.ones(3), 255 * X, ValueError, ["x must", "[0, 1]"]),
        (torch.ones(3), X[0], ValueError, ["x must", "(N, ...)", "x[None]"]),
        (torch.ones(3).half(), X.half(), TypeError, ["x must", "float32", "float16"]),
    ],
)
def test_a_bad_argument_is_named_with_what_is_allowed(norm, w, x, error, words):
    for method in ("support", "farthest"):
        with pytest.raises(error) as caught:
            getattr(NORMS[norm][0](0.2), method)(w, x)
        assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("eps", [-1, math.nan, math.inf, "0.1", True])
def test_l1_refuses_a_budget_that_is_none(eps):
    with pytest.raises((TypeError, ValueError), match="eps must"):
        L1(eps)
