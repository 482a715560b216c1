"""Exact answers as mathematics: branch and bound, a general solver and samples must agree."""

import copy
import math

import pytest
import torch
from scipy import optimize
from torch import nn

from helpers import exact
from helpers.attacks import margin, pgd
from helpers.bounds import box, pieces, upper_margins
from helpers.exact import Relaxed, decide, milp_margin
from helpers.perturbations import Linf


def tiny(seed: int, scale: float = 1.5) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A small random network with two hidden layers, three images and what it says of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).requires_grad_(
            False
        )
        for parameter in network.parameters():
            parameter *= scale
        x = torch.rand(3, 6)
    return network.eval(), x, network(x).argmax(1)


def convolutional() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = nn.Sequential(
            nn.ZeroPad2d(1),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4, 3, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12, 6),
            nn.ReLU(),
            nn.Linear(6, 4),
        )
        x = torch.rand(4, 1, 4, 4)
    return network.eval(), x, network(x).argmax(1)


def in_delta(x_adv: torch.Tensor, x: torch.Tensor, eps: float) -> bool:
    return bool(((x_adv - x).abs() <= eps + 1e-6).all() and (x_adv >= 0).all() and (x_adv <= 1).all())


@pytest.mark.parametrize("seed", range(6))
def test_branch_and_bound_and_highs_agree(seed):
    network, x, y = tiny(seed)
    eps = (0.05, 0.15, 0.3)[seed % 3]
    signs = decide(network, x, y, eps)
    largest = decide(network, x, y, eps, tolerance=1e-5)
    for i in range(len(x)):
        answers = [milp_margin(network, x[i : i + 1], y[i : i + 1], eps, k) for k in range(3) if k != y[i]]
        value = max(answer.lower for answer in answers)
        assert abs(float(largest.lower[i]) - value) < 1e-4
        assert abs(float(largest.upper[i]) - value) < 1e-4
        broken = any(answer.verdict == "broken" for answer in answers)
        assert signs.verdict[i] == largest.verdict[i] == ("broken" if broken else "proved")


def test_the_bounds_that_the_program_uses_do_not_change_its_answer():
    network, x, y = tiny(1)
    k = int((y[0] + 1) % 3)
    by = [milp_margin(network, x[:1], y[:1], 0.3, k, bounds=name).lower for name in ("crown", "interval")]
    assert abs(by[0] - by[1]) < 1e-4


def test_a_convolutional_network_too():
    network, x, y = convolutional()
    largest = decide(network, x, y, 0.2, tolerance=1e-5)
    value = max(milp_margin(network, x[:1], y[:1], 0.2, k).lower for k in range(4) if k != y[0])
    assert abs(float(largest.lower[0]) - value) < 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_witnesses_replay_and_no_sample_beats_a_proof(seed):
    network, x, y = tiny(seed)
    for eps in (0.1, 0.4):
        found = decide(network, x, y, eps, attack=None)  # so that the tree has to find the witnesses itself
        assert set(found.verdict) <= {"proved", "broken", "unknown"}
        assert in_delta(found.x_adv, x, eps)
        assert torch.equal(network(found.x_adv).argmax(1) != y, found.broken)
        assert torch.allclose(margin(network(found.x_adv), y), found.lower)
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            sample = x + Linf(eps).random(x, generator)
            assert not ((network(sample).argmax(1) != y) & found.proved).any()
            assert (margin(network(sample), y) <= found.upper + 1e-6)[found.proved].all()
        attacked = pgd(network, x, y, eps, steps=20, restarts=3)
        assert not ((network(attacked).argmax(1) != y) & found.proved).any()


@pytest.mark.parametrize("seed", range(4))
def test_a_node_bounds_every_point_with_its_signs_whatever_the_multipliers(seed):
    network, x, _ = tiny(seed)
    low, high = box(x[:1], 0.3)
    relaxed = Relaxed(pieces(network), low, high)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(8, 3, generator=generator)
    slopes, signs = relaxed.start(8)
    signs = torch.randint(-1, 2, signs.shape, generator=generator, dtype=torch.int8)
    slopes = torch.rand(slopes.shape, generator=generator)
    points = low + (high - low) * torch.rand(4000, 6, generator=generator)
    first = network[0](points)
    inputs = torch.cat(
        [first[:, relaxed.unstable[0]], network[2](first.relu())[:, relaxed.unstable[1]]], 1
    )  # of the unstable ReLUs
    for steps in (0, 5):
        bounds, better, _, _ = relaxed.bound(rows, slopes, signs, steps)
        assert (better >= 0).all() and (better[signs == 0] <= 1).all()
        for row, sign, bound in zip(rows, signs, bounds, strict=True):
            inside = (inputs * sign >= 0).all(1)
            assert (network(points[inside]) @ row <= bound + 1e-5).all()


def test_optimised_bounds_of_the_root_are_between_crown_and_the_truth():
    network, x, y = tiny(2)
    crown = upper_margins(network, x, y, 0.3).amax(1)
    trace = []
    largest = decide(network, x, y, 0.3, tolerance=1e-5, attack=None, trace=trace)
    for i in range(3):
        looks = [look for look in trace if look.image == i]
        uppers = [look.upper for look in looks]
        assert uppers[0] <= crown[i] + 1e-5
        assert uppers == sorted(uppers, reverse=True)  # each half is bounded by the whole
        assert [look.lower for look in looks] == sorted(look.lower for look in looks)
        assert looks[-1].nodes == largest.nodes[i]
        assert largest.lower[i] <= largest.upper[i] + 1e-6


# ---------------------------------------------------------------------------------------------- what is not as expected


def test_the_split_is_a_relu_that_is_not_split_yet_and_how_it_is_chosen_changes_no_verdict():
    network, x, y = tiny(3)
    relaxed = Relaxed(pieces(network), *box(x[:1], 0.4))
    rows, (multipliers, signs) = torch.eye(3), relaxed.start(3)
    *_, gaps = relaxed.bound(rows, multipliers, signs, 2)
    assert gaps.shape[1] > 3
    for last in range(gaps.shape[1]):
        only = torch.full_like(gaps, -1).scatter(1, torch.full((3, 1), last), 0)
        assert relaxed.choose(rows, multipliers, signs, only, 8).tolist() == [last] * 3
    halves = {}
    for tries in (1, 8):  # what was tried is at least as good as the first that comes to mind
        neuron = relaxed.choose(rows, multipliers, signs, gaps, tries)[:, None]
        both = [
            relaxed.backward(rows, multipliers.scatter(1, neuron, 0), signs.scatter(1, neuron, s))[0] for s in (1, -1)
        ]
        halves[tries] = sum(bound.clamp(min=0) for bound in both)
    assert (halves[8] <= halves[1] + 1e-5).all()
    assert decide(network, x, y, 0.4, tries=8).verdict == decide(network, x, y, 0.4, tries=1).verdict


def test_a_misread_image_is_decided_at_once_and_by_itself():
    network, x, y = tiny(0)
    wrong = (y + 1) % 3
    found = decide(network, x, wrong, 0.1)
    assert found.verdict == ["broken"] * 3
    assert torch.equal(found.x_adv, x)
    assert (found.nodes == 0).all() and (found.seconds == 0).all()


def test_without_time_only_the_network_and_the_attack_are_asked():
    network, x, y = tiny(0)
    found = decide(network, x, y, 0.01, seconds=0)
    assert set(found.verdict) <= {"broken", "unknown"}
    assert (found.nodes == 0).all() and found.upper.isinf().all()


def test_time_that_runs_out_is_unknown_not_proved(monkeypatch):
    network, x, y = tiny(1)
    whole = decide(network, x, y, 0.3, attack=None, batch=1)
    slow = int(whole.nodes.argmax())
    clock = iter(range(10**6))
    monkeypatch.setattr(exact.time, "perf_counter", lambda: next(clock))
    found = decide(network, x[[slow]], y[[slow]], 0.3, attack=None, batch=1, seconds=0.5)
    assert found.verdict == ["unknown"] and found.nodes < whole.nodes[slow]
    assert found.upper >= whole.upper[slow]


def test_an_interrupt_keeps_what_is_decided(monkeypatch, capsys):
    network, x, y = tiny(0)
    whole = decide(network, x, y, 0.02, attack=None)
    assert whole.verdict == ["proved"] * 3
    searches = iter(range(3))
    search = exact._search

    def interrupted(*arguments):
        if next(searches) == 1:
            raise KeyboardInterrupt
        return search(*arguments)

    monkeypatch.setattr(exact, "_search", interrupted)
    found = decide(network, x, y, 0.02, attack=None)
    assert found.verdict == ["proved", "unknown", "unknown"]
    assert "Decided: 1 of 3" in capsys.readouterr().out


def test_a_tie_is_what_the_network_says_and_never_proved():
    network = nn.Sequential(nn.Linear(2, 2)).eval().requires_grad_(False)
    network[0].weight.zero_()
    network[0].bias.zero_()
    x = torch.full((1, 2), 0.5)
    assert decide(network, x, torch.tensor([0]), 0.1).verdict == ["unknown"]  # argmax takes the first of two equals
    assert decide(network, x, torch.tensor([1]), 0.1).verdict == ["broken"]


def test_a_budget_of_0_and_one_that_makes_all_unstable():
    network, x, y = tiny(0)
    assert decide(network, x, y, 0.0).verdict == ["proved"] * 3
    largest = decide(network, x, y, 1.0, tolerance=1e-4, seconds=600)  # a busy machine may need more than the default
    assert (largest.upper - largest.lower < 2e-4).all()


def test_double_precision_gives_the_same_and_half_is_refused():
    network, x, y = tiny(1)
    single = decide(network, x, y, 0.2, tolerance=1e-4)
    double = decide(network.double(), x.double(), y, 0.2, tolerance=1e-4)
    assert double.x_adv.dtype == torch.float64
    assert (single.lower - double.lower).abs().max() < 3e-4 and single.verdict == double.verdict
    with pytest.raises(TypeError, match="float16"):
        decide(network.half(), x.half(), y, 0.2)


def test_the_network_and_the_images_come_back_as_they_were():
    network, x, y = tiny(1)
    network.requires_grad_(True)
    before, images = {name: value.clone() for name, value in network.state_dict().items()}, x.clone()
    decide(network, x, y, 0.2)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(x, images)


def test_what_is_not_allowed_is_named():
    network, x, y = tiny(0)
    with pytest.raises(ValueError, match="eval mode"):
        decide(tiny(0)[0].train(), x, y, 0.1)
    with pytest.raises(TypeError, match="Sigmoid"):
        decide(nn.Sequential(nn.Linear(6, 3), nn.Sigmoid()).eval(), x, y, 0.1)
    with pytest.raises(ValueError, match="eps"):
        decide(network, x, y, 8)
    with pytest.raises(ValueError, match="seconds"):
        decide(network, x, y, 0.1, seconds=-1)
    with pytest.raises(ValueError, match="tolerance"):
        decide(network, x, y, 0.1, tolerance=0)
    with pytest.raises(ValueError, match="one image"):
        milp_margin(network, x, y, 0.1, 0)
    with pytest.raises(ValueError, match="another class"):
        milp_margin(network, x[:1], y[:1], 0.1, int(y[0]))
    with pytest.raises(ValueError, match="bounds"):
        milp_margin(network, x[:1], y[:1], 0.1, int((y[0] + 1) % 3), bounds="tight")


@pytest.mark.parametrize(
    ("dual", "verdict"), [(None, "unknown"), (-math.inf, "unknown"), (-9.0, "unknown"), (9.0, "proved")]
)
def test_a_solver_without_time_proves_no_more_than_its_bound(monkeypatch, dual, verdict):
    network, x, y = tiny(0)
    k = int((y[0] + 1) % 3)
    out_of_time = optimize.OptimizeResult(status=1, x=None, message="Time limit reached.", mip_dual_bound=dual)
    limits = []
    monkeypatch.setattr(optimize, "milp", lambda **program: limits.append(program["options"]) or out_of_time)
    late = milp_margin(network, x[:1], y[:1], 0.1, k, seconds=0)
    assert limits == [{"time_limit": 0}]
    assert late.verdict == verdict and late.message == "Time limit reached." and late.x_adv is None
    assert late.lower == -math.inf


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_margin_that_rounding_can_hide_is_not_proved_by_a_linear_program(seed, hidden):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = [nn.Linear(8, 5), nn.ReLU()] if hidden else []
        network = nn.Sequential(*first, nn.Linear(5 if hidden else 8, 2)).requires_grad_(False).eval()
        x = torch.rand(1, 8)
        y, other = torch.tensor([1]), 0
    if hidden:  # the ReLUs are all on, so the network is a line
        network[0].bias += 9
    double = copy.deepcopy(network).double()
    slope = torch.func.jacrev(double)(x[0].double())
    gain = slope[other] - slope[1]
    reach = torch.where(gain > 0, (x[0] + 0.1).clamp(max=1), (x[0] - 0.1).clamp(min=0)).double()
    worst = double(reach[None])[0]
    shift = 50 - worst[1]
    network[-1].bias += torch.stack([shift + worst[1] - worst[other] - 3e-6, shift]).float()  # logits near 50
    assert decide(network, x, y, 0.1, attack=None).verdict != ["proved"]
    assert milp_margin(network, x, y, 0.1, other).verdict != "proved"
    network[-1].bias -= torch.tensor([0.01, 0.0])  # far from rounding, both prove it
    assert decide(network, x, y, 0.1, attack=None).verdict == ["proved"]
    assert milp_margin(network, x, y, 0.1, other).verdict == "proved"


def test_a_solver_that_fails_leaves_it_unknown_and_says_why(monkeypatch):
    network, x, y = tiny(0)
    k = int((y[0] + 1) % 3)

    def broken(*_, **__):
        raise RuntimeError("no licence")

    monkeypatch.setattr(optimize, "milp", broken)
    answer = milp_margin(network, x[:1], y[:1], 0.1, k)
    assert answer.verdict == "unknown" and "no licence" in answer.message and answer.x_adv is None
    monkeypatch.delattr(optimize, "milp")
    answer = milp_margin(network, x[:1], y[:1], 0.1, k)
    assert answer.verdict == "unknown" and "milp" in answer.message
    monkeypatch.setattr(optimize, "linprog", broken)
    found = decide(network, x, y, 0.3, seconds=2)
    assert set(found.verdict) <= {"proved", "broken", "unknown"}
