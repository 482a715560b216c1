"""Exercises of chapter 1: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import answer_tests

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def softmax(logits):
    shifted = (logits - logits.max(dim=1, keepdim=True).values).exp()
    return shifted / shifted.sum(dim=1, keepdim=True)


def fails_at_a_line(eps, std):
    return eps / std.tolist()


RIGHT = [
    ("check_softmax", softmax),
    ("check_cross_entropy", lambda z, y: z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]),
    ("check_eps_in_normalized_units", lambda eps, std: eps / std),  # as in the chapter, where std is a tensor
    ("check_eps_in_normalized_units", lambda eps, std: [eps / s for s in std]),
]

WRONG = [
    # What can go wrong with any answer.
    ("check_softmax", lambda z: None, "returns nothing"),
    ("check_softmax", lambda z: ..., "returns nothing so far. End it with `return`"),
    ("check_softmax", torch.ones(2, 3), "give the check your function itself"),
    ("check_softmax", lambda z: 3.0, "shape (2, 3); yours has ()"),
    ("check_softmax", lambda z: z.softmax(1).tolist(), "yours is a list"),
    ("check_softmax", lambda z: "0.5", "yours is a str"),
    ("check_softmax", lambda z: z.softmax(1).numpy(), "yours is a ndarray. Stay with PyTorch"),
    ("check_softmax", lambda z: np.float32(0.5), "yours is a float32"),
    ("check_softmax", lambda z: z.softmax(1).round().long(), "dtype torch.int64, which keeps no fractions"),
    ("check_softmax", lambda z: z.softmax(1).requires_grad_(), "remembers how it was computed"),
    ("check_softmax", lambda z: 1 / 0, "ZeroDivisionError"),
    ("check_softmax", lambda: 0, "TypeError"),
    ("check_eps_in_normalized_units", fails_at_a_line, "TypeError at `return eps / std.tolist()`: unsupported"),
    # And with each of them.
    ("check_softmax", lambda z: z.exp() / z.exp().sum(), "the sum of the whole batch"),
    ("check_softmax", lambda z: z.softmax(0), "Your columns sum to 1"),
    ("check_softmax", lambda z: z.exp(), "divide each row by its sum"),
    ("check_softmax", lambda z: z / z.sum(1, keepdim=True), "exponentials are missing"),
    ("check_softmax", lambda z: z.log_softmax(1), "logarithms"),
    ("check_softmax", lambda z: z.exp() / z.exp().sum(1, keepdim=True), "exp(1000) overflows"),
    ("check_softmax", lambda z: (z - 1000).exp() / (z - 1000).exp().sum(1, keepdim=True), "its own sum"),
    (
        "check_softmax",
        lambda z: (z - z[:, :1].clamp(min=0)).exp() / (z - z[:, :1].clamp(min=0)).exp().sum(1, keepdim=True),
        "exp(-1000) is 0",
    ),
    (
        "check_softmax",
        lambda z: (z - z.max()).exp() / (z - z.max()).exp().sum(1, keepdim=True),
        "its own largest logit",
    ),
    ("check_cross_entropy", lambda z, y: F.cross_entropy(z, y), "averaged or picked over an axis that should stay"),
    ("check_cross_entropy", lambda z, y: -z.softmax(1).gather(1, y[:, None])[:, 0].log(), "logsumexp"),
    ("check_cross_entropy", lambda z, y: z.log_softmax(1).gather(1, y[:, None])[:, 0], "The sign"),
    ("check_cross_entropy", lambda z, y: z.softmax(1).gather(1, y[:, None])[:, 0], "These are the probabilities"),
    ("check_cross_entropy", lambda z, y: z.logsumexp(1), "still to subtract"),
    ("check_cross_entropy", lambda z, y: z.logsumexp(1, True) - z.gather(1, y[:, None]), "but other axes: see keepdim"),
    ("check_cross_entropy", lambda z, y: z.logsumexp(1) - z.gather(1, y[:, None]), "for each pair of examples"),
    ("check_eps_in_normalized_units", lambda eps, std: eps * std, "You multiplied by std"),
    ("check_eps_in_normalized_units", lambda eps, std: (eps - std) / std, "mean cancels"),
    ("check_eps_in_normalized_units", lambda eps, std: 255 * eps / std, "no factor of 255"),
    ("check_eps_in_normalized_units", lambda eps, std: eps + std, "moves by eps"),
    ("check_eps_in_normalized_units", lambda eps, std: eps / std[0], "shape (3,); yours has ()"),
    ("check_eps_in_normalized_units", lambda eps, std: [eps / std[0]] * 3, "Each channel has its own std"),
]


test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
