"""Exercises of chapter 4: right answers pass, each likely mistake is told apart and gets a hint, nothing raises."""

import pytest
import torch
import torch.nn.functional as F
from conftest import answer_tests

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def softmax(logits):
    shifted = (logits - logits.max(dim=1, keepdim=True).values).exp()
    return shifted / shifted.sum(dim=1, keepdim=True)


def least_likely(logits, y):
    return logits.scatter(1, y[:, None], torch.inf).argmin(1)


RIGHT = [
    ("check_difference", lambda z, y, t: z.gather(1, t[:, None])[:, 0] - z.gather(1, y[:, None])[:, 0]),
    (
        "check_difference",
        lambda z, y, t: F.cross_entropy(z, y, reduction="none") - F.cross_entropy(z, t, reduction="none"),
    ),
    ("check_least_likely", least_likely),
    ("check_least_likely", lambda logits, y: least_likely(logits, y).tolist()),
    ("check_success", lambda before, after, y, t: (before == y) & (after == t)),
    ("check_success", lambda before, after, y, t: torch.where(before == y, after == t, False)),
]

WRONG = [
    ("check_difference", lambda z, y, t: z[:, y] - z[:, t], "shape (2,); yours has (2, 2)"),
    ("check_difference", lambda z, y, t: z.gather(1, y[:, None])[:, 0] - z.gather(1, t[:, None])[:, 0], "other way"),
    ("check_difference", lambda z, y, t: z.gather(1, t[:, None])[:, 0], "the true one is to subtract"),
    ("check_difference", lambda z, y, t: -F.cross_entropy(z, t, reduction="none"), "log p of the target alone"),
    (
        "check_difference",
        lambda z, y, t: (z.softmax(1).gather(1, t[:, None]) - z.softmax(1).gather(1, y[:, None]))[:, 0],
        "differences of probabilities",
    ),
    (
        "check_difference",
        lambda z, y, t: (z.softmax(1).gather(1, t[:, None]) / z.softmax(1).gather(1, y[:, None])).log()[:, 0],
        "No softmax",
    ),
    ("check_least_likely", lambda logits, y: logits.argmin(1), "In the third row"),
    ("check_least_likely", lambda logits, y: logits.argmax(1), "the most likely class"),
    ("check_least_likely", lambda logits, y: logits.argsort(1)[:, 1], "the second smallest"),
    ("check_least_likely", lambda logits, y: logits.min(1).values, "whole numbers"),
    ("check_least_likely", lambda logits, y: least_likely(logits, y).float(), "yours is torch.float32"),
    ("check_least_likely", lambda logits, y: logits.scatter(1, y[:, None], -torch.inf).argmin(1), "minus infinity"),
    ("check_least_likely", lambda logits, y: logits.scatter_(1, y[:, None], torch.inf).argmin(1), "in place"),
    ("check_least_likely", lambda logits, y: y, "smallest logit"),
    ("check_least_likely", lambda logits, y: logits.argmin(0), "shape (3,); yours has (4,)"),
    ("check_least_likely", lambda logits, y: logits.argmin(0), "along the classes (dimension 1)"),
    ("check_least_likely", lambda z, y: z.masked_fill(F.one_hot(y).bool(), torch.inf).argmin(1), "raised RuntimeError"),
    ("check_success", lambda before, after, y, t: after == t, "wrong before the attack"),
    ("check_success", lambda before, after, y, t: (before == y) & (after != y), "untargeted success"),
    ("check_success", lambda before, after, y, t: after != y, "Any wrong answer counts"),
    ("check_success", lambda before, after, y, t: before == y, "after the attack as well"),
    ("check_success", lambda before, after, y, t: (before != t) & (after == t), "if not yet the target"),
    ("check_success", lambda before, after, y, t: (before == y) | (after == t), '"and" (&)'),
    ("check_success", lambda before, after, y, t: ((before == y) & (after == t)).sum(), "shape (6,)"),
    ("check_success", lambda before, after, y, t: after == after, "Two conditions"),
]


test_right_answers_pass, test_mistakes_get_the_hint_that_fits = answer_tests(RIGHT, WRONG)
