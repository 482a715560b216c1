"""Our iterates beside those of the libraries: the same where those are right, and where not, why not.

The libraries are called as in benchmarks/contenders.py, and come with `make test`. Their versions are pinned in
benchmarks/requirements.txt, so what a test says of one of them stays true until someone takes a newer one.
"""

import copy
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compare import Times
from contenders import CONTENDERS, art_pgd, cleverhans_pgd, foolbox_pgd, torchattacks_pgd
from networks import PROBE_X, PROBE_Y, probe, random_images, rng
from torch import Tensor, nn

from helpers.attacks import pgd
from helpers.blackbox import square
from helpers.data import Digits, digits
from helpers.distance import ddn, deepfool, smallest_eps
from helpers.models import digit_network
from helpers.perturbations import L2
from helpers.smoothing import certify
from helpers.training import train

torch.set_num_threads(1)

EPS = 0.1
IDS = ["torchattacks", "Foolbox", "ART", "CleverHans", "tutorial"]


def plain(logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy as the libraries have it, without the repair of ours for confident logits."""
    return F.cross_entropy(logits, y, reduction="none")


def lengths(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)


def right(model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Return those of the first test digits that the model gets right."""
    x, y = data().x_test[:count], data().y_test[:count]
    with torch.no_grad():
        keep = model(x).argmax(1) == y
    return x[keep], y[keep]


@cache
def data() -> Digits:
    return digits()


@pytest.fixture(scope="module")
def standard() -> nn.Module:
    network = digit_network()
    train(network, data().x_train[:2000], data().y_train[:2000], epochs=6)
    return network


@pytest.fixture(scope="module")
def problems(standard) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """Two classifiers in double precision with 16 images each, a power of two: a mean divides without rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 5),
        ]
        random = nn.Sequential(*layers).double().eval()
    x = random_images(16, (3, 9, 9), torch.float64, rng(1))
    return {
        "digits": (copy.deepcopy(standard).double(), data().x_test[:16].double(), data().y_test[:16]),
        "random": (random, x, random(x).argmax(1)),
    }


# ---------------------------------------------------------------------------------------------------- where they agree


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["digits", "random"])
@pytest.mark.parametrize("theirs", [foolbox_pgd, torchattacks_pgd])
def test_linf_iterates_agree(problems, theirs, name, steps):
    model, x, y = problems[name]
    expected = theirs(model, x, y, EPS, steps=steps, step_size=0.04)
    ours = pgd(model, x, y, EPS, steps=steps, step_size=0.04, loss=plain, keep="last")
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert (expected - x).abs().max() > 0.039


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["digits", "random"])
@pytest.mark.parametrize(("theirs", "tolerance"), [(foolbox_pgd, 1e-9), (torchattacks_pgd, 1e-5)])
def test_l2_iterates_agree_where_the_box_does_not_bind(problems, theirs, tolerance, name, steps):
    model, x, _ = problems[name]
    x = 0.4 + 0.2 * x  # far from black and white; and torchattacks adds 1e-10 to the length of the gradient
    y = model(x).argmax(1)
    expected = theirs(model, x, y, 0.3, steps=steps, step_size=0.12, norm="l2")
    ours = pgd(model, x, y, 0.3, steps=steps, step_size=0.12, norm="l2", loss=plain, keep="last")
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
    assert lengths(expected - x).min() > 0.1


@pytest.mark.parametrize("theirs", [art_pgd, cleverhans_pgd])
def test_linf_iterates_agree_as_far_as_single_precision_goes(standard, theirs):
    # These two only know float32, where a gradient that rounds to zero may come out with either sign.
    x, y = data().x_test[:64], data().y_test[:64]
    expected = theirs(standard, x, y, EPS, steps=3, step_size=0.04)
    ours = pgd(standard, x, y, EPS, steps=3, step_size=0.04, loss=plain, keep="last")
    same = (ours - expected).abs().flatten(1) < 1e-5
    assert same.double().mean() > 0.95


def median(distance: Tensor) -> float:
    assert distance.isfinite().all()
    return float(distance.median())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_goes_foolbox_way_image_by_image(standard, norm):
    from foolbox import PyTorchModel, attacks

    x, y = right(standard, 60)
    theirs = {"linf": attacks.LinfDeepFoolAttack, "l2": attacks.L2DeepFoolAttack}[norm]()
    found = theirs(PyTorchModel(standard, bounds=(0, 1), device="cpu"), x, y, epsilons=None)[1]
    size = (found - x).flatten(1).abs().amax(1) if norm == "linf" else lengths(found - x)
    ours = deepfool(standard, x, y, norm=norm).distance
    close = (ours / size - 1).abs() < 0.02
    assert close.double().mean() > 0.95 and abs(median(ours) / median(size) - 1) < 0.005


def test_smallest_l2_perturbations_by_bisection_by_ddn_and_by_foolbox_agree(standard):
    from foolbox import PyTorchModel, attacks

    x, y = right(standard, 60)
    found = attacks.DDNAttack(steps=100)(PyTorchModel(standard, bounds=(0, 1), device="cpu"), x, y, epsilons=None)[1]
    theirs = lengths(found - x)
    ours = {"bisection": smallest_eps(standard, x, y, norm="l2").distance, "DDN": ddn(standard, x, y).distance}
    print({name: round(median(distance), 4) for name, distance in {**ours, "Foolbox's DDN": theirs}.items()})
    for distance in ours.values():
        assert abs(median(distance) / median(theirs) - 1) < 0.02
    assert ours["DDN"].mean() <= 1.005 * theirs.mean()


def test_smallest_linf_perturbations_by_bisection_are_foolboxs_or_smaller_since_its_fmn_gets_stuck_on_some(standard):
    from foolbox import PyTorchModel, attacks

    x, y = right(standard, 60)
    model = PyTorchModel(standard, bounds=(0, 1), device="cpu")
    found = attacks.LInfFMNAttack(steps=300)(model, x, y, epsilons=None)[1]
    theirs, ours = (found - x).flatten(1).abs().amax(1), smallest_eps(standard, x, y).distance
    print({"bisection": round(median(ours), 4), "Foolbox's FMN": round(median(theirs), 4)})
    assert 0.95 < median(ours) / median(theirs) < 1.005
    assert (ours <= 1.02 * theirs).double().mean() > 0.9
    together = (ours / theirs - 1).abs() < 0.02
    assert together.double().mean() > 0.5 and (ours < 0.9 * theirs).any()


@pytest.mark.parametrize("queries", [100, 1000])
def test_square_finds_what_the_authors_code_finds_at_equal_queries_and_more_with_few(standard, queries):
    from pyautoattack import AutoAttack
    from torchattacks import Square

    x, y = right(standard, 60)

    def count(x_adv: Tensor) -> int:
        assert x_adv.min() >= 0 and x_adv.max() <= 1 and (x_adv - x).abs().max() < EPS + 1e-6
        with torch.no_grad():
            return int((standard(x_adv).argmax(1) != y).sum())

    judge = AutoAttack(standard, norm="Linf", eps=EPS, device="cpu", seed=0, version="custom").square
    judge.n_queries, judge.rescale_schedule = queries, True
    with torch.random.fork_rng(devices=[]):
        theirs = count(judge.perturb(x, y)), count(Square(standard, eps=EPS, n_queries=queries, seed=0)(x, y))
    ours = count(square(standard, x, y, EPS, queries=queries, generator=rng(0)))
    print(f"Square, {queries} queries: ours {ours}, pyautoattack {theirs[0]}, torchattacks {theirs[1]} of {len(x)}")
    for found in theirs:
        assert found - 2 <= ours <= found + (20 if queries == 100 else 4)


def test_certificates_of_smoothing_are_arts_at_equal_counts_and_by_its_own_draws(standard, monkeypatch):
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    x, sigma, n = data().x_test[:60], 0.5, 1000
    ours = certify(standard, x, sigma, n=n)
    options = {"loss": nn.CrossEntropyLoss(), "input_shape": (1, 28, 28), "nb_classes": 10, "device_type": "cpu"}
    art = PyTorchRandomizedSmoothing(standard, sample_size=100, scale=sigma, alpha=0.001, **options)
    assert not standard.training

    np.random.seed(0)  # where ART's noise comes from
    labels, radii = art.certify(x.numpy(), n, batch_size=500)
    both = torch.from_numpy(labels == ours.label.numpy()) & (ours.label >= 0)
    apart = torch.from_numpy(radii)[both] - ours.radius[both]
    print(f"own draws: the same class on {int(both.sum())} of {len(x)}; radius {apart.mean():+.4f} in the mean")
    assert both.double().mean() > 0.8
    assert not ((torch.from_numpy(labels) != ours.label) & (torch.from_numpy(labels) >= 0) & (ours.label >= 0)).any()
    assert apart.mean().abs() < 4 * apart.std() / len(apart) ** 0.5

    counts = []  # equal counts: the votes that choose the class, then the hits
    for label, hits in zip(ours.label.tolist(), ours.hits.tolist(), strict=True):
        chosen = np.eye(10, dtype=int)[max(label, 0)]
        counts += [100 * chosen, hits * chosen]
    draws = iter(counts)
    monkeypatch.setattr(art, "_prediction_counts", lambda *_, **__: next(draws))
    labels, radii = art.certify(x.numpy(), n)
    assert labels.tolist() == ours.label.tolist() and (ours.label == -1).any()
    torch.testing.assert_close(torch.from_numpy(radii), ours.radius, rtol=0, atol=1e-9)


# --------------------------------------------------------------------------------------- where they do not, and why


def test_torchattacks_l2_depends_on_the_batch_because_it_adds_a_constant_to_the_length_of_a_mean(problems):
    model, x, _ = problems["digits"]
    x = 0.4 + 0.2 * x
    with torch.no_grad():
        y = model(x).argmax(1)
        lead = model(x).topk(2).values
    model = Times(model, 22 / (lead[:, 0] - lead[:, 1]).median().item())  # confident: the loss is about e^-22
    options = {"steps": 1, "step_size": 0.1, "norm": "l2"}
    alone, together = (
        torch.cat([torchattacks_pgd(model, *part, 0.3, **options) for part in zip(x.split(n), y.split(n), strict=True)])
        for n in (1, 16)
    )
    assert lengths(alone - together).max() > 0.03  # of a step of 0.1
    options |= {"loss": plain, "keep": "last"}
    alone = torch.cat([pgd(model, *part, 0.3, **options) for part in zip(x.split(1), y.split(1), strict=True)])
    torch.testing.assert_close(alone, pgd(model, x, y, 0.3, **options), rtol=0, atol=1e-9)


@pytest.mark.parametrize("theirs", [foolbox_pgd, torchattacks_pgd])
def test_their_l2_projection_stops_short_because_it_scales_before_it_clips(standard, theirs):
    x, y = data().x_test[:16], data().y_test[:16]
    options = {"steps": 1, "step_size": 3.0, "norm": "l2"}
    found = theirs(standard, x, y, 1.0, **options)
    ours = pgd(standard, x, y, 1.0, loss=plain, keep="last", **options)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(plain(standard(leaf), y).sum(), leaf)
    aim = x + 3 * L2(1.0).steepest(grad)  # where the step leads before anything is projected
    for images in (found, ours):  # both are in the set
        assert images.min() >= 0 and images.max() <= 1 and lengths(images - x).max() < 1 + 1e-5
    assert (lengths(found - x) < 0.95).all()  # theirs leaves a part of the budget unused,
    assert (lengths(ours - x) > 1 - 1e-4).all()
    assert (lengths(ours - aim) < lengths(found - aim) - 1e-3).all()  # and is not the nearest point


@pytest.mark.parametrize("theirs", CONTENDERS.values(), ids=IDS)
def test_they_go_blind_when_logits_are_scaled_because_their_cross_entropy_rounds_to_zero(standard, theirs):
    x, y = data().x_test[:200], data().y_test[:200]

    def robust(attack, factor: float) -> float:
        model = Times(standard, factor).eval()
        x_adv = attack(model, x, y, EPS, steps=10, step_size=0.025).clamp(0, 1)
        return (model(x_adv).argmax(1) == y).double().mean().item()

    assert robust(theirs, 100) > robust(theirs, 1) + 0.3
    assert abs(robust(pgd, 100) - robust(pgd, 1)) < 0.05
    assert abs(robust(pgd, 1000) - robust(pgd, 1)) < 0.05


# -------------------------------------------------------------------------- what they do to a caller, and we do not

EVERYONE = {**dict(zip(IDS, CONTENDERS.values(), strict=True)), "ours": pgd}


def those(does: Callable[[Callable], bool]) -> set[str]:
    """Return the names of those who do it."""
    return {name for name, attack in EVERYONE.items() if does(attack)}


def test_who_leaves_gradients_in_the_parameters():
    def does(attack: Callable) -> bool:
        model = probe().eval()
        model.zero_grad()
        attack(model, PROBE_X, PROBE_Y, EPS, steps=3, step_size=0.05)
        return any(p.grad is not None for p in model.parameters())

    assert those(does) == {"Foolbox", "ART", "CleverHans", "tutorial"}


def test_who_updates_batch_norm_and_who_forgets_the_mode():
    def updates(attack: Callable) -> bool:
        model = probe().train()
        before = model.layers[1].running_mean.clone()
        attack(model, PROBE_X, PROBE_Y, EPS, steps=3, step_size=0.05)
        return not torch.equal(model.layers[1].running_mean, before)

    def forgets(attack: Callable) -> bool:
        model = probe()  # some of its modules train, some do not
        before = [module.training for module in model.modules()]
        attack(model, PROBE_X, PROBE_Y, EPS, steps=3, step_size=0.05)
        return [module.training for module in model.modules()] != before

    assert those(updates) == {"Foolbox", "ART", "CleverHans", "tutorial"}
    assert those(forgets) == {"torchattacks", "ART"}


def test_who_gives_up_when_the_caller_is_under_no_grad(standard):
    x, y = data().x_test[:4], data().y_test[:4]

    def does(attack: Callable) -> bool:
        try:
            with torch.no_grad():
                attack(standard, x, y, EPS, steps=3, step_size=0.05)
        except RuntimeError as error:
            assert "does not require grad" in str(error)
            return True
        return False

    assert those(does) == EVERYONE.keys() - {"ours"}


def test_who_attacks_what_is_no_image_without_a_word(standard):
    # Normalised by the caller, as the libraries' users do by mistake: torchattacks clips it to [0, 1], and calls that a
    # perturbation; ART and the tutorial's loop attack it as it is. Foolbox and CleverHans stop, without a message.
    x, y = (data().x_test[:4] - 0.13) / 0.31, data().y_test[:4]

    def does(attack: Callable) -> bool:
        try:
            attack(standard, x, y, EPS, steps=3, step_size=0.05)
        except AssertionError as error:
            assert str(error) == ""
            return False
        except ValueError as error:
            assert attack is pgd and "Do not normalise images yourself" in str(error)
            return False
        return True

    assert those(does) == {"torchattacks", "ART", "tutorial"}
    assert (torchattacks_pgd(standard, x, y, EPS, steps=3, step_size=0.05) - x).abs().max() > 10 * EPS


def test_who_leaves_the_box(standard):
    x, y = data().x_test[:16], data().y_test[:16]

    def does(attack: Callable) -> bool:
        x_adv = attack(standard, x, y, EPS, steps=3, step_size=0.05)
        return bool(x_adv.min() < -0.01 or x_adv.max() > 1.01)

    assert those(does) == {"tutorial"}
