"""Randomized smoothing as mathematics: the linear classifier's exact radius, coverage, and the same draws always."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import SEEDS, cases, probe, random_images, random_network, rng, same, snapshot
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm
from torch import Tensor, nn

from helpers import smoothing
from helpers.attacks import pgd
from helpers.models import NormalizedModel
from helpers.smoothing import Smoothed, certified_radius, certify, lower_bound, predict

torch.set_num_threads(1)
SHAPE = (1, 4, 4)


def linear(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Two classes and an image; with them the signed distance of the image from the boundary, towards class 0."""
    generator = rng(seed)
    model = random_network(shape, 2, torch.float64, generator, hidden=0)
    x = torch.rand(1, *shape, generator=generator, dtype=torch.float64)
    w = model[1].weight[0] - model[1].weight[1]
    with torch.no_grad():
        logits = model(x)[0]
    return model, x, ((logits[0] - logits[1]) / w.norm()).detach()


def near_boundary(seed: int, sigma: float, p: float) -> tuple[nn.Sequential, Tensor]:
    """A linear classifier that says class 0 of x under noise with probability p, and x."""
    model, x, distance = linear(seed)
    w = model[1].weight[0] - model[1].weight[1]
    model[1].bias.data[0] += (sigma * norm.ppf(p) - distance) * w.norm()
    return model, x


# ----------------------------------------------------------------------------------------------------- from counts to p


@cases(60)
@given(st.integers(1, 2000), st.floats(0, 1), st.floats(1e-6, 0.9))
def test_the_lower_bound_is_where_the_binomial_tail_is_alpha(n, share, alpha):
    hits = round(share * n)
    got = lower_bound(hits, n, alpha).item()
    if hits == 0:
        assert got == 0
        return
    inverted = brentq(lambda p: binom.sf(hits - 1, n, p) - alpha, 0, 1, xtol=1e-14)
    assert got == pytest.approx(inverted, abs=1e-9)
    theirs = binomtest(hits, n, alternative="greater").proportion_ci(1 - alpha, "exact").low
    assert got == pytest.approx(theirs, abs=1e-9)
    assert alpha > 0.5 or got <= hits / n


def test_all_hits_give_the_cap():
    for n, alpha in [(10, 0.001), (1000, 0.001), (10_000, 0.05)]:
        assert lower_bound(n, n, alpha).item() == pytest.approx(alpha ** (1 / n), rel=1e-12)
    cap = certified_radius(lower_bound(1000, 1000, 0.001), 1.0).item()
    assert cap == pytest.approx(2.4625, abs=1e-3)  # as everyone computes it for n = 1,000


def test_the_lower_bound_takes_counts_of_any_shape():
    counts = torch.tensor([[0, 5], [9, 10]])
    one_by_one = torch.stack([lower_bound(int(k), 10, 0.1) for k in counts.flatten()]).view(2, 2)
    assert torch.equal(lower_bound(counts, 10, 0.1), one_by_one)


@cases(20)
@given(st.floats(0.3, 0.99), st.sampled_from([20, 100, 1000]), st.sampled_from([0.02, 0.1, 0.3]), SEEDS)
def test_the_lower_bound_is_above_the_truth_at_most_as_often_as_it_says(p, n, alpha, seed):
    hits = np.random.default_rng(seed).binomial(n, p, 4000)
    above = int((lower_bound(torch.from_numpy(hits), n, alpha) > p).sum())
    assert binomtest(above, 4000, alpha, alternative="greater").pvalue > 1e-6


def test_it_is_not_needlessly_cautious():
    hits = np.random.default_rng(0).binomial(1000, 0.8, 20_000)
    above = (lower_bound(torch.from_numpy(hits), 1000, 0.1) > 0.8).double().mean().item()
    assert 0.08 < above <= 0.105  # the counts are whole numbers, so a little below alpha


@cases(50)
@given(st.floats(0.5, 0.999999), st.floats(0.01, 5))
def test_the_radius_is_the_published_formula(p, sigma):
    assert certified_radius(torch.tensor(p), sigma).item() == pytest.approx(
        sigma * norm.ppf(float(torch.tensor(p))), abs=1e-6
    )


def test_no_radius_at_one_half_or_below():
    assert certified_radius(torch.tensor([0.0, 0.3, 0.5]), 1.0).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------- the linear classifier, all known


@cases(30)
@given(SEEDS, st.floats(0.05, 2))
def test_of_a_linear_classifier_the_radius_is_the_distance_to_its_boundary(seed, sigma):
    _, _, distance = linear(seed)
    z = distance.abs() / sigma
    p = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    if z < 5:  # beyond, p rounds towards 1
        assert certified_radius(p, sigma).item() == pytest.approx(distance.abs().item(), rel=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_the_noise_hits_a_linear_classifier_as_often_as_the_formula_says(sigma):
    model, x = near_boundary(1, sigma, 0.8)
    hits = [int(certify(model, x, sigma, n0=50, n=2000, seed=seed).hits) for seed in range(10)]
    assert binomtest(sum(hits), 20_000, 0.8).pvalue > 1e-4


def test_the_certified_radius_is_above_the_true_one_at_most_as_often_as_alpha():
    sigma, alpha, runs = 0.3, 0.1, 400
    model, x = near_boundary(2, sigma, 0.75)
    truth = sigma * norm.ppf(0.75)
    found = [certify(model, x, sigma, n0=20, n=100, alpha=alpha, seed=seed) for seed in range(runs)]
    false = sum(bool(c.label[0] != -1 and (c.label[0] != 0 or c.radius[0] > truth)) for c in found)
    assert binomtest(false, runs, alpha, alternative="greater").pvalue > 1e-4
    assert false > 0.03 * runs  # and alpha is nearly used up: the test could see more


def test_the_same_draws_for_both_stages_break_the_promise(monkeypatch):
    # Ten classes that are equally likely: a class chosen for its luck looks more likely than it is.
    x = torch.full((1, 10, 1, 1), 0.5, dtype=torch.float64)
    truth, alpha, runs = 0.1, 0.1, 200

    def false(runs: int) -> int:
        hits = [int(certify(nn.Flatten(), x, 0.2, n0=100, n=100, alpha=alpha, seed=s).hits) for s in range(runs)]
        return sum(lower_bound(h, 100, alpha).item() > truth for h in hits)

    assert binomtest(false(runs), runs, alpha, alternative="greater").pvalue > 1e-4
    monkeypatch.setattr(smoothing, "ESTIMATE", smoothing.SELECT)
    assert false(runs) > 0.4 * runs


def test_the_label_is_that_of_the_ball_and_no_attack_of_the_linear_model_gets_into_it():
    for seed in range(20):
        model, x, distance = linear(seed)
        c = certify(model, x, 0.3, n=500, seed=seed)
        if c.label[0] != -1:
            assert c.label[0] == int(distance < 0) and c.radius[0] <= distance.abs() + 1e-9


# --------------------------------------------------------------------------------------------- draws, seeds and memory


def model_and_images(dtype: torch.dtype = torch.float32, n: int = 4) -> tuple[nn.Sequential, Tensor]:
    return random_network((2, 5, 5), 3, dtype, rng(0)), random_images(n, (2, 5, 5), dtype, rng(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_memory_changes_nothing(monkeypatch, dtype):
    monkeypatch.setattr(smoothing, "BLOCK", 2**9)
    model, x = model_and_images(dtype)
    sizes = []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    results, largest = [], []
    for memory in (0.005, 0.01, 0.05, 1):
        sizes.clear()
        results.append(certify(model, x, 0.4, n=700, memory=memory))
        results[-1] = (results[-1], predict(model, x, 0.4, n=700, memory=memory))
        largest.append(max(sizes))
        assert largest[-1] * x[0].numel() * x.element_size() <= memory * 2**20
    assert len(set(largest)) >= 3 and largest[-1] == 700
    for c, said in results[1:]:
        assert torch.equal(c.hits, results[0][0].hits) and torch.equal(c.label, results[0][0].label)
        assert torch.equal(said, results[0][1])


def test_the_seed_decides_and_more_draws_begin_with_the_same_ones():
    model, x = model_and_images()
    a, b, c = (certify(model, x, 0.4, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.hits, b.hits) and not torch.equal(a.hits, c.hits)
    fewer = torch.cat(list(smoothing._blocks(x[0], 70, 3, 0, 0)))
    more = torch.cat(list(smoothing._blocks(x[0], 3000, 3, 0, 0)))
    assert torch.equal(fewer, more[:70]) and len(more) == 3000


def test_every_stage_image_and_block_has_noise_of_its_own():
    image = torch.zeros(2, 5, 5)
    drawn = [
        torch.cat(list(smoothing._blocks(image, 1400, *where)))
        for where in [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 3, 0), (0, 0, 1), (1, 0, 0)]
    ]
    blocks = torch.cat([d.flatten(1) for d in drawn])
    assert len(blocks.unique(dim=0)) == len(blocks)
    assert abs(blocks.mean()) < 0.01 and abs(blocks.std() - 1) < 0.01


def test_an_image_keeps_its_draws_whatever_comes_after_it():
    model, x = model_and_images()
    assert torch.equal(certify(model, x, 0.4).hits[:2], certify(model, x[:2], 0.4).hits)


def test_the_global_random_state_and_the_model_stay_as_they_were():
    model = probe()
    before, state, x = snapshot(model), torch.get_rng_state(), torch.rand(2, 1, 4, 4, generator=rng(5))
    for function in (certify, predict):
        function(model, x, 0.3, n=50)
        assert same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.modes == {(False,) * len(list(model.modules()))}
    model.raise_at = model.calls + 4
    with pytest.raises(RuntimeError, match="broken pipe"):
        certify(model, x, 0.3, n=50)
    assert same(snapshot(model), before)


def test_the_noise_is_not_clipped_and_has_the_stated_spread():
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return x.flatten(1)

    certify(model, torch.ones(1, 1, 4, 4), 0.5, n=1000)
    noise = torch.cat(seen[-1:]) - 1
    assert noise.max() > 1 and abs(noise.std() - 0.5) < 0.02 and abs(noise.mean()) < 0.02


def test_a_normalized_model_is_called_behind_its_check_of_the_pixels():
    inner, x = model_and_images()
    model = NormalizedModel(inner, (0.4, 0.6), (0.2, 0.3))
    plain = nn.Sequential(model.normalize, inner)
    assert torch.equal(certify(model, x, 0.3).hits, certify(plain, x, 0.3).hits)
    assert torch.equal(predict(model, x, 0.3), predict(plain, x, 0.3))
    assert torch.equal(Smoothed(model, 0.3)(x), Smoothed(plain, 0.3)(x))
    with pytest.raises(ValueError, match=r"x must have shape \(N, 2, H, W\)"):
        certify(model, x[:, :1], 0.3)


def test_probabilities_are_as_good_as_logits_for_a_vote():
    model, x = model_and_images()
    softened = nn.Sequential(model, nn.Softmax(1))
    assert torch.equal(certify(model, x, 0.4).hits, certify(softened, x, 0.4).hits)
    assert torch.equal(predict(model, x, 0.4), predict(softened, x, 0.4))


def test_one_call_by_hand():
    model, x = model_and_images()
    c = certify(model, x, 0.4, n0=60, n=500, alpha=0.01, seed=7)
    for i, image in enumerate(x):
        votes = [
            model(image + 0.4 * torch.cat(list(smoothing._blocks(image, n, 7, stage, i)))).argmax(1)
            for stage, n in ((0, 60), (1, 500))
        ]
        chosen = votes[0].bincount(minlength=3).argmax()
        hits = int((votes[1] == chosen).sum())
        low = binomtest(hits, 500, alternative="greater").proportion_ci(0.98 + 0.01, "exact").low
        assert c.hits[i] == hits
        assert c.label[i] == (chosen if low > 0.5 else -1)
        assert c.radius[i].item() == pytest.approx(0.4 * norm.ppf(low) if low > 0.5 else 0, abs=1e-12)
    assert (c.n, c.sigma, c.alpha) == (500, 0.4, 0.01)
    assert c.label.dtype == c.hits.dtype == torch.int64 and c.radius.dtype == torch.float64


def test_what_is_proved_and_what_is_not():
    c = smoothing.Certificates(
        torch.tensor([2, 2, -1]), torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([9, 9, 5]), 10, 1.0, 0.1
    )
    y = torch.tensor([2, 1, 2])
    assert c.proves(y, 0).tolist() == [True, False, False]
    assert c.proves(y, 0.5).tolist() == [False, False, False]  # the ball is open
    with pytest.raises(ValueError, match="eps must be in"):
        c.proves(y, -0.1)
    with pytest.raises(ValueError, match=r"y must have shape \(3,\)"):
        c.proves(y[:2], 0.1)


# ------------------------------------------------------------------------------------------------------------- predict


def test_predict_abstains_where_two_classes_share_the_votes_and_not_where_one_wins():
    even, x = near_boundary(3, 0.3, 0.5)
    clear, x_clear = near_boundary(3, 0.3, 0.7)
    assert [int(predict(even, x, 0.3, seed=s)) for s in range(20)].count(-1) >= 19
    assert [int(predict(clear, x_clear, 0.3, seed=s)) for s in range(20)] == [0] * 20


def test_predict_is_wrong_at_most_as_often_as_alpha():
    model, x = near_boundary(4, 0.3, 0.52)
    said = [int(predict(model, x, 0.3, n=100, alpha=0.2, seed=s)) for s in range(300)]
    assert binomtest(said.count(1), 300, 0.2, alternative="greater").pvalue > 1e-3
    assert said.count(0) > said.count(1)


# ------------------------------------------------------------------------------------------------------------ Smoothed


def test_smoothed_is_the_log_of_the_mean_probability():
    model, x = model_and_images(torch.float64)
    smoothed = Smoothed(model, 0.4, draws=30, seed=5)
    noise = torch.cat(list(smoothing._blocks(x[0], 30, 5, smoothing.ATTACK, 0)))
    by_hand = torch.stack([F.softmax(model(x + 0.4 * z), 1) for z in noise]).mean(0).log()
    assert torch.allclose(smoothed(x), by_hand)
    assert torch.allclose(smoothed(x).exp().sum(1), torch.ones(4, dtype=torch.float64))
    assert torch.equal(smoothed(x)[2:], smoothed(x[2:]))  # the same draws for all images


def test_smoothed_keeps_a_gradient_where_every_draw_is_sure():
    model, x = model_and_images()
    model[-1].weight.data *= 1e4
    point = x.clone().requires_grad_()
    values = Smoothed(model, 0.01, draws=5)(point)
    assert values.isfinite().all()
    (values[:, 0] - values[:, 1]).sum().backward()
    assert point.grad.flatten(1).any(1).all()


def test_smoothed_can_be_attacked_and_its_draws_follow_the_images():
    model, x = model_and_images()
    y = model(x).argmax(1)
    smoothed = Smoothed(model, 0.2, draws=20)
    x_adv = pgd(smoothed, x, y, 2.0, norm="l2", steps=10)
    assert ((x_adv - x).flatten(1).norm(dim=1) <= 2 + 1e-5).all()
    own = smoothed(x_adv).gather(1, y[:, None])
    assert (own < smoothed(x).gather(1, y[:, None])).all()
    model.double()
    assert smoothed(x.double()).dtype == torch.float64


def test_no_attack_breaks_more_certificates_than_alpha_allows():
    model, x = model_and_images(n=30)
    c = certify(model, x, 0.3, n=500)
    y = c.label.clamp(min=0)
    for share in (0.5, 0.99):
        eps = (share * c.radius).float().clamp(min=1e-3)
        x_adv = pgd(Smoothed(model, 0.3), x, y, eps, norm="l2", steps=20)
        said = predict(model, x_adv, 0.3)
        assert int(((said != y) & (said != -1) & (c.label != -1)).sum()) <= 1


# ----------------------------------------------------------------------------------------------------------- bad input

MODEL, X = model_and_images()


def calls(model) -> list:
    return [lambda: certify(model, X, 0.3), lambda: predict(model, X, 0.3), lambda: Smoothed(model, 0.3)(X)]


@pytest.mark.parametrize("sigma", [0, -0.1, math.nan, math.inf, 64])
def test_sigma_must_be_a_number_above_zero_in_pixel_units(sigma):
    for call in (lambda: certify(MODEL, X, sigma), lambda: predict(MODEL, X, sigma), lambda: Smoothed(MODEL, sigma)):
        with pytest.raises(ValueError, match=r"sigma must be in \(0, 10\]"):
            call()
    with pytest.raises(TypeError, match="sigma must be a number"):
        certify(MODEL, X, "0.5")


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan])
def test_alpha_must_be_between_0_and_1(alpha):
    for function in (certify, predict):
        with pytest.raises(ValueError, match="alpha must be"):
            function(MODEL, X, 0.3, alpha=alpha)
    with pytest.raises(ValueError, match="alpha must be"):
        lower_bound(3, 10, alpha)


@pytest.mark.parametrize(("alpha", "needed"), [(0.001, 10), (0.05, 5), (0.25, 3), (0.5, 2), (0.6, 1), (1e-6, 20)])
def test_too_few_draws_to_prove_anything_say_how_many_it_takes(alpha, needed):
    if needed > 1:
        with pytest.raises(ValueError, match=f"n must be at least {needed} with alpha"):
            certify(MODEL, X, 0.3, n=needed - 1, alpha=alpha)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(50, 2))
    constant[1].weight.data.zero_()
    c = certify(constant, X, 0.3, n=needed, alpha=alpha)
    assert (c.label != -1).all() and (c.radius > 0).all()


@pytest.mark.parametrize(("alpha", "needed"), [(0.001, 11), (0.25, 3), (0.5, 2)])
def test_too_few_draws_to_decide_say_how_many_it_takes(alpha, needed):
    with pytest.raises(ValueError, match=f"n must be at least {needed} with alpha"):
        predict(MODEL, X, 0.3, n=needed - 1, alpha=alpha)
    constant = nn.Sequential(nn.Flatten(), nn.Linear(50, 2))
    constant[1].weight.data.zero_()
    assert (predict(constant, X, 0.3, n=needed, alpha=alpha) != -1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least"),
        ({"n0": 0}, "n0 must be at least"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"memory": 0}, "memory must be in"),
        ({"memory": math.nan}, "memory must be in"),
    ],
)
def test_other_numbers_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        certify(MODEL, X, 0.3, **options)


def test_memory_too_small_for_one_image_says_how_much_it_takes():
    large = torch.rand(1, 3, 224, 224)
    with pytest.raises(ValueError, match=r"memory must be in \[0.574.*at least 1 noisy image of shape \(3, 224, 224\)"):
        certify(lambda x: x.flatten(1)[:, :3], large, 0.3, memory=0.5)
    assert certify(lambda x: x.flatten(1)[:, :3], large, 0.3, n0=2, n=12, memory=0.5743).n == 12


def test_smoothed_refuses_probabilities():
    softened = nn.Sequential(MODEL, nn.Softmax(1))
    with pytest.raises(ValueError, match="it returned probabilities"):
        Smoothed(softened, 0.3)(X)


def test_a_model_that_is_random_itself_is_refused():
    class Restless(nn.Module):  # in train mode and in eval mode
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(MODEL(x), 0.5, training=True)

    for model in (Restless().train(), Restless().eval(), lambda x: MODEL(x + 0.1 * torch.randn_like(x))):
        for call in calls(model):
            with pytest.raises(ValueError, match="it is random itself"):
                call()
    dropout = nn.Sequential(MODEL, nn.Dropout(0.5)).train()
    with pytest.raises(ValueError, match="it is random itself"):
        Smoothed(dropout, 0.3)(X)
    smoothed = Smoothed(dropout.eval(), 0.3).eval()
    smoothed(X)
    with pytest.raises(ValueError, match="it is random itself"):
        smoothed.train()(X)
    assert torch.equal(certify(dropout.train(), X, 0.3).hits, certify(MODEL, X, 0.3).hits)  # in eval mode meanwhile


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X[0, 0, 0], ValueError, "x must have shape"),
        (255 * X, ValueError, "x must have values in"),
        (X.numpy(), TypeError, "x must be a floating-point tensor"),
        (X.half(), TypeError, "x must be in float32 or float64"),
        (X.double(), TypeError, "x must have the model's dtype"),
    ],
)
def test_images_are_checked(x, error, message):
    for function in (certify, predict):
        with pytest.raises(error, match=message):
            function(MODEL, x, 0.3)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("a network", TypeError, "model must be a function"),
        (lambda x: x, ValueError, "model must return logits of shape"),
        (lambda x: x.flatten(1)[:, :1], ValueError, "model must return logits of shape"),
        (lambda x: x.flatten(1).argmax(1), TypeError, "model must return a floating-point tensor"),
        (lambda x: x.flatten(1) * math.nan, ValueError, "NaN or infinite"),
    ],
)
def test_models_are_checked(model, error, message):
    for call in calls(model):
        with pytest.raises(error, match=message):
            call()


def test_counts_are_checked():
    with pytest.raises(ValueError, match="hits must be from 0 to n = 10"):
        lower_bound(11, 10, 0.1)
    with pytest.raises(TypeError, match="hits must be whole numbers"):
        lower_bound(torch.tensor([0.5]), 10, 0.1)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        Smoothed(MODEL, 0.3, draws=0)


@pytest.mark.parametrize("size", [4, 300])  # of the larger one a block holds a single draw
def test_votes_that_depend_on_the_batch_are_refused(size: int) -> None:
    x = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))

    def batchwise(images: torch.Tensor) -> torch.Tensor:  # as batch normalisation in training mode does
        scores = images.flatten(1)[:, :3]
        return scores - scores.mean(0)

    with pytest.raises(ValueError, match="whatever else is in its batch"):
        smoothing.certify(batchwise, x, 0.3, n0=10, n=20)


def test_streams_do_not_meet_again_where_only_32_bits_of_a_seed_would_count() -> None:
    one = torch.zeros(64)
    first = next(iter(smoothing._blocks(one, 1, 5, smoothing.ESTIMATE, 0)))
    second = next(iter(smoothing._blocks(one, 1, 5 + 2**32, smoothing.ESTIMATE, 0)))
    assert not torch.equal(first, second)
