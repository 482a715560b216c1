"""Our attack loop beside the libraries: time, memory and strength, measured in one run. `make bench` calls this.

It rewrites what stands between the marks of book/comparison.md, and the figure there; the prose around them is written
by hand. On one CPU core it takes about half an hour, most of it AutoAttack's. With `--device cuda` only the page's
GPU table is measured.
"""

import argparse
import hashlib
import inspect
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
import torchvision
from contenders import CONTENDERS, tutorial_pgd
from page import AUTOATTACK, OURS, PASS, PREPARED, STRONG, TUTORIAL, machine, write
from torch import Tensor, nn
from tqdm import tqdm

from helpers import models
from helpers.attacks import pgd
from helpers.data import PHOTOGRAPHS, digits, photograph
from helpers.perturbations import Linf
from helpers.report import evaluate
from helpers.risk import adversarial_risk
from helpers.training import train

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "_build" / "bench"
DIGITS_EPS = 0.1
SCALES = (1, 100)


@dataclass
class Sizes:
    """How much is measured."""

    rounds: tuple[int, int, int] = (7, 3, 15)  # photographs one by one, sixteen at a time, digits
    steps: int = 10  # on photographs
    digit_steps: int = 40
    photographs: int = 16
    batch: int = 100  # digits at a time where time is measured
    digits: int = 1000  # test digits that are attacked
    training: int = 3500
    epochs: tuple[int, int] = (10, 12)  # standard, robust
    strong: tuple[int, int] = (100, 5)  # gradients, restarts
    protocol: dict[str, int] = field(default_factory=dict)  # choices for `evaluate`
    autoattack: int = 4  # of its four attacks
    peaks: tuple[str, ...] = (PASS, *CONTENDERS, OURS, PREPARED)


FULL = Sizes()
QUICK = Sizes((2, 2, 2), 3, 3, 2, 10, 20, 500, (1, 2), (2, 2), {"steps": 10, "targets": 1}, 1, (PASS, OURS))


# ---------------------------------------------------------------------------------------------------------- problems


@dataclass
class Setting:
    """A classifier and images to attack."""

    title: str
    model: nn.Module  # as its makers deliver it
    prepared: nn.Module | None  # the same function as `load_classifier` delivers it, if that differs
    x: Tensor
    y: Tensor
    eps: float
    steps: int


def photographs(n: int, device: str) -> Tensor:
    """Return the book's photographs, whole and their middle, each also mirrored: up to 16 images."""
    whole = torch.cat([photograph(name) for name in PHOTOGRAPHS])
    middle = torch.cat([photograph(name, size=320)[..., 48:272, 48:272] for name in PHOTOGRAPHS])
    return torch.cat([whole, middle, whole.flip(3), middle.flip(3)])[:n].contiguous().to(device)


def imagenet(n: int, sizes: Sizes, device: str, name: str = "efficientnet_lite0") -> Setting:
    """Return a setting with `n` photographs; the labels are what the classifier says of them."""
    x = photographs(n, device)
    if name == "efficientnet_lite0":
        title, mean, std = "EfficientNet-Lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        network = models._efficientnet(name)
        prepared = models.load_classifier(name, device)
    else:
        title, mean, std = "ResNet-50, random weights", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = torchvision.models.resnet50()
            torch.default_generator.manual_seed(0)
            folded = models.fold_batch_norm(torchvision.models.resnet50().eval())
        prepared = models.NormalizedModel(folded.to(memory_format=torch.channels_last), mean, std).to(device).eval()
    model = nn.Sequential(models.Normalize(mean, std), network).to(device).eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    return Setting(f"{title}, batch {n}", model, prepared, x, y, 0.1 / 255, sizes.steps)


def digit_setting(network: nn.Module, sizes: Sizes, device: str) -> Setting:
    data = digits()
    x, y = data.x_test[: sizes.batch].to(device), data.y_test[: sizes.batch].to(device)
    title = f"digits network, batch {sizes.batch}"
    return Setting(title, network.to(device).eval(), None, x, y, DIGITS_EPS, sizes.digit_steps)


def trained(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """Return a standard and a robust network, trained by chapter 5's recipe (on the cross-entropy); kept for later."""
    sources = [(ROOT / "src/helpers" / f"{name}.py").read_text() for name in ("attacks", "risk", "training", "models")]
    made_by = repr([inspect.getsource(trained), sizes, torch.__version__, sources])
    path = CACHE / f"networks-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}.pt"
    standard, robust = models.digit_network(), models.digit_network()
    if not path.exists():
        data = digits()
        x, y = data.x_train[: sizes.training], data.y_train[: sizes.training]
        held_out = data.x_train[3500:], data.y_train[3500:]

        def validate(network: nn.Module) -> float:
            return adversarial_risk(network, *held_out, DIGITS_EPS, attacks=[partial(pgd, steps=10)]).value

        first, second = sizes.epochs
        train(standard, x, y, epochs=first)
        inner = partial(pgd, loss="cross_entropy", steps=5)
        options = {"eps_ramp": second // 3, "epochs": second, "lr": 4e-3, "validate": validate}
        train(robust, x, y, attack=inner, eps=DIGITS_EPS, **options)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([standard.state_dict(), robust.state_dict()], path)
    for network, weights in zip((standard, robust), torch.load(path, weights_only=True), strict=True):
        network.load_state_dict(weights)
        network.eval()
    return standard, robust


class Times(nn.Module):
    """The same classifier with its logits multiplied by a number: no decision changes."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.network(x)


# --------------------------------------------------------------------------------------------------------------- time


def clock(run: Callable[[], object], device: str) -> tuple[float, object]:
    """Return how many seconds `run()` took, and its result; on a CPU, processor time."""
    gpu = device == "cuda"
    synchronize, now = (torch.cuda.synchronize, time.perf_counter) if gpu else (lambda: None, time.process_time)
    synchronize()
    start = now()
    result = run()
    synchronize()
    return now() - start, result


def one_pass(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One forward and one input-gradient pass: the least that a step of PGD can do. The unit of time on the page."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]


def race(setting: Setting, attacks: dict[str, Callable[[int], Tensor]], rounds: int, device: str) -> dict:
    """Run all attacks again and again, in a new order each time, with some plain passes between any two of them.

    Args:
        attacks: functions of a number of steps.

    Returns:
        For each attack what it took, in plain passes of the unmodified model: "ratios", one for each round, against the
        passes just before and just after it; and its last result, "x_adv".
    """
    passes = max(2, setting.steps // 4)

    def plain() -> float:
        return clock(lambda: [one_pass(setting.model, setting.x, setting.y) for _ in range(passes)], device)[0] / passes

    results = {name: {"ratios": []} for name in attacks}
    for attack in attacks.values():
        attack(1)  # to warm up
    order = random.Random(0)
    for _ in tqdm(range(rounds), desc=setting.title, leave=False):
        before = plain()
        for name in order.sample(list(attacks), len(attacks)):
            spent, results[name]["x_adv"] = clock(partial(attacks[name], setting.steps), device)
            after = plain()
            results[name]["ratios"].append(2 * spent / (before + after))
            before = after
    return results


def runner(setting: Setting, attack: Callable[..., Tensor], model: nn.Module) -> Callable[[int], Tensor]:
    """Return the attack on this setting's images as a function of the number of steps; the step size stays."""
    step_size = 2.5 * setting.eps / setting.steps
    return lambda steps: attack(model, setting.x, setting.y, setting.eps, steps=steps, step_size=step_size)


def runners(setting: Setting) -> dict[str, Callable[[int], Tensor]]:
    """Return all contenders: the same start, step and loss."""
    found = {name: runner(setting, attack, setting.model) for name, attack in CONTENDERS.items()}
    found[OURS] = runner(setting, pgd, setting.model)
    if setting.prepared is not None:
        found[PREPARED] = runner(setting, pgd, setting.prepared)
    return found


def speed(setting: Setting, rounds: int, device: str) -> dict:
    """Return the time of a step in passes, each round's, and how many examples each contender fooled."""
    results = race(setting, runners(setting), rounds, device)
    return {
        "title": setting.title,
        "steps": setting.steps,
        "ratios": {name: [r / setting.steps for r in result["ratios"]] for name, result in results.items()},
        "fooled": {name: sum(fooled(setting, result["x_adv"])) for name, result in results.items()},
        "examples": len(setting.x),
    }


def fooled(setting: Setting, x_adv: Tensor) -> list[bool]:
    """Say which images fool the unmodified model, after whatever left Delta(x) has been brought back."""
    x_adv = setting.x + Linf(setting.eps).project(x_adv - setting.x, setting.x)
    with torch.no_grad():
        return (setting.model(x_adv).argmax(1) != setting.y).tolist()


def error_only(setting: Setting, fastest: str, rounds: int, device: str) -> dict:
    """Measure how long it takes to learn who can be fooled: by a library, and by ours, which stops when it knows."""
    stop = partial(pgd, keep="first")
    attacks = {fastest: runner(setting, CONTENDERS[fastest], setting.model), OURS: runner(setting, stop, setting.model)}
    if setting.prepared is not None:
        attacks[PREPARED] = runner(setting, stop, setting.prepared)
    results = race(setting, attacks, rounds, device)
    by_library = fooled(setting, results[fastest]["x_adv"])
    ratios = {name: result["ratios"] for name, result in results.items()}
    last = list(attacks)[-1]
    return {
        "title": setting.title,
        "eps": setting.eps,
        "steps": setting.steps,
        "ratios": ratios,
        "faster": [a / b for a, b in zip(ratios[fastest], ratios[last], strict=True)],
        "fooled": {name: sum(fooled(setting, result["x_adv"])) for name, result in results.items()},
        "same": all(fooled(setting, result["x_adv"]) == by_library for result in results.values()),
        "examples": len(setting.x),
    }


def peak(name: str, sizes: Sizes, device: str) -> float:
    """Run one contender on the photographs, and return the most memory that was in use, in MB."""
    setting = imagenet(sizes.photographs, sizes, device)
    run = partial(one_pass, setting.model, setting.x, setting.y) if name == PASS else partial(runners(setting)[name], 2)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def peaks(sizes: Sizes, device: str) -> dict[str, float]:
    """Measure each in a process of its own.

    Linux hands a process's peak down to those that it starts, so this comes before anything large is loaded here.
    """
    quick = ["--quick"] if sizes is QUICK else []
    command = [sys.executable, __file__, "--device", device, *quick, "--peak"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # they find what was found here
    run = partial(subprocess.run, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    names = tqdm(sizes.peaks, desc="memory", leave=False)
    return {name: float(run([*command, name]).stdout.splitlines()[-1]) for name in names}


# ----------------------------------------------------------------------------------------------------------- strength


def strongest(steps: int, restarts: int) -> list[Callable[..., Tensor]]:
    """Return our attacks that share the restarts between two losses; each goes on with what is still correct.

    Neither loss depends on the scale of the logits, so neither do the attacks.
    """
    options = {"steps": steps, "step_size": "auto", "keep": "first", "random_start": True}

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, loss: str, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)  # anew for each model, so that all begin at the same points
        return pgd(model, x, y, eps, loss=loss, restarts=count, generator=generator, **options)

    first = restarts // 2
    return [partial(attack, loss="margin", count=restarts - first), partial(attack, loss="soft_margin", count=first)]


def strength(networks: dict[str, nn.Module], sizes: Sizes) -> list[dict]:
    """Return a row for each attack: which digits are wrong under it, and its seconds, for each network and scale.

    All that is asked of one network comes in one go, the rows whose times are to be compared at its end. AutoAttack,
    which takes most of the time, runs with the logits as they are only.
    """
    data = digits()
    x, y = data.x_test[: sizes.digits], data.y_test[: sizes.digits]
    steps = {"steps": sizes.digit_steps, "step_size": 2.5 * DIGITS_EPS / sizes.digit_steps}
    rows = {name: [partial(within(attack), **steps)] for name, attack in CONTENDERS.items()}
    rows[OURS] = [partial(pgd, **steps)]
    rows['ours, step_size="auto"'] = [partial(pgd, steps=sizes.digit_steps, step_size="auto", keep="first")]
    gradients, restarts = sizes.strong
    rows[f"ours, {gradients} gradients, {restarts} restarts"] = strongest(gradients, restarts)
    judges = {name: partial(adversarial_risk, attacks=attacks, batch_size=len(x)) for name, attacks in rows.items()}
    judges[STRONG] = lambda model, x, y, eps: evaluate(model, (x, y), eps, curve=0, **sizes.protocol).robust_error
    reference = [partial(autoattack, parts=sizes.autoattack)]
    judges[AUTOATTACK] = partial(adversarial_risk, attacks=reference, batch_size=len(x))
    table = {name: {"name": name, "wrong": {}, "low": {}, "seconds": {}} for name in judges}
    cases = [(kind, scale) for scale in SCALES for kind in networks]
    for kind, scale in tqdm(cases, desc="strength", leave=False):
        model, case = Times(networks[kind], scale).eval(), f"{kind} x {scale}"
        for name, judge in judges.items():
            if name == AUTOATTACK and scale != 1:
                continue
            row = table[name]
            row["seconds"][case], found = clock(partial(judge, model, x, y, DIGITS_EPS), "cpu")
            row["wrong"][case], row["low"][case] = found.each.tolist(), found.low
    boxless = partial(tutorial_pgd, **steps)
    table[TUTORIAL]["claimed"] = [
        float((network(boxless(network, x, y, DIGITS_EPS)).argmax(1) == y).float().mean())
        for network in networks.values()
    ]
    return list(table.values())


def within(attack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the attack with what it finds brought back into Delta(x), which matters for the loop without a box."""

    def attack_within(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options) -> Tensor:
        return x + Linf(eps).project(attack(model, x, y, eps, **options) - x, x)

    return attack_within


def autoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, parts: int) -> Tensor:
    """Return what AutoAttack finds (Croce and Hein 2020), by the first `parts` of its four attacks."""
    from pyautoattack import AutoAttack

    with torch.random.fork_rng(devices=[]):
        attack = AutoAttack(model, norm="Linf", eps=eps, version="standard", device="cpu", seed=0)
        attack.attacks_to_run = attack.attacks_to_run[:parts]
        return attack.run_standard_evaluation(x, y, batch_size=len(x))[0]


# ------------------------------------------------------------------------------------------------------------ the run


def measure(sizes: Sizes) -> dict:
    """Measure everything on the CPU."""
    found = {"machine": machine("cpu"), "peaks": peaks(sizes, "cpu")}
    standard, robust = trained(sizes)
    one, many = imagenet(1, sizes, "cpu"), imagenet(sizes.photographs, sizes, "cpu")
    settings = [one, many, digit_setting(standard, sizes, "cpu")]
    found["speed"] = [speed(setting, n, "cpu") for setting, n in zip(settings, sizes.rounds, strict=True)]
    found["libraries"] = [name for name in CONTENDERS if name != TUTORIAL]
    found["fastest"] = min(found["libraries"], key=lambda name: median(found["speed"][1]["ratios"][name]))
    data = digits()
    all_digits = replace(settings[2], x=data.x_test[: sizes.digits], y=data.y_test[: sizes.digits])
    all_digits.title = f"standard digits network, {sizes.digits} digits at once"
    undefended = [replace(many, eps=2 / 255), all_digits]
    found["error_only"] = [error_only(setting, found["fastest"], sizes.rounds[1], "cpu") for setting in undefended]
    found["strength"] = strength({"standard": standard, "robust": robust}, sizes)
    found["machine"]["load"] += machine("cpu")["load"]
    return found


def measure_gpu(sizes: Sizes) -> dict:
    """Measure time and memory on a GPU."""
    standard, _ = trained(sizes)
    settings = [
        imagenet(1, sizes, "cuda"),
        imagenet(sizes.photographs, sizes, "cuda"),
        imagenet(sizes.photographs, sizes, "cuda", "resnet50"),
        digit_setting(standard, sizes, "cuda"),
    ]
    rounds = max(sizes.rounds)
    return {
        "machine": machine("cuda"),
        "speed": [speed(setting, rounds, "cuda") for setting in settings],
        "peaks": peaks(sizes, "cuda"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="try every part on next to nothing; the numbers are void")
    parser.add_argument("--page", type=Path, default=ROOT / "book" / "comparison.md", help="the page to rewrite")
    parser.add_argument("--again", action="store_true", help="rewrite the page from the last run's numbers")
    parser.add_argument("--peak", metavar="NAME", help="only print how much memory this contender needs, in MB")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    if arguments.peak:
        print(peak(arguments.peak, sizes, arguments.device))
        return
    results = CACHE / f"results-{arguments.device}{'-quick' if arguments.quick else ''}.json"
    if not arguments.again:
        if arguments.device == "cpu":
            torch.set_num_threads(1)
        found = measure_gpu(sizes) if arguments.device == "cuda" else measure(sizes)
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(found, indent=1))
    write(json.loads(results.read_text()), arguments.page)
    print(f"Written: {arguments.page}")


if __name__ == "__main__":
    main()
