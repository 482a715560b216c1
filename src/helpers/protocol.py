"""The protocol of an evaluation: what is run on a batch of images, from nothing to the strongest attack.

It is the book's checklist as code. `helpers.report` runs it on any number of batches and says what came out.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from helpers._validation import check_classes, check_count, check_logits, check_number
from helpers.attacks import AttackWarning, Iterate, Model, frozen, pgd, soft_margin
from helpers.blackbox import square
from helpers.perturbations import perturbation_set

CLEAN, NOISE = "clean", "random noise, 10 draws"
CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of eps, for the curve of error against eps; the widest eps comes last
NOT_FOUND, FOUND, NOT_NEEDED, NO_TIME = "01.-"  # what became of one image in one attack

Part = dict[str, Any]  # what is known about one batch: numbers, words and lists of them, as JSON has them


@dataclass(frozen=True)
class Protocol:
    """The choices of an evaluation; with the defaults it ends where AutoAttack ends on the book's digits (a test).

    After all attacks by gradients comes one without, Square, in l-inf. On a sound model it finds next to nothing that
    they did not: its few queries are there to notice gradients that mislead.

    Args:
        eps, norm: the perturbation set, as `pgd` takes them.
        steps: gradient steps of the ensemble's losses, at least 10; each target has two fifths of them.
        restarts: how often the ensemble's losses are run, at least 1; all but the first of them from random points.
        targets: how many wrong classes the ensemble aims at, the likeliest first; 0 for none.
        queries: how often Square asks about an image that still stands; 0 for none. There is none in l2.
        autoattack: let AutoAttack (Croce and Hein 2020) loose on what is still standing; needs `pyautoattack`.
        curve: how many images, the first ones, the curve of error against eps is drawn for; 0 for none.
        seed: of the noise and the random starts.

    Raises:
        TypeError, ValueError: a choice is not allowed.
    """

    eps: float
    norm: str = "linf"
    steps: int = 50
    restarts: int = 1
    targets: int = 9
    queries: int = 100
    autoattack: bool = False
    curve: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_number(self.eps, "eps", low=0, high=float("inf"))
        perturbation_set(self.norm, self.eps)
        for name, low in {"steps": 10, "restarts": 1, "targets": 0, "queries": 0, "curve": 0, "seed": 0}.items():
            check_count(getattr(self, name), name, low=low)
        if self.autoattack:
            _autoattack()

    @property
    def rungs(self) -> dict[str, dict[str, Any]]:
        """Name and options of every attack, weakest first; where no other is named, the options are those of `pgd`.

        An attack whose name begins with "+" belongs to the ensemble: it sees what is still standing when it comes.
        """
        auto = {"steps": self.steps, "step_size": "auto"}
        found: dict[str, dict[str, Any]] = {
            "one gradient step": {"loss": "cross_entropy", "steps": 1},
            "10 steps": {"steps": 10},
            "40 steps": {"steps": 40},
            f"+ {self.steps} steps, soft margin": {**auto, "restarts": self.restarts},
        }
        for loss in ("cross_entropy", "margin"):
            options = {**auto, "loss": loss, "random_start": True, "restarts": self.restarts}
            found[f"+ {self.steps} steps, {loss.replace('_', '-')}"] = options
        if self.targets:
            found[f"+ {self.targets} targets"] = {**auto, "loss": "difference", "steps": max(10, 2 * self.steps // 5)}
        if self.blind:
            found[self.blind] = {"queries": self.queries}
        if self.autoattack:
            found["+ AutoAttack"] = {}
        return found

    @property
    def blind(self) -> str:
        """The name of the attack without gradients; empty if there is none."""
        return f"+ Square, {self.queries} queries" if self.queries and self.norm == "linf" else ""

    def widest(self, x: Tensor) -> float:
        """Return the eps within which every image can be turned into every other."""
        return 1.0 if self.norm == "linf" else x[0].numel() ** 0.5


class AnyModel(nn.Module):
    """The caller's model, called with images where it lives and in its own precision; logits come back in `x`'s.

    So an attack on a model in half precision takes its steps in float32, and its perturbations are exactly in the set.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be a function of images that returns logits; got {type(model).__name__}")
        self.model = model
        first = next(chain(self.parameters(), self.buffers()), None)
        self.dtype = first.dtype if first is not None and first.is_floating_point() else None
        self.device = None if first is None else first.device

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) of the images `x`."""
        logits = self.model(x if self.dtype is None else x.to(self.dtype))
        return logits.to(x.dtype) if isinstance(logits, Tensor) and logits.is_floating_point() else logits

    def move(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch as the attacks want it: on the model's device, in double precision if the model is."""
        dtype = torch.float64 if self.dtype == torch.float64 or x.dtype == torch.float64 else torch.float32
        return x.detach().to(self.device, dtype), y.to(self.device)


def run(
    protocol: Protocol, model: AnyModel, x: Tensor, y: Tensor, start: int, until: float, tell: Callable[[str], None]
) -> Part:
    """Run the protocol on one batch, for as long as there is time, and return what was found.

    Args:
        protocol: the choices. model: the one under test.
        x: (N, ...), values in [0, 1]. y: (N,), int64.
        start: how many images came before.
        until: when to stop, on the clock of `time.monotonic`. What was found until then counts.
        tell: called with the name of what is run.

    Raises:
        ValueError: the model does not return logits, or has no gradient.
    """
    x, y = model.move(x, y)
    with frozen(model):
        part = _first_look(model, x, y) | {"found": {}, "seconds": {}, "warnings": {}, "curve": {}}
        wrong = _wrong(model, x, y)
        part["found"][CLEAN] = _letters(wrong)
        standing = ~wrong  # the union over all that was run
        for name, attack in {NOISE: _noise(protocol, start), **_attacks(protocol, start)}.items():
            tell(name)
            rows = (standing if name.startswith("+") else ~wrong).nonzero()[:, 0]
            letters, part["seconds"][name], said = _timed(attack, model, x, y, rows, protocol.eps, until)
            part["found"][name] = letters
            if said:
                part["warnings"][name] = said
            standing &= torch.tensor([letter != FOUND for letter in letters], device=y.device)
            if name == "40 steps" and start < protocol.curve:
                tell("the curve")
                rows = (~wrong)[: protocol.curve - start].nonzero()[:, 0]
                part["curve"] = _curve(protocol, model, x, y, rows, start, until)
    return part


def _first_look(model: AnyModel, x: Tensor, y: Tensor) -> Part:
    """Return what the model says of the clean images, and whether it can be attacked by gradients at all."""
    with torch.no_grad():
        logits, again = model(x), model(x)
        check_logits(logits, len(x))
        check_logits(again, len(x))
        check_classes(y, logits.shape[1])
        alone = torch.cat([model(image[None]) for image in x[:4]])
    scale = 1e-2 * logits.abs().max()  # half precision rounds by a thousandth, and by more in a larger batch
    point = x.clone().requires_grad_()
    with torch.enable_grad():
        values = soft_margin(model(point), y)
        grad = torch.autograd.grad(values.sum(), point, allow_unused=True)[0] if values.requires_grad else None
    grad = torch.zeros_like(x) if grad is None else grad
    return {
        "y": y.tolist(),
        "said": logits.argmax(1).tolist(),
        "logits": logits[:4].double().cpu().tolist(),
        "classes": logits.shape[1],
        "random": bool((logits - again).abs().max() > scale),
        "depends on others": bool((logits[:4] - alone).abs().max() > scale),
        "zero gradients": int((~grad.flatten(1).any(1) & (logits.argmax(1) == y)).sum()),
    }


def _timed(
    attack: Callable, model: AnyModel, x: Tensor, y: Tensor, rows: Tensor, eps: float, until: float
) -> tuple[str, float, list[str]]:
    """Run an attack on some rows; return a letter for each of the N images, the seconds, and the warnings."""
    letters, begun = [NOT_NEEDED] * len(x), time.monotonic()
    watch = Watch(x[rows], y[rows], until)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AttackWarning)
        if len(rows):
            try:
                if begun > until:
                    raise OutOfTimeError
                attack(model, x[rows], y[rows], eps, watch)
            except OutOfTimeError:
                watch.late = True
            fooled = watch.fooled.clone()
            if fooled.any():  # what was found on the way is asked again, in a batch of its own
                fooled[watch.fooled] = _wrong(model, watch.x_adv[watch.fooled], y[rows][watch.fooled])
            for row, hit in zip(rows.tolist(), fooled.tolist(), strict=True):
                letters[row] = FOUND if hit else NO_TIME if watch.late else NOT_FOUND
    said = [str(warning.message) for warning in caught if issubclass(warning.category, AttackWarning)]
    return "".join(letters), time.monotonic() - begun, said


class OutOfTimeError(Exception):
    """The time is up. What was found so far is kept."""


class Watch:
    """The `trace` of `pgd` and `square`: keeps what fools the model in any way, and ends the attack when time is up."""

    def __init__(self, x: Tensor, y: Tensor, until: float) -> None:
        self.x, self.y, self.until, self.late = x, y, until, False
        self.x_adv, self.fooled = x.clone(), torch.zeros_like(y, dtype=torch.bool)

    def append(self, now: Iterate) -> None:
        """Look at one iterate; the attack calls this for each."""
        self.see(now.rows, now.delta, now.logits)

    def see(self, rows: Tensor, delta: Tensor, logits: Tensor) -> None:
        """Keep those of `rows` that are misclassified, as images changed by `delta`."""
        hit = logits.argmax(1) != self.y[rows]
        if hit.any():
            self.x_adv[rows[hit]], self.fooled[rows[hit]] = self.x[rows[hit]] + delta[hit], True
        if time.monotonic() > self.until:
            raise OutOfTimeError


def _noise(protocol: Protocol, start: int) -> Callable:
    """Return the baseline that does not look at the model: ten random perturbations of each image."""

    def attack(model: Model, x: Tensor, y: Tensor, eps: float, watch: Watch) -> None:
        allowed, stream = perturbation_set(protocol.norm, eps), _stream(protocol, start)
        for _ in range(10):
            delta = allowed.random(x, stream)
            with torch.no_grad():
                watch.see(torch.arange(len(x), device=x.device), delta, model(x + delta))

    return attack


def _attacks(protocol: Protocol, start: int) -> dict[str, Callable]:
    """Return the attacks, by name, as functions of (model, x, y, eps, watch); they leave what they find in `watch`."""
    options = {"norm": protocol.norm, "keep": "first"}

    def climb(**more: Any) -> Callable:
        def attack(model: Model, x: Tensor, y: Tensor, eps: float, watch: Watch) -> None:
            pgd(model, x, y, eps, trace=watch, generator=_stream(protocol, start), **options, **more)

        return attack

    def aim(**more: Any) -> Callable:
        def attack(model: Model, x: Tensor, y: Tensor, eps: float, watch: Watch) -> None:
            with torch.no_grad():
                logits = model(x).scatter(1, y[:, None], -torch.inf)
            likeliest = logits.topk(min(protocol.targets, logits.shape[1] - 1)).indices.T
            for target in likeliest:
                rows = (~watch.fooled).nonzero()[:, 0]
                if len(rows):
                    inner = Watch(x[rows], y[rows], watch.until)
                    try:
                        pgd(model, x[rows], y[rows], eps, target=target[rows], trace=inner, **options, **more)
                    finally:
                        watch.x_adv[rows], watch.fooled[rows] = inner.x_adv, inner.fooled

        return attack

    def blind(**more: Any) -> Callable:
        def attack(model: Model, x: Tensor, y: Tensor, eps: float, watch: Watch) -> None:
            square(model, x, y, eps, trace=watch, generator=_stream(protocol, start), **more)

        return attack

    def standard(model: Model, x: Tensor, y: Tensor, eps: float, watch: Watch) -> None:
        norm = {"linf": "Linf", "l2": "L2"}[protocol.norm]
        judge = _autoattack()(model, norm=norm, eps=eps, device=x.device, seed=protocol.seed, version="standard")
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        judge.apgd_targeted.n_target_classes = judge.fab.n_target_classes = min(9, classes - 1)
        with torch.random.fork_rng():
            x_adv, _ = judge.run_standard_evaluation(x, y, batch_size=len(x))
        inside = perturbation_set(protocol.norm, eps)
        delta = inside.project(x_adv - x, x)
        with torch.no_grad():
            watch.see(torch.arange(len(x), device=x.device), delta, model(x + delta))

    kinds = {"+ AutoAttack": lambda: standard, f"+ {protocol.targets} targets": aim, protocol.blind: blind}
    return {name: kinds.get(name, climb)(**more) for name, more in protocol.rungs.items()}


def _curve(
    protocol: Protocol, model: AnyModel, x: Tensor, y: Tensor, rows: Tensor, start: int, until: float
) -> dict[str, dict[str, str]]:
    """Return, for noise and for 40 steps, a letter for each image at each eps of the curve."""
    widest, found = protocol.widest(x), {}
    for name, attack in {NOISE: _noise(protocol, start), "40 steps": _attacks(protocol, start)["40 steps"]}.items():
        found[name] = {}
        for eps in sorted({min(share * protocol.eps, widest) for share in CURVE} | {widest}):
            found[name][f"{eps:.6g}"] = _timed(attack, model, x, y, rows, eps, until)[0]
    return found


@torch.no_grad()
def _wrong(model: Model, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    check_logits(logits, len(x))
    return logits.argmax(1) != y


def _letters(found: Tensor) -> str:
    return "".join(FOUND if hit else NOT_FOUND for hit in found.tolist())


def _stream(protocol: Protocol, start: int) -> torch.Generator:
    """Return the random numbers of a batch, the same whichever process it falls to."""
    return torch.Generator().manual_seed(protocol.seed + 1_000_003 * start)


def _autoattack() -> type:
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise ImportError("autoattack=True needs the package pyautoattack: pip install pyautoattack") from error
    return AutoAttack
