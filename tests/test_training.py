"""The training loop, with and without an attack: what it sees, what it keeps, how it ends."""

import json
import math
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from networks import rng
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from helpers.attacks import pgd
from helpers.bounds import box, interval_margins, proves
from helpers.data import digits
from helpers.models import digit_network
from helpers.risk import adversarial_risk, risk
from helpers.training import BOOK_NETWORKS, History, book_network, train

torch.set_num_threads(1)  # a tiny network is no faster on more


@pytest.fixture(scope="module")
def data():
    return digits()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ------------------------------------------------------------------------------------------------------ on the digits


def test_two_epochs_already_read_most_digits(data):
    network = digit_network()
    history = train(network, data.x_train, data.y_train, epochs=2)
    assert len(history.loss) == len(history.error) == history.kept == 2
    assert history.loss[1] < history.loss[0] < 2.3
    assert history.error[1] < history.error[0] < 0.9
    assert history.validation == []
    assert risk(network, data.x_test, data.y_test).value < 0.15


def test_a_short_adversarial_training_already_makes_a_network_far_more_robust(data):
    errors = []
    for attack, eps in ((None, 0.0), (partial(pgd, steps=3), 0.1)):
        network = digit_network()
        train(network, data.x_train, data.y_train, attack=attack, eps=eps, epochs=3, lr=3e-3)
        attacked = adversarial_risk(
            network, data.x_test[:200], data.y_test[:200], 0.1, attacks=[partial(pgd, steps=10)]
        )
        errors.append(attacked.value)
    assert errors[1] < errors[0] - 0.25


def test_diverging_training_stops_with_advice_and_leaves_the_weights_from_before(data):
    network = digit_network()
    before = weights(network)
    with pytest.raises(FloatingPointError, match=r"training diverged.*epoch 1.*Try lr below 1\."):
        train(network, data.x_train, data.y_train, lr=1)
    assert torch.equal(weights(network), before)
    assert not network.training


def test_same_seed_gives_the_same_network_and_leaves_the_global_random_state(data):
    x, y = data.x_train[:300], data.y_train[:300]

    def trained(seed: int, **options) -> Tensor:
        network = digit_network()
        train(network, x, y, epochs=1, batch_size=50, seed=seed, **options)
        return weights(network)

    for options in ({}, {"attack": partial(pgd, steps=2), "eps": 0.1}):
        before = torch.get_rng_state()
        first = trained(0, **options)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(1)
        assert torch.equal(trained(0, **options), first)
        assert not torch.allclose(trained(1, **options), first)


# ------------------------------------------------------------------------------------------------- what training sees

X, Y = torch.rand(4, 3, generator=rng(0)), torch.tensor([0, 1, 0, 1])
LINE = torch.linspace(0, 1, 10)[:, None]
STEP = (LINE[:, 0] > 0.45).long()


class Recorder(nn.Module):
    """A linear model that writes down which examples it saw in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.seen: list[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.flatten().tolist())
        return self.linear(x)


def test_every_epoch_sees_each_example_once_in_a_new_order():
    model = Recorder()
    train(model, LINE, STEP, epochs=2, batch_size=4)
    assert [len(batch) for batch in model.seen] == [4, 4, 2, 4, 4, 2]
    first, second = ([value for batch in epoch for value in batch] for epoch in (model.seen[:3], model.seen[3:]))
    assert sorted(first) == sorted(second) == LINE.flatten().tolist()
    assert first != second


def test_attacked_images_take_the_place_of_the_batch_and_come_with_its_labels():
    model, given = Recorder(), []

    def attack(model, x, y, eps):
        given.append((x.flatten().tolist(), y.tolist()))
        return 1 - x

    train(model, LINE, STEP, attack=attack, eps=0.1, epochs=1, batch_size=4)
    assert model.seen == [(1 - torch.tensor(x)).tolist() for x, _ in given]
    assert all(y == [int(value > 0.45) for value in x] for x, y in given)


def test_attack_is_run_afresh_with_the_weights_of_the_moment():
    model, seen, at_the_step = nn.Linear(3, 2), [], []

    def attack(given, x, y, eps):
        assert given is model
        seen.append(weights(given))
        return x

    hook = register_optimizer_step_pre_hook(lambda *_: at_the_step.append(weights(model)))
    try:
        train(model, X, Y, attack=attack, eps=0.1, epochs=3, batch_size=2, lr=0.1)
    finally:
        hook.remove()
    assert len(seen) == 6
    assert all(map(torch.equal, seen, at_the_step))
    assert all(not torch.equal(now, later) for now, later in pairwise(seen))


@pytest.mark.parametrize(("ramp", "epochs"), [(0, 2), (1, 2), (3, 5)])
def test_budget_grows_batch_by_batch_to_eps_at_the_end_of_the_ramp_and_stays_there(ramp, epochs):
    budgets = []

    def attack(model, x, y, eps):
        budgets.append(eps)
        return x

    train(nn.Linear(1, 2), LINE, STEP, attack=attack, eps=0.3, eps_ramp=ramp, epochs=epochs, batch_size=4)  # 3 batches
    rising, flat = budgets[: 3 * ramp], budgets[3 * ramp :]
    assert rising == pytest.approx([0.3 * (i + 1) / (3 * ramp) for i in range(3 * ramp)])
    assert rising[-1:] == [0.3][: len(rising)]
    assert flat == [0.3] * 3 * (epochs - ramp)


def test_learning_rate_is_constant_for_half_the_steps_and_then_falls_in_equal_parts_to_zero():
    rates = []
    hook = register_optimizer_step_pre_hook(lambda adam, *_: rates.append(adam.param_groups[0]["lr"]))
    try:
        train(nn.Linear(1, 2), LINE, STEP, epochs=4, batch_size=4, lr=0.01)
    finally:
        hook.remove()
    assert rates == pytest.approx([0.01] * 7 + [0.01 * part / 6 for part in (5, 4, 3, 2, 1)])


def test_history_is_the_mean_loss_and_error_over_the_examples_also_when_the_last_batch_is_small():
    # With a learning rate of next to nothing the model stays what it is, and so does its loss.
    model = nn.Linear(1, 2)
    model.weight.data, model.bias.data = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.6, -0.6])
    loss, error = (risk(model, LINE, STEP, loss=name).value for name in ("cross_entropy", "zero_one"))
    history = train(model, LINE, STEP, epochs=2, batch_size=4, lr=1e-9)
    assert history.loss == pytest.approx([loss, loss], rel=1e-5)
    assert history.error == [error, error] == [0.1, 0.1]


def test_history_counts_the_attacked_examples():
    history = train(nn.Linear(1, 2), LINE, STEP, attack=lambda m, x, y, eps: 1 - x, eps=0.1, epochs=60, lr=0.1)
    assert history.error[-1] <= 0.1  # it has learnt the mirrored line


# --------------------------------------------------------------------------------------------------- what it leaves


def test_model_is_left_in_eval_mode_without_gradients_and_batch_norm_has_seen_the_training_batches_only():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    x, y = torch.rand(8, 2, generator=rng(0)), torch.arange(8) % 2
    train(model, x, y, attack=partial(pgd, steps=2), eps=0.1, epochs=1, batch_size=4, validate=lambda model: 0.5)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model[1].num_batches_tracked == 2


class Epochs:
    """Takes a snapshot of the weights after each epoch; as `validate` it returns the next of the given numbers."""

    def __init__(self, model: nn.Module, numbers=()) -> None:
        self.model, self.numbers, self.weights, self.calls = model, iter(numbers), [], 0

    def __call__(self, _) -> float:
        assert not self.model.training
        self.weights.append(weights(self.model))
        return next(self.numbers)


@pytest.mark.parametrize(
    ("numbers", "ramp", "kept"),
    [
        ([0.5, 0.2, 0.4, 0.3], 0, 2),
        ([0.5, 0.4, 0.3, 0.2], 0, 4),
        ([0.1, 0.2, 0.3, 0.4], 0, 1),
        ([0.1, 0.0, 0.4, 0.3], 2, 4),  # the first two do not count: the budget was still growing
        ([0.1, 0.0, 0.3, 0.4], 2, 3),
    ],
)
def test_weights_kept_are_those_of_the_best_epoch_after_the_ramp(numbers, ramp, kept):
    model = nn.Linear(3, 2)
    epochs = Epochs(model, numbers)
    history = train(model, X, Y, attack=lambda m, x, y, e: x, eps=0.1, eps_ramp=ramp, epochs=4, lr=0.1, validate=epochs)
    assert history.validation == numbers
    assert history.kept == kept
    assert torch.equal(weights(model), epochs.weights[kept - 1])
    assert len({w.numpy().tobytes() for w in epochs.weights}) == 4


def test_batch_norm_s_statistics_are_kept_with_the_weights():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    seen = []

    def validate(model):
        seen.append(model[0].running_mean.clone())
        return len(seen)

    train(model, X, Y, epochs=3, validate=validate)
    assert torch.equal(model[0].running_mean, seen[0])
    assert not torch.equal(seen[0], seen[2])


def test_on_epoch_is_called_after_each_epoch_with_the_history_so_far():
    seen = []

    def look(history: History) -> None:
        seen.append((len(history.loss), len(history.error), list(history.validation), history.kept))

    train(nn.Linear(3, 2), X, Y, epochs=3, validate=lambda model: [0.3, 0.1, 0.2][len(seen)], on_epoch=look)
    assert seen == [(1, 1, [0.3], 1), (2, 2, [0.3, 0.1], 2), (3, 3, [0.3, 0.1, 0.2], 2)]


# ------------------------------------------------------------------------------------------------------ interrupted


@pytest.mark.parametrize(
    ("where", "validation", "kept"),
    [
        ("on_epoch", [], 2),
        ("on_epoch", [0.1, 0.2], 1),
        ("attack", [], 2),
        ("attack", [0.1, 0.2], 1),
        ("validate", [0.1, 0.2], 1),
    ],
)
def test_stop_button_returns_the_history_and_a_model_that_can_be_used(where, validation, kept, capsys):
    """It is pressed when two epochs are done: at the end of the second, or while the third is attacked or validated."""
    model = nn.Linear(3, 2)
    epochs = Epochs(model, validation)
    done = []

    def stop(*_):
        raise KeyboardInterrupt

    def attack(model, x, y, eps):
        return stop() if where == "attack" and len(done) == 2 else x

    def validate(model):
        return stop() if where == "validate" and len(done) == 2 else epochs(model)

    def on_epoch(history):
        done.append(weights(model))
        if where == "on_epoch" and len(done) == 2:
            stop()

    options = {"validate": validate} if validation else {}
    history = train(model, X, Y, attack=attack, eps=0.1, epochs=5, lr=0.1, on_epoch=on_epoch, **options)
    assert len(history.loss) == len(history.error) == 2
    assert history.validation == validation
    assert history.kept == kept
    assert torch.equal(weights(model), done[kept - 1])
    assert weights(model).isfinite().all()
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    said = capsys.readouterr().out
    assert said.endswith(f"of 5: the weights are those of epoch {kept}.\n") and said.count("\n") == 1
    assert where == "on_epoch" or "in epoch 3" in said


def test_stop_button_in_mid_attack_of_the_first_epoch_leaves_the_weights_from_before(capsys):
    model, moved = nn.Linear(1, 2), []
    before = weights(model)

    def loss(logits, y):
        moved.append(not torch.equal(weights(model), before))
        if len(moved) == 8:  # in the third batch: pgd looks three times at each
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(logits, y, reduction="none")

    attack = partial(pgd, steps=2, loss=loss)
    history = train(model, LINE, STEP, attack=attack, eps=0.1, epochs=2, batch_size=4, lr=0.1)
    assert moved == [False] * 3 + [True] * 5  # training was under way
    assert history == History()
    assert torch.equal(weights(model), before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert "Interrupted in epoch 1 of 2: the weights are those of epoch 0." in capsys.readouterr().out


def test_an_error_of_the_caller_s_own_comes_through_and_the_model_is_that_of_the_epoch_kept():
    model, done = nn.Linear(3, 2), []

    def fail(history):
        done.append(weights(model))
        if len(done) == 2:
            raise KeyError("a slip")

    with pytest.raises(KeyError, match="a slip"):
        train(model, X, Y, epochs=3, lr=0.1, on_epoch=fail)
    assert torch.equal(weights(model), done[1])
    assert not model.training


# ------------------------------------------------------------------------------------------ with a loss of the caller's


def plain(model, x, y, eps):
    return cross_entropy(model(x), y)


def intervals(model, x, y, eps):
    return cross_entropy(interval_margins(model, *box(x, eps), y), y)


def test_the_usual_loss_by_the_caller_trains_the_same_network_bit_by_bit(data):
    x, y = data.x_train[:300], data.y_train[:300]
    networks = digit_network(), digit_network()
    first, second = (train(n, x, y, epochs=2, loss=loss) for n, loss in zip(networks, (None, plain), strict=True))
    assert torch.equal(*map(weights, networks))
    assert first.loss == second.loss and first.error == second.error


def test_an_attack_inside_of_the_loss_is_adversarial_training(data):
    x, y = data.x_train[:200], data.y_train[:200]
    inner = partial(pgd, steps=2)

    def attacked(model, x, y, eps):
        return cross_entropy(model(inner(model, x, y, eps)), y)

    networks = digit_network(), digit_network()
    for network, how in zip(networks, ({"attack": inner}, {"loss": attacked}), strict=True):
        train(network, x, y, eps=0.1, epochs=3, eps_ramp=2, **how)
    assert torch.equal(*map(weights, networks))


@pytest.mark.parametrize(("ramp", "epochs"), [(0, 2), (1, 2), (3, 5)])
def test_the_loss_gets_the_batch_and_the_budget_of_the_ramp_in_training_mode(ramp, epochs):
    model, given = nn.Linear(1, 2), []

    def loss(passed, x, y, eps):
        assert passed is model and model.training and torch.is_grad_enabled()
        assert [int(value > 0.45) for value in x.flatten()] == y.tolist()
        given.append(eps)
        return plain(model, x, y, eps)

    train(model, LINE, STEP, loss=loss, eps=0.3, eps_ramp=ramp, epochs=epochs, batch_size=4)
    assert given[: 3 * ramp] == pytest.approx([0.3 * (i + 1) / (3 * ramp) for i in range(3 * ramp)])
    assert given[3 * ramp :] == [0.3] * 3 * (epochs - ramp)


def test_history_has_the_loss_as_returned_and_the_errors_on_clean_images_before_the_step():
    model = nn.Linear(1, 2)
    model.weight.data, model.bias.data = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.6, -0.6])

    def loss(model, x, y, eps):
        return 7 + 0 * plain(model, 1 - x, y, eps)

    history = train(model, LINE, STEP, loss=loss, epochs=2, batch_size=4, lr=1e-9)
    assert history.loss == [7, 7] and history.error == [0.1, 0.1]


def test_the_look_at_the_clean_images_leaves_batch_norm_and_the_mode_alone():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    x, y = torch.rand(8, 2, generator=rng(0)), torch.arange(8) % 2
    modes = []

    def loss(model, x, y, eps):
        modes.append([module.training for module in model.modules()])
        return plain(model, x, y, eps)

    train(model, x, y, loss=loss, epochs=1, batch_size=4)
    assert model[1].num_batches_tracked == 2
    assert modes == [[True] * 4] * 2


def test_a_short_training_on_interval_bounds_is_proved_by_intervals(data):
    network = digit_network()
    train(network, data.x_train, data.y_train, epochs=1)
    train(network, data.x_train, data.y_train, loss=intervals, eps=0.1, eps_ramp=4, epochs=6)
    x, y = data.x_test[:200], data.y_test[:200]
    assert proves(network, x, y, 0.1, method="interval").float().mean() > 0.6


def test_bounds_that_explode_stop_with_advice_and_leave_the_weights_from_before():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = weights(model)

    def infinite(model, x, y, eps):
        return (1e30 * interval_margins(model, *box(x, eps), y)).square().mean()

    with pytest.raises(FloatingPointError, match=r"epoch 1 the loss is inf.*Try lr below 0\.002, or eps_ramp above 0"):
        train(model, X, Y, loss=infinite, eps=0.3, epochs=3)
    assert torch.equal(weights(model), before) and not model.training

    def growing(model, x, y, eps):  # finite, but soon far above the first batch's
        return (100 * eps) ** 2 * intervals(model, x, y, eps)

    with pytest.raises(FloatingPointError, match=r"mean loss of epoch \d.*Try lr below 0\.001, or eps_ramp above 4\."):
        train(model, X, Y, loss=growing, eps=0.3, eps_ramp=4, epochs=6, batch_size=4, lr=1e-3)


def test_a_loss_that_is_high_in_its_first_batch_is_not_taken_for_divergence(data):
    def high(model, x, y, eps):
        return 100 * plain(model, x, y, eps)

    assert train(digit_network(), data.x_train[:200], data.y_train[:200], loss=high, epochs=1).loss[0] > 100


# ---------------------------------------------------------------------------------------------------------- diverged


@pytest.mark.parametrize("fails_in", [1, 3])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_stops_training_with_advice_before_any_weight_is_lost(what, fails_in):
    model, kept = nn.Linear(3, 2), [None]
    kept[0] = weights(model)

    def spoil(module, x, out):
        if not module.training or len(kept) < fails_in:
            return out
        if what == "loss":
            return out * torch.nan
        return out + 0 * (out - out.detach()).square().sum().sqrt()  # the value is fine, its gradient is 0 / 0

    model.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match=rf"training diverged.*epoch {fails_in}.*nan.*Try lr below 0\.1\."):
        train(model, X, Y, epochs=5, lr=0.1, on_epoch=lambda history: kept.append(weights(model)))
    assert len(kept) == fails_in
    assert torch.equal(weights(model), kept[-1])
    assert weights(model).isfinite().all()
    assert not model.training


def test_a_model_can_be_tuned_to_a_few_of_its_classes():
    generator = rng(0)
    x, y = torch.rand(40, 3, generator=generator), torch.tensor([3, 7]).repeat(20)
    x[:, 0] = (y == 7).float()
    history = train(model := nn.Linear(3, 1000), x, y, epochs=100, lr=0.1)
    assert history.loss[-1] < 0.1 * history.loss[0]
    assert torch.equal(model(x).argmax(1), y)


def test_a_loss_that_is_high_from_the_start_is_not_taken_for_divergence():
    model = nn.Linear(1, 2)
    model.weight.data = torch.tensor([[300.0], [-300.0]])  # wrong, and sure of it
    history = train(model, LINE, STEP, epochs=2)
    assert history.loss[0] > 50


# -------------------------------------------------------------------------------------------------------- bad input


def keep(model, x, y, eps):
    return x


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": X * 255}, ValueError, ["x must", "[0, 1]"]),
        ({"x": X.byte()}, TypeError, ["x must", "torch.uint8"]),
        ({"x": X[:0], "y": Y[:0]}, ValueError, ["x must", "N >= 1"]),
        ({"y": Y.float()}, TypeError, ["y must", "int64", "torch.float32"]),
        ({"y": Y[:2]}, ValueError, ["y must", "(4,)", "(2,)"]),
        ({"y": Y + 1}, ValueError, ["y must", "0 to 1", "1 to 2"]),
        ({"y": -Y}, ValueError, ["y must", "0 to 1", "-1 to 0"]),
        ({"y": Y.int()}, TypeError, ["y must", "int64", "y.long()"]),
        ({"x": X.double()}, TypeError, ["x must have the model's dtype", "torch.float32", "torch.float64"]),
        ({"x": DataLoader([(X[0], 0)])}, TypeError, ["x must", "DataLoader", "next(iter("]),
        ({"y": Y.to("meta")}, ValueError, ["y must", "device", "meta"]),
        ({"epochs": 0}, ValueError, ["epochs must", "at least 1", "0"]),
        ({"batch_size": 2.0}, TypeError, ["batch_size must", "whole number", "float"]),
        ({"lr": 0}, ValueError, ["lr must", "(0, 1]", "0"]),
        ({"lr": math.nan}, ValueError, ["lr must", "(0, 1]", "nan"]),
        ({"lr": "fast"}, TypeError, ["lr must", "number", "str"]),
        ({"eps": 0.1}, ValueError, ["eps must", "0 without", "0.1", "None"]),
        ({"attack": keep}, ValueError, ["eps must", "above 0 with an attack", "0"]),
        ({"attack": keep, "eps": -0.1}, ValueError, ["eps must", "-0.1"]),
        ({"attack": keep, "eps": math.nan}, ValueError, ["eps must", "nan"]),
        ({"attack": keep, "eps": "0.1"}, TypeError, ["eps must", "number", "str"]),
        ({"attack": pgd, "eps": 8}, ValueError, ["eps must", "[0, 1]", "8/255"]),
        ({"attack": keep, "eps": 0.1, "eps_ramp": 10}, ValueError, ["eps_ramp must", "at most 9", "10"]),
        ({"attack": keep, "eps": 0.1, "eps_ramp": 3, "epochs": 3}, ValueError, ["eps_ramp must", "at most 2", "3"]),
        ({"attack": keep, "eps": 0.1, "eps_ramp": -1}, ValueError, ["eps_ramp must", "at least 0", "-1"]),
        ({"attack": keep, "eps": 0.1, "eps_ramp": 0.5}, TypeError, ["eps_ramp must", "whole number", "float"]),
        ({"eps_ramp": 2}, ValueError, ["eps_ramp must", "0 without an attack", "2"]),
        ({"attack": "pgd", "eps": 0.1}, TypeError, ["attack must", "function", "str"]),
        ({"loss": "hinge"}, TypeError, ["loss must", "function", "str"]),
        ({"loss": plain, "attack": keep, "eps": 0.1}, ValueError, ["loss and attack", "not both"]),
        ({"loss": plain, "eps": -0.1}, ValueError, ["eps must", "-0.1"]),
        ({"loss": plain, "eps_ramp": 2}, ValueError, ["eps_ramp must", "eps is 0", "2"]),
        ({"loss": plain, "eps": 0.1, "eps_ramp": 10}, ValueError, ["eps_ramp must", "at most 9", "10"]),
        ({"loss": plain, "eps": 0.1, "eps_ramp": 5, "epochs": 3}, ValueError, ["eps_ramp must", "at most 2", "5"]),
        ({"loss": lambda *_: 1.0}, TypeError, ["loss must return a tensor", "float"]),
        ({"loss": lambda *_: None}, TypeError, ["loss must return a tensor", "NoneType"]),
        ({"loss": lambda m, x, y, e: m(x).sum(1)}, ValueError, ["loss must return one number", "(4,)"]),
        ({"loss": lambda m, x, y, e: m(x).argmax()}, ValueError, ["loss must return one number", "torch.int64"]),
        ({"loss": lambda m, x, y, e: m(x).sum().detach()}, ValueError, ["loss must return", "gradient", "detached"]),
        ({"loss": lambda *_: torch.ones((), requires_grad=True)}, ValueError, ["loss must depend on the model"]),
        ({"loss": lambda m, x, y, e: m(x).sum() * math.nan}, FloatingPointError, ["the loss is nan", "Try lr below"]),
        ({"validate": lambda model: math.nan}, ValueError, ["validate returns", "nan"]),
        ({"model": nn.Sequential(nn.Linear(3, 2), nn.Softmax(1))}, ValueError, ["model must", "logits", "softmax"]),
    ],
)
def test_bad_argument_gets_an_error_that_names_it_and_changes_no_weight(changes, error, words):
    model = changes.get("model", nn.Linear(3, 2))
    before = weights(model)
    with pytest.raises(error) as caught:
        train(**{"model": model, "x": X, "y": Y, **changes})
    assert [word for word in words if word not in str(caught.value)] == []
    assert torch.equal(weights(model), before)


def test_training_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(nn.Linear(3, 2), X, Y, attack=keep, eps=0.1, epochs=2)


# ---------------------------------------------------------------------------------------------- the networks of Part II


def test_the_small_network_of_part_two_is_the_robust_one_that_its_docstring_describes(data):
    network = book_network("small", "cpu")
    assert not network.training
    assert risk(network, data.x_test, data.y_test).value < 0.1
    assert 0.2 < adversarial_risk(network, data.x_test, data.y_test, 0.1, attacks=[pgd]).value < 0.35


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Trainings of the book's networks that were asked for, in an empty cache, with the weights from before.

    Each training is complete, and makes all numbers of the first layer those of its place in the order.
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    calls = []

    def train(model, *args, epochs, **options):
        calls.append((weights(model).clone(), args, {"epochs": epochs, **options}))
        next(model.parameters()).data.fill_(len(calls))
        model.eval()
        return History(loss=[0.0] * epochs)

    monkeypatch.setattr("helpers.training.train", train)
    return calls


def kept(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_network_of_part_two_is_trained_once(calls, tmp_path):
    first, again = book_network("small", "cpu"), book_network("small", "cpu")
    assert len(calls) == 1 and torch.equal(weights(first), weights(again)) and not again.training
    assert len(kept(tmp_path)) == 1
    book_network("standard", "cpu")
    assert len(calls) == 2 and len(kept(tmp_path)) == 2


def test_weights_of_other_code_threads_or_data_are_not_taken_for_those_of_a_network(calls, monkeypatch, data):
    book_network("small", "cpu")
    monkeypatch.setattr("torch.get_num_threads", lambda: 999)
    book_network("small", "cpu")
    monkeypatch.setattr("helpers.training.digits", lambda: data._replace(x_train=data.x_train / 2))
    book_network("small", "cpu")
    monkeypatch.setattr("helpers.training.__file__", __file__)
    book_network("small", "cpu")
    assert len(calls) == 4


def test_a_damaged_file_is_trained_over_and_an_interrupted_training_not_kept(calls, monkeypatch, tmp_path):
    first = book_network("small", "cpu")
    (path,) = kept(tmp_path)
    other = torch.load(path) | {"5.bias": torch.zeros(3)}  # the rest would be taken over
    for number, damage in enumerate((path.read_bytes()[:1000], b"", other), 2):
        path.write_bytes(damage) if isinstance(damage, bytes) else torch.save(damage, path)
        assert not torch.equal(weights(book_network("small", "cpu")), weights(first)) and len(calls) == number
        book_network("small", "cpu")
        assert len(calls) == number and torch.equal(calls[-1][0], calls[0][0]), "trained from the usual weights"
    path.unlink()
    monkeypatch.setattr("helpers.training.train", lambda *args, **options: History(loss=[0.0]))
    book_network("small", "cpu")
    assert kept(tmp_path) == []


def test_without_a_folder_to_write_a_network_of_part_two_is_trained_all_the_same(calls, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    assert not book_network("small", "cpu").training and len(calls) == 1


def test_the_networks_of_part_two_are_trained_by_chapter_5_s_recipe(calls):
    for name in BOOK_NETWORKS[:2]:
        book_network(name, "cpu")
    chapter = (Path(__file__).parents[1] / "notebooks" / "05_min_max_training.ipynb").read_text()
    (standard, _, usual), (robust, (x, _), ramped) = calls
    assert len(x) == 3500 and usual == {"epochs": 10}
    for said in (
        'settings = {"epochs": 12, "lr": 4e-3}',
        'ramped = {**settings, "eps": eps, "eps_ramp": 4,',
        'inner = partial(pgd, loss="cross_entropy", steps=5)',
    ):
        assert json.dumps(said)[1:-1] in chapter
    assert {key: ramped[key] for key in ("epochs", "lr", "eps_ramp", "eps")} == {
        "epochs": 12,
        "lr": 4e-3,
        "eps_ramp": 4,
        "eps": 0.1,
    }
    assert ramped["attack"].keywords == {"loss": "cross_entropy", "steps": 5}
    assert torch.equal(standard, robust)  # before training, the same


def test_an_unknown_network_of_part_two_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of \['standard', 'robust', 'small'\]; got 'large'"):
        book_network("large")
