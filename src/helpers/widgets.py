"""The interactive figures: they work in Jupyter, in Colab and, with no kernel, on the book's site."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn

from helpers.attacks import AttackWarning, Iterate, gradient, margin, pgd, soft_margin
from helpers.data import PHOTOGRAPHS, load_image, photograph
from helpers.exact import Look
from helpers.explorer import Explorer, Frame, failure
from helpers.models import NormalizedModel
from helpers.plots import (
    attack_frame,
    digits_frame,
    gradient_frame,
    guess_frame,
    search_frame,
    slopes_frame,
    training_frame,
    tree_frame,
)
from helpers.training import History


def _slider(label: str, options: Sequence[Any], value: Any) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(options=options, value=value, description=label)


def _levels(*values: float) -> list[tuple[str, float]]:
    return [(f"{value:g} / 255", value) for value in values]


def _own(model: nn.Module) -> nn.Module:
    """Return a copy for a figure's thread to attack, while the notebook does with the original what it likes."""
    return deepcopy(model).eval().requires_grad_(False)


def _path(*args: Any, **options: Any) -> list[Iterate]:
    """Return the path of `pgd`; the arguments are its own."""
    trace: list[Iterate] = []
    pgd(*args, **options, trace=trace)
    return trace


def _attacked(model: NormalizedModel, x: Tensor, y: Tensor, at: Iterate, watched: int) -> Frame:
    names, p = model.class_names, at.logits.softmax(1)[0]
    words = f"Step {at.step}: the model says {names[int(p.argmax())]}; p({names[watched]}) = {p[watched]:.2g}."
    return Frame(attack_frame(x, at.delta, at.logits, int(y), names), words)


def attack_explorer(model: NormalizedModel, x: Tensor, y: Tensor) -> Explorer:
    """Return a figure of twelve steps of l-inf PGD on a photograph: sliders for eps, the step size and the step.

    Args:
        model: a classifier with class names. x: (1, 3, H, W), values in [0, 1]. y: (1,), the true class.
    """
    model = _own(model)

    @lru_cache(maxsize=4)
    def path(eps: float, size: float) -> list[Iterate]:
        return _path(model, x, y, eps / 255, steps=12, step_size=size / 255)

    def draw(eps: float, size: float, step: int) -> Frame:
        return _attacked(model, x, y, path(eps, size)[step], int(y))

    controls = {
        "eps": _slider("eps", _levels(0.25, 0.5, 1, 2, 4, 8), 0.5),
        "size": _slider("step size", _levels(0.02, 0.05, 0.1, 0.25, 0.5, 1, 2), 0.1),
        "step": _slider("step", range(13), 6),
    }
    stored = {"eps": (0.25, 0.5, 2), "size": (0.02, 0.1, 1), "step": (0, 1, 2, 4, 6, 9, 12)}
    return Explorer(draw, controls, stored, play="step")


def find_smallest_eps(model: NormalizedModel, x: Tensor, y: Tensor) -> Explorer:
    """Return a game: guess the smallest eps at which l-inf PGD fools the model, then watch a search close in on it.

    The search halves, seven times, the range from 1/64 to 16 grey levels, in octaves. Each time ten steps of PGD try
    the middle. What it finds is what this attack needs: a stronger one may do with less.

    Args:
        model: a classifier with class names. x: (1, 3, H, W), values in [0, 1]. y: (1,), the true class.
    """
    model = _own(model)
    low, high = -6.0, 4.0  # octaves of a grey level
    tried: list[tuple[float, bool, Iterate]] = []
    ends = [(low, high)]
    for _ in range(7):
        eps = 2 ** ((low + high) / 2)
        path = _path(model, x, y, eps / 255, steps=10)
        at = max(path, key=lambda at: (at.fooled.item(), -at.logits.softmax(1)[0, y].item()))
        fooled = bool(at.fooled)
        low, high = (low, (low + high) / 2) if fooled else ((low + high) / 2, high)
        tried.append((eps, fooled, at))
        ends.append((low, high))

    def draw(guess: float, step: int) -> Frame:
        at = tried[step - 1][2] if step else path[0]
        words = f"You say {guess:.3g}. Move the slider below, and the search begins."
        if step:
            eps, fooled, _ = tried[step - 1]
            said = f"At {eps:.3g} grey levels {'the model is fooled' if fooled else 'it still holds'}"
            words = f"{said}. The smallest eps is between {2 ** ends[step][0]:.3g} and {2 ** ends[step][1]:.3g}."
        if step == len(tried):
            words += f" Your guess is {guess / 2 ** ends[step][1]:.2g} times that."
        line = search_frame([(eps, fooled) for eps, fooled, _ in tried[:step]], ends[step], guess, words)
        largest = at.delta.abs().max().item()
        factor = float(f"{0.4 / largest:.1g}") if largest else 50.0
        return Frame(line + attack_frame(x, at.delta, at.logits, int(y), model.class_names, factor), words)

    guesses = [(f"{2.0**k:.3g} / 255", 2.0**k) for k in range(-6, 5)]
    controls = {
        "guess": _slider("your guess", guesses, 2.0),
        "step": _slider("search", [("not yet", 0), *((str(k), k) for k in range(1, len(tried) + 1))], 0),
    }
    stored = {"guess": [value for _, value in guesses], "step": range(len(tried) + 1)}
    return Explorer(draw, controls, stored, play="step")


def target_chooser(model: NormalizedModel, x: Tensor, y: Tensor, targets: Sequence[int], eps: float) -> Explorer:
    """Return a figure of twenty steps of a targeted attack: choose the class that the model is to name, and the step.

    The attack lowers the cross-entropy of the target.

    Args:
        model: a classifier with class names. x: (1, 3, H, W), values in [0, 1]. y: (1,), the true class.
        targets: the classes to choose from without a kernel, beginning with the first; with a kernel it is any.
        eps: the l-inf budget, in pixel units from 0 to 1.
    """
    model = _own(model)

    @lru_cache(maxsize=4)
    def path(target: int) -> list[Iterate]:
        return _path(model, x, y, eps, target=torch.full_like(y, target), loss="cross_entropy", steps=20)

    def draw(target: int, step: int) -> Frame:
        return _attacked(model, x, y, path(target)[step], target)

    names = sorted((name.lower(), name, k) for k, name in enumerate(model.class_names) if k != int(y))
    classes = ipywidgets.Dropdown(options=[option[1:] for option in names], value=targets[0], description="target")
    controls = {"target": classes, "step": _slider("step", range(21), 20)}
    return Explorer(draw, controls, {"target": targets, "step": range(0, 21, 5)})


def gradient_explorer(
    models: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor, y: Tensor, eps: float, steps: int = 8
) -> Explorer:
    """Return a figure of l-inf PGD on digits through several models: choose the model, the digit and the step.

    Beside the attacked digit is the gradient that the attack sees there, and below what the model says.

    Args:
        models: functions of images that return logits, by name, such as a defence and what stands in for it.
        x: (N, 1, H, W), values in [0, 1]: the digits to choose from. y: (N,), the true classes.
        eps: the budget, in pixel units from 0 to 1. steps: of the attack, each 2.5 * eps / steps long.
    """

    @lru_cache(maxsize=8)
    def path(name: str) -> list[tuple[Iterate, Tensor]]:
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttackWarning)  # the picture shows it
            for at in _path(models[name], x, y, eps, steps=steps, keep="last"):
                point = (x + at.delta).requires_grad_()
                seen.append((at, gradient(soft_margin(models[name](point), y), point)))
        return seen

    def draw(model: str, digit: int, step: int) -> Frame:
        at, grad = path(model)[step]
        said, size = int(at.logits[digit].argmax()), grad[digit].abs().max().item()
        words = f"Step {step}: it is a {int(y[digit])}, and the model says {said}. "
        words += "The gradient is zero." if size == 0 else f"Margin {margin(at.logits, y)[digit]:+.1f}."
        return Frame(gradient_frame((x + at.delta)[digit], grad[digit], words), words)

    controls = {
        "model": ipywidgets.Dropdown(options=list(models), description="model"),
        "digit": _slider("picture", [(str(k + 1), k) for k in range(len(x))], 0),
        "step": _slider("step", range(steps + 1), steps),
    }
    stored = {"model": list(models), "digit": range(len(x)), "step": range(0, steps + 1, 2)}
    return Explorer(draw, controls, stored, play="step")


def compare_networks(
    networks: Mapping[str, nn.Module], x: Tensor, y: Tensor, show: int = 6, guess: int = 4
) -> Explorer:
    """Return a figure of networks for digits under l-inf PGD (20 steps): sliders for eps and for a digit to guess.

    One digit is large, attacked against the last network; what the networks answer is folded away until the reader has
    guessed. Below it is a row for each network, which faces an attack made for itself.

    Args:
        networks: by name. x: (N, 1, H, W), values in [0, 1], N at least `show` + `guess`. y: (N,), the true classes.
        show: how many are drawn for each network. guess: how many, after those, can be had large.

    Raises:
        ValueError: there are fewer digits than that.
    """
    if len(x) < show + guess:
        raise ValueError(f"x must hold at least show + guess = {show + guess} digits; got {len(x)}")
    networks = {name: _own(network) for name, network in networks.items()}

    @lru_cache(maxsize=4)
    def attacked(eps: float) -> tuple[Tensor, Tensor, Tensor]:
        images = torch.stack([pgd(network, x, y, eps, steps=20) for network in networks.values()])
        with torch.no_grad():
            said = torch.stack([net(x_adv).argmax(1) for net, x_adv in zip(networks.values(), images, strict=True)])
            large = torch.stack([net(images[-1, show : show + guess]).argmax(1) for net in networks.values()])
        return images, said, large

    def draw(eps: float, digit: int) -> Frame:
        images, said, large = attacked(eps)
        wrong = [f"{name} {int((k != y).sum())}" for name, k in zip(networks, said, strict=True)]
        answers = dict(zip(networks, large[:, digit].tolist(), strict=True))
        html = guess_frame(images[-1, show + digit], answers, int(y[show + digit]), digit + 1)
        html += digits_frame(images[:, :show], said[:, :show], y[:show], list(networks))
        return Frame(
            html, f"eps {eps:.2f}, picture {digit + 1} of {guess} large. Wrong, of {len(x)} digits: {', '.join(wrong)}."
        )

    options = [(f"{k / 100:.2f}", k / 100) for k in range(31)]
    controls = {
        "eps": _slider("eps", options, 0.09),
        "digit": _slider("picture", [(str(k + 1), k) for k in range(guess)], 0),
    }
    return Explorer(draw, controls, {"eps": [value for _, value in options[::3]], "digit": range(guess)}, play="eps")


def slope_explorer() -> Explorer:
    """Return a game: choose the slopes of two ReLUs' lower lines so that the linear bound of a tiny network is below 0.

    The network takes one number delta to -1.4 relu(0.5 - 2 delta) - 0.5 relu(1.5 delta - 0.4) + 0.9 relu(0.8 - delta) -
    0.7, and delta is between -eps and eps. Its first two neurons have negative weights, so they take their lower lines.
    """
    weights, constants = torch.tensor([-2.0, 1.5, -1.0]), torch.tensor([0.5, -0.4, 0.8])
    outer, constant = torch.tensor([-1.4, -0.5, 0.9]), -0.7

    def neurons(delta: Tensor) -> Tensor:
        return torch.outer(weights, delta) + constants[:, None]

    def network(delta: Tensor) -> Tensor:
        return outer @ neurons(delta).relu() + constant

    def draw(eps: float, first: float, second: float) -> Frame:
        ends = neurons(torch.tensor([-eps, eps]))  # (3, 2): each neuron is a line in delta, so these are its extremes
        low, high = ends.amin(1).clamp(max=0), ends.amax(1).clamp(min=0)
        upper = high / (high - low)
        slopes = torch.where(low < 0, torch.tensor([first, second, 0.0]), 1.0) * (high > 0)
        lines = torch.where(outer[:, None] > 0, upper[:, None] * (ends - low[:, None]), slopes[:, None] * ends)
        bound = outer @ lines + constant
        reach = constant + (outer.clamp(min=0) @ high + outer.clamp(max=0) @ ends.amin(1).relu()).item()
        titles = [f"left: slope {first:g}", f"middle: slope {second:g}", "upper line"]
        active = neurons(torch.linspace(-1, 1, 81)).relu()
        most, best = bound.max().item(), network(torch.linspace(-eps, eps, 401)).max().item()
        words = f"eps {eps:g}, slopes {first:g} and {second:g}: the bound is {most:.2f}, the true maximum {best:.2f}. "
        words += "Below 0: proved." if most < 0 else "Not below 0: not proved."
        shown = list(zip(titles, active, lines, strict=True))
        return Frame(slopes_frame(eps, network, shown, bound, reach, words), words)

    steps = [k / 20 for k in range(21)]
    controls = {
        "eps": _slider("eps", (0.6, 0.8, 1.0), 1.0),
        "first": _slider("left slope", steps, 1.0),
        "second": _slider("middle slope", steps, 0.0),
    }
    return Explorer(draw, controls, {"eps": (0.6, 0.8, 1.0), "first": steps[::4], "second": steps[::4]})


def tree_explorer(searches: Mapping[str, Sequence[Look]]) -> Explorer:
    """Return a figure of branch and bound: choose an image, and watch the two ends of its largest margin.

    Args:
        searches: by the image's name, what `helpers.exact.decide` appended to its `trace` for it, in order.

    Raises:
        ValueError: there is no search, or one without a look.
    """
    if not searches or not all(searches.values()):
        raise ValueError(f"searches must hold at least one look for each image; got {dict(searches)}")
    looks = {
        name: [(0, trace[0].upper, trace[0].lower), *(look[1:2] + look[3:] for look in trace)]
        for name, trace in searches.items()
    }
    stages = 6

    def draw(image: str, stage: int) -> Frame:
        steps = looks[image]
        shown = 1 + round((len(steps) - 1) * stage / (stages - 1))
        nodes, upper, lower = steps[shown - 1]
        words = f"{image}, {nodes} nodes: the largest margin is at least {lower:.2g} and at most {upper:.2g}. "
        words += "Broken." if lower > 0 else "Proved." if upper < 0 else "Not decided yet."
        return Frame(tree_frame(steps, shown, words), words)

    names = list(looks)
    controls = {
        "image": ipywidgets.Dropdown(options=names, value=names[0], description="image"),
        "stage": _slider("search", [(str(k), k) for k in range(stages)], stages - 1),
    }
    return Explorer(draw, controls, {"image": names, "stage": range(stages)}, play="stage")


class Photograph(Explorer):
    """What a classifier says about a photograph, and about the same after eight steps of untargeted l-inf PGD.

    Choose one of the book's, or, with a kernel, upload your own. The attack leads away from the model's own answer.

    Args:
        model: a classifier with class names of images (1, 3, 224, 224).
    """

    def __init__(self, model: NormalizedModel) -> None:
        self.model, self.uploaded = _own(model), {}
        self.device = next(model.parameters()).device
        self.upload = ipywidgets.FileUpload(accept="image/*", description="Upload a picture", layout={"width": "auto"})
        self.upload.add_class("needs-kernel")
        note = ipywidgets.HTML("Your own picture needs a running notebook: {colab}.", layout={"display": "none"})
        note.add_class("no-kernel")
        names = {"coffee": "coffee", "camera": "photographer", "chelsea": "cat", "rocket": "rocket"}
        controls = {
            "name": ipywidgets.Dropdown(options=[(names[k], k) for k in PHOTOGRAPHS], description="photograph"),
            "eps": _slider("eps", _levels(0, 0.25, 0.5, 1, 2, 4, 8), 0),
        }
        super().__init__(self._attack, controls, {"name": PHOTOGRAPHS, "eps": (0, 0.5, 2)}, [self.upload, note])
        self.upload.observe(self._take, "value")

    def _attack(self, name: str, eps: float) -> Frame:
        x = (self.uploaded[name] if name in self.uploaded else photograph(name)).to(self.device)
        names = self.model.class_names
        with torch.no_grad():
            y = self.model(x).argmax(1)
        at = _path(self.model, x, y, eps / 255, steps=8 if eps else 1)[-1]
        words = f"The model says {names[int(y)]}" + (f"; attacked, {names[int(at.logits.argmax())]}." if eps else ".")
        return Frame(attack_frame(x, at.delta, at.logits, int(y), names), words)

    def _take(self, change: Any) -> None:
        """Read an upload: in ipywidgets 8 a tuple of dictionaries, in 7 a dictionary by file name."""
        files = [{"name": k, **v} for k, v in change.new.items()] if isinstance(change.new, dict) else change.new
        for file in files:
            key = f"your {file['name']}"
            try:
                self.uploaded[key] = load_image(file["content"])
            except (ValueError, OSError) as error:
                with self._lock:
                    self._number += 1
                    self._show(failure(error))
                continue
            control, option = self.controls["name"], (file["name"], key)
            if option not in control.options:
                control.options = [*control.options, option]
            if control.value == key:
                self.follow()
            control.value = key


class LiveCurve(ipywidgets.HTML):
    """The training curve, growing while training runs: show it, and give its `update` to `train` as `on_epoch`.

    Args:
        epochs: how many there will be.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def update(self, history: History) -> None:
        """Draw the history so far."""
        last = {"training": history.error[-1]} | ({"validation": history.validation[-1]} if history.validation else {})
        errors = ", ".join(f"{name} error {100 * error:.1f} %" for name, error in last.items())
        caption = f"Error in percent against epochs. After epoch {len(history.error)} of {self.epochs}: {errors}."
        self.value = training_frame(history, self.epochs, caption)
