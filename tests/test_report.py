"""The evaluation of anybody's classifier: what it finds, how it goes on, what it refuses, and what it says."""

import errno
import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from networks import PROBE_X, PROBE_Y, probe, random_network, rng, same, snapshot
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.report import Report, compare, evaluate, mcnemar
from helpers.risk import linear_worst_margin, risk

torch.set_num_threads(1)

SMALL = {"steps": 10, "curve": 4, "queries": 10}  # the protocol in little
NETWORK = random_network((6,), 3, torch.float32, rng(0))
X = torch.rand(10, 6, generator=rng(1))
with torch.no_grad():
    Y = NETWORK(X).argmax(1)
Y[:2] = (Y[:2] + 1) % 3  # two are wrong as they are
PAIR = (X, Y)


def found(report: Report) -> dict:
    """Return all that a report found, without the times."""
    return {n: {key: value for key, value in part.items() if key != "seconds"} for n, part in report.parts.items()}


# ------------------------------------------------------------------------------------------------ what it finds


@pytest.mark.parametrize("classes", [2, 4])
def test_on_a_linear_classifier_it_finds_exactly_what_there_is_to_be_found(classes):
    linear = random_network((8,), classes, torch.float32, rng(3), hidden=0)
    x = torch.rand(60, 8, generator=rng(4))
    with torch.no_grad():
        linear[1].bias.copy_(-linear[1].weight.sum(1) / 2)  # so that each class is the answer somewhere
        y = linear(x).argmax(1)
    report = evaluate(linear, (x, y), 0.15, **SMALL)
    exact = linear_worst_margin(linear[1], x, y, 0.15) > 0
    assert torch.equal(report.errors(report.rungs[-1]), exact)
    assert report.robust_error.value == exact.double().mean() > 0.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_rungs_begin_with_the_clean_error_and_end_with_the_worst_case_of_each_image(norm):
    report = evaluate(NETWORK, PAIR, 0.05, norm=norm, **SMALL)
    assert report.clean_error.value == risk(NETWORK, X, Y).value == 0.2
    assert (report.clean_error.side, report.robust_error.side) == ("two-sided", "at least")
    worst = torch.stack([report.errors(name) for name in ["clean", *report.rungs]]).any(0)
    assert torch.equal(report.errors(report.rungs[-1]), worst)
    counts = [int(report.errors(name).sum()) for name in report.rungs if name.startswith("+")]
    assert counts == sorted(counts)
    assert list(report.curve["40 steps"].values()) == sorted(report.curve["40 steps"].values())


@pytest.mark.parametrize(
    "batches",
    [
        [PAIR],
        list(zip(X.split(3), Y.split(3), strict=True)),
        DataLoader(TensorDataset(X, Y), batch_size=3),
        DataLoader(TensorDataset(X, Y), batch_size=10),
    ],
)
def test_batches_of_any_kind_give_the_same_errors(batches):
    whole = evaluate(NETWORK, PAIR, 0.05, **SMALL)
    report = evaluate(NETWORK, batches, 0.05, batch_size=4, **SMALL)
    assert report.expected == len(report) == 10
    for name in ("clean", "10 steps", report.rungs[-1]):
        assert torch.equal(report.errors(name), whole.errors(name))


def test_a_generator_is_used_once_and_no_pair_is_fetched_ahead():
    asked = []

    def stream():
        for pair in zip(X.split(5), Y.split(5), strict=True):
            asked.append(len(asked))
            yield pair

    report = evaluate(NETWORK, stream(), 0.05, **SMALL)
    assert (len(report), report.expected, asked) == (10, None, [0, 1])


def test_two_runs_are_equal_and_another_seed_is_another_run():
    first, again, other = (evaluate(NETWORK, PAIR, 0.05, seed=seed, **SMALL) for seed in (0, 0, 1))
    assert found(first) == found(again)
    assert first.settings["protocol"] != other.settings["protocol"]


def test_model_tensors_and_random_state_come_back_as_they_were():
    model, x, state = probe(), PROBE_X.clone(), torch.get_rng_state()
    before = snapshot(model)
    evaluate(model, (x, PROBE_Y), 0.1, **SMALL)
    assert same(snapshot(model), before) and torch.equal(x, PROBE_X)
    assert torch.equal(state, torch.get_rng_state())
    assert model.modes == {(False,) * 8}


# ------------------------------------------------------------------------------------------------------- going on


class Interrupting(nn.Module):
    """A network during whose n-th call the reader loses patience."""

    def __init__(self, at: float = float("inf")) -> None:
        super().__init__()
        self.network, self.at, self.calls = NETWORK, at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.network(x)


def test_an_interrupt_keeps_what_was_done_and_the_rest_gives_the_uninterrupted_result(tmp_path):
    whole = evaluate(Interrupting(), PAIR, 0.05, batch_size=4, **SMALL)
    calls = Interrupting()
    evaluate(calls, (X[:4], Y[:4]), 0.05, **SMALL)
    path = tmp_path / "report.json"
    part = evaluate(Interrupting(calls.calls + 20), PAIR, 0.05, batch_size=4, path=path, **SMALL)
    assert (len(part), part.stopped, list(part.parts)) == (4, "interrupted", [0])
    assert "NOT COMPLETE: interrupted" in str(part) and "4 of 10 images" in str(part)
    for before in (part, path, str(path)):
        model = Interrupting()
        done = evaluate(model, PAIR, 0.05, batch_size=4, resume=before, **SMALL)
        assert found(done) == found(whole)
        assert done.stopped == "" and model.calls < calls.calls * 3
    assert "NOT COMPLETE" not in str(done)


def test_an_interrupt_before_anything_was_done_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt, match="before the first batch"):
        evaluate(Interrupting(1), PAIR, 0.05, **SMALL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": 0.06}, "resume must be a report with the same protocol"),
        ({"batch_size": 5}, "resume must be a report with the same batch_size"),
        ({"batches": (X.flip(0), Y.flip(0))}, "batches must be those of the report; batch 0 differs"),
        ({"model": random_network((6,), 3, torch.float32, rng(9))}, "model must be that of the report"),
    ],
)
def test_a_report_of_something_else_is_not_gone_on_with(changes, words):
    good = {"model": NETWORK, "batches": PAIR, "eps": 0.05, "batch_size": 4}
    before = evaluate(**good, **SMALL)
    with pytest.raises(ValueError, match=words):
        evaluate(**{**good, **changes}, resume=before, **SMALL)


class Clock:
    """A clock on which every look takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize(("minutes", "done"), [(0.5, 1), (3, 10), (6, 10)])
def test_the_time_is_kept_and_the_report_says_for_which_images_it_ran_out(monkeypatch, minutes, done):
    clock = Clock()
    for module in ("protocol", "report"):
        monkeypatch.setattr(f"helpers.{module}.time", SimpleNamespace(monotonic=clock.monotonic))
    robust = random_network((6,), 3, torch.float32, rng(0))
    report = evaluate(robust, PAIR, 0.001, minutes=minutes, batch_size=5, **SMALL)
    assert clock.now < 60 * minutes + 60  # some looks at the clock belong to the last attack
    assert len(report) >= done
    assert report.late > 0 and f"TIME RAN OUT: {report.late} images" in str(report)
    monkeypatch.undo()
    whole = evaluate(robust, PAIR, 0.001, batch_size=5, **SMALL)
    assert (whole.late, "TIME RAN OUT" in str(whole)) == (0, False)
    assert found(evaluate(robust, PAIR, 0.001, batch_size=5, resume=report, **SMALL)) == found(whole)


PROCESS = """
import sys, torch
from torch import distributed
sys.path[:0] = {path!r}
from networks import random_network, rng
from helpers.report import evaluate
distributed.init_process_group("gloo", init_method="file://{folder}/meet", rank=int(sys.argv[1]), world_size=2)
torch.set_num_threads(1)
x, y = torch.rand(10, 6, generator=rng(1)), torch.arange(10) % 3
network = random_network((6,), 3, torch.float32, rng(0))
report = evaluate(network, (x, y), .05, batch_size=3, steps=10, curve=4, queries=10)
report.save("{folder}/" + sys.argv[1] + ".json")
"""


def test_two_processes_share_the_batches_and_each_has_the_report_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PROCESS.format(path=sys.path, folder=tmp_path))
    processes = [subprocess.Popen([sys.executable, script, str(rank)], stderr=subprocess.PIPE) for rank in (0, 1)]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    whole = evaluate(NETWORK, (X, torch.arange(10) % 3), 0.05, batch_size=3, **SMALL)
    for rank in (0, 1):
        report = Report.load(tmp_path / f"{rank}.json")
        assert found(report) == found(whole)
        assert len(report) == report.expected == 10


# ------------------------------------------------------------------------------------------------- what it refuses


def logits(x: Tensor) -> Tensor:
    return torch.stack([x.sum(1), 3 - x.sum(1), x[:, 0]], 1)


class Named(dict):
    """As some libraries return their results."""


BAD = {
    "nothing": ({"batches": []}, ValueError, ["batches must", "got none"]),
    "used up": ({"batches": iter(())}, ValueError, ["batches must", "used up"]),
    "no batches at all": ({"batches": 3}, TypeError, ["batches must", "pairs", "int"]),
    "images alone": ({"batches": X}, TypeError, ["batches must", "pairs", "Tensor"]),
    "batches of images alone": ({"batches": [X, X, X]}, TypeError, ["batches must", "pairs", "Tensor"]),
    "triples": ({"batches": [(X, Y, Y)]}, TypeError, ["pairs", "3 things"]),
    "dictionaries": ({"batches": [{"image": X}]}, TypeError, ["pairs", "dict"]),
    "a data set": ({"batches": TensorDataset(X, Y)}, TypeError, ["TensorDataset", "DataLoader(dataset"]),
    "one labelled image at a time": ({"batches": [*TensorDataset(X, Y)]}, TypeError, ["a single label", "DataLoader"]),
    "labels of int32": ({"batches": (X, Y.int())}, TypeError, ["y must", "int32", "y.long()"]),
    "labels in a list": ({"batches": [(X, Y.tolist())]}, TypeError, ["labels", "list"]),
    "labels of another number": ({"batches": (X, Y[:3])}, ValueError, ["y must", "(10,)", "(3,)"]),
    "images up to 255": ({"batches": (255 * X, Y)}, ValueError, ["x must", "[0, 1]"]),
    "more labels than classes": ({"batches": (X, Y + 2)}, ValueError, ["labels from 0 to 2"]),
    "fewer classes": ({"model": lambda x: logits(x)[:, :2], "batches": (X, Y.clamp(min=2))}, ValueError, ["0 to 1"]),
    "probabilities": ({"model": lambda x: logits(x).softmax(1)}, ValueError, ["logits", "probabilities", "softmax"]),
    "one logit": ({"model": lambda x: x[:, :1]}, ValueError, ["K >= 2", "(10, 1)", "torch.stack([0 * z, z], 1)"]),
    "one logit, flat": ({"model": lambda x: x[:, 0]}, ValueError, ["K >= 2", "torch.stack([0 * z, z], 1)"]),
    "NaN": ({"model": lambda x: logits(x) * torch.nan}, ValueError, ["model", "NaN"]),
    "a dictionary": ({"model": lambda x: {"logits": logits(x)}}, TypeError, ["Take its part", "model(x)['logits']"]),
    "their own dictionary": ({"model": lambda x: Named(out=x)}, TypeError, ["Take its part", "model(x)['out']"]),
    "no tensor": ({"model": lambda x: x.tolist()}, TypeError, ["model must", "logits"]),
    "hidden precision": ({"model": lambda x: x @ torch.zeros(6, 3).half()}, ValueError, ["float32", "x.half()"]),
    "other size": ({"model": lambda x: x @ torch.zeros(5, 3)}, ValueError, ["model must take images of shape (10, 6)"]),
    "no gradient": ({"model": lambda x: logits(x.detach())}, ValueError, ["differentiable", "straight-through"]),
    "no model": ({"model": None}, TypeError, ["model must", "NoneType"]),
    "eps of 255": ({"eps": 8}, ValueError, ["eps must", "8/255"]),
    "norm": ({"norm": "l1"}, ValueError, ["norm must", "l1"]),
    "no time": ({"minutes": 0}, ValueError, ["minutes must", "0"]),
    "batch size": ({"batch_size": 0}, ValueError, ["batch_size must", "0"]),
    "queries": ({"queries": -1}, ValueError, ["queries must", "at least 0", "-1"]),
    "few steps": ({"steps": 3}, ValueError, ["steps must", "10"]),
    "no report": ({"resume": Path(__file__)}, ValueError, ["JSON file of a report"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_an_error_that_says_what_was_given_and_what_to_do(case):
    changes, error, words = BAD[case]
    good = {"model": logits, "batches": PAIR, "eps": 0.05, **SMALL}
    with pytest.raises(error) as caught:
        evaluate(**{**good, **changes})
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_other_precisions_are_called_in_their_own(dtype):
    network = random_network((6,), 3, torch.float32, rng(0)).to(dtype)
    report = evaluate(network, PAIR, 0.2, **SMALL)
    expected = evaluate(NETWORK, PAIR, 0.2, **SMALL)
    assert abs(report.robust_error.value - expected.robust_error.value) <= 0.1
    assert str(dtype).removeprefix("torch.") in report.settings["model"]
    assert next(network.parameters()).dtype == dtype


def test_images_follow_the_model_to_its_device():
    seen = []

    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, device="meta"))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.device.type)
            raise RuntimeError("that will do")

    with pytest.raises(ValueError, match="on meta; it raised: that will do"):
        evaluate(Elsewhere(), PAIR, 0.1, **SMALL)
    assert seen == ["meta"]


# ------------------------------------------------------------------------------------------------------ the signs


def look(report: Report) -> list[str]:
    return [text for well, text in report.signs() if not well]


def test_an_ordinary_network_shows_no_sign_of_a_broken_attack():
    assert look(evaluate(NETWORK, PAIR, 0.1, **SMALL)) == []


def test_a_model_that_draws_random_numbers_is_found_out():
    generator = rng(0)
    report = evaluate(lambda x: logits(x) + torch.rand(len(x), 3, generator=generator), PAIR, 0.05, **SMALL)
    assert "asked twice, the model says something else; should be the same" in look(report)
    assert "an image's logits depend on its batch: cannot be told, the model is random" in look(report)
    assert "which is no bound, since the model is random" in str(report)


def test_a_model_that_looks_at_the_whole_batch_is_found_out():
    report = evaluate(lambda x: logits(x - x.mean(0)) * 3 + logits(x), PAIR, 0.05, **SMALL)
    assert look(report)[-1] == "an image's logits depend on its batch: yes; they should not"


def test_a_model_that_rounds_its_input_is_found_out():
    def rounding(x: Tensor) -> Tensor:
        return NETWORK(x.round())

    with torch.no_grad():
        y = rounding(X).argmax(1)
    report = evaluate(rounding, (X, y), 0.05, **SMALL)
    assert "gradients that are exactly zero: 10 of 10; should be none" in look(report)
    assert any("exactly zero at the start" in text for text in report.warned())
    assert "LOOK" in str(report) and "WARNED" in str(report) and "the attack warned" in str(report.robust_error)


def test_errors_that_only_an_attack_without_gradients_finds_are_a_sign():
    network, x = random_network((100,), 3, torch.float32, rng(0)), torch.rand(20, 100, generator=rng(1))

    def rounding(x: Tensor) -> Tensor:
        return network((7 * x).round() / 7)

    with torch.no_grad():
        y = rounding(x).argmax(1)
    report = evaluate(rounding, (x, y), 0.05, **SMALL | {"queries": 100})
    name = "+ Square, 100 queries"
    more = int((report.errors(name) & ~report.errors("+ 9 targets")).sum())
    assert report.rungs[-1] == name and more >= 2
    assert f"without gradients, Square finds {more} errors that all before it missed; should be hardly any" in look(
        report
    )
    assert report.robust_error.value == report.errors(name).double().mean()


def test_the_queries_are_counted_out_and_only_for_what_still_stands():
    asked = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            return NETWORK(x)

    counts = []
    for queries in (0, 30):
        asked.clear()
        report = evaluate(Counting(), PAIR, 0.001, **SMALL | {"queries": queries})
        counts.append(sum(asked))
    standing = 10 - int(report.errors("+ 9 targets").sum())
    assert counts[1] - counts[0] == 30 * standing > 0  # here Square finds nothing, so that none is asked again


@pytest.mark.parametrize(
    ("choice", "why"), [({"queries": 0}, "queries is 0"), ({"norm": "l2"}, "Square, here, is for l-inf")]
)
def test_that_no_attack_did_without_gradients_is_said(choice, why):
    report = evaluate(NETWORK, PAIR, 0.05, **SMALL | choice)
    assert f"NOT RUN  an attack without gradients: {why}" in str(report)
    assert not [text for _, text in report.signs() if "Square" in text]


def test_a_model_that_is_wrong_everywhere_has_nothing_to_attack():
    report = evaluate(NETWORK, (X[2:], (Y[2:] + 1) % 3), 0.05, **SMALL)
    assert report.clean_error.value == report.robust_error.value == 1
    assert all(set(part["found"]["10 steps"]) == {"."} for part in report.parts.values())
    assert look(report)[0].startswith(f"clean errors: {len(report)}; guessing makes about")


def test_fewer_errors_in_forty_steps_than_in_one_are_a_sign(monkeypatch):
    report = evaluate(NETWORK, PAIR, 0.05, **SMALL)
    wrong = {"one gradient step": 4, "10 steps": 3, "40 steps": 3}
    errors = Report.errors
    monkeypatch.setattr(
        Report, "errors", lambda self, name: torch.arange(10) < wrong[name] if name in wrong else errors(self, name)
    )
    assert "1, 10 and 40 steps find 4, 3, 3 errors; more steps should not find fewer" in look(report)


def test_what_was_not_run_is_said():
    report = evaluate(NETWORK, PAIR, 0.05, **SMALL | {"curve": 0})
    assert "NOT RUN  errors at an eps where any image can become any other" in str(report)


def test_attack_warnings_are_in_the_report_and_nothing_else_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(NETWORK, PAIR, 0.05, **SMALL)


# ------------------------------------------------------------------------------------------------- shown and kept


def test_the_text_has_what_a_report_of_robustness_must_have():
    text = str(evaluate(NETWORK, PAIR, 8 / 255, **SMALL))
    for words in ("10 images, l-inf, eps 0.03137 (8 of 255 grey levels)", "95 %", "at least", "or more",
                  "robust accuracy: at most", "seed 0", "steps 10", "torch 2", "does not prove"):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) <= 80


def test_it_is_written_as_json_and_markdown_and_read_again(tmp_path):
    report = evaluate(NETWORK, PAIR, 0.05, **SMALL)
    report.save(tmp_path / "a.json")
    assert str(Report.load(tmp_path / "a.json")) == str(report)
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["summary"]["clean"]["error"] == 0.2 and data["images"] == 10
    report.save(tmp_path / "a.md")
    text = (tmp_path / "a.md").read_text()
    assert "| clean | 20.0 % | " in text and "against eps" in text and "does not prove" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.md"]
    with pytest.raises(ValueError, match=r"path must end in \.md or \.json"):
        report.save(tmp_path / "a.txt")


def test_without_room_the_old_file_and_the_report_are_still_there(tmp_path, monkeypatch):
    report, path = evaluate(NETWORK, PAIR, 0.05, **SMALL), tmp_path / "a.json"
    path.write_text("the old one")

    def full(self, text, **options):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device. The report is still in memory") as caught:
        report.save(path)
    assert caught.value.errno == errno.ENOSPC
    assert (path.read_text(), list(tmp_path.iterdir())) == ("the old one", [path])
    assert "robust accuracy" in str(report)


def test_it_is_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr("helpers.plots.plot_lines", lambda *args, **options: drawn.append((args, options)))
    report = evaluate(NETWORK, PAIR, 0.05, **SMALL)
    report.plot()
    ((budgets, lines), options) = drawn[0]
    assert budgets[0] == 0 and budgets[-1] == 0.1 and options["counts_of"] == 4
    assert set(lines) == {"40 steps", "random noise, 10 draws"}
    with pytest.raises(ValueError, match="curve must have been above 0"):
        evaluate(NETWORK, PAIR, 0.05, steps=10, curve=0).plot()


# ------------------------------------------------------------------------------------------------------ two models


def test_two_models_are_compared_image_by_image():
    other = random_network((6,), 3, torch.float32, rng(7))
    a, b = (evaluate(model, PAIR, 0.02, **SMALL) for model in (NETWORK, other))
    found = compare(a, b)
    first, second = (report.errors(report.rungs[-1]) for report in (a, b))
    assert found.only[0] == [i for i in range(10) if first[i] and not second[i]]
    assert found.only[1] == [i for i in range(10) if second[i] and not first[i]]
    one, two = map(len, found.only)
    assert found.p == binomtest(one, one + two).pvalue
    assert f"only A wrong: {one} images; only B wrong: {two}" in str(found)
    assert compare(a, a).p == 1


def test_mcnemar_by_hand():
    first, second = torch.tensor([True] * 5 + [False] * 6), torch.tensor([False] * 5 + [True] + [False] * 5)
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(first, second, "greater") == pytest.approx((1 + 6) / 2**6)


def test_discordant_images_are_shown(monkeypatch):
    shown = []
    monkeypatch.setattr("helpers.plots.show_images", lambda images, **options: shown.append((images, options)))
    x, y = torch.full((6, 1, 1, 2), 0.2), torch.zeros(6, dtype=torch.int64)
    x[1, ..., 0] = x[3, ..., 1] = x[4] = 0.8  # the first model looks at the left pixel, the second at the right one
    a, b = (
        evaluate(lambda x, i=i: torch.stack([1 - 2 * x[:, 0, 0, i], 2 * x[:, 0, 0, i] - 1], 1), (x, y), 0.01, **SMALL)
        for i in (0, 1)
    )
    found = compare(a, b)
    assert found.only == ([1], [3])
    found.show(x)
    assert torch.equal(shown[0][0], x[[1, 3]]) and shown[0][1]["rows"] == ["only A wrong", "only B wrong"]
    with pytest.raises(ValueError, match="x must hold the 6 images"):
        found.show(x[:3])
    with pytest.raises(ValueError, match="or others"):
        found.show(x.flip(0))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"model": random_network((6,), 4, torch.float32, rng(0))}, "the same number of classes; got 3 and 4"),
        ({"eps": 0.06}, "the same eps; got 0.05 and 0.06"),
        ({"norm": "l2"}, "the same norm"),
        ({"batches": (X[:9], Y[:9])}, "the same number of images; got 10 and 9"),
        ({"batches": (X.flip(0), Y.flip(0))}, "the same images in the same order; "),
        ({"batches": (X, Y.flip(0))}, "the same labels in the same order; "),
    ],
)
def test_what_cannot_be_compared_is_refused(other, words):
    good = {"model": NETWORK, "batches": PAIR, "eps": 0.05, **SMALL}
    with pytest.raises(ValueError, match=words):
        compare(evaluate(**good), evaluate(**{**good, **other}))


def test_only_reports_are_compared():
    with pytest.raises(TypeError, match="a must be a Report; got float"):
        compare(0.5, 0.5)


def test_different_attacks_are_noted():
    a, b = (evaluate(NETWORK, PAIR, 0.05, steps=steps, curve=0) for steps in (10, 12))
    assert "NOTE the two had different attacks" in str(compare(a, b))
    assert list(itertools.chain(*compare(a, b).only)) == []
