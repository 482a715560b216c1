"""Exercises of chapter 9: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
from conftest import answer_tests

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def both_ends(broken, proved):
    return torch.stack([broken.float().mean(), (~proved).float().mean()])


def two_cases(low, high, j):
    on, off = low.clone(), high.clone()
    on[j], off[j] = 0, 0
    return torch.stack([torch.stack([on, high]), torch.stack([low, off])])


def in_place(low, high, j):
    low[j] = 0
    return torch.stack([torch.stack([low, high]), torch.stack([low, high])])


def both_zero(low, high, j):
    on, off = low.clone(), high.clone()
    on[j], off[j] = 0, 0
    return torch.stack([torch.stack([on, off])] * 2)


def every_neuron(low, high, j):
    return torch.stack([torch.stack([low.clamp(min=0), high]), torch.stack([low, high.clamp(max=0)])])


RIGHT = [
    ("check_both_ends", both_ends),
    ("check_both_ends", lambda broken, proved: [float(broken.float().mean()), 1 - float(proved.float().mean())]),
    ("check_two_cases", two_cases),
]
WRONG = [
    ("check_both_ends", lambda b, p: both_ends(b, p)[[0, 0]], "time-out proves nothing"),
    ("check_both_ends", lambda b, p: both_ends(b, p)[[1, 1]], "Nobody has broken them"),
    ("check_both_ends", lambda b, p: (b.sum() / (b | p).sum()).repeat(2), "divide by all N"),
    ("check_both_ends", lambda b, p: both_ends(b, p).flip(0), "lower end first"),
    ("check_both_ends", lambda b, p: 1 - both_ends(b, p).flip(0), "robust accuracy"),
    ("check_both_ends", lambda b, p: torch.stack([b.sum(), (~p).sum()]).float(), "not counts"),
    ("check_both_ends", lambda b, p: torch.stack([b.float().mean(), p.float().mean()]), "share that is proved"),
    ("check_both_ends", lambda b, p: 100 * both_ends(b, p), "in percent"),
    ("check_both_ends", lambda b, p: None, "returns nothing"),
    ("check_two_cases", lambda low, high, j: two_cases(low, high, j).flip(0), "other way round"),
    ("check_two_cases", both_zero, "both ends in both cases"),
    ("check_two_cases", every_neuron, "Only neuron j"),
    ("check_two_cases", in_place, "in place"),
]

test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
