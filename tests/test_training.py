"""The training loop."""

import warnings

import pytest
import torch
from torch import nn

from helpers.data import digits
from helpers.models import digit_network
from helpers.training import train

torch.set_num_threads(1)  # a tiny network is no faster on more


@pytest.fixture(scope="module")
def data():
    return digits()


def test_two_epochs_already_read_most_digits(data):
    network = digit_network()
    history = train(network, data.x_train, data.y_train, epochs=2)
    assert len(history) == 2
    assert history[1] < history[0] < 2.3
    with torch.no_grad():
        error = (network(data.x_test).argmax(1) != data.y_test).double().mean()
    assert error < 0.15


def test_same_seed_gives_the_same_network_and_leaves_the_global_random_state(data):
    x, y = data.x_train[:300], data.y_train[:300]

    def trained(seed: int) -> torch.Tensor:
        network = digit_network()
        train(network, x, y, epochs=1, batch_size=50, seed=seed)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    before = torch.get_rng_state()
    first = trained(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    torch.testing.assert_close(trained(0), first)
    assert not torch.allclose(trained(1), first)


class Recorder(nn.Module):
    """A linear model that writes down which examples it saw, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.seen: list[list[float]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(x.flatten().tolist())
        return self.linear(x)


def test_every_epoch_sees_each_example_once_in_a_new_order():
    model, x = Recorder(), torch.linspace(0, 1, 10)[:, None]
    train(model, x, (x[:, 0] > 0.5).long(), epochs=2, batch_size=4)
    assert [len(batch) for batch in model.seen] == [4, 4, 2, 4, 4, 2]
    first, second = ([value for batch in epoch for value in batch] for epoch in (model.seen[:3], model.seen[3:]))
    assert sorted(first) == sorted(second) == x.flatten().tolist()
    assert first != second


def test_history_is_the_mean_loss_over_the_examples_also_when_the_last_batch_is_small():
    # With a learning rate of next to nothing the model stays what it is, and so does its loss.
    model, x = nn.Linear(1, 2), torch.linspace(0, 1, 10)[:, None]
    y = (x[:, 0] > 0.3).long()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(x), y).item()
    assert train(model, x, y, epochs=1, batch_size=4, lr=1e-9) == [pytest.approx(expected, rel=1e-5)]


def test_model_is_left_in_eval_mode_and_batch_norm_has_seen_the_training_batches_only():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    x, y = torch.rand(8, 2), torch.arange(8) % 2
    train(model, x, y, epochs=1, batch_size=4)
    assert not any(module.training for module in model.modules())
    assert model[1].num_batches_tracked == 2


def test_diverging_training_stops_with_advice_and_leaves_eval_mode():
    model = nn.Linear(1, 2)
    model.register_forward_hook(lambda module, x, out: out * (torch.nan if module.training else 1))
    with pytest.raises(FloatingPointError, match=r"loss became nan in epoch 1: try lr below 0\.1"):
        train(model, torch.rand(4, 1), torch.tensor([0, 1, 0, 1]), lr=0.1)
    assert not model.training


X, Y = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": X * 255}, ValueError, ["x must", "[0, 1]"]),
        ({"x": X.byte()}, TypeError, ["x must", "torch.uint8"]),
        ({"y": Y.float()}, TypeError, ["y must", "int64", "torch.float32"]),
        ({"y": Y[:2]}, ValueError, ["y must", "(4,)", "(2,)"]),
        ({"y": Y + 1}, ValueError, ["y must", "0 to 1", "1 to 2"]),
        ({"y": Y.to("meta")}, ValueError, ["y must", "device", "meta"]),
        ({"epochs": 0}, ValueError, ["epochs must", "at least 1", "0"]),
        ({"batch_size": 2.0}, TypeError, ["batch_size must", "whole number", "float"]),
        ({"lr": 0}, ValueError, ["lr must", "(0, 1]", "0"]),
        ({"lr": float("nan")}, ValueError, ["lr must", "(0, 1]", "nan"]),
        ({"lr": "fast"}, TypeError, ["lr must", "number", "str"]),
        ({"model": nn.Sequential(nn.Linear(3, 2), nn.Softmax(1))}, ValueError, ["model must", "logits", "softmax"]),
    ],
)
def test_bad_argument_gets_an_error_that_names_it_and_changes_no_weight(changes, error, words):
    model = changes.get("model", nn.Linear(3, 2))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error) as caught:
        train(**{"model": model, "x": X, "y": Y, **changes})
    assert [word for word in words if word not in str(caught.value)] == []
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_training_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(nn.Linear(3, 2), X, Y, epochs=1)
