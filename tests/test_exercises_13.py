"""Exercises of chapter 13: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import math

import pytest
from conftest import answer_tests

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def universal_step(delta, grads, step, eps):
    return (delta + step * grads.sum(0).sign()).clamp(-eps, eps)


def longest(size, budget):
    length = 0
    while size ** (length + 1) <= budget:
        length += 1
    return length


def best_letters(gradient, allowed):
    return allowed[gradient[:, allowed].argmin(1)]


RIGHT = [
    ("check_universal_step", universal_step),
    ("check_universal_step", lambda d, g, s, e: (d + s * g.mean(0).sign()).clamp(-e, e)),
    ("check_longest", longest),
    ("check_best_letters", best_letters),
    ("check_best_letters", lambda g, a: best_letters(g, a).tolist()),
]
WRONG = [
    ("check_universal_step", lambda d, g, s, e: d + s * g.sum(0).sign(), "project after the step"),
    ("check_universal_step", lambda d, g, s, e: (d - s * g.sum(0).sign()).clamp(-e, e), "That goes down"),
    ("check_universal_step", lambda d, g, s, e: (d + s * g.sign().sum(0).sign()).clamp(-e, e), "vote"),
    ("check_universal_step", lambda d, g, s, e: (d + s * g.sign().mean(0)).clamp(-e, e), "then take one sign"),
    ("check_universal_step", lambda d, g, s, e: (d + s * g.mean(0)).clamp(-e, e), "a sign, not the gradient"),
    ("check_universal_step", lambda d, g, s, e: (d + s * g.sum(0)).clamp(-e, e), "a sign, not the gradient"),
    ("check_universal_step", lambda d, g, s, e: (s * g.sum(0).sign()).clamp(-e, e), "begin at 0"),
    ("check_universal_step", lambda d, g, s, e: (d + s * g.sign()).clamp(-e, e), "should have shape"),
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
