"""Exercises of chapter 8: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
from conftest import answer_tests

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def interval_layer(W, b, low, high):
    plus, minus = W.clamp(min=0), W.clamp(max=0)
    return torch.stack([low @ plus.T + high @ minus.T + b, high @ plus.T + low @ minus.T + b])


def by_center(W, b, low, high, factor=1.0, absolute=True):
    center, radius = (low + high) / 2, factor * (high - low) / 2
    middle, reach = center @ W.T + b, radius @ (W.abs() if absolute else W).T
    return torch.stack([middle - reach, middle + reach])


def relax_relu(c, low, high, clamp=True, least=1e-30):
    if clamp:
        low, high = low.clamp(max=0), high.clamp(min=0)
    upper, lower = high / (high - low).clamp(min=least), (high > -low).to(c)
    t = -(c.clamp(min=0) * upper * low).sum()
    return torch.cat([c.clamp(min=0) * upper + c.clamp(max=0) * lower, t[None]])


def upper_everywhere(c, low, high):
    low, high = low.clamp(max=0), high.clamp(min=0)
    upper = high / (high - low)
    return torch.cat([c * upper, -(c * upper * low).sum()[None]])


def swapped(c, low, high):
    return -relax_relu(-c, low, high)


def no_constant(c, low, high):
    return torch.cat([relax_relu(c, low, high)[:-1], torch.zeros(1)])


def wrong_sign(c, low, high):
    answer = relax_relu(c, low, high)
    return torch.cat([answer[:-1], -answer[-1:]])


def without_true_class(bounds, y):
    return bounds.scatter(2, y[None, :, None].expand(len(bounds), -1, 1), -torch.inf)


def proved_by_any(bounds, y):
    return without_true_class(bounds, y).amin(0).amax(1) < 0


RIGHT = [
    ("check_interval_layer", interval_layer),
    ("check_interval_layer", by_center),
    ("check_relax_relu", relax_relu),
    ("check_proved_by_any", proved_by_any),
    ("check_proved_by_any", lambda bounds, y: (without_true_class(bounds, y) < 0).any(0).all(1)),
]

WRONG = [
    (
        "check_interval_layer",
        lambda W, b, low, high: torch.stack([low @ W.T + b, high @ W.T + b]),
        "all inputs at one end",
    ),
    (
        "check_interval_layer",
        lambda W, b, low, high: torch.stack([low @ W.T + b, high @ W.T + b]).sort(0).values,
        "does not help",
    ),
    ("check_interval_layer", lambda W, b, low, high: interval_layer(W, b, low, high).flip(0), "other way round"),
    ("check_interval_layer", lambda W, b, low, high: interval_layer(W, 0 * b, low, high), "constant b is missing"),
    (
        "check_interval_layer",
        lambda W, b, low, high: interval_layer(W, 0 * b, low, high) + torch.stack([-b, b])[:, None],
        "in the same direction",
    ),
    ("check_interval_layer", lambda W, b, low, high: by_center(W, b, low, high, factor=2.0), "Twice too wide"),
    ("check_interval_layer", lambda W, b, low, high: by_center(W, b, low, high, absolute=False), "|W| r"),
    ("check_interval_layer", lambda W, b, low, high: interval_layer(W, b, low, high)[0], "shape (2, 3, 2)"),
    ("check_relax_relu", upper_everywhere, "needs the lower line"),
    ("check_relax_relu", swapped, "takes the upper line"),
    ("check_relax_relu", no_constant, "does not go through 0"),
    ("check_relax_relu", wrong_sign, "The sign of t"),
    ("check_relax_relu", lambda c, low, high: relax_relu(c, low, high, clamp=False), "Clamp first"),
    ("check_relax_relu", lambda c, low, high: relax_relu(c, low, high, least=0.0), "0 / 0"),
    ("check_proved_by_any", lambda b, y: (without_true_class(b, y) < 0).all(2).any(0), "smaller bound of each class"),
    ("check_proved_by_any", lambda b, y: (without_true_class(b, y) < 0).all(2).all(0), "One proof is enough"),
    ("check_proved_by_any", lambda b, y: (b.amin(0) < 0).all(1), "0 by definition"),
    ("check_proved_by_any", lambda b, y: (without_true_class(b, y).amin(0) <= 0).all(1), "allows a tie"),
    ("check_proved_by_any", lambda b, y: (without_true_class(b, y).amin(0) < 0).any(1), "not just one"),
]


test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
