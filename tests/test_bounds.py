"""Bounds as mathematics: above everything that can happen, in the right order, and equal to those of others."""

import copy
import math

import pytest
import torch
from bound_propagation import BoundModelFactory, HyperRectangle
from hypothesis import given
from hypothesis import strategies as st
from networks import SEEDS, cases, random_images, rng
from scipy.optimize import linprog
from torch import Tensor, nn

from helpers import bounds
from helpers.attacks import pgd
from helpers.bounds import (
    METHODS,
    Layer,
    box,
    hidden_layers,
    interval_bounds,
    interval_margins,
    interval_step,
    optimised_bounds,
    pieces,
    proves,
    upper_bounds,
    upper_margins,
    upper_margins_in_box,
)
from helpers.data import digits
from helpers.models import Normalize, NormalizedModel, fold_batch_norm
from helpers.risk import adversarial_risk, certified_risk
from helpers.training import book_network

torch.set_num_threads(1)
SHAPE = (2, 4, 4)
KINDS = ("dense", "deep", "convolutional", "unshuffled", "normalised", "linear")


def network(kind: str, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small random network, without training, of each kind of layer that has a bound."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = math.prod(SHAPE)
        if kind == "dense":
            made = nn.Sequential(nn.Flatten(), nn.Linear(size, 7), nn.ReLU(), nn.Linear(7, 3))
        elif kind == "deep":
            first = nn.Sequential(nn.Flatten(), nn.Linear(size, 6), nn.ReLU())
            made = nn.Sequential(first, nn.Linear(6, 6), nn.Identity(), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 3))
        elif kind == "convolutional":
            layers = [nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU()]
            made = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3))
        elif kind == "unshuffled":
            layers = [nn.ZeroPad2d(1), nn.PixelUnshuffle(2), nn.Conv2d(8, 3, 2), nn.ReLU(), nn.Flatten()]
            made = nn.Sequential(*layers, nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
        elif kind == "normalised":
            inner = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))
            made = NormalizedModel(inner, (0.4, 0.6), (0.2, 0.3))
        else:
            made = nn.Sequential(nn.Flatten(), nn.Linear(size, 3))
        for parameter in made.parameters():  # larger than at the start of a training, so that neurons are unstable
            parameter.data = 2 * parameter.data
    return made.to(dtype).eval()


def problem(kind: str, seed: int, dtype: torch.dtype = torch.float64, n: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    made, generator = network(kind, seed, dtype), rng(seed)
    x = random_images(n, SHAPE, dtype, generator)
    return made, x, torch.randint(3, (n,), generator=generator)


def margins(made: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = made(x)
    return logits - logits.gather(1, y[:, None])


# ------------------------------------------------------------------------------------------- above all that can happen


@cases(24)
@given(st.sampled_from(KINDS), SEEDS, st.sampled_from([0.0, 0.01, 0.1, 0.4, 1.0]), st.sampled_from([32, 64]))
def test_no_point_of_the_set_is_above_a_bound_be_it_drawn_or_attacked(kind, seed, eps, bits):
    dtype = {32: torch.float32, 64: torch.float64}[bits]
    made, x, y = problem(kind, seed, dtype)
    bounds = {method: upper_margins(made, x, y, eps, method=method) for method in METHODS}
    low, high = box(x, eps)
    layers = interval_bounds(made, low, high)
    points = [low, high, x, *(low + (high - low) * torch.rand(x.shape, generator=rng(seed + i)) for i in range(10))]
    points += [
        pgd(made, x, y, eps, steps=10),
        *(pgd(made, x, y, eps, target=(y + k) % 3, loss="difference", steps=10, keep="last") for k in (1, 2)),
    ]
    parts = pieces(made)
    for point in points:
        point = point.to(dtype).clamp(low, high)
        for bound in bounds.values():
            assert (margins(made, point, y) <= bound.masked_fill(bound == -math.inf, 0)).all()
        a = point
        for part, (below, above) in zip(parts, layers, strict=True):
            z = part(a)
            assert (below <= z).all() and (z <= above).all()
            a = z.relu()


@cases(18)
@given(st.sampled_from(KINDS), SEEDS, st.sampled_from([0.01, 0.1, 0.4]))
def test_rounding_never_brings_a_bound_in_float32_below_the_one_in_float64(kind, seed, eps):
    made, x, y = problem(kind, seed, torch.float32)
    exact = copy.deepcopy(made).double()
    for method in ("interval", "crown-ibp"):
        rough = upper_margins(made, x, y, eps, method=method).double()
        fine = upper_margins(exact, x.double(), y, eps, method=method)
        assert (rough >= fine).all()
        assert (rough - fine)[rough.isfinite()].max() < 1e-3


@cases(12)
@given(st.sampled_from(KINDS), SEEDS, st.sampled_from([0.01, 0.1, 0.4]))
def test_the_room_for_rounding_is_more_than_is_needed(kind, seed, eps):
    made, x, _ = problem(kind, seed, torch.float32)
    exact = copy.deepcopy(made).double()
    (low, high), rows, image = box(x, eps), torch.eye(3).repeat(len(x), 1), torch.arange(len(x)).repeat_interleave(3)
    layers = hidden_layers(pieces(made), low, high)
    roomless = [layer._replace(room=torch.zeros_like(layer.room)) for layer in layers]
    same = [Layer(*(values.double() for values in layer)) for layer in roomless]
    fine = upper_bounds(pieces(exact), low.double(), high.double(), same, rows.double(), image)
    with_room = upper_bounds(pieces(made), low, high, layers, rows, image).double() - fine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "rounding", lambda *_: 0.0)
        error = upper_bounds(pieces(made), low, high, roomless, rows, image).double() - fine
    assert (with_room - error >= 1.5 * error.abs()).all()


@pytest.mark.parametrize("method", ["interval", "crown"])
def test_equal_terms_that_all_round_the_same_way_get_enough_room(method):
    # A referee's counterexample to a margin that only was "always enough where we measured": 784 equal products.
    torch.manual_seed(0)
    wrong = 0
    for _ in range(300):
        weight, pixel = torch.rand(2).tolist()
        made = nn.Sequential(nn.Flatten(), nn.Linear(784, 2)).eval().requires_grad_(False)
        made[1].weight[0], made[1].weight[1] = 0, weight
        x = torch.full((1, 1, 28, 28), pixel * 0.9)
        top = (784 * made[1].weight[1, 0].double() * box(x, 0.05)[1].double().max()).item()
        made[1].bias[0], made[1].bias[1] = 0, 0
        bound = upper_margins(made, x, torch.tensor([0]), 0.05, method=method)[0, 1].item()
        wrong += bound < top
    assert wrong == 0


def test_many_small_layers_get_room_for_each_of_their_biases():
    # Forty layers with one weight and one bias each, chosen so that all round downwards: a referee's counterexample.
    generator = rng(0)
    value, layers = torch.ones(1, 1), []
    for _ in range(40):
        weights = 1 + 1e-4 * torch.rand(2000, generator=generator)
        biases = 1e-4 * torch.rand(2000, generator=generator)
        ends = weights * value[0] + biases
        worst = (ends.double() - (weights.double() * value[0].double() + biases.double())).argmin()
        layer = nn.Linear(1, 1).requires_grad_(False)
        layer.weight[0, 0], layer.bias[0] = weights[worst], biases[worst]
        layers.append(layer)
        value = layer(value)
    chain, x = nn.Sequential(*layers), torch.ones(1, 1)
    truth = copy.deepcopy(chain).double()(x.double())
    found = interval_step(chain, x, x)
    assert found.low.double() < truth < found.high.double()


def test_slopes_that_nearly_cancel_do_not_lower_a_bound():
    # A referee's: the upper line is nearly flat, the lower one is not, and the row is positive.
    first, last = nn.Linear(1, 2), nn.Linear(2, 1)
    first.weight.data, first.bias.data = torch.tensor([[-1000.0], [1000.0]]), torch.tensor([0.001, -0.001])
    last.weight.data, last.bias.data = torch.tensor([[1.0, 2e-6]]), torch.zeros(1)
    parts = [nn.Sequential(layer.requires_grad_(False)) for layer in (first, last)]
    low, high = torch.zeros(1, 1), torch.ones(1, 1)
    layers = [interval_step(parts[0], low, high)]
    layers.append(interval_step(parts[1], *(end.clamp(min=0) for end in layers[0][:2])))
    slopes = [torch.tensor([[0.1255, 1e-9]])]
    row, image = torch.ones(1, 1), torch.zeros(1, dtype=torch.long)
    bound = upper_bounds(parts, low, high, layers, row, image, slopes=slopes)
    points = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:, None]
    hidden = (points * first.weight.double().T + first.bias.double()).clamp(min=0)
    assert bound.double() >= (hidden @ last.weight.double().T).max()


def test_bounds_do_not_depend_on_the_layout_of_memory_or_on_the_rest_of_the_batch():
    made, x, y = problem("convolutional", 3, torch.float32, n=40)
    found = upper_margins(made, x, y, 0.2)
    other = made.to(memory_format=torch.channels_last)
    laid_out = upper_margins(other, x.contiguous(memory_format=torch.channels_last), y, 0.2)
    one_by_one = torch.cat([upper_margins(made, x[i : i + 1], y[i : i + 1], 0.2) for i in range(len(x))])
    for again in (laid_out, one_by_one):
        assert torch.allclose(again, found, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- in order


@cases(18)
@given(st.sampled_from(KINDS), SEEDS, st.sampled_from([0.01, 0.1, 0.4]))
def test_what_costs_more_is_never_looser(kind, seed, eps):
    made, x, y = problem(kind, seed)
    interval, ibp, crown, alpha = (upper_margins(made, x, y, eps, method=method) for method in METHODS)
    assert (ibp <= interval).all()
    assert (crown <= interval).all()
    assert (alpha <= crown + 1e-9).all()


@cases(18)
@given(SEEDS, st.sampled_from([0.05, 0.2, 0.5]))
def test_with_lower_slopes_0_crown_is_never_looser_than_intervals_on_one_hidden_layer(seed, eps):
    made, x, _ = problem("dense", seed)
    parts, (low, high) = pieces(made), box(x, eps)
    layers = hidden_layers(parts, low, high)
    rows, image = torch.eye(3, dtype=x.dtype).repeat(len(x), 1), torch.arange(len(x)).repeat_interleave(3)
    zero = [torch.zeros(len(rows), 7, dtype=x.dtype)]
    crown = upper_bounds(parts, low, high, layers, rows, image, slopes=zero)
    assert (crown <= layers[-1].high.flatten() + 1e-9).all()


def test_with_the_usual_slopes_it_can_be_looser():
    # One neuron z = 3 x - 1, in [-1, 2] over the box: its lower line has slope 1, and minus the ReLU may be up to 1,
    # where the interval says 0.
    made = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    for layer, weight, bias in ((made[0], 3.0, -1.0), (made[2], -1.0, 0.0)):
        layer.weight.data.fill_(weight)
        layer.bias.data.fill_(bias)
    parts, low, high = pieces(made), torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    layers = hidden_layers(parts, low, high)
    found = upper_bounds(parts, low, high, layers, torch.ones(1, 1).double(), torch.tensor([0]))
    assert found.item() == pytest.approx(1, abs=1e-9)
    assert layers[-1].high.item() == pytest.approx(0, abs=1e-9)
    best = optimised_bounds(parts, low, high, layers, torch.ones(1, 1).double(), torch.tensor([0]), steps=50)
    assert best.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_optimised_slopes_reach_the_linear_programme_with_a_triangle_for_each_relu(seed):
    made, x, _ = problem("deep", seed, n=1)
    parts, (low, high) = pieces(made), box(x, 0.15)
    layers = hidden_layers(parts, low, high)
    rows = torch.eye(3, dtype=x.dtype)
    image = torch.zeros(3, dtype=torch.int64)
    found = optimised_bounds(parts, low, high, layers, rows, image, steps=400, lr=0.04)
    optimum = torch.tensor([triangle_programme(parts, low, high, layers, row) for row in rows])
    usual = upper_bounds(parts, low, high, layers, rows, image)
    assert (usual - optimum).max() > 1e-2, "there is something to gain"
    assert (found - optimum).min() > -1e-6
    assert (found - optimum).max() < 5e-3


def triangle_programme(parts, low, high, layers, row) -> float:
    """Return the largest <row, logits> where each ReLU is only known to be in its triangle."""
    sizes = [low.numel(), *(layer.low.numel() for layer in layers[:-1])]
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    limits = list(zip(low.flatten().tolist(), high.flatten().tolist(), strict=True))
    matrix, most = [], []
    for i, (part, layer) in enumerate(zip(parts[:-1], layers[:-1], strict=True)):
        weight, bias = affine(part, low if i == 0 else layers[i - 1].low)
        for j in range(sizes[i + 1]):
            below, above = layer.low.flatten()[j].item(), layer.high.flatten()[j].item()
            limits.append((max(below, 0), max(above, 0)))
            if above <= 0:
                continue
            z, a = torch.zeros(2, starts[-1], dtype=low.dtype)
            z[starts[i] : starts[i + 1]], a[starts[i + 1] + j] = weight[j], 1
            slope = above / (above - below) if below < 0 else 1.0
            offset = -below * slope if below < 0 else 0.0
            matrix.append(z - a)  # a >= z
            most.append(-bias[j].item())
            matrix.append(a - slope * z)  # a <= slope z + offset
            most.append(slope * bias[j].item() + offset)
    weight, bias = affine(parts[-1], layers[-2].low)
    cost = torch.zeros(starts[-1]).double()
    cost[starts[-2] :] = -(row @ weight)
    found = linprog(cost, torch.stack(matrix), most, bounds=limits)
    assert found.status == 0
    return -found.fun + (row @ bias).item()


def affine(part: nn.Sequential, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return a part's matrix and constant."""
    zero = torch.zeros_like(like[:1])
    bias = part(zero).flatten()
    jacobian = torch.autograd.functional.jacobian(lambda a: part(a).flatten(), zero)
    return jacobian.reshape(len(bias), -1), bias


# ----------------------------------------------------------------------------------------- beside another library


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["interval", "crown-ibp", "crown"])
def test_bounds_are_those_of_bound_propagation(seed, method):
    made, x, _ = problem("deep", seed)
    flat = [layer for layer in made.modules() if isinstance(layer, nn.Linear | nn.ReLU)]
    x, eps = x.flatten(1), 0.07
    theirs = BoundModelFactory(adaptive_relu=True).build(nn.Sequential(*copy.deepcopy(flat)))
    region = HyperRectangle(*box(x, eps))
    call = {"interval": theirs.ibp, "crown-ibp": theirs.crown_ibp, "crown": theirs.crown}[method]
    parts, (low, high) = pieces(nn.Sequential(*flat).eval()), box(x, eps)
    layers = hidden_layers(parts, low, high, crown=method == "crown")
    if method == "interval":
        found = call(region)
        lower, upper = layers[-1].low, layers[-1].high
    else:
        found = call(region).concretize()
        rows, image = torch.eye(3, dtype=x.dtype).repeat(len(x), 1), torch.arange(len(x)).repeat_interleave(3)
        upper = upper_bounds(parts, low, high, layers, rows, image).view(-1, 3)
        lower = -upper_bounds(parts, low, high, layers, -rows, image).view(-1, 3)
    for ours, other in ((lower, found.lower), (upper, found.upper)):
        assert torch.allclose(ours, other, atol=1e-5)


# ------------------------------------------------------------------------------------------ intervals to train with


@cases(18)
@given(st.sampled_from(KINDS), SEEDS, st.sampled_from([0.0, 0.01, 0.1, 0.4]))
def test_interval_margins_are_the_intervals_of_upper_margins_and_above_every_point(kind, seed, eps):
    made, x, y = problem(kind, seed)
    low, high = box(x, eps)
    found = interval_margins(made, low, high, y).detach()
    reference = upper_margins(made, x, y, eps, method="interval")
    true_class = reference.isneginf()
    assert (found[true_class] == 0).all()
    if kind == "deep":  # its last part has two layers: `upper_margins` merges both, `interval_margins` the last one
        assert (found >= reference.masked_fill(true_class, 0) - 1e-9).all()
    else:
        assert torch.allclose(found, reference.masked_fill(true_class, 0), atol=1e-9)
    points = [low + (high - low) * torch.rand(x.shape, generator=rng(seed + i), dtype=x.dtype) for i in range(50)]
    points += [low, high, pgd(made, x, y, eps, steps=10)]
    points += [pgd(made, x, y, eps, target=(y + k) % 3, loss="difference", steps=10, keep="last") for k in (1, 2)]
    for point in points:
        assert (margins(made, point, y) <= found + 1e-9).all()


def merged(flat: list[nn.Module], y: Tensor) -> nn.Sequential:
    """Return the layers with z_k - z_y in place of the last layer's z_k, for images of one class y."""
    layers = copy.deepcopy(flat)
    weight, bias = layers[-1].weight.data, layers[-1].bias.data
    layers[-1].weight.data, layers[-1].bias.data = weight - weight[y], bias - bias[y]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("seed", range(5))
def test_interval_margins_and_their_gradient_are_those_of_bound_propagation(seed):
    made, x, _ = problem("deep", seed)
    flat = [layer for layer in made.modules() if isinstance(layer, nn.Linear | nn.ReLU)]
    x, y = x.flatten(1), torch.full((len(x),), seed % 3)
    network, region = nn.Sequential(*flat), HyperRectangle(*box(x, 0.07))
    theirs = BoundModelFactory().build(merged(flat, y[0]))
    upper = theirs.ibp(region).upper
    ours = interval_margins(network, *box(x, 0.07), y)
    others = torch.arange(3) != y[0]
    assert torch.allclose(ours[:, others], upper[:, others], atol=1e-7)
    ours = torch.autograd.grad(ours[:, others].exp().sum(), network.parameters())
    upper[:, others].exp().sum().backward()
    same = [p.grad for p in theirs.parameters()]
    for grad in same[-2:]:  # of W_k - W_y: what W_k gets, and W_y with the other sign
        grad[y[0]] = -grad[others].sum(0)
    for a, b in zip(ours, same, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7 * float(b.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_interval_margins_is_that_of_finite_differences(kind):
    made, x, y = problem(kind, 3, n=2)
    start = [p.detach().clone().requires_grad_() for p in made.parameters()]

    def bounds_of(low, high, *parameters):
        # The parameters in their places are leaves of their own, so set what they hold and pass the gradient through.
        class Held(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *values):
                for place, value in zip(made.parameters(), values[2:], strict=True):
                    place.data = value.detach()
                with torch.enable_grad():
                    ends = [value.detach().requires_grad_() for value in values[:2]]
                    ctx.inputs = [*ends, *made.parameters()]
                    ctx.found = interval_margins(made, *ends, y)
                return ctx.found.detach()

            @staticmethod
            def backward(ctx, grad):
                return torch.autograd.grad(ctx.found, ctx.inputs, grad, retain_graph=True, allow_unused=True)

        return Held.apply(low, high, *parameters)

    low, high = ((0.1 + 0.8 * end).requires_grad_() for end in box(x, 0.05))
    assert torch.autograd.gradcheck(bounds_of, (low, high, *start), atol=1e-6)


def test_interval_margins_leave_the_model_as_it_is_in_either_mode():
    made, x, y = problem("convolutional", 0)
    for mode in (True, False):
        made.train(mode)
        before = copy.deepcopy(made.state_dict())
        interval_margins(made, *box(x, 0.1), y).sum().backward()
        assert all(torch.equal(a, b) for a, b in zip(before.values(), made.state_dict().values(), strict=True))
        assert all(module.training == mode for module in made.modules())
        assert all(p.requires_grad and p.grad is not None for p in made.parameters())
        made.zero_grad()


def test_pieces_are_still_copies_and_frozen():
    made = network("convolutional", 0)
    copies = [p for part in pieces(made) for p in part.parameters()]
    assert not {p.data_ptr() for p in copies} & {p.data_ptr() for p in made.parameters()}
    assert not any(p.requires_grad for p in copies) and all(p.requires_grad for p in made.parameters())


def test_a_layer_that_is_used_twice_counts_twice():
    relu, middle = nn.ReLU(), nn.Linear(4, 4)
    twice = nn.Sequential(nn.Linear(3, 4), relu, middle, relu, middle, relu, nn.Linear(4, 2)).double().eval()
    x, y = random_images(20, (3,), torch.float64, rng(0)), torch.zeros(20, dtype=torch.int64)
    assert len(pieces(twice)) == 4
    for method in METHODS:
        bound = upper_margins(twice, x, y, 0.2, method=method)[:, 1]
        assert (margins(twice, pgd(twice, x, y, 0.2), y)[:, 1] <= bound).all()
    assert torch.allclose(interval_margins(twice, *box(x, 0.0), y), margins(twice, x, y))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"low": torch.ones(4, *SHAPE, dtype=torch.float64)}, ValueError, ["high must be at least low"]),
        ({"y": torch.full((4,), 3)}, ValueError, ["y must", "0 to 2"]),
        ({"y": torch.zeros(4)}, TypeError, ["y must", "int64"]),
        ({"network": "resnet"}, TypeError, ["network must", "str"]),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.ReLU())}, TypeError, ["must end", "ReLU"]),
        ({"network": nn.Sequential(nn.Linear(32, 3), nn.Flatten())}, TypeError, ["must end", "Flatten"]),
        ({"network": nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(32, 3))}, TypeError, ["network.1 is Tanh"]),
        ({"network": nn.Linear(4, 3).double()}, ValueError, ["logits of shape (N, K)", "(4, 2, 4, 3)"]),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(32, 3))}, TypeError, ["torch.float32", "torch.float64"]),
    ],
)
def test_interval_margins_refuse_what_has_none(changes, error, words):
    made, x, y = problem("dense", 0)
    given = {"network": made, "low": (x - 0.1).clamp(0, 1), "high": (x * 0.9), "y": y, **changes}
    given["high"] = given["high"] if "low" in changes else given["low"]
    with pytest.raises(error) as caught:
        interval_margins(**given)
    assert [word for word in words if word not in str(caught.value)] == []


# ------------------------------------------------------------------------------------------------- on the digits


@pytest.mark.parametrize("name", ["standard", "small"])
def test_no_attack_succeeds_where_a_bound_says_proved(name):
    data, made, eps = digits(), book_network(name, "cpu"), {"standard": 0.02, "small": 0.05}[name]
    x, y = data.x_test[:1000], data.y_test[:1000]
    x, y = (x[:200], y[:200]) if name == "standard" else (x, y)
    certified = certified_risk(made, x, y, eps, certify=[proves])
    attacks = [pgd, lambda *args: pgd(*args, loss="margin", random_start=True, restarts=2)]
    attacked = adversarial_risk(made, x, y, eps, attacks=attacks)
    assert not (attacked.each & ~certified.each).any()
    assert attacked.value <= certified.value < attacked.value + 0.1


# ---------------------------------------------------------------------------------------------- what is asked wrongly


def test_the_network_and_the_images_come_back_as_they_were():
    made, x, y = problem("convolutional", 0, torch.float32)
    made[0].weight.grad = torch.ones_like(made[0].weight)
    before = [p.detach().clone() for p in made.parameters()]
    for method in METHODS:
        upper_margins(made, x, y, 0.1, method=method)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))
    assert all(p.requires_grad for p in made.parameters()) and (made[0].weight.grad == 1).all()


def test_with_eps_0_the_bound_is_the_margin_and_with_eps_1_nothing_is_proved():
    for kind in KINDS:
        made, x, y = problem(kind, 1)
        for method in METHODS:
            assert torch.allclose(
                upper_margins(made, x, y, 0.0, method=method).nan_to_num(neginf=0), margins(made, x, y), atol=1e-6
            )
    made, x, y = problem("dense", 1)
    wide = upper_margins(made, x, y, 1.0)
    assert wide.isnan().sum() == 0 and not proves(made, x, y, 1.0).all()


def test_wrong_answers_and_ties_are_not_proved():
    made, x, _ = problem("dense", 0)
    said = made(x).argmax(1)
    assert proves(made, x, said, 0.0).all()
    assert not proves(made, x, (said + 1) % 3, 0.0).any()
    made[-1].weight.data.zero_()
    made[-1].bias.data.zero_()
    for method in METHODS:
        assert not proves(made, x, said, 0.0, method=method).any()  # all logits are equal


OK = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).eval()
X, Y = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"network": nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.Tanh()).eval()},
            TypeError,
            ["network.2", "Tanh"],
        ),
        ({"network": nn.Sequential(nn.MaxPool2d(2)).eval()}, TypeError, ["network.0 is MaxPool2d", "Conv2d", "ReLU"]),
        ({"network": nn.Sequential(nn.BatchNorm2d(2)).eval()}, TypeError, ["BatchNorm2d", "fold_batch_norm"]),
        ({"network": lambda x: x}, TypeError, ["network must be a torch.nn.Module", "function"]),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(32, 3))}, ValueError, ["eval mode", "network.eval()"]),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(32, 1)).eval()}, ValueError, ["logits", "(2, 1)"]),
        ({"x": X.half()}, TypeError, ["x must be in float32 or float64", "float16"]),
        ({"x": X.double()}, TypeError, ["x must have the model's dtype", "torch.float32"]),
        ({"x": X + 1}, ValueError, ["x must have values in [0, 1]"]),
        ({"y": Y.float()}, TypeError, ["y must", "int64"]),
        ({"y": Y[:1]}, ValueError, ["y must have shape (2,)"]),
        ({"y": Y + 3}, ValueError, ["y must", "0 to 2"]),
        ({"eps": -0.1}, ValueError, ["eps must", "-0.1"]),
        ({"eps": 8}, ValueError, ["eps must", "8/255"]),
        ({"method": "ibp"}, ValueError, ["method must be one of", "'interval'", "'ibp'"]),
    ],
)
def test_a_bad_argument_gets_an_error_that_names_it(changes, error, words):
    good = {"network": OK, "x": X, "y": Y, "eps": 0.1, "method": "crown"}
    changed = {**good, **changes}
    with pytest.raises(error) as caught:
        upper_margins(changed["network"], changed["x"], changed["y"], changed["eps"], method=changed["method"])
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_box_upside_down_or_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"high must be at least low; it is less for 64 of 64"):
        upper_margins_in_box(OK, X, X - 0.1, Y)
    with pytest.raises(ValueError, match=r"high must have the shape and dtype of low"):
        upper_margins_in_box(OK, X, X[:1], Y)


def test_batch_norm_that_is_folded_has_a_bound():
    made = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)).eval()
    made[1].running_mean.fill_(0.1)
    folded = fold_batch_norm(copy.deepcopy(made))
    found = upper_margins(folded, X, Y, 0.0)
    assert torch.allclose(found[:, 1:], margins(made, X, Y)[:, 1:], atol=1e-4)


def test_normalize_is_a_layer_like_any_other():
    plain = nn.Sequential(Normalize((0.4, 0.6), (0.2, 0.3)), nn.Flatten(), nn.Linear(32, 3)).eval()
    (part,) = pieces(plain)
    assert torch.allclose(part(X), plain(X), atol=1e-6)
    step = interval_step(part, X - 0.1, X + 0.1)
    assert (step.low < plain(X)).all() and (plain(X) < step.high).all()
