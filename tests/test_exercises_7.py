"""Exercises of chapter 7: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
from conftest import answer_tests
from torch import nn

from helpers.attacks import pgd
from helpers.blackbox import square
from helpers.data import digits
from helpers.exercises import MysteryDefence, check_mystery
from helpers.training import book_network

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def through(step, x):
    return x + (step(x) - x).detach()


def eleventh(logits, alarm):
    return torch.cat([logits, (logits.amax(1) + alarm)[:, None]], 1)


def last(column):
    return lambda z, a: torch.cat([z, column(z, a)[:, None]], 1)


RIGHT = [
    ("check_straight_through", through),
    ("check_straight_through", lambda step, x: step(x).detach() + x - x.detach()),
    ("check_eleventh", eleventh),
]

WRONG = [
    ("check_straight_through", lambda step, x: step(x), "Backward nothing gets through"),
    ("check_straight_through", lambda step, x: x, "the step is lost"),
    ("check_straight_through", lambda step, x: x + step(x).detach(), "One x too many"),
    ("check_straight_through", lambda step, x: (x + step(x) - x).detach(), "Backward nothing gets through"),
    ("check_straight_through", lambda step, x: 2 * x + (step(x) - 2 * x).detach(), "Twice the gradient"),
    ("check_straight_through", lambda step, x: None, "returns nothing"),
    ("check_eleventh", last(lambda z, a: a), "on another scale"),
    ("check_eleventh", last(lambda z, a: z.amax(1) - a), "other way round"),
    ("check_eleventh", last(lambda z, a: z.mean(1) + a), "Above the mean"),
    ("check_eleventh", last(lambda z, a: z.amax(1) * (1 + a)), "Carlini and Wagner's form"),
    ("check_eleventh", lambda z, a: torch.cat([(z.amax(1) + a)[:, None], z], 1), "comes last"),
    ("check_eleventh", lambda z, a: z + a[:, None], "K + 1 columns"),
]

test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)


@pytest.fixture(scope="module")
def defended():
    data = digits()
    network = book_network("standard", "cpu")
    return network, MysteryDefence(network).eval(), data.x_test[:100], data.y_test[:100]


@pytest.mark.parametrize("way", ["transfer", "straight-through", "square"])
def test_the_mystery_can_be_solved_in_three_ways(defended, way, capsys):
    network, model, x, y = defended
    ways = {
        "transfer": lambda model, x, y, eps: pgd(network, x, y, eps),
        "straight-through": lambda model, x, y, eps: pgd(
            lambda x: network(through(lambda x: x + 0.03 * torch.sin(500 * x + model.phase), x)), x, y, eps
        ),
        "square": lambda model, x, y, eps: square(model, x, y, eps, generator=torch.Generator().manual_seed(0)),
    }
    check_mystery(ways[way], model, x, y, 0.1)
    assert "solved." in capsys.readouterr().out


def test_plain_pgd_finds_little_and_the_images_are_judged(defended, capsys):
    network, model, x, y = defended

    def wide(model, x, y, eps):
        return pgd(network, x, y, 0.2)

    answers = {
        pgd: "about what plain PGD finds",
        (lambda model, x, y, eps: x): "about what plain PGD finds",
        wide: "not in Delta(x)",
        (lambda model, x, y, eps: x + eps * torch.sign(0.5 - x) * 1.01): "not in Delta(x)",
        (lambda model, x, y, eps: x - eps): "clamp x_adv to [0, 1]",
        (lambda model, x, y, eps: pgd(network, x, y, eps) - x): "looks like delta",
        (lambda model, x, y, eps: model(x)): "shape",
        (lambda model, x, y, eps: None): "returns nothing",
        (lambda model, x, y, eps: x.clone().fill_(torch.nan)): "and is nan",
        (lambda model, x, y, eps: pgd(network, x, y, 0.7 * eps)): "on the way",
    }
    for attack, words in answers.items():
        check_mystery(attack, model, x, y, 0.1)
        said = capsys.readouterr().out
        assert "not yet" in said and words in said, said


def test_weights_belong_to_the_defender(defended, capsys):
    _, _, x, y = defended
    model = MysteryDefence(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))

    def spoil(model, x, y, eps):
        with torch.no_grad():
            model.network[1].weight.zero_()
        return x

    check_mystery(spoil, model, x, y, 0.1)
    assert "changed the model's weights" in capsys.readouterr().out
