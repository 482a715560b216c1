"""`evaluate`: the book's whole protocol for anybody's classifier, and a report that can be handed in.

What is run is in `helpers.protocol`. Here is what goes around it: batches of any kind, a time budget, going on after an
interruption, several processes; and what comes out: a report that prints, is drawn, is saved, and is compared.
"""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from tqdm import tqdm

from helpers._validation import check_count, check_images, check_labels, check_number
from helpers.attacks import Model, frozen
from helpers.protocol import CLEAN, FOUND, NO_TIME, NOISE, AnyModel, Part, Protocol, run
from helpers.risk import Estimate, estimate
from helpers.sheet import markdown, text


def evaluate(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor],
    eps: float,
    *,
    norm: str = "linf",
    minutes: float | None = None,
    batch_size: int = 250,
    resume: "Report | str | os.PathLike[str] | None" = None,
    path: str | os.PathLike[str] | None = None,
    **choices: Any,
) -> "Report":
    """Run the book's protocol on a classifier, and return the report.

    Every image is looked at as it is, under random noise, and under attacks from one gradient step to an ensemble of
    losses and targets, and to one without gradients; it counts as an error if any of them fools the model. Signs of a
    broken evaluation are looked for on the way. Shows a progress bar. The model is in eval mode meanwhile and comes
    back as it was.

    With `torch.distributed` initialised, as under `torchrun`, each process takes its share of the batches, and all
    return the same report, equal to that of one process. Give each the same batches in the same order.

    Args:
        model: any function of images (N, ...) in [0, 1] that returns logits (N, K). The images are moved to its device.
            A model in half precision sees them rounded; the attack itself works in float32.
        batches: of images and labels (N,), int64: a DataLoader without shuffling, a list, a generator, or one pair.
        eps: the budget, in pixel units from 0 to 1: 8 of 255 grey levels are 8/255.
        norm: "linf" or "l2".
        minutes: at most so long, on the clock. Each batch has its share of what is left, and spends it on the images
            that still stand. The report says where time ran out; only AutoAttack, once begun, is not stopped.
        batch_size: larger batches are cut to this.
        resume: a report that was interrupted or ran out of time, or the JSON file of one: what it has is not run again.
        path: a JSON file, written after each batch.
        choices: any of `steps`, `restarts`, `targets`, `queries`, `autoattack`, `curve`, `seed`: see
            `helpers.protocol.Protocol`.

    Returns:
        A `Report`. After an interrupt (Ctrl-C) or when time ran out, of the images that were done.

    Raises:
        TypeError, ValueError: an argument is not allowed, a batch is not images and labels, the model does not return
            logits, or `resume` is a report of something else.
        OSError: `path` cannot be written.
    """
    begun = time.monotonic()
    protocol, door = Protocol(eps, norm, **choices), AnyModel(model)
    check_count(batch_size, "batch_size")
    if minutes is not None:
        check_number(minutes, "minutes", low=0, high=float("inf"), open_low=True)
    rank, world = _place()
    report = Report(_settings(protocol, door, model, batch_size), {}, _count(batches))
    if resume is not None:
        report.take_over(resume if isinstance(resume, Report) else Report.load(resume))
    quiet = {"disable": True} if rank else {}  # else as the environment has it
    bar = tqdm(total=report.expected, desc="evaluate", unit=" images", leave=False, **quiet)
    try:
        start = 0
        for number, (x, y) in enumerate(_cut(batches, batch_size)):
            ids = _fingerprints(x)
            if number in report.parts:
                report.check_same(number, ids, door, x, y)
            elif number % world == rank:
                left = float("inf") if minutes is None else begun + 60 * minutes - time.monotonic()
                if left <= 0 and report.parts:
                    report.stopped = "time ran out"
                    break
                share = min(1.0, len(x) * world / max(1, report.expected - start)) if report.expected else 1.0
                until = time.monotonic() + left * share
                part = _explained(run, protocol, door, x, y, start, until, lambda name: bar.set_postfix_str(name))
                report.parts[number] = {"start": start, "ids": ids, **part}
                if path is not None and rank == 0:
                    report.save(path)
            start += len(x)
            bar.update(len(x))
        if start == 0:
            raise ValueError("batches must yield at least one pair (images, labels); got none: is it used up?")
    except KeyboardInterrupt:
        report.stopped = "interrupted"
    finally:
        bar.close()
    if world > 1:
        _merge(report)
    if not report.parts:
        raise KeyboardInterrupt("interrupted before the first batch was done: there is nothing to report")
    report.settings["seconds"] = report.settings.get("seconds", 0.0) + time.monotonic() - begun
    if path is not None and rank == 0:
        report.save(path)
    return report


@dataclass
class Report:
    """What an evaluation found. `print(report)`, `report.plot()`, `report.save("report.md")` or `.json`."""

    settings: dict[str, Any]  # what was run, on what, with which versions
    parts: dict[int, Part]  # what was found, by number of batch
    expected: int | None = None  # how many images the batches hold, if known
    stopped: str = ""  # why it is not complete, if it is not
    rungs: list[str] = field(init=False, repr=False)  # what was run, weakest first

    def __post_init__(self) -> None:
        self.rungs = [NOISE, *Protocol(**self.settings["protocol"]).rungs]

    # ------------------------------------------------------------------------------------------------ the numbers

    def __len__(self) -> int:
        return sum(len(part["y"]) for part in self._parts())

    def errors(self, name: str) -> Tensor:
        """Return (N,), bool: which images are errors, clean or under the attack `name` of `rungs`.

        A name that begins with "+" stands for everything up to it: the worst case for each image.
        """
        names = self.rungs[: self.rungs.index(name) + 1] if name.startswith("+") else [name]
        return torch.stack([self._have(each, FOUND) for each in dict.fromkeys([CLEAN, *names])]).any(0)

    def error(self, name: str) -> Estimate:
        """Return the error rate, clean or under the attack `name`, as an estimate that says which side it bounds."""
        ensemble = [each for each in self.rungs if each.startswith("+")]
        names = ensemble[: ensemble.index(name) + 1] if name in ensemble else [name]
        said = [text for part in self._parts() for each in names for text in part["warnings"].get(each, [])]
        return estimate(self.errors(name), side="two-sided" if name == CLEAN else "at least", warnings=said)

    @property
    def clean_error(self) -> Estimate:
        """The error rate on the images as they are."""
        return self.error(CLEAN)

    @property
    def robust_error(self) -> Estimate:
        """The error rate in the worst case that was found; robust accuracy is 1 minus its value."""
        return self.error(self.rungs[-1])

    @property
    def curve(self) -> dict[str, dict[float, int]]:
        """Errors among the first images, counted, by attack and eps; they are as many as `curve_count`."""
        found: dict[str, dict[float, int]] = {}
        parts = [part for part in self._parts() if part["curve"]]
        clean = "".join(part["found"][CLEAN] for part in parts)[: self.curve_count]
        for name in parts[0]["curve"] if parts else ():
            found[name] = {0.0: clean.count(FOUND)}
            for eps in parts[0]["curve"][name]:
                letters = "".join(part["curve"][name][eps] for part in parts)
                found[name][float(eps)] = sum(FOUND in pair for pair in zip(clean, letters, strict=False))
        return found

    @property
    def curve_count(self) -> int:
        """How many images the curve is about."""
        return min(self.settings["protocol"]["curve"], sum(len(part["y"]) for part in self._parts() if part["curve"]))

    @property
    def late(self) -> int:
        """How many images are not known to be errors and did not get the whole protocol, for want of time."""
        open_ = ~self.errors(self.rungs[-1])
        return int((torch.stack([self._have(name, NO_TIME) for name in self.rungs]).any(0) & open_).sum())

    def seconds(self, name: str) -> float:
        """Return how long an attack took, summed over the batches."""
        return sum(part["seconds"].get(name, 0.0) for part in self._parts())

    def signs(self) -> list[tuple[bool, str]]:
        """Return the checklist's signs of a broken attack: whether all is well, and what was seen."""
        steps = [self.errors(name) for name in self.rungs[1:4]]
        one, ten, forty = (int(wrong.sum()) for wrong in steps)
        least = min(mcnemar(weak, strong, "greater") for weak, strong in itertools.pairwise(steps))
        clean, noise = (int(self.errors(name).sum()) for name in (CLEAN, NOISE))
        guessing = len(self) * (1 - 1 / self._parts()[0]["classes"])
        zero, random, others = (
            sum(part[name] for part in self._parts()) for name in ("zero gradients", "random", "depends on others")
        )
        batch = "cannot be told, the model is random" if random else "yes; they should not" if others else "no"
        found = [
            (clean <= guessing, f"clean errors: {clean}; guessing makes about {guessing:.0f}, a good model far fewer"),
            (
                forty >= one and least > 0.01,
                f"1, 10 and 40 steps find {one}, {ten}, {forty} errors; more steps should not find fewer",
            ),
            (
                noise == clean or 2 * (noise - clean) < forty - clean,
                f"noise adds {noise - clean} errors to the clean ones, 40 steps {forty - clean}; should be far fewer",
            ),
            (zero == 0, f"gradients that are exactly zero: {zero} of {len(self)}; should be none"),
            (random == 0, f"asked twice, the model says {'something else; should be ' if random else ''}the same"),
            (others == 0 and random == 0, f"an image's logits depend on its batch: {batch}"),
        ]
        if blind := Protocol(**self.settings["protocol"]).blind:
            before = self.rungs[self.rungs.index(blind) - 1]
            more = int((self.errors(blind) & ~self.errors(before)).sum())
            text = f"without gradients, Square finds {more} errors that all before it missed; should be hardly any"
            found.insert(3, (more <= 0.01 * len(self), text))
        if "40 steps" in self.curve:
            widest, wrong = max(self.curve["40 steps"].items())
            share = f"{wrong} of {self.curve_count}"
            text = f"errors at eps {widest:.4g}, where any image can become any other: {share}; should be all"
            found.insert(3, (wrong == self.curve_count, text))
        return found

    def warned(self) -> list[str]:
        """Return what the attacks warned of: each kind of warning as it was first said, and by which attacks."""
        first, names = {}, {}
        for name in self.rungs:
            for part in self._parts():
                for said in part["warnings"].get(name, []):
                    kind = re.sub(r"\d+", "#", said)
                    first.setdefault(kind, said)
                    names.setdefault(kind, {})[name.removeprefix("+ ")] = None
        return [f"{said} (Said of: {'; '.join(names[kind])}.)" for kind, said in first.items()]

    # ------------------------------------------------------------------------------------ how it is shown and kept

    def __str__(self) -> str:
        return text(self)

    def plot(self) -> None:
        """Draw the errors against eps, of 40 steps and of noise, with 95 % intervals."""
        from helpers.plots import plot_lines

        if not self.curve:
            raise ValueError("curve must have been above 0 for a plot: evaluate(..., curve=200)")
        eps = self.settings["protocol"]["eps"]
        budgets = [each for each in next(iter(self.curve.values())) if each <= 2.01 * eps]
        lines = {name: [row[each] for each in budgets] for name, row in self.curve.items()}
        units = "l-inf, pixel units" if self.settings["protocol"]["norm"] == "linf" else "l2, pixel units"
        plot_lines(budgets, lines, xlabel=f"eps ({units})", ylabel="error (%)", counts_of=self.curve_count)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report, as Markdown if the name ends in ".md", or as JSON, with all that it knows, in ".json".

        The file is written beside its place and then moved there, so that it is never half a file.

        Raises:
            ValueError: another ending.
            OSError: it cannot be written, for example for want of room; the report itself is still there.
        """
        path = Path(path)
        if path.suffix not in (".md", ".json"):
            raise ValueError(f"path must end in .md or .json; got {str(path)!r}")
        content = markdown(self) if path.suffix == ".md" else json.dumps(self._data(), indent=1)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(content, encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            with_room = f"The report is still in memory: report.save('another/{path.name}')."
            raise OSError(error.errno, f"{error.strerror}. {with_room}", str(path)) from error
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """Read a report that was saved as JSON.

        Raises:
            OSError: there is no such file. ValueError: it is not a report.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            parts = {int(number): part for number, part in data["parts"].items()}
            return cls(data["settings"], parts, data["expected"], data["stopped"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"path must be the JSON file of a report; {path} is not ({error!r})") from error

    # ------------------------------------------------------------------------------------- going on, and the rest

    def take_over(self, other: "Report") -> None:
        """Take what another report of the same evaluation has, but not what it did in too little time.

        Raises:
            ValueError: it is of another evaluation.
        """
        for what in ("protocol", "batch_size", "model"):
            mine, theirs = self.settings[what], other.settings[what]
            if mine != theirs:
                raise ValueError(f"resume must be a report with the same {what}, {mine}; got {theirs}")
        complete = {n: part for n, part in other.parts.items() if NO_TIME not in "".join(part["found"].values())}
        self.parts.update(complete)
        self.settings["seconds"] = other.settings.get("seconds", 0.0)

    def check_same(self, number: int, ids: list[str], model: AnyModel, x: Tensor, y: Tensor) -> None:
        """Check that a batch that was done before holds the same images and that the model says the same of them."""
        part = self.parts[number]
        if part["ids"] != ids or part["y"] != y.tolist():
            raise ValueError(f"batches must be those of the report; batch {number} differs (is the loader shuffled?)")
        with torch.no_grad(), frozen(model):
            first, _ = model.move(x[:4], torch.zeros(1))
            logits, before = model(first).double().cpu(), torch.tensor(part["logits"], dtype=torch.float64)
        same = logits.shape == before.shape and (logits - before).abs().max() <= 1e-2 * before.abs().max()
        if not same and not part["random"]:
            raise ValueError("model must be that of the report; it says something else of the same images")

    def _parts(self) -> list[Part]:
        return [self.parts[number] for number in sorted(self.parts)]

    def _have(self, name: str, letter: str) -> Tensor:
        """Return (N,), bool: which images have this letter in the attack `name`."""
        return torch.tensor([each == letter for part in self._parts() for each in part["found"][name]])

    def _data(self) -> dict[str, Any]:
        numbers = {name: self.error(name) for name in [CLEAN, *self.rungs]}
        summary = {
            name: {"error": e.value, "low": e.low, "high": e.high, "side": e.side, "seconds": self.seconds(name)}
            for name, e in numbers.items()
        }
        signs = [{"ok": well, "text": text} for well, text in self.signs()]
        told = {"images": len(self), "summary": summary, "signs": signs, "warnings": self.warned(), "late": self.late}
        return told | {
            "settings": self.settings, "expected": self.expected, "stopped": self.stopped, "parts": self.parts
        }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ two models


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images. `print(comparison)`; `comparison.show(x)` draws where they differ."""

    names: tuple[str, str]
    errors: tuple[Estimate, Estimate]
    only: tuple[list[int], list[int]]  # which images only the first gets wrong, and which only the second
    p: float  # McNemar's, two-sided: how often chance alone would split the discordant images so unevenly
    notes: tuple[str, ...]  # what makes the comparison less fair
    _ids: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        a, b = self.names
        first, second = map(len, self.only)
        chance = f"{self.p:.2g}" if self.p >= 1e-4 else "below 0.0001"
        lines = [f"A: {a}", f"   {self.errors[0]}", f"B: {b}", f"   {self.errors[1]}"]
        lines.append(f"only A wrong: {first} images; only B wrong: {second}; McNemar's exact test: p {chance}")
        for letter, rows in zip("AB", self.only, strict=True):
            more = f" and {len(rows) - 12} more" if len(rows) > 12 else ""
            lines.append(f"only {letter}: {', '.join(map(str, rows[:12])) or 'none'}{more}")
        return "\n".join([*lines, *(f"NOTE {note}" for note in self.notes)])

    def show(self, x: Tensor, count: int = 8) -> None:
        """Show the first `count` images that only one of the two gets wrong: a row for each model.

        Args:
            x: (N, 1 or 3, H, W), all images that were evaluated, in their order.

        Raises:
            ValueError: they are others, or there is no image that only one gets wrong.
        """
        from helpers.plots import show_images

        rows = [part[:count] for part in self.only if part]
        if not rows:
            raise ValueError("there is nothing to show: each image fools both models or neither")
        if _fingerprints(x) != list(self._ids):
            raise ValueError(f"x must hold the {len(self._ids)} images that were evaluated; got {len(x)}, or others")
        names = [f"only {letter} wrong" for letter, part in zip("AB", self.only, strict=True) if part]
        width = min(map(len, rows))
        show_images(x[[i for part in rows for i in part[:width]]], rows=names)


def compare(a: Report, b: Report) -> Comparison:
    """Compare the robust errors of two models, image by image (McNemar 1947, exact).

    Two intervals that overlap say little: both models were asked about the same images. Only those that fool one of the
    two can say which is better, and by chance each side has as many of them.

    Raises:
        TypeError: these are not two reports.
        ValueError: they are of other images, classes or perturbation sets.
    """
    for name, report in {"a": a, "b": b}.items():
        if not isinstance(report, Report):
            raise TypeError(f"{name} must be a Report; got {type(report).__name__}")
    for what, (one, other) in {
        "the same number of classes": [report._parts()[0]["classes"] for report in (a, b)],
        "the same norm": [report.settings["protocol"]["norm"] for report in (a, b)],
        "the same eps": [report.settings["protocol"]["eps"] for report in (a, b)],
        "the same number of images": [len(a), len(b)],
    }.items():
        if one != other:
            raise ValueError(f"a and b must have {what}; got {one} and {other}")
    for what, key in {"images": "ids", "labels": "y"}.items():
        named = [[each for part in report._parts() for each in part[key]] for report in (a, b)]
        if named[0] != named[1]:
            same = sum(one == other for one, other in zip(*named, strict=True))
            raise ValueError(f"a and b must be of the same {what} in the same order; {same} of {len(a)} agree")
    ids = [each for part in a._parts() for each in part["ids"]]
    first, second = (report.errors(report.rungs[-1]) for report in (a, b))
    only = (first & ~second).nonzero()[:, 0].tolist(), (second & ~first).nonzero()[:, 0].tolist()
    notes = [f"{name} is not complete: {r.stopped}" for name, r in (("A", a), ("B", b)) if r.stopped]
    notes += [f"{name} had no time for every attack on {r.late} images" for name, r in (("A", a), ("B", b)) if r.late]
    if a.settings["protocol"] != b.settings["protocol"]:
        notes.append("the two had different attacks")
    names, errors = tuple(r.settings["model"] for r in (a, b)), (a.robust_error, b.robust_error)
    return Comparison(names, errors, only, mcnemar(first, second), tuple(notes), tuple(ids))


def mcnemar(first: Tensor, second: Tensor, alternative: str = "two-sided") -> float:
    """Return the exact p-value of McNemar's test: are there as many cases of `first` alone as of `second` alone?

    Args:
        first, second: (N,), bool. alternative: "greater" for: more of the first.
    """
    from scipy.stats import binomtest

    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(one, one + other, alternative=alternative).pvalue) if one + other else 1.0


# ------------------------------------------------------------------------------------------------- what comes in


def _cut(batches: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of at most `size` images and their labels, checked."""
    if isinstance(batches, tuple | list) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches):
        batches = [batches]
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | str | bytes | dict):
        hint = (
            " Of a data set make batches: DataLoader(dataset, batch_size=250)."
            if hasattr(batches, "__getitem__")
            else ""
        )
        raise TypeError(f"batches must be pairs (images, labels), or one pair; got {type(batches).__name__}.{hint}")
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            got = f"{len(batch)} things" if isinstance(batch, tuple | list) else type(batch).__name__
            raise TypeError(f"batches must yield pairs (images, labels); got {got}")
        x, y = batch
        if not isinstance(y, Tensor) or y.ndim == 0:
            got = "a single label" if isinstance(y, Tensor | int) else type(y).__name__
            hint = "Of a data set make batches: DataLoader(dataset, batch_size=250)."
            raise TypeError(f"batches must yield labels (N,) as a tensor; got {got}. {hint}")
        check_images(x, half=True)
        check_labels(y.to(x.device), x)
        yield from zip(x.split(size), y.to(x.device).split(size), strict=True)


def _count(batches: Any) -> int | None:
    """Return how many images the batches hold, if that can be known without looking at them."""
    if isinstance(batches, torch.utils.data.DataLoader):
        try:
            return min(len(batches.dataset), len(batches) * (batches.batch_size or len(batches.dataset)))
        except TypeError:  # of unknown length
            return None
    if isinstance(batches, tuple | list):
        pairs = [batches] if batches and isinstance(batches[0], Tensor) else batches
        labels = [pair[-1] for pair in pairs if isinstance(pair, tuple | list) and pair]
        if len(labels) == len(pairs) and all(isinstance(y, Tensor) and y.ndim for y in labels):
            return sum(map(len, labels))
    return None


def _fingerprints(x: Tensor) -> list[str]:
    """Return a short name for each image, by which another run knows it again."""
    levels = ((65535 * image.detach().cpu().double()).round().to(torch.int32) for image in x)
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=6).hexdigest() for image in levels]


def _explained(run: Any, protocol: Protocol, model: AnyModel, x: Tensor, *rest: Any) -> Part:
    """Run the protocol on a batch; where the model itself fails on the images, say what they were."""
    try:
        with torch.no_grad(), frozen(model):
            shown = model.move(x[:2], torch.zeros(1))[0]
            model(shown)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"model must take images of shape {tuple(x.shape)}, {shown.dtype}, on {shown.device}; it raised: {error}. "
            "If it hides a network of another precision or on another device, convert inside: "
            "lambda x: network(x.half().cuda()).float()."
        ) from error
    return run(protocol, model, x, *rest)


def _settings(protocol: Protocol, door: AnyModel, model: Any, batch_size: int) -> dict[str, Any]:
    name = type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "a function")
    count = sum(parameter.numel() for parameter in door.parameters())
    size = f", {count:,} parameters in {str(door.dtype).removeprefix('torch.')}" if count else ""
    versions = {"python": platform.python_version()}
    for package in ("torch", "helpers", "pyautoattack"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "protocol": asdict(protocol),
        "batch_size": batch_size,
        "model": name + size,
        "device": f"{door.device or 'cpu'}, {torch.get_num_threads()} threads",
        "versions": versions,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _place() -> tuple[int, int]:
    """Return which of how many processes this is."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _merge(report: Report) -> None:
    """Give every process what all of them found."""
    everything: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everything, (report.parts, report.stopped))
    for parts, stopped in everything:
        report.parts.update(parts)
        report.stopped = report.stopped or stopped
