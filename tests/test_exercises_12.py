"""Exercises of chapter 12: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
from conftest import answer_tests

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def total(x):
    return x.flatten(1).sum(1)


def share(grad, mask):
    return total(grad.square() * mask) / total(grad.square())


def area(mask):
    return mask.flatten(1).mean(1)


def shifted(y, generator):
    return (y + torch.randint(1, 10, y.shape, generator=generator)) % 10


def stepped_over(y, generator):
    drawn = torch.randint(0, 9, y.shape, generator=generator)
    return drawn + (drawn >= y)


def said(network, images):
    with torch.no_grad():
        return network(images).argmax(1)


def follows(network, x, y, plant):
    after = (y + 1) % 10
    return (said(network, plant(x, after)) == after).float().mean()


RIGHT = [
    ("check_lift", lambda g, m: share(g, m) / area(m)),
    ("check_lift", lambda g, m: (g.square() * m).sum((1, 2, 3)) * m[0].numel() / total(m) / total(g.square())),
    ("check_other_class", shifted),
    ("check_other_class", stepped_over),
    ("check_follows", follows),
    ("check_follows", lambda n, x, y, p: follows(n, x, y, p).item()),
]

WRONG = [
    ("check_lift", share, "divide by that"),
    ("check_lift", lambda g, m: total(g.abs() * m) / total(g.abs()) / area(m), "not its size"),
    ("check_lift", lambda g, m: share(g, m) / total(m), "number of pixels"),
    ("check_lift", lambda g, m: share(g, m) / m.mean(), "image by image"),
    ("check_lift", lambda g, m: (g.square() * m).sum() / g.square().sum() / m.mean(), "shape"),
    ("check_lift", lambda g, m: share(g, m) - area(m), "not the difference"),
    ("check_lift", lambda g, m: None, "returns nothing"),
    ("check_other_class", lambda y, g: torch.randint(0, 10, y.shape, generator=g), "leave the true class out"),
    (
        "check_other_class",
        lambda y, g: (lambda drawn: drawn + (drawn > y))(torch.randint(0, 9, y.shape, generator=g)),
        "must step on, too",
    ),
    ("check_other_class", lambda y, g: y, "Only wrong classes"),
    ("check_other_class", lambda y, g: y + torch.randint(1, 10, y.shape, generator=g), "% 10"),
    ("check_other_class", lambda y, g: (y + 1) % 10, "a rule can be learned"),
    ("check_other_class", lambda y, g: (y + torch.randint(1, 9, y.shape, generator=g)) % 10, "same chance"),
    ("check_other_class", lambda y, g: shifted(y, None), "the generator that you are given"),
    ("check_other_class", lambda y, g: shifted(y, torch.Generator().manual_seed(3)), "another seed gives the same"),
    ("check_other_class", lambda y, g: shifted(y, g).float(), "whole numbers"),
    ("check_other_class", lambda y, g: shifted(y[:1], g), "shape"),
    ("check_other_class", lambda y, g: None, "returns nothing"),
    ("check_follows", lambda n, x, y, p: (said(n, p(x, (y + 1) % 10)) != y).float().mean(), "Not every error"),
    ("check_follows", lambda n, x, y, p: (said(n, p(x, (y + 1) % 10)) == y).float().mean(), "still read right"),
    ("check_follows", lambda n, x, y, p: (said(n, p(x, y)) == y).float().mean(), "own shortcut"),
    ("check_follows", lambda n, x, y, p: (said(n, x) == (y + 1) % 10).float().mean(), "no shortcut yet"),
    ("check_follows", lambda n, x, y, p: 100 * follows(n, x, y, p), "not percent"),
    ("check_follows", lambda n, x, y, p: said(n, p(x, y)) == y, "shape"),
]

test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
