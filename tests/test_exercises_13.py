"""Exercises of chapter 13: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import math

import pytest
from conftest import answer_tests

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def onto(delta, eps):
    return delta * min(1.0, eps / delta.norm().item())


def unit(gradient):
    return gradient / gradient.norm()


def universal_step(delta, grads, step, eps):
    return onto(delta + step * unit(grads.sum(0)), eps)


def projected_by_renorm(delta, grads, step, eps):
    return (delta + step * unit(grads.mean(0))).flatten()[None].renorm(2, 0, eps).view(delta.shape)


def longest(size, budget):
    length = 0
    while size ** (length + 1) <= budget:
        length += 1
    return length


def best_letters(gradient, allowed):
    return allowed[gradient[:, allowed].argmin(1)]


RIGHT = [
    ("check_universal_step", universal_step),
    ("check_universal_step", projected_by_renorm),
    ("check_longest", longest),
    ("check_best_letters", best_letters),
    ("check_best_letters", lambda g, a: best_letters(g, a).tolist()),
]
WRONG = [
    ("check_universal_step", lambda d, g, s, e: d + s * unit(g.sum(0)), "project after the step"),
    ("check_universal_step", lambda d, g, s, e: universal_step(d, -g, s, e), "That goes down"),
    ("check_universal_step", lambda d, g, s, e: onto(d + s * unit(sum(map(unit, g))), e), "vote"),
    ("check_universal_step", lambda d, g, s, e: onto(d + s * sum(map(unit, g)) / 3, e), "divide by one length"),
    ("check_universal_step", lambda d, g, s, e: onto(d + s * g.sum(0).sign(), e), "steepest step in l-inf"),
    ("check_universal_step", lambda d, g, s, e: onto(d + s * g.mean(0), e), "divided by its length"),
    ("check_universal_step", lambda d, g, s, e: onto(d + s * g.sum(0), e), "divided by its length"),
    ("check_universal_step", lambda d, g, s, e: (d + s * unit(g.sum(0))).clamp(-e, e), "project"),
    ("check_universal_step", lambda d, g, s, e: e * unit(d + s * unit(g.sum(0))), "never up"),
    ("check_universal_step", lambda d, g, s, e: onto(s * unit(g.sum(0)), e), "begin at 0"),
    ("check_universal_step", lambda d, g, s, e: onto(d + s * g, e), "should have shape"),
    ("check_universal_step", lambda d, g, s, e: d.add_(g.sum(0)), "in place"),
    ("check_longest", lambda size, budget: math.floor(math.log(budget) / math.log(size)), "floating point"),
    ("check_longest", lambda size, budget: longest(size, budget) + 1, "one too long"),
    ("check_longest", lambda size, budget: longest(size, budget - 1), "met exactly"),
    ("check_longest", lambda size, budget: budget // size, "Strings multiply"),
    ("check_longest", lambda size, budget: max(1, longest(size, budget)), "one too long"),
    ("check_longest", lambda size, budget: None, "returns nothing"),
    ("check_best_letters", lambda g, a: g.argmin(1), "not allowed"),
    ("check_best_letters", lambda g, a: g[:, a].argmin(1), "the token itself"),
    ("check_best_letters", lambda g, a: a[g[:, a].argmax(1)], "raises the loss"),
    ("check_best_letters", lambda g, a: a[g[:, a].abs().argmax(1)], "The sign matters"),
    ("check_best_letters", lambda g, a: g.argmax(1), "Not allowed, and"),
]

test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
