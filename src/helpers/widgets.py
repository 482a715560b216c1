"""The interactive figures: they work in Jupyter, in Colab and, with no kernel, on the book's site."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import ipywidgets
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.attacks import Iterate, pgd
from helpers.data import PHOTOGRAPHS, load_image, photograph
from helpers.explorer import Explorer, Frame, failure
from helpers.models import NormalizedModel
from helpers.plots import attack_frame, digits_frame, slice_frame, training_frame
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
        "eps": _slider("eps", _levels(0.25, 0.5, 1, 2, 4, 8), 2),
        "size": _slider("step size", _levels(0.02, 0.05, 0.1, 0.25, 0.5, 1, 2), 0.1),
        "step": _slider("step", range(13), 0),
    }
    return Explorer(draw, controls, {"eps": (0.25, 0.5, 2), "size": (0.02, 0.1, 1), "step": (0, 1, 2, 3, 4, 6, 9, 12)})


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


def compare_networks(networks: Mapping[str, nn.Module], x: Tensor, y: Tensor, show: int = 8) -> Explorer:
    """Return a figure of networks for digits under l-inf PGD (20 steps, each attacked by itself): a slider for eps.

    Args:
        networks: by name. x: (N, 1, H, W), values in [0, 1]. y: (N,), the true classes. show: how many are drawn.
    """
    networks = {name: _own(network) for name, network in networks.items()}

    def draw(eps: float) -> Frame:
        images = [pgd(network, x, y, eps, steps=20) for network in networks.values()]
        with torch.no_grad():
            said = [network(x_adv).argmax(1) for network, x_adv in zip(networks.values(), images, strict=True)]
        wrong = [f"{name} {int((k != y).sum())}" for name, k in zip(networks, said, strict=True)]
        html = digits_frame(torch.stack(images)[:, :show], torch.stack(said)[:, :show], y[:show], list(networks))
        return Frame(html, f"eps {eps:.2f}. Wrong, of {len(x)} digits: {', '.join(wrong)}.")

    options = [(f"{k / 100:.2f}", k / 100) for k in range(31)]
    stored = [value for _, value in options[::3]]
    return Explorer(draw, {"eps": _slider("eps", options, 0.09)}, {"eps": stored})


def path_on_slice(network: nn.Module, x: Tensor, y: Tensor) -> Explorer:
    """Return a figure of PGD's path from x on a plane through the loss, with the l-inf and the l2 ball.

    The plane holds x, the first iterate and the last one; the others are drawn at the nearest point of it. Where x +
    delta is outside [0, 1], the loss is that of the nearest image.

    Args:
        network: returns logits. x: (1, ...), values in [0, 1]. y: (1,), the true class.
    """
    network, n = _own(network), 41

    @lru_cache(maxsize=4)
    def plane(norm: str, eps: float, radius: float) -> tuple[list[Iterate], Tensor, float, dict[str, Tensor], Tensor]:
        trace = _path(network, x, y, eps if norm == "linf" else radius, norm=norm, steps=20)
        deltas = torch.cat([at.delta for at in trace]).flatten(1)
        u = F.normalize(deltas[-1], dim=0)
        v = F.normalize(deltas[1] - (deltas[1] @ u) * u, dim=0)
        basis = torch.stack([u, v])
        reach = 1.25 * max(radius, deltas.norm(dim=1).max().item())
        axis = torch.linspace(-reach, reach, n, device=x.device)
        b, a = torch.meshgrid(axis, axis, indexing="ij")
        images = (x + (torch.stack([a, b], -1).view(-1, 2) @ basis).view(-1, *x.shape[1:])).clamp(0, 1)
        with torch.no_grad():
            losses = F.cross_entropy(network(images), y.expand(len(images)), reduction="none").view(n, n)
        angles = torch.linspace(0, 2 * torch.pi, 121, device=x.device)
        circle = torch.stack([angles.cos(), angles.sin()], 1)
        rays = circle @ basis  # how far along each before a set ends
        room = torch.where(rays > 0, 1 - x.flatten(), -x.flatten()) / rays.where(rays.abs() > 1e-6, torch.nan)
        outlines = {
            "l-inf ball": circle * (eps / rays.abs().amax(1))[:, None],
            "l2 ball": circle * radius,
            "pixels in [0, 1]": circle * room.nan_to_num(torch.inf).amin(1)[:, None],
        }
        return trace, losses.cpu(), reach, {k: line.cpu() for k, line in outlines.items()}, (deltas @ basis.T).cpu()

    def draw(norm: str, step: int, eps: float, radius: float) -> Frame:
        trace, losses, reach, outlines, path = plane(norm, eps, radius)
        at = trace[step]
        length = at.delta.norm().item()
        inside = (path[step].norm().item() / length) ** 2 if length else 1.0
        words = (
            f"Step {step}: loss {at.loss.item():.2f}, the network says {int(at.logits.argmax())}. Largest change "
            f"{at.delta.abs().max().item():.2f}, length {length:.2f} ({100 * inside:.0f} % of its square in the plane)."
        )
        return Frame(slice_frame(losses, reach, outlines, path[: step + 1], f"Map of the loss. {words}"), words)

    controls = {
        "norm": ipywidgets.Dropdown(options=[("l-inf", "linf"), ("l2", "l2")], value="linf", description="norm"),
        "step": _slider("step", range(21), 0),
        "eps": _slider("l-inf eps", [(f"{k / 50:g}", k / 50) for k in range(1, 16)], 0.1),
        "radius": _slider("l2 eps", [(f"{k / 4:g}", k / 4) for k in range(1, 17)], 1.5),
    }
    return Explorer(draw, controls, {"norm": ("linf", "l2"), "step": range(21), "eps": (0.1,), "radius": (1.5,)})


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
