"""The attacks, tested as mathematics: what must hold for any image, set, loss and model, and what is known exactly."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import PROBE_X, PROBE_Y, SEEDS, cases, probe, random_images, random_network, rng, same, snapshot
from scipy.stats import kstest
from torch import Tensor, nn
from torch.utils.data import DataLoader

from helpers.attacks import LOSSES, AttackWarning, Iterate, cross_entropy, difference, fgsm, margin, pgd, soft_margin
from helpers.data import digits, photograph
from helpers.models import class_index, digit_network, load_classifier
from helpers.perturbations import L2, Linf, perturbation_set
from helpers.risk import risk
from helpers.training import train

torch.set_num_threads(1)  # the networks here are tiny, and sums in a fixed order make every run the same


SHAPES = st.sampled_from([(1,), (2,), (7,), (30,), (1, 3, 3), (3, 4, 4), (2, 5)])
DTYPES = st.sampled_from([torch.float32, torch.float64])
NORMS = st.sampled_from(["linf", "l2"])


def last_logit(logits: Tensor, y: Tensor) -> Tensor:
    """A loss that cares little about who is fooled, so that the two wishes of `pgd` part ways."""
    return logits[:, -1]


@dataclass
class Problem:
    model: nn.Sequential
    x: Tensor
    y: Tensor
    eps: float
    options: dict
    seed: int

    def attack(self, **changes) -> Tensor:
        return pgd(self.model, self.x, self.y, self.eps, generator=rng(self.seed), **{**self.options, **changes})

    def of(self, rows: Tensor) -> "Problem":
        """Return the same problem for some of the examples."""
        target = self.options["target"]
        options = {**self.options, "target": None if target is None else target[rows]}
        return Problem(self.model, self.x[rows], self.y[rows], self.eps, options, self.seed)

    def judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the attack wants, computed without its code: fooled (N,) and loss (N,)."""
        with torch.no_grad():
            logits = self.model(images)
        target, loss = self.options["target"], self.options["loss"]
        guess = logits.argmax(1)
        if loss == "difference":
            return guess == target, difference(logits, self.y, target)
        loss = loss if callable(loss) else LOSSES[loss]
        if target is None:
            return guess != self.y, loss(logits, self.y)
        return guess == target, -loss(logits, target)


@st.composite
def problems(draw) -> Problem:
    """Draw a random attack on a random small model: every option of `pgd` is varied."""
    seed, shape, dtype, norm = draw(SEEDS), draw(SHAPES), draw(DTYPES), draw(NORMS)
    generator, n, classes = rng(seed), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    model = random_network(shape, classes, dtype, generator, draw(st.sampled_from([0, 5])))
    model[-1].weight.data *= draw(st.sampled_from([1e-3, 1.0, 1e4]))  # also under- and over-confident models
    widest = 1.0 if norm == "linf" else math.sqrt(math.prod(shape))
    eps = draw(st.one_of(st.sampled_from([0.0, 2 / 255, 1.0, widest]), st.floats(0, 1))) if widest >= 1 else 0.0
    step_size = draw(st.one_of(st.none(), st.sampled_from([1e-6, widest, "auto"]), st.floats(1e-4, 1.0)))
    y = torch.randint(classes, (n,), generator=generator)
    target = (y + 1 + torch.randint(classes - 1, (n,), generator=generator)) % classes if draw(st.booleans()) else None
    losses = ["soft_margin", "cross_entropy", "margin", last_logit, *(["difference"] if target is not None else [])]
    options = {
        "norm": norm,
        "step_size": step_size,
        "target": target,
        "loss": draw(st.sampled_from(losses)),
        "steps": draw(st.integers(1, 5)),
        "random_start": draw(st.booleans()),
        "restarts": draw(st.integers(1, 3)),
        "keep": draw(st.sampled_from(["best", "first"])),
    }
    return Problem(model, random_images(n, shape, dtype, generator), y, eps, options, seed)


def no_worse(fooled: Tensor, loss: Tensor, fooled_before: Tensor, loss_before: Tensor) -> bool:
    """Is each example at least as good as before: fooled first, then the loss?"""
    better = (fooled & ~fooled_before) | ((fooled == fooled_before) & (loss >= loss_before))
    return bool(better.all())


def lengths(delta: Tensor) -> Tensor:
    return delta.flatten(1).double().norm(dim=1)


def assert_in_set(x_adv: Tensor, x: Tensor, norm: str, eps: float) -> None:
    """The box holds exactly; the norm up to the rounding of x + delta, half a unit in the last place of a pixel."""
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    ulp = torch.finfo(x.dtype).eps
    delta = x_adv.double() - x.double()
    if norm == "linf":
        assert delta.abs().max() <= eps * (1 + ulp) + ulp
    else:
        assert lengths(delta).max() <= eps * (1 + 8 * ulp) + ulp * math.sqrt(x[0].numel())


# ------------------------------------------------------------------------------------------ for any problem whatever


@cases(250)
@given(problems())
def test_result_is_in_the_box_and_in_the_norm_ball(problem):
    assert_in_set(problem.attack(), problem.x, problem.options["norm"], problem.eps)


@cases(100)
@given(problems())
def test_every_point_of_the_path_is_in_the_set_and_judged_correctly(problem):
    trace: list[Iterate] = []
    problem.attack(trace=trace, keep="best")
    steps = problem.options["steps"]
    restarts = 1 + trace[-1].restart
    assert [(now.restart, now.step) for now in trace] == [(r, s) for r in range(restarts) for s in range(steps + 1)]
    taken_part = torch.stack([(now.rows == 0).any() for now in trace])  # a path is walked to its end,
    assert taken_part.view(restarts, -1).all(1).tolist() == taken_part.view(restarts, -1).any(1).tolist()
    for now in trace:
        x = problem.x[now.rows]
        assert_in_set(x + now.delta, x, problem.options["norm"], problem.eps)
        fooled, loss = problem.of(now.rows).judge(x + now.delta)
        assert torch.equal(now.fooled, fooled)
        assert torch.equal(now.loss, loss)
        assert not any(tensor.requires_grad for tensor in now[2:])


@cases(100)
@given(problems())
def test_best_iterate_of_each_example_is_the_best_of_the_trace(problem):
    trace: list[Iterate] = []
    fooled, loss = problem.judge(problem.attack(trace=trace))
    for i in range(len(problem.x)):
        seen = [(now, int((now.rows == i).nonzero())) for now in trace if (now.rows == i).any()]
        best = max((bool(now.fooled[row]), float(now.loss[row])) for now, row in seen)
        # Judged here in another batch, which may round differently.
        assert (bool(fooled[i]), float(loss[i])) == (best[0], pytest.approx(best[1], rel=1e-5, abs=1e-6))


@cases(150)
@given(problems())
def test_never_worse_than_the_image_itself_when_the_path_starts_there(problem):
    x_adv = problem.attack(random_start=False)
    assert no_worse(*problem.judge(x_adv), *problem.judge(problem.x))


@cases(100)
@given(problems(), st.integers(1, 6))
def test_more_steps_of_the_same_size_never_give_less(problem, extra):
    step_size = problem.options["step_size"] or 0.1
    step_size = 0.1 if step_size == "auto" else step_size  # its steps depend on how many there will be
    more = problem.options["steps"] + extra
    few = problem.attack(step_size=step_size, restarts=1)
    many = problem.attack(step_size=step_size, restarts=1, steps=more)
    assert no_worse(*problem.judge(many), *problem.judge(few))
    # Who is fooled takes no part in further restarts, so with several only the count of the fooled is sure to grow.
    few, many = problem.attack(step_size=step_size), problem.attack(step_size=step_size, steps=more)
    assert (problem.judge(many)[0] >= problem.judge(few)[0]).all()


@cases(100)
@given(problems(), st.integers(1, 3))
def test_more_restarts_never_give_less(problem, extra):
    few = problem.attack()
    many = problem.attack(restarts=problem.options["restarts"] + extra)
    assert no_worse(*problem.judge(many), *problem.judge(few))


@cases(60)
@given(problems())
def test_last_iterate_is_returned_on_request(problem):
    trace: list[Iterate] = []
    x_adv = problem.attack(restarts=1, keep="last", trace=trace)
    assert torch.equal(x_adv, problem.x + trace[-1].delta)


@cases(60)
@given(problems())
def test_same_seed_gives_the_same_result_and_leaves_the_global_random_state(problem):
    before = torch.get_rng_state()
    options = {"random_start": True, "restarts": 2}
    assert torch.equal(problem.attack(**options), problem.attack(**options))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_every_restart_begins_at_a_point_of_its_own_the_first_at_the_image_unless_told_otherwise(norm, random_start):
    model = random_network((30,), 3, torch.float32, rng(0))
    x, y = torch.full((2, 30), 0.5), torch.tensor([0, 1])
    trace: list[Iterate] = []
    y = model(x).argmax(1)  # right, and not to be fooled by so little: who is fooled takes no part in further restarts
    pgd(model, x, y, 1e-3, norm=norm, steps=1, restarts=4, random_start=random_start, generator=rng(1), trace=trace)
    starts = [now.delta for now in trace if now.step == 0]
    assert bool(starts[0].any()) == random_start
    assert all((start.abs() > 0).all() for start in starts[1:])
    assert len({start.numpy().tobytes() for start in starts}) == 4
    assert not torch.equal(starts[1][0], starts[1][1])  # nor do two images share theirs


def test_seed_and_global_generator_decide_the_random_start():
    model = random_network((30,), 3, torch.float32, rng(0))
    x, y = random_images(4, (30,), torch.float32, rng(1)), torch.tensor([0, 1, 2, 0])

    def attack(generator=None):
        return pgd(model, x, y, 0.1, steps=1, step_size=1e-3, random_start=True, keep="last", generator=generator)

    assert not torch.equal(attack(rng(0)), attack(rng(1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, second = attack(), attack()
        torch.manual_seed(3)
        assert torch.equal(attack(), first)
    assert not torch.equal(first, second)


def test_without_random_start_the_global_generator_is_not_asked():
    model = random_network((30,), 3, torch.float32, rng(0))
    before = torch.get_rng_state()
    pgd(model, torch.rand(2, 30, generator=rng(1)), torch.tensor([0, 1]), 0.1, steps=3)
    assert torch.equal(torch.get_rng_state(), before)


@cases(100)
@given(problems(), st.integers(1, 3))
def test_same_seed_gives_the_same_result_however_the_batch_is_split(problem, size):
    problem.model.double()
    problem.x = problem.x.double()
    options = {"random_start": True, "restarts": 3}
    whole, generator, parts = problem.attack(**options), rng(problem.seed), []
    for rows in torch.arange(len(problem.x)).split(size):
        part = problem.of(rows)
        parts.append(pgd(part.model, part.x, part.y, part.eps, generator=generator, **{**part.options, **options}))
    (fooled, loss), (fooled_in_parts, loss_in_parts) = problem.judge(whole), problem.judge(torch.cat(parts))
    assert torch.equal(fooled, fooled_in_parts) or loss.abs().min() < 1e-9
    torch.testing.assert_close(loss, loss_in_parts, rtol=1e-6, atol=1e-9)


@cases(100)
@given(problems())
def test_who_leaves_at_the_first_success_is_who_is_fooled_in_the_end(problem):
    problem.model.double()
    problem.x = problem.x.double()
    trace: list[Iterate] = []
    best, _ = problem.judge(problem.attack(keep="best"))
    first, _ = problem.judge(problem.attack(keep="first", trace=trace))
    assert torch.equal(best, first)
    for before, after in pairwise(trace):
        if before.restart == after.restart:  # whoever was fooled has left, and nobody else
            assert torch.equal(after.rows, before.rows[~before.fooled])


@cases(100)
@given(problems(), st.sampled_from([2.0**-7, 2.0**7]))
def test_soft_margin_takes_the_same_steps_at_any_scale_of_the_logits(problem, scale):
    # By a power of two, so that nothing is rounded differently.
    options = {"loss": "soft_margin", "restarts": 2}
    calm = problem.attack(**options)
    problem.model[-1].weight.data *= scale
    problem.model[-1].bias.data *= scale
    assert torch.equal(problem.attack(**options), calm)


@cases(60)
@given(problems())
def test_attack_in_batches_finds_what_the_whole_batch_finds(problem):
    # In double precision, so that the order in which a matrix product sums does not matter.
    problem.model.double()
    problem.x = problem.x.double()
    options = {"random_start": False, "restarts": 1}
    together = problem.judge(problem.attack(**options))
    for i in range(len(problem.x)):
        target = problem.options["target"]
        alone = Problem(
            problem.model,
            problem.x[i : i + 1],
            problem.y[i : i + 1],
            problem.eps,
            {**problem.options, **options, "target": None if target is None else target[i : i + 1]},
            problem.seed,
        )
        fooled, loss = alone.judge(alone.attack())
        # In a dead heat rounding decides who wins; that is no difference in strength.
        assert bool(fooled) == bool(together[0][i]) or together[1].abs().min() < 1e-9
        torch.testing.assert_close(loss[0], together[1][i], rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------------------------- an eps for each example


@cases(150)
@given(problems(), SEEDS)
def test_an_eps_for_each_example_gives_what_a_loop_over_the_examples_gives(problem, seed):
    # In double precision, so that the order in which a matrix product sums does not matter.
    problem.model.double()
    problem.x = problem.x.double()
    eps = problem.eps * torch.rand(len(problem.x), generator=rng(seed), dtype=torch.float64)
    problem.options["random_start"] = True
    together, generator, alone = replace(problem, eps=eps).attack(), rng(problem.seed), []
    for i in range(len(problem.x)):
        part = problem.of(torch.tensor([i]))
        alone.append(pgd(part.model, part.x, part.y, float(eps[i]), generator=generator, **part.options))
        assert_in_set(together[i : i + 1], part.x, problem.options["norm"], float(eps[i]))
    (fooled, loss), (fooled_alone, loss_alone) = problem.judge(together), problem.judge(torch.cat(alone))
    assert torch.equal(fooled, fooled_alone) or loss.abs().min() < 1e-9
    torch.testing.assert_close(loss, loss_alone, rtol=1e-6, atol=1e-9)


@cases(80)
@given(problems())
def test_the_same_eps_for_each_example_is_that_eps(problem):
    options = {"random_start": True, "restarts": 2}
    eps = torch.full((len(problem.x),), problem.eps, dtype=problem.x.dtype)
    (fooled, loss), (fooled_one, loss_one) = (
        problem.judge(replace(problem, eps=each).attack(**options)) for each in (eps, problem.eps)
    )
    if problem.x.dtype == torch.float64 or problem.options["step_size"] is not None:  # else a step is rounded once more
        assert torch.equal(fooled, fooled_one)
        torch.testing.assert_close(loss, loss_one, rtol=1e-6, atol=1e-9)


def test_an_eps_for_each_example_stays_with_its_example_when_others_leave():
    model = random_network((30,), 3, torch.float64, rng(0))
    x, eps = random_images(40, (30,), torch.float64, rng(1)), torch.linspace(0, 0.3, 40)
    with torch.no_grad():
        y = model(x).argmax(1)
    for options in ({}, {"step_size": "auto"}, {"norm": "l2", "restarts": 3}):
        options = {**options, "keep": "first", "generator": rng(2)}
        x_adv = pgd(model, x, y, eps, **options)
        alone = torch.cat([pgd(model, x[i : i + 1], y[i : i + 1], float(e), **options) for i, e in enumerate(eps)])
        size = (x_adv - x).abs().amax(1) if options.get("norm") != "l2" else lengths(x_adv - x)
        assert (size <= eps + 1e-6).all()
        fooled = model(x_adv).argmax(1) != y
        assert 5 < int(fooled.sum()) < 35 and not torch.equal(fooled, fooled.sort().values)
        if "restarts" not in options:  # without random numbers the two are the same
            torch.testing.assert_close(x_adv, alone, rtol=0, atol=1e-6)


def test_fgsm_takes_an_eps_for_each_example():
    model = random_network((30,), 3, torch.float32, rng(0))
    x, y, eps = random_images(3, (30,), torch.float32, rng(1)), torch.tensor([0, 1, 2]), torch.tensor([0.0, 0.1, 1.0])
    expected = torch.cat([fgsm(model, x[i : i + 1], y[i : i + 1], float(eps[i])) for i in range(3)])
    torch.testing.assert_close(fgsm(model, x, y, eps), expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- the perturbation sets


def nearest_in_l2(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return the projection onto the ball and the box, by bisection in double precision, one image at a time.

    The nearest point is clip(delta / (1 + lam)) for the smallest lam >= 0 that brings the length down to eps.
    """
    result = []
    for d, image in zip(delta.double(), x.double(), strict=True):
        low, high = 0.0, 1.0  # of the scale 1 / (1 + lam)
        if d.clamp(-image, 1 - image).norm() > eps:
            for _ in range(200):
                middle = (low + high) / 2
                low, high = (low, middle) if (middle * d).clamp(-image, 1 - image).norm() > eps else (middle, high)
        else:
            low = 1.0
        result.append((low * d).clamp(-image, 1 - image))
    return torch.stack(result)


@st.composite
def points(draw) -> tuple[Tensor, Tensor, float]:
    """Draw images, perturbations from tiny to huge, and an eps that often binds together with the box."""
    generator, shape, dtype = rng(draw(SEEDS)), draw(SHAPES), draw(DTYPES)
    x = random_images(draw(st.integers(1, 4)), shape, dtype, generator)
    size = draw(st.sampled_from([1e-4, 0.1, 1.0, 100.0]))
    delta = size * torch.randn(x.shape, generator=generator, dtype=dtype)
    return delta, x, draw(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(1e-4, 1)))


@cases(200)
@given(points())
def test_l2_projection_is_the_nearest_point_that_bisection_finds(case):
    delta, x, eps = case
    tolerance = 1e-5 if x.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        L2(eps).project(delta, x).double(), nearest_in_l2(delta, x, eps), rtol=tolerance, atol=tolerance
    )


@cases(100)
@given(points(), NORMS, SEEDS)
def test_no_other_point_of_the_set_is_nearer_than_the_projection(case, norm, seed):
    # The nearest point p of a convex set is the one with <delta - p, q - p> <= 0 for every q in the set.
    delta, x, eps = (t.double() if isinstance(t, Tensor) else t for t in case)
    allowed = perturbation_set(norm, eps)
    p = allowed.project(delta, x)
    generator = rng(seed)
    for _ in range(5):
        q = allowed.random(x, generator)
        inner = ((delta - p) * (q - p)).flatten(1).sum(1)
        assert (inner <= 1e-9 * (1 + lengths(delta))).all()


@cases(150)
@given(points(), NORMS)
def test_projection_lands_in_the_set_and_projecting_again_changes_nothing(case, norm):
    delta, x, eps = case
    allowed = perturbation_set(norm, eps)
    once = allowed.project(delta, x)
    assert_in_set(x + once, x, norm, eps)
    tolerance = 1e-6 if x.dtype == torch.float32 else 1e-14
    torch.testing.assert_close(allowed.project(once, x), once, rtol=tolerance, atol=tolerance)


@cases(60)
@given(points())
def test_linf_projection_clips_each_pixel_to_its_own_interval(case):
    delta, x, eps = case
    low, high = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)
    assert torch.equal(Linf(eps).project(delta, x), torch.minimum(torch.maximum(delta, low), high))


def test_box_wins_where_an_image_oversteps_it_by_rounding():
    x = torch.tensor([[1 + 1e-6, -1e-6, 0.5]])
    for norm in ("linf", "l2"):
        x_adv = pgd(random_network((3,), 2, torch.float32, rng(0)), x, torch.tensor([0]), 0.0, norm=norm, steps=2)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


@cases(80)
@given(points(), NORMS, SEEDS)
def test_random_perturbation_is_in_the_set(case, norm, seed):
    _, x, eps = case
    delta = perturbation_set(norm, eps).random(x, rng(seed))
    ulp = torch.finfo(x.dtype).eps
    assert delta.shape == x.shape
    assert delta.dtype == x.dtype
    assert (x + delta).min() >= -ulp
    assert (x + delta).max() <= 1 + ulp
    size = delta.abs().max() if norm == "linf" else lengths(delta).max()
    assert size <= eps * (1 + 8 * ulp)


@cases(60)
@given(points(), NORMS, SEEDS)
def test_a_set_with_an_eps_for_each_example_is_a_set_for_each(case, norm, seed):
    delta, x, eps = case
    budgets = eps * torch.rand(len(x), generator=rng(seed))
    whole = perturbation_set(norm, budgets)
    results = whole.project(delta, x), whole.around(x)(delta), whole.random(x, torch.arange(len(x)))
    for i, budget in enumerate(budgets):
        row = torch.tensor([i])
        one = perturbation_set(norm, float(budget))
        parts = one.project(delta[row], x[row]), one.around(x[row])(delta[row]), one.random(x[row], row)
        for result, part in zip(results, parts, strict=True):
            torch.testing.assert_close(result[row], part, rtol=1e-5, atol=1e-6)
        assert torch.equal(whole.of(row).eps, budgets[row])
        assert one.of(row) is one


def test_linf_random_is_uniform_on_each_pixels_own_interval():
    x = torch.tensor([[0.0, 0.05, 0.5, 1.0]], dtype=torch.float64).repeat(5000, 1)
    delta = Linf(0.1).random(x, rng(0))
    for i, (low, high) in enumerate([(0, 0.1), (-0.05, 0.1), (-0.1, 0.1), (-0.1, 0)]):
        assert kstest(delta[:, i], "uniform", args=(low, high - low)).pvalue > 1e-3
    assert torch.corrcoef(delta.T).triu(1).abs().max() < 0.05  # and each pixel on its own


def test_l2_random_is_uniform_on_the_ball_where_the_box_is_far():
    x = torch.full((5000, 3), 0.5, dtype=torch.float64)
    delta = L2(0.3).random(x, rng(0))
    # A ball of radius r holds the share (r / eps)^3 of the volume; by Archimedes each coordinate of the direction
    # is uniform on [-1, 1] in three dimensions.
    assert kstest((lengths(delta) / 0.3) ** 3, "uniform").pvalue > 1e-3
    for coordinate in (delta / delta.norm(dim=1, keepdim=True)).T:
        assert kstest(coordinate, "uniform", args=(-1, 2)).pvalue > 1e-3


@cases(100)
@given(SEEDS, SHAPES, DTYPES, st.sampled_from([1e-30, 1e-6, 1.0, 1e30]))
def test_steepest_direction_attains_the_dual_norm(seed, shape, dtype, size):
    grad = size * torch.randn(3, *shape, generator=rng(seed), dtype=dtype)
    flat = grad.double().flatten(1)
    for allowed, dual in ((Linf(0.5), flat.abs().sum(1)), (L2(0.5), flat.norm(dim=1))):
        v = allowed.steepest(grad)
        length = v.double().abs().flatten(1).amax(1) if isinstance(allowed, Linf) else lengths(v)
        torch.testing.assert_close(length, torch.ones_like(length), rtol=1e-5, atol=0)
        torch.testing.assert_close((v.double() * grad.double()).flatten(1).sum(1), dual, rtol=1e-5, atol=0)


def test_steepest_direction_of_a_zero_gradient_is_zero_and_of_its_neighbours_is_not():
    grad = torch.stack([torch.zeros(4), torch.ones(4)])
    for allowed in (Linf(0.5), L2(0.5)):
        v = allowed.steepest(grad)
        assert torch.equal(v[0], torch.zeros(4))
        assert v[1].norm() >= 1


# ---------------------------------------------------------------------------------------------------------- the losses


@cases(150)
@given(SEEDS, st.integers(1, 5), st.integers(2, 10), DTYPES, st.sampled_from([0.1, 1.0, 30.0, 1e4]))
def test_cross_entropy_value_is_that_of_torch(seed, n, classes, dtype, scale):
    generator = rng(seed)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=dtype)
    y = torch.randint(classes, (n,), generator=generator)
    assert torch.equal(cross_entropy(logits, y), F.cross_entropy(logits, y, reduction="none"))


@cases(150)
@given(SEEDS, st.integers(2, 10), DTYPES, st.one_of(st.sampled_from([9.9, 0.0]), st.floats(-50, 9.9)))
def test_cross_entropy_gradient_is_that_of_autograd_where_the_lead_is_at_most_ten(seed, classes, dtype, lead):
    generator = rng(seed)
    logits = 3 * torch.randn(3, classes, generator=generator, dtype=dtype)
    y = torch.randint(classes, (3,), generator=generator)
    rows = torch.arange(3)
    logits[rows, y] += margin(logits, y) + torch.tensor([lead, lead, 1e3], dtype=dtype)  # the last is no one's business
    ours = torch.autograd.grad(cross_entropy(logits.requires_grad_(), y).sum(), logits)[0]
    plain = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)[0]
    torch.testing.assert_close(ours[:2], plain[:2], rtol=1e-6, atol=0)


@pytest.mark.parametrize("lead", [1e2, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_gradient_lives_where_the_plain_one_is_dead(lead, dtype):
    logits = torch.tensor([[lead, 0, -1], [0.2, 0.1, 0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 0])
    ours = torch.autograd.grad(cross_entropy(logits, y).sum(), logits)[0]
    assert ours[0, 0] < 0  # up goes the loss when the label's logit goes down,
    assert ours[0, 1] > 0  # and when the runner-up's goes up
    assert ours[0].abs().max() > 1e-5 / lead
    if lead >= 1e3:
        plain = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)[0]
        assert not plain[0].any()


@cases(80)
@given(SEEDS, st.integers(2, 6))
def test_margin_is_the_best_other_logit_minus_the_labels_own(seed, classes):
    logits = torch.randn(4, classes, generator=rng(seed))
    y = torch.randint(classes, (4,), generator=rng(seed))
    value = margin(logits, y)
    for i in range(4):
        others = [float(logits[i, k]) for k in range(classes) if k != y[i]]
        assert float(value[i]) == pytest.approx(max(others) - float(logits[i, y[i]]), abs=1e-6)
    assert torch.equal(value > 0, logits.argmax(1) != y)


@cases(100)
@given(SEEDS, st.integers(2, 10), st.sampled_from([1e-3, 1.0, 1e3]))
def test_soft_margin_is_the_margin_up_to_its_temperature(seed, classes, scale):
    logits = scale * torch.randn(5, classes, generator=rng(seed), dtype=torch.float64)
    y = torch.randint(classes, (5,), generator=rng(seed))
    temperature = (logits.amax(1) - logits.mean(1)) / 10
    above = (soft_margin(logits, y) - margin(logits, y)) / temperature
    assert (above >= -1e-9).all()
    assert (above <= math.log(classes - 1) + 1e-9).all()


def test_soft_margin_of_equal_logits_is_a_number_with_a_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    value = soft_margin(logits, torch.tensor([0, 2]))
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_margin_of_a_tie_is_zero():
    assert margin(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([0])) == 0


@cases(100)
@given(SEEDS, st.integers(2, 10), st.sampled_from([0.1, 1.0, 30.0]))
def test_difference_is_the_loss_at_the_label_minus_the_loss_at_the_target(seed, classes, scale):
    generator = rng(seed)
    logits = scale * torch.randn(5, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (5,), generator=generator)
    target = (y + 1 + torch.randint(classes - 1, (5,), generator=generator)) % classes
    expected = F.cross_entropy(logits, y, reduction="none") - F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(difference(logits, y, target), expected)


# ------------------------------------------------------------ linear models, where the worst case is known exactly


def best_on_linear(w: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """Return the maximum of <w, delta> over Delta(x) for each image, in double precision.

    l-inf: each pixel goes as far as it may in its own direction. l2: delta = clip(t w) to the box, with t as large as
    the length allows (water-filling), found by bisection.
    """
    w, x = w.double().expand_as(x), x.double()
    wall = torch.where(w > 0, 1 - x, -x)  # how far a pixel can go in its own direction
    if norm == "linf":
        return (w * wall.clamp(-eps, eps)).flatten(1).sum(1)
    value = []
    for wi, walls in zip(w, wall, strict=True):
        low, high = 0.0, 1e9
        for _ in range(300):
            t = (low + high) / 2
            low, high = (low, t) if torch.minimum((t * wi).abs(), walls.abs()).norm() > eps else (t, high)
        value.append((wi * torch.minimum((low * wi).abs(), walls.abs()) * wi.sign()).sum())
    return torch.stack(value)


def guaranteed_gap(w: Tensor, eps: float, step_size: float, steps: int) -> float:
    """Return how far from the optimum of a linear function projected gradient ascent may be at most.

    The textbook bound: squared distance from the start to the optimum, at most (2 eps)^2, times the length of the
    gradient, over 2 * step_size * steps. It holds only if the projection is to the nearest point of the set.
    """
    return float((2 * eps) ** 2 * w.norm() / (2 * step_size * steps))


@cases(100)
@given(SEEDS, SHAPES, DTYPES, NORMS, st.floats(0.01, 1), st.booleans(), st.sampled_from(["cross_entropy", "margin"]))
def test_linear_two_class_optimum_is_reached_with_the_box(seed, shape, dtype, norm, eps, random_start, loss):
    generator = rng(seed)
    model = random_network(shape, 2, dtype, generator, hidden=0)
    x, y = random_images(3, shape, dtype, generator), torch.tensor([0, 1, 0])
    w = (model[1].weight[1] - model[1].weight[0]).detach().view(1, *shape)
    best = torch.where(y == 0, best_on_linear(w, x, norm, eps), best_on_linear(-w, x, norm, eps))
    with torch.no_grad():
        exact = margin(model(x), y) + best
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    if norm == "linf":
        steps, step_size, gap = 2, 1.0, 0.0  # two steps cross the whole set
    else:
        steps, step_size = 60, math.sqrt(math.prod(shape))
        gap = guaranteed_gap(w, eps, step_size, steps)
    options = {"norm": norm, "loss": loss, "steps": steps, "step_size": step_size, "random_start": random_start}
    for target in (None, 1 - y):
        with torch.no_grad():
            reached = margin(model(pgd(model, x, y, eps, target=target, generator=generator, **options)), y)
        slack = rounding * (1 + float(w.abs().sum()))
        assert (reached <= exact + slack).all()
        assert (reached >= exact - gap - slack).all()


@cases(60)
@given(SEEDS, SHAPES, NORMS, st.floats(0.01, 1), st.booleans())
def test_linear_optimum_is_reached_without_a_step_size(seed, shape, norm, eps, random_start):
    generator = rng(seed)
    model = random_network(shape, 2, torch.float64, generator, hidden=0)
    x, y = random_images(3, shape, torch.float64, generator), torch.tensor([0, 1, 0])
    w = (model[1].weight[1] - model[1].weight[0]).detach().view(1, *shape)
    best = torch.where(y == 0, best_on_linear(w, x, norm, eps), best_on_linear(-w, x, norm, eps))
    options = {"norm": norm, "step_size": "auto", "steps": 60, "random_start": random_start, "generator": generator}
    with torch.no_grad():
        reached = margin(model(pgd(model, x, y, eps, **options)), y) - margin(model(x), y)
    assert (reached <= best + 1e-9).all()
    assert (reached >= (1 - 0.01) * best - 1e-9).all()


def test_auto_steps_shrink_to_a_peak_inside_the_set_that_steps_of_one_size_jump_over():
    peak = torch.tensor([[0.513, 0.487]], dtype=torch.float64)
    x, y = torch.full_like(peak, 0.5), torch.tensor([0])

    def model(images: Tensor) -> Tensor:  # the margin is highest at the peak, and below 0 everywhere
        return torch.stack([torch.ones_like(images[:, 0]), -(images - peak).square().sum(1)], 1)

    far = {
        size: float((pgd(model, x, y, 0.1, loss="margin", steps=100, step_size=size) - peak).norm())
        for size in ("auto", 0.1)
    }
    assert far["auto"] < 1e-3 < far[0.1]


@cases(50)
@given(SEEDS, st.integers(3, 5), NORMS, st.floats(0.01, 1))
def test_linear_multi_class_optimum_is_the_best_of_its_pairs(seed, classes, norm, eps):
    generator = rng(seed)
    model = random_network((8,), classes, torch.float64, generator, hidden=0).requires_grad_(False)
    x, y = random_images(1, (8,), torch.float64, generator), torch.tensor([0])
    weight, bias = model[1].weight, model[1].bias
    exact, reached, gaps = [], [], []
    for k in range(1, classes):
        w = (weight[k] - weight[0])[None]
        exact.append(float((w * x).sum() + bias[k] - bias[0] + best_on_linear(w, x, norm, eps)))
        gaps.append(guaranteed_gap(w, eps, 1.0, 100) if norm == "l2" else 1e-12)

        def pair(logits, labels, k=k):
            return logits[:, k] - logits[:, 0]

        x_adv = pgd(model, x, y, eps, norm=norm, loss=pair, steps=100 if norm == "l2" else 1, step_size=1.0)
        assert pair(model(x_adv), y).item() == pytest.approx(exact[-1], abs=gaps[-1] + 1e-9)
        reached.append(float(margin(model(x_adv), y)))
    # Each pair's attack maximises one logit difference; the largest of the optima is the worst case of the margin.
    assert max(reached) == pytest.approx(max(exact), abs=max(gaps) + 1e-9)
    plain = pgd(model, x, y, eps, norm=norm, loss="margin", steps=40)
    assert float(margin(model(plain), y)) <= max(exact) + 1e-9


@cases(80)
@given(SEEDS, st.integers(2, 5), st.floats(0, 1))
def test_difference_attack_reaches_the_optimum_of_its_pair_of_classes_in_one_step(seed, classes, eps):
    generator = rng(seed)
    model = random_network((8,), classes, torch.float64, generator, hidden=0).requires_grad_(False)
    x, y = random_images(1, (8,), torch.float64, generator), torch.tensor([0])
    target = torch.tensor([classes - 1])
    w = model[1].weight[target] - model[1].weight[y]
    exact = difference(model(x), y, target) + best_on_linear(w, x, "linf", eps)
    x_adv = pgd(model, x, y, eps, target=target, loss="difference", steps=1, step_size=1.0, keep="last")
    torch.testing.assert_close(difference(model(x_adv), y, target), exact)


# ------------------------------------------------------------------------ against the same thing written by others


def plain_pgd(model, x: Tensor, y: Tensor, norm: str, eps: float, step_size: float, steps: int) -> list[Tensor]:
    """Return the iterates of textbook PGD, one example at a time."""
    delta, path = torch.zeros_like(x), []
    for _ in range(steps):
        delta.requires_grad_()
        F.cross_entropy(model(x + delta), y, reduction="sum").backward()
        g, delta = delta.grad, delta.detach()
        if norm == "linf":
            delta = (x + (delta + step_size * g.sign()).clamp(-eps, eps)).clamp(0, 1) - x
        else:
            g = g / g.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
            delta = nearest_in_l2(delta + step_size * g, x, eps)
        path.append(delta)
    return path


@cases(60)
@given(SEEDS, SHAPES, NORMS, st.floats(0.01, 0.8), st.floats(0.01, 0.5))
def test_pgd_walks_the_path_of_a_plain_loop_iterate_by_iterate(seed, shape, norm, eps, step_size):
    generator = rng(seed)
    model = random_network(shape, 3, torch.float64, generator)
    x, y = random_images(3, shape, torch.float64, generator), torch.tensor([0, 1, 2])
    trace: list[Iterate] = []
    pgd(model, x, y, eps, norm=norm, loss="cross_entropy", steps=6, step_size=step_size, trace=trace)
    for now, expected in zip(trace[1:], plain_pgd(model, x, y, norm, eps, step_size, 6), strict=True):
        torch.testing.assert_close(now.delta, expected, rtol=0, atol=1e-9)


@cases(80)
@given(SEEDS, SHAPES, DTYPES, st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)), st.booleans())
def test_fgsm_is_one_signed_gradient_step_to_the_edge_cut_to_the_box(seed, shape, dtype, eps, targeted):
    generator = rng(seed)
    model = random_network(shape, 3, dtype, generator)
    x, y = random_images(3, shape, dtype, generator), torch.tensor([0, 1, 2])
    target = (y + 1) % 3 if targeted else None
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), target if targeted else y, reduction="sum").backward()
    expected = (x + (-1 if targeted else 1) * eps * leaf.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, x, y, eps, target=target), expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ a caller's property


@pytest.mark.parametrize(
    "attack",
    [
        lambda model: fgsm(model, PROBE_X, PROBE_Y, 0.1),
        lambda model: pgd(model, PROBE_X, PROBE_Y, 0.1, steps=4, restarts=2),
        lambda model: pgd(model, PROBE_X, PROBE_Y, 0.3, norm="l2", steps=2, target=(PROBE_Y + 1) % 3),
    ],
)
def test_model_comes_back_exactly_as_it_was(attack):
    model = probe()
    before = snapshot(model)
    attack(model)
    assert model.calls > 1
    assert model.modes == {(False,) * 8}  # every one of the 8 modules was in eval mode in every call
    assert model.frozen == {True}
    assert same(snapshot(model), before)


@pytest.mark.parametrize("call", [1, 2, 4, 6])
@pytest.mark.parametrize("failure", ["raise_at", "nan_at"])
def test_model_comes_back_exactly_as_it_was_after_a_failure_in_mid_run(failure, call):
    model = probe()
    setattr(model, failure, call)
    before = snapshot(model)
    with pytest.raises((RuntimeError, ValueError), match=r"broken pipe|NaN"):
        pgd(model, PROBE_X, PROBE_Y, 0.1, steps=2, restarts=2)
    assert model.calls == call
    assert same(snapshot(model), before)


def test_model_comes_back_exactly_as_it_was_after_a_failure_in_the_loss():
    def broken(logits, y):
        raise KeyError("no such loss")

    model = probe()
    before = snapshot(model)
    with pytest.raises(KeyError):
        pgd(model, PROBE_X, PROBE_Y, 0.1, loss=broken)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("bad", [{"eps": 8.0}, {"steps": 0}, {"y": torch.tensor([0, 3])}, {"target": PROBE_Y}])
def test_model_comes_back_exactly_as_it_was_after_a_bad_argument(bad):
    model = probe()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"eps|steps|y|target"):
        pgd(model, PROBE_X, **{"y": PROBE_Y, "eps": 0.1, **bad})
    assert same(snapshot(model), before)


def test_caller_s_tensors_are_neither_written_to_nor_drawn_into_a_graph():
    model = random_network((6,), 3, torch.float32, rng(0))
    x = torch.rand(3, 6, generator=rng(1), requires_grad=True)
    y, target = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    kept = x.detach().clone(), y.clone(), target.clone()
    versions = x._version, y._version, target._version
    x_adv = pgd(model, x, y, 0.3, target=target, steps=5, restarts=2, generator=rng(2))
    assert all(map(torch.equal, (x, y, target), kept))
    assert (x._version, y._version, target._version) == versions
    assert x.grad is None
    assert x.requires_grad
    assert not x_adv.requires_grad
    assert x_adv.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_result_does_not_depend_on_the_caller_s_grad_mode(guard):
    model = random_network((1, 4, 4), 3, torch.float32, rng(0))
    x, y = torch.rand(4, 1, 4, 4, generator=rng(1)), torch.tensor([0, 1, 2, 0])
    options = {"steps": 5, "restarts": 2}
    expected = pgd(model, x, y, 0.1, generator=rng(2), **options)
    with guard():
        x_inside, y_inside = x.clone(), y.clone()  # inference tensors, in inference mode
        result = pgd(model, x_inside, y_inside, 0.1, generator=rng(2), **options)
        assert torch.is_grad_enabled() == (guard is torch.enable_grad)
    assert torch.equal(result, expected)
    assert not torch.equal(result, x)


def test_model_may_be_a_plain_function_and_its_parameters_get_no_gradients():
    network = random_network((6,), 3, torch.float32, rng(0))
    x, y = torch.rand(3, 6, generator=rng(1)), torch.tensor([0, 1, 2])
    result = pgd(lambda images: network(images), x, y, 0.1, steps=5)
    assert torch.equal(result, pgd(network, x, y, 0.1, steps=5))
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_a_loss_of_one_s_own_is_maximised():
    model = random_network((6,), 3, torch.float32, rng(0))
    x, y = torch.rand(3, 6, generator=rng(1)), torch.tensor([0, 1, 2])
    ours = pgd(model, x, y, 0.1, steps=5, loss=lambda logits, labels: margin(logits, labels))
    assert torch.equal(ours, pgd(model, x, y, 0.1, steps=5, loss="margin"))


def test_default_step_size_is_two_and_a_half_eps_over_steps():
    model = random_network((30,), 3, torch.float32, rng(0))
    x, y = torch.full((2, 30), 0.5), torch.tensor([0, 1])
    for norm in ("linf", "l2"):
        trace: list[Iterate] = []
        pgd(model, x, y, 0.1, norm=norm, steps=10, trace=trace)
        first = trace[1].delta.flatten(1).norm(dim=1, p=math.inf if norm == "linf" else 2)
        torch.testing.assert_close(first, torch.full((2,), 0.025))


# -------------------------------------------------------------------------------------------------------- bad input

ONES = torch.ones(3, requires_grad=True)
X = torch.rand(2, 3, generator=rng(0)).clamp(0.1, 0.9)
Y = torch.tensor([0, 1])


def linear(images: Tensor) -> Tensor:
    return images @ torch.tensor([[3.0, -1.0, 0.5], [-1.0, 2.0, 0.2], [0.5, 0.3, -3.0]])


# Each case: what is changed in a good call, the error, and words that its message must hold: the argument's name, what
# was given, and what is allowed.
BAD_ARGUMENTS = {
    "image above 1": ({"x": X * 255}, ValueError, ["x must", "[0, 1]", "from"]),
    "image below 0": ({"x": X - 0.5}, ValueError, ["x must", "[0, 1]", "from -0."]),
    "image normalised for ImageNet": ({"x": (X - 0.45) / 0.22}, ValueError, ["x must", "[0, 1]", "normalise"]),
    "image with NaN": ({"x": X.masked_fill(X[0, 0] == X, torch.nan)}, ValueError, ["x must", "[0, 1]", "nan"]),
    "image with infinity": ({"x": X.masked_fill(X[0, 0] == X, torch.inf)}, ValueError, ["x must", "[0, 1]", "inf"]),
    "image of 8 bits": ({"x": (X * 255).byte()}, TypeError, ["x must", "floating-point", "torch.uint8", "/ 255"]),
    "image in half precision": (
        {"x": X.half()}, TypeError, ["x must", "float32 or float64", "torch.float16", "model(x.to(torch.float16))"]),
    "image in bfloat16": ({"x": X.bfloat16()}, TypeError, ["x must", "bfloat16", "model(x.to(torch.bfloat16))"]),
    "images in a loader": (
        {"x": DataLoader([(X[0], 0)])}, TypeError, ["x must", "DataLoader", "next(iter(", "worst_losses", "evaluate"]),
    "images in a generator": ({"x": (x for x in X)}, TypeError, ["x must", "generator", "next(iter(", "evaluate"]),
    "image a numpy array": ({"x": X.numpy()}, TypeError, ["x must", "floating-point tensor", "ndarray"]),
    "image a list": ({"x": X.tolist()}, TypeError, ["x must", "floating-point tensor", "list"]),
    "image unbatched": ({"x": torch.rand(3, 4, 4), "y": Y[:1]}, ValueError, ["y must", "(3,)", "(1,)", "(3, 4, 4)"]),
    "image a vector": ({"x": X[0], "y": Y[:1]}, ValueError, ["x must", "(N, ...)", "(3,)", "x[None]"]),
    "image batch empty": ({"x": X[:0], "y": Y[:0]}, ValueError, ["x must", "N >= 1", "(0, 3)"]),
    "image without a pixel": ({"x": X[:, :0]}, ValueError, ["x must", "(2, 0)"]),
    "label too large": ({"y": torch.tensor([0, 3])}, ValueError, ["y must", "0 to 2", "0 to 3"]),
    "label negative": ({"y": torch.tensor([-1, 1])}, ValueError, ["y must", "0 to 2", "-1 to 1"]),
    "label of float": ({"y": Y.float()}, TypeError, ["y must", "int64", "torch.float32"]),
    "label of int32": ({"y": Y.int()}, TypeError, ["y must", "int64", "torch.int32", "y.long()"]),
    "label of 8 bits": ({"y": Y.byte()}, TypeError, ["y must", "int64", "torch.uint8", "y.long()"]),
    "label an int": ({"y": 1}, TypeError, ["y must", "int64", "int", "torch.tensor([967])"]),
    "label a list": ({"y": [0, 1]}, TypeError, ["y must", "int64", "list"]),
    "label one-hot": ({"y": torch.eye(3).long()[:2]}, ValueError, ["y must", "(2,)", "(2, 3)"]),
    "label a column": ({"y": Y[:, None]}, ValueError, ["y must", "(2,)", "(2, 1)"]),
    "label too few": ({"y": Y[:1]}, ValueError, ["y must", "(2,)", "(1,)"]),
    "label on another device": ({"y": Y.to("meta")}, ValueError, ["y must", "device", "cpu", "meta"]),
    "target equal to label": ({"target": torch.tensor([2, 1])}, ValueError, ["target must", "differ", "1 of 2"]),
    "target too large": ({"target": torch.tensor([2, 5])}, ValueError, ["target must", "0 to 2", "2 to 5"]),
    "target negative": ({"target": torch.tensor([-1, 0])}, ValueError, ["target must", "0 to 2", "-1 to 0"]),
    "target an int": ({"target": 2}, TypeError, ["target must", "int64", "int"]),
    "target of int32": ({"target": (1 - Y).int()}, TypeError, ["target must", "int64", "int32", "target.long()"]),
    "target of float": ({"target": Y + 0.5}, TypeError, ["target must", "int64", "torch.float32"]),
    "target of wrong shape": ({"target": Y[:1]}, ValueError, ["target must", "(2,)", "(1,)"]),
    "target on another device": ({"target": Y.to("meta")}, ValueError, ["target must", "device", "cpu", "meta"]),
    "eps negative": ({"eps": -0.1}, ValueError, ["eps must", "[0, 1]", "-0.1"]),
    "eps NaN": ({"eps": math.nan}, ValueError, ["eps must", "[0, 1]", "nan"]),
    "eps infinite": ({"eps": math.inf}, ValueError, ["eps must", "[0, 1]", "inf"]),
    "eps in 0 to 255 units": ({"eps": 8}, ValueError, ["eps must", "[0, 1]", "8", "8/255"]),
    "eps a bool": ({"eps": True}, TypeError, ["eps must", "number", "bool"]),
    "eps a string": ({"eps": "8/255"}, TypeError, ["eps must", "number", "str"]),
    "eps a tensor": ({"eps": torch.tensor(0.1)}, TypeError, ["eps must", "number", "Tensor"]),
    "eps of another length": ({"eps": torch.full((3,), 0.1)}, ValueError, ["eps must", "number", "(2,)", "(3,)"]),
    "eps of whole numbers": ({"eps": torch.ones(2).long()}, TypeError, ["eps must", "floating-point", "int64"]),
    "eps with two axes": ({"eps": torch.full((2, 1), 0.1)}, TypeError, ["eps must", "(N,)", "(2, 1)"]),
    "eps with one above 1": ({"eps": torch.tensor([0.1, 8])}, ValueError, ["eps must", "[0, 1]", "0.1 to 8", "255"]),
    "eps with one NaN": ({"eps": torch.tensor([0.1, math.nan])}, ValueError, ["eps must", "[0, 1]", "nan"]),
    "eps with one negative": ({"eps": torch.tensor([-0.1, 1])}, ValueError, ["eps must", "[0, 1]", "-0.1 to 1"]),
    "eps with one too long, l2": (
        {"eps": torch.tensor([0.1, 2]), "norm": "l2"}, ValueError, ["eps must", "[0, 1.73", "0.1 to 2", "255"]),
    "eps None": ({"eps": None}, TypeError, ["eps must", "number", "NoneType"]),
    "eps negative, l2": ({"eps": -1.0, "norm": "l2"}, ValueError, ["eps must", "[0, ", "-1"]),
    "eps NaN, l2": ({"eps": math.nan, "norm": "l2"}, ValueError, ["eps must", "[0, ", "nan"]),
    "eps infinite, l2": ({"eps": math.inf, "norm": "l2"}, ValueError, ["eps must", "[0, ", "inf"]),
    "eps in 0 to 255 units, l2": ({"eps": 100, "norm": "l2"}, ValueError, ["eps must", "[0, 1.73", "100", "255"]),
    "eps a bool, l2": ({"eps": True, "norm": "l2"}, TypeError, ["eps must", "number", "bool"]),
    "step size zero": ({"step_size": 0}, ValueError, ["step_size must", "(0, 1]", "got 0"]),
    "step size negative": ({"step_size": -0.1}, ValueError, ["step_size must", "(0, 1]", "-0.1"]),
    "step size NaN": ({"step_size": math.nan}, ValueError, ["step_size must", "(0, 1]", "nan"]),
    "step size infinite": ({"step_size": math.inf}, ValueError, ["step_size must", "(0, 1]", "inf"]),
    "step size in 0 to 255 units": ({"step_size": 2}, ValueError, ["step_size must", "(0, 1]", "2", "255"]),
    "step size too long, l2": ({"step_size": 2, "norm": "l2"}, ValueError, ["step_size must", "(0, 1.73", "2"]),
    "step size a bool": ({"step_size": True}, TypeError, ["step_size must", "number", "bool"]),
    "step size a string": ({"step_size": "0.1"}, ValueError, ["step_size must", "number", "'auto'", "'0.1'"]),
    "steps zero": ({"steps": 0}, ValueError, ["steps must", "at least 1", "0"]),
    "steps negative": ({"steps": -3}, ValueError, ["steps must", "at least 1", "-3"]),
    "steps a float": ({"steps": 40.0}, TypeError, ["steps must", "whole number", "float"]),
    "steps a bool": ({"steps": True}, TypeError, ["steps must", "whole number", "bool"]),
    "restarts zero": ({"restarts": 0}, ValueError, ["restarts must", "at least 1", "0"]),
    "restarts a string": ({"restarts": "2"}, TypeError, ["restarts must", "whole number", "str"]),
    "norm unknown": ({"norm": "l1"}, ValueError, ["norm must", "linf", "l2", "'l1'"]),
    "norm a number": ({"norm": math.inf}, ValueError, ["norm must", "linf", "l2", "inf"]),
    "loss unknown": ({"loss": "hinge"}, ValueError, ["loss must", "['soft_margin', ", "'margin']", "'hinge'"]),
    "loss unknown, with a target": (
        {"loss": "hinge", "target": 1 - Y}, ValueError, ["loss must", "'margin', 'difference']", "'hinge'"]),
    "loss a difference to no target": (
        {"loss": "difference"}, ValueError, ["loss must", "'margin']", "'difference'", "a target"]),
    "loss not a function": ({"loss": 3}, ValueError, ["loss must", "cross_entropy", "function", "3"]),
    "loss a mean": ({"loss": F.cross_entropy}, ValueError, ["loss must", "(2,)", "()"]),
    "loss NaN": ({"loss": lambda z, y: z[:, 0] * torch.nan}, ValueError, ["loss must", "number", "NaN"]),
    "keep unknown": ({"keep": "worst"}, ValueError, ["keep must", "'best'", "'first'", "'last'", "'worst'"]),
    "keep last of restarts": ({"keep": "last", "restarts": 2}, ValueError, ["keep must", "one restart", "2 restarts"]),
    "model of probabilities": (
        {"model": lambda x: linear(x).softmax(1)}, ValueError, ["model must", "logits", "probabilities", "softmax"]),
    "model of one column": (
        {"model": lambda x: x[:, :1]}, ValueError, ["model must", "(2, K)", "(2, 1)", "[0 * z, z]"]),
    "model of a vector": ({"model": lambda x: x[:, 0]}, ValueError, ["model must", "(2, K)", "(2,)", "[0 * z, z]"]),
    "model of a dictionary": (
        {"model": lambda x: {"loss": 0, "logits": linear(x)}}, TypeError,
        ["model must", "dict of ['loss', 'logits']", "model(x)['logits']"]),
    "model of maps": ({"model": lambda x: linear(x)[..., None]}, ValueError, ["model must", "(2, K)", "(2, 3, 1)"]),
    "model that loses a row": ({"model": lambda x: linear(x)[:1]}, ValueError, ["model must", "(2, K)", "(1, 3)"]),
    "model of a tuple": ({"model": lambda x: (linear(x),)}, TypeError, ["model must", "tensor", "tuple"]),
    "model of labels": ({"model": lambda x: linear(x).argmax(1)}, TypeError, ["model must", "floating-point", "int64"]),
    "model of NaN": ({"model": lambda x: linear(x) * torch.nan}, ValueError, ["model", "NaN", "logits"]),
    "model of infinity": ({"model": lambda x: linear(x) / 0.0}, ValueError, ["model", "infinite", "logits"]),
    "model that detaches": ({"model": lambda x: linear(x.detach())}, ValueError, ["model must", "differentiable"]),
    "model that detaches, with parameters": (
        {"model": lambda x: linear(x.detach()) * ONES}, ValueError,
        ["model must", "differentiable"]),
    "model under no_grad": ({"model": torch.no_grad()(linear)}, ValueError, ["model must", "differentiable"]),
    "model with a NaN gradient": (
        {"model": lambda x: linear(x) + (x - x.detach()).square().sum().sqrt()}, ValueError,
        ["model must", "gradient", "NaN"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument_gets_an_error_that_names_it_and_says_what_is_allowed(case):
    changes, error, words = BAD_ARGUMENTS[case]
    with pytest.raises(error) as caught:
        pgd(**{"model": linear, "x": X, "y": Y, "eps": 0.1, **changes})
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("case", [case for case in BAD_ARGUMENTS if case.split()[0] in ("image", "label", "target")])
def test_fgsm_refuses_what_pgd_refuses(case):
    changes, error, _ = BAD_ARGUMENTS[case]
    with pytest.raises(error):
        fgsm(**{"model": linear, "x": X, "y": Y, "eps": 0.1, **changes})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_in_another_precision_gets_an_error_whose_remedy_works(dtype):
    shape, generator = (1, 4, 4), rng(3)
    network = random_network(shape, 3, torch.float32, generator)
    x = random_images(6, shape, torch.float32, generator)
    y = network(x).argmax(1)
    expected = pgd(network, x, y, 0.1)
    network.to(dtype)
    with pytest.raises(TypeError) as caught:
        pgd(network, x, y, 0.1)
    assert f"x must have the model's dtype, {dtype}; got torch.float32" in str(caught.value)
    remedy = str(caught.value).split("gradients pass through: ")[1].removesuffix(".")
    wrapped = eval(remedy, {"model": network, "torch": torch})
    found = pgd(wrapped, x, y, 0.1)
    assert found.dtype == torch.float32 and (found - x).abs().max() <= 0.1 + 1e-6
    assert (found - expected).abs().mean() < 0.02  # rounding turns a step of a hesitant pixel now and then
    assert risk(wrapped, x, y).value == 0


def test_another_error_of_the_model_stays_as_it_is():
    network = random_network((3,), 3, torch.float64, rng(0))
    network.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        pgd(network, X.double(), Y, 0.1)


@pytest.mark.parametrize("call", [2, 3, 5])
def test_model_that_yields_nan_later_is_reported_not_counted_as_fooled(call):
    calls = []

    def model(images: Tensor) -> Tensor:
        calls.append(1)
        return linear(images) * (torch.nan if len(calls) == call else 1)

    with pytest.raises(ValueError, match="model returned NaN"):
        pgd(model, X, Y, 1e-6, steps=2, restarts=2)  # so little that all take part in the second restart
    assert len(calls) == call


def test_numpy_numbers_and_integer_eps_are_numbers():
    numpy = pytest.importorskip("numpy")
    expected = pgd(linear, X, Y, 0.25, steps=3, step_size=0.125)
    assert torch.equal(
        pgd(linear, X, Y, numpy.float32(0.25), steps=numpy.int64(3), step_size=numpy.float64(0.125)), expected
    )
    assert_in_set(pgd(linear, X, Y, 1, steps=3), X, "linf", 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linf(8), ["eps must", "[0, 1]", "8/255"]),
        (lambda: Linf(math.nan), ["eps must", "nan"]),
        (lambda: Linf(torch.tensor([0.1, 8])), ["eps must", "[0, 1]", "8/255"]),
        (lambda: L2(torch.tensor([])), ["eps must", "(N,)", "(0,)"]),
        (lambda: L2(-1), ["eps must", "-1"]),
        (lambda: L2(math.inf), ["eps must", "inf"]),
        (lambda: perturbation_set("l0", 0.1), ["norm must", "linf", "l2", "'l0'"]),
    ],
)
def test_perturbation_set_refuses_a_bad_eps_or_norm(make, words):
    with pytest.raises(ValueError, match="must") as caught:
        make()
    assert [word for word in words if word not in str(caught.value)] == []


def test_normalised_model_explains_an_image_normalised_by_hand():
    with pytest.raises(ValueError, match="Do not normalise"):
        pgd(linear, (X - 0.5) / 0.5, Y, 0.1)


# --------------------------------------------------------------------------------------------------------- warnings


def sure(images: Tensor) -> Tensor:
    """Two examples that nothing will fool."""
    return linear(images) + 1e3 * F.one_hot(Y, 3)


def warned(attack: Callable[[], Tensor]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attack()
    assert all(warning.category is AttackWarning for warning in caught)
    assert all(Path(warning.filename).samefile(__file__) for warning in caught)  # it points at the caller's line
    return [str(warning.message) for warning in caught]


def test_an_attack_that_stands_still_says_so():
    def rounding(images: Tensor) -> Tensor:  # of the three examples the second has no gradient, the third is wrong
        return linear(images) * torch.tensor([[1.0], [0], [0]]) + torch.tensor([[0.0, 9, 0], [9, 0, 0], [0, 9, 0]])

    x, y = torch.rand(3, 3, generator=rng(0)), torch.tensor([1, 0, 0])
    (message,) = warned(lambda: pgd(rounding, x, y, 0.1, steps=2))
    assert "exactly zero at the start for 1 of 3 examples" in message


@pytest.mark.parametrize(("step_size", "rises"), [(1e-4, True), (None, False), ("auto", False)])
def test_an_attack_that_was_on_its_way_says_so(step_size, rises):
    messages = warned(lambda: pgd(sure, X, Y, 0.05, steps=20, step_size=step_size))
    assert len(messages) == rises
    assert not rises or "still gains at the last step, on 2 of 2 examples" in messages[0]


def test_what_cannot_be_judged_is_not_warned_of():
    assert warned(lambda: pgd(sure, X, Y, 0.05, steps=9, step_size=1e-4)) == []  # a few steps for training
    assert warned(lambda: pgd(sure, X, Y, 0.05, steps=20, step_size=1e-4, keep="last")) == []
    assert warned(lambda: fgsm(sure, X, Y, 0.05)) == []


# ------------------------------------------------------------------------- real networks, against shared/NUMBERS.md


@dataclass
class Trained:
    network: nn.Module
    x: Tensor
    y: Tensor

    def error(self, images: Tensor, y: Tensor | None = None) -> float:
        with torch.no_grad():
            return float((self.network(images).argmax(1) != (self.y if y is None else y)).double().mean())

    def error_after(self, **options) -> float:
        eps = options.pop("eps", 0.1)
        model = options.pop("model", self.network)
        return self.error(pgd(model, self.x, self.y, eps, **options))


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A standard digit network, and the 500 test images that every number below is about."""
    data = digits()
    network = digit_network()
    train(network, data.x_train, data.y_train)
    return Trained(network, data.x_test[:500], data.y_test[:500])


def test_digits_errors_are_those_of_the_trial(trained):
    clean, fast, strong = (
        trained.error(trained.x),
        trained.error(fgsm(trained.network, trained.x, trained.y, 0.1)),
        None,
    )
    strong = trained.error_after(steps=40)
    assert 0.03 <= clean <= 0.07
    assert 0.55 <= fast <= strong
    assert 0.70 <= strong <= 0.84
    noise = trained.x + Linf(0.1).random(trained.x, rng(0))
    assert trained.error(noise) <= clean + 0.03  # a random change of the same size does next to nothing


def test_too_small_a_step_fakes_robustness(trained):
    errors = [trained.error_after(steps=20, step_size=step) for step in (0.001, 0.0025, 0.01)]
    assert errors[0] < 0.25
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] > 0.65


@pytest.mark.parametrize("scale", [100, 1000])
def test_robust_accuracy_does_not_depend_on_the_scale_of_the_logits(trained, scale):
    def overconfident(images: Tensor) -> Tensor:
        return scale * trained.network(images)

    def plain(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none")

    calm = trained.error_after(steps=20)
    assert abs(trained.error_after(model=overconfident, steps=20) - calm) <= 0.002  # one of 500: rounding
    assert trained.error_after(model=overconfident, steps=20, loss="cross_entropy") > 0.7
    assert abs(trained.error_after(model=overconfident, steps=20, loss="margin") - calm) <= 0.04
    # The trap this guards against: with the plain cross-entropy the same attack stands still.
    assert trained.error_after(model=overconfident, steps=20, loss=plain) < 0.20


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_does_not_depend_on_the_batch_size(trained, norm):
    x, y, network = trained.x[:100].double(), trained.y[:100], digit_network().double()
    network.load_state_dict(trained.network.state_dict())
    eps = 0.1 if norm == "linf" else 1.5

    def fooled(size: int) -> Tensor:
        batches = zip(x.split(size), y.split(size), strict=True)
        return network(torch.cat([pgd(network, *batch, eps, norm=norm, steps=10) for batch in batches])).argmax(1) != y

    assert 20 <= fooled(100).sum() <= 95  # so that there is something to disagree about
    assert torch.equal(fooled(100), fooled(7))


def test_targeted_attack_reaches_its_target(trained):
    target = (trained.y + 1) % 10
    x_adv = pgd(trained.network, trained.x, trained.y, 0.3, target=target)
    assert trained.error(x_adv, target) < 0.15
    assert_in_set(x_adv, trained.x, "linf", 0.3)


@pytest.fixture(scope="module")
def espresso() -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    return load_classifier(device="cpu"), photograph("coffee"), torch.tensor([class_index("espresso")])


def test_photograph_is_fooled_at_two_grey_levels_and_stays_so_in_eight_bits(espresso):
    model, x, y = espresso
    x_adv = pgd(model, x, y, 2 / 255, steps=30)
    assert_in_set(x_adv, x, "linf", 2 / 255)
    eight_bit = (x_adv * 255).round() / 255
    with torch.no_grad():
        assert float(model(x_adv).double().softmax(1)[0, 967]) < 1e-5
        assert int(model(eight_bit).argmax(1)) != 967


def test_photograph_becomes_an_airliner_on_request(espresso):
    model, x, y = espresso
    target = torch.tensor([class_index("airliner")])
    x_adv = pgd(model, x, y, 2 / 255, target=target, loss="cross_entropy", steps=30)
    with torch.no_grad():
        assert float(model(x_adv).softmax(1)[0, target]) > 0.9
