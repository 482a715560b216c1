"""How progress in the exercises is counted. The checks themselves are tested chapter by chapter."""

import pytest
import torch.nn.functional as F

from helpers import exercises

pytestmark = pytest.mark.usefixtures("nothing_solved_yet")


def softmax(logits):
    shifted = (logits - logits.max(dim=1, keepdim=True).values).exp()
    return shifted / shifted.sum(dim=1, keepdim=True)


def test_progress_counts_what_the_reader_solved_and_says_what_is_next(capsys):
    def said():
        exercises.progress(checked=["1.1", "1.2"], unchecked=["1.3"])
        return capsys.readouterr().out.splitlines()[-5:]

    assert said() == [
        "Chapter 1: 0 of 2 checked exercises solved",
        "  1.1  not run",
        "  1.2  not run",
        "  1.3  no check: you are the judge",
        "Next: exercise 1.1. Its check says what is missing.",
    ]
    exercises.check_softmax(lambda z: z)
    exercises.check_softmax(softmax, solution=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("Solution 1.1 passes.")
    assert said()[:2] == ["Chapter 1: 0 of 2 checked exercises solved", "  1.1  not yet"]
    exercises.check_softmax(softmax)
    exercises.check_softmax(lambda z: z)
    assert said()[:2] == ["Chapter 1: 1 of 2 checked exercises solved", "  1.1  solved"]
    assert said()[-1].startswith("Next: exercise 1.2.")
    exercises.check_cross_entropy(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    assert said()[-1] == "All checks pass. Next: exercise 1.3."
    exercises.progress(checked=["1.1", "1.2"])
    assert capsys.readouterr().out.endswith("All checks pass. On to the next chapter.\n")


def test_progress_of_nothing_is_refused():
    with pytest.raises(ValueError, match="checked"):
        exercises.progress(checked=[])
