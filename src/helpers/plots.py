"""The book's figures, in one style.

The functions `show_...` and `plot_...` show a figure below the cell and return nothing. Those called `..._frame` return
one state of an interactive figure, for `helpers.widgets`: as HTML, whose words are text in the page's own colours.

Figures are vector graphics (SVG), 4.8 inches wide, so that their words can be read on a telephone. In a notebook,
importing this module has matplotlib's own `plt.show()` do the same, in the same style. The book's site shows black
words, and the colours below, in the colours of its light or dark page: on top of a picture write `ON_BRIGHT` or white,
which stay as they are, in place of black.
"""

import io
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from html import escape
from itertools import cycle
from math import ceil, log2
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from IPython import get_ipython
from IPython.display import SVG, display
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image

from helpers._validation import check_images, check_number
from helpers.models import NormalizedModel
from helpers.risk import wilson_interval
from helpers.training import History

# Okabe and Ito's palette: told apart by readers with any common form of colour blindness. Markers differ as well.
COLORS = BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
MARKERS = "o", "s", "^", "D", "v"
ON_BRIGHT = "#111111"
WIDTH = 4.8  # inches
STYLE = {
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "figure.figsize": (WIDTH, 3),
    "font.size": 10,
    "grid.alpha": 0.3,
    "image.interpolation": "none",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "svg.fonttype": "path",  # words look the same wherever the figure is opened
    "svg.hashsalt": "helpers",  # the same figure is the same file
}
SAVED = {"metadata": {"Date": None, "Creator": None}}


def _use_style() -> None:
    """In a notebook, have `plt.show()` draw like the functions here."""
    if getattr(get_ipython(), "kernel", None) is not None:
        from matplotlib_inline.config import InlineBackend

        inline = InlineBackend.instance(parent=get_ipython())
        inline.figure_formats, inline.print_figure_kwargs = {"svg"}, {"bbox_inches": "tight", **SAVED}
        plt.rcParams.update(STYLE)


_use_style()


def amplify(delta: Tensor, factor: float = 50.0) -> Tensor:
    """Return a visible version of a perturbation: 0 becomes mid-grey, and changes are multiplied by `factor`.

    Args:
        delta: any shape, in pixel units. factor: above 0.

    Returns:
        Like `delta`, in [0, 1]; what would leave it is cut, as in any picture.
    """
    check_number(factor, "factor", low=0, high=1e6, open_low=True)
    return (0.5 + factor * delta).clamp(0, 1)


def show_images(images: Tensor, titles: Sequence[str] | None = None, *, rows: Sequence[str] | None = None) -> None:
    """Show images side by side, or in several rows.

    Args:
        images: (N, 1 or 3, H, W), values in [0, 1], row by row. titles: one for each image of the first row. Where
            they are too long for one row, it is broken into several.
        rows: if given, the name of each row; there are as many rows, of equal length.

    Raises:
        TypeError, ValueError: these are not images in [0, 1], or the numbers of titles or rows do not fit N.
    """
    _show(_image_grid(images, titles, rows))


def show_attack(model: NormalizedModel, x: Tensor, x_adv: Tensor, factor: float = 50.0) -> None:
    """Show an image, its perturbation times `factor`, and the adversarial image, with the model's two predictions.

    Args:
        model: a classifier with class names. x, x_adv: (1, C, H, W), values in [0, 1]. factor: above 0.

    Raises:
        TypeError, ValueError: these are not images of that shape, or values are outside [0, 1].
    """
    check_images(x_adv, "x_adv")
    (before,), (after,) = top_predictions(model, x, k=1), top_predictions(model, x_adv, k=1)
    titles = [
        f"x\n{before[0]},\n{_percent(before[1])}",
        f"delta\ntimes {factor:g}",
        f"x + delta\n{after[0]},\n{_percent(after[1])}",
    ]
    _show(_image_grid(torch.cat([x, amplify(x_adv - x, factor), x_adv]), titles))


def top_predictions(model: NormalizedModel, x: Tensor, k: int = 5) -> list[tuple[str, float]]:
    """Return the `k` most probable classes of one image as (name, probability), the most probable first.

    Args:
        model: a classifier with class names. x: (1, C, H, W), values in [0, 1]. k: 1 to K.

    Raises:
        ValueError: `x` is not a batch of one.
    """
    if x.shape[0] != 1:
        raise ValueError(f"x must be a batch of one image; got {x.shape[0]}")
    with torch.no_grad():
        top = model(x).softmax(1)[0].topk(k)
    return [(model.class_names[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]


def show_predictions(model: NormalizedModel, x: Tensor, k: int = 5) -> None:
    """Show one image beside a bar chart of its `k` most probable classes; arguments as in `top_predictions`."""
    _show(_prediction_figure(model, x, k))


def plot_lines(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    counts_of: int | None = None,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Plot labelled lines over common x values.

    Args:
        x: the values on the horizontal axis.
        lines: a label and as many numbers as `x` has, for each line.
        xlabel, ylabel: names of the axes, with units. xscale: "linear" or "log".
        counts_of: if given, the numbers are counts out of this many examples: they are shown as percentages, each with
            its 95 % Wilson interval (Wilson 1927).
        marks: a word and a place on the horizontal axis, for each dotted upright line that says where something is.

    Raises:
        ValueError: a line is not as long as `x`.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 3))
        for (label, values), marker in zip(lines.items(), cycle(MARKERS), strict=False):
            if len(values) != len(x):
                raise ValueError(f"lines must have {len(x)} numbers each, as x has; {label!r} has {len(values)}")
            if counts_of is not None:
                low, high = zip(*(wilson_interval(int(c), counts_of) for c in values), strict=True)
                low, high = [100 * p for p in low], [100 * p for p in high]
                axes.fill_between(x, low, high, alpha=0.2)
                values = [100 * int(c) / counts_of for c in values]
            axes.plot(x, values, label=label, marker=marker, markevery=max(1, len(x) // 12))
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale)
        for word, place in (marks or {}).items():
            axes.axvline(place, color="0.5", linestyle=":")
            kept = {"ha": "center", "va": "bottom", "fontsize": 8}  # above the axes, where no line crosses it
            axes.text(place, 1.01, word, transform=axes.get_xaxis_transform(), **kept)
        if len(lines) > 1:
            axes.legend()
    _show(figure)


class Rung(NamedTuple):
    """What one method knows about each of N examples: one row of the sandwich."""

    name: str
    broken: Tensor | None = None  # (N,), bool: an error was found, on x or on some x + delta; None: it finds none
    proved: Tensor | None = None  # (N,), bool: right on all of Delta(x); None: it proves nothing
    seconds: float | None = None  # that it took for all of them


def show_sandwich(rungs: Sequence[Rung]) -> None:
    """Show, example by example, what several methods know: clean <= attacked <= exact <= certified, drawn.

    A row is a method, a column an example, in the same order everywhere: those that most methods break on the left,
    those that most prove on the right. What is neither is left open. At the right stands the adversarial error that the
    method leaves possible, and its seconds.

    Args:
        rungs: the methods, the weakest attack first, the weakest proof last.

    Raises:
        ValueError: there is no rung; one has neither `broken` nor `proved`, or a shape that is not that of the others;
            or two methods contradict each other: what one breaks another proves. Then one of them has a bug.
    """
    known = [part for rung in rungs for part in (rung.broken, rung.proved) if part is not None]
    if not known or any(rung.broken is None and rung.proved is None for rung in rungs):
        raise ValueError("rungs must hold at least one method, each with `broken` or `proved`")
    if any(part.shape != known[0].shape or part.dtype != torch.bool or part.ndim != 1 for part in known):
        shapes = [(tuple(part.shape), part.dtype) for part in known]
        raise ValueError(f"rungs must have bool tensors of one shape (N,); got {shapes}")
    n = len(known[0])
    none = torch.zeros(n, dtype=torch.bool)
    rows = [tuple(none if part is None else part.cpu() for part in (rung.broken, rung.proved)) for rung in rungs]
    broken, proved = (torch.stack(parts).sum(0) for parts in zip(*rows, strict=True))
    if both := int(((broken > 0) & (proved > 0)).sum()):
        raise ValueError(f"rungs contradict each other: {both} of {n} examples are broken by one and proved by another")
    order = (proved - broken).argsort(stable=True)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 0.6 + 0.3 * len(rows)))
        for place, (rung, parts) in enumerate(zip(rungs, rows, strict=True)):
            for part, color in zip(parts, (ORANGE, BLUE), strict=True):
                values, lengths = part[order].unique_consecutive(return_counts=True)
                starts = lengths.cumsum(0) - lengths
                runs = torch.stack([starts, lengths], 1)[values].tolist()
                axes.broken_barh(runs, (place - 0.38, 0.76), facecolors=color, linewidth=0)
            if not any(part.any() for part in parts):
                word = "broken" if rung.proved is None else "proved"
                axes.text(n / 2, place, f"nothing {word}", ha="center", va="center")
            axes.text(1.02 * n, place, _known(rung, *(int(part.sum()) for part in parts), n), va="center")
        axes.set(xlim=(0, n), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
        axes.set(yticklabels=[rung.name for rung in rungs], xlabel=f"{n} examples: broken left, proved right")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
    _show(figure)


def _known(rung: Rung, broken: int, proved: int, n: int) -> str:
    """Return what a method says about the error of all examples, and how long it took."""
    least, most = f"{100 * broken / n:.3g}", f"{100 * (n - proved) / n:.3g} %"
    if rung.proved is None or rung.broken is None:
        text = f"at most {most}" if rung.broken is None else f"at least {least} %"
    else:
        text = most if broken + proved == n else f"{least} to {most}"
    if rung.seconds is None:
        return text
    seconds = rung.seconds
    return text + (f", {seconds:.0f} s" if seconds >= 9.5 else f", {seconds:.1f} s" if seconds >= 0.05 else ", < 0.1 s")


def show_matrix(values: Tensor, *, xlabel: str, ylabel: str, title: str) -> None:
    """Show a matrix of whole numbers as a heat map, with each number in its field.

    Args:
        values: (rows, columns), whole numbers; NaN leaves a field empty.
        xlabel, ylabel: what columns and rows are, both counted from 0. title: what the numbers are, with their unit.

    Raises:
        ValueError: `values` has no two axes.
    """
    if values.ndim != 2:
        raise ValueError(f"values must have shape (rows, columns); got {tuple(values.shape)}")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 3.9))
        axes.imshow(values.cpu().numpy(), cmap="cividis", aspect="auto")
        middle = (values.nan_to_num(torch.inf).min() + values.nan_to_num(-torch.inf).max()) / 2
        for row in range(values.shape[0]):
            for column in range(values.shape[1]):
                value = values[row, column]
                if not value.isnan():
                    color = ON_BRIGHT if value > middle else "white"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.set(xticks=range(values.shape[1]), yticks=range(values.shape[0]))
        axes.grid(visible=False)
    _show(figure)


def training_frame(history: History, epochs: int, alt: str) -> str:
    """Return the training curve so far, for `widgets.LiveCurve`: errors against epochs, as SVG in the page's colours.

    Args:
        history: what `train` gives to its `on_epoch`. epochs: how many there will be. alt: the curve in words.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 2.6))
        done = range(1, len(history.error) + 1)
        axes.plot(done, [100 * error for error in history.error], marker="o", label="training digits, as attacked")
        if history.validation:
            axes.plot(done, [100 * value for value in history.validation], marker="s", label="validation digits")
        axes.set(xlim=(0.5, epochs + 0.5), ylim=(0, 100), xlabel="epoch", ylabel="error (%)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        svg = _encode(figure)
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor").replace("fill: #ffffff", "fill: none")
    named = f'<svg role="img" aria-label="{escape(alt)}" fill="currentColor" style="max-width:100%;height:auto" '
    return svg.replace("<svg ", named, 1)


def attack_frame(x: Tensor, delta: Tensor, logits: Tensor, y: int, names: Sequence[str], factor: float = 50.0) -> str:
    """Return an attacked image, its perturbation times `factor` and the most probable classes, side by side, as HTML.

    To be light, the image is drawn 160 pixels wide, and the perturbation with every second row and column.

    Args:
        x, delta: (1, 3, H, W), with x + delta in [0, 1]. logits: (1, K), of x + delta.
        y: the class whose bar has a colour of its own. names: of the K classes. factor: above 0.
    """
    best = logits.softmax(1)[0].topk(5)
    top = [(names[k], p) for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    said = ", ".join(f"{name} {_percent(p)}" for name, p in top)
    noise = amplify(delta[0, :, ::2, ::2], factor)
    bars = []
    for i, (name, p) in enumerate(top):
        color = BLUE if name == names[y] else ORANGE
        short = name if len(name) < 19 else f"{name[:17]}…"
        bars.append(
            f'<text x="126" y="{26 * i + 17}" text-anchor="end">{escape(short)}</text>'
            f'<rect x="132" y="{26 * i + 3}" width="{104 * p:.1f}" height="18" fill="{color}"/>'
            f'<text x="{136 + 104 * p:.0f}" y="{26 * i + 17}">{_percent(p)}</text>'
        )
    return _row(
        _captioned(
            html_picture(resize((x + delta)[0], 160), f"The image x + delta. The model says: {said}."), "x + delta"
        ),
        _captioned(
            html_picture(noise, f"The perturbation: changes up to {255 * delta.abs().max():.2f} levels.", quality=40),
            f"delta, times {factor:g}",
        ),
        _captioned(_svg(330, 26 * len(top), f"Bar chart: {said}.", "".join(bars)), "most probable classes"),
    )


def gradient_frame(image: Tensor, grad: Tensor, alt: str) -> str:
    """Return an attacked digit and the gradient there, side by side, as HTML: mid-grey is 0, the scale its own.

    Args:
        image, grad: (1, H, W). alt: the state in words.
    """
    largest = grad.abs().max()
    shown = 0.5 + 0.5 * grad / largest if largest > 0 else torch.full_like(grad, 0.5)
    shown = (7 * shown).round() / 7  # few levels make a small file
    return _row(
        _captioned(html_picture(image, f"The attacked digit. {alt}", kind="png"), "x + delta"),
        _captioned(html_picture(shown, "The gradient at this point.", kind="png"), "the gradient there"),
    )


def digits_frame(images: Tensor, said: Tensor, y: Tensor, names: Sequence[str]) -> str:
    """Return a row of digits for each network, with what that network says about them, as HTML.

    Args:
        images: (R, N, 1, H, W), values in [0, 1]. said, y: predicted (R, N) and true classes (N,). names: R of them.
    """
    rows = []
    for name, row, answers in zip(names, images, said.tolist(), strict=True):
        right = [a == k for a, k in zip(answers, y.tolist(), strict=True)]
        alt = f"{len(answers)} attacked digits, {y.tolist()}. The {name} network says {answers}."
        strip = html_picture(torch.cat(list(row), dim=2), alt, width=56 * len(answers), kind="png")
        marks = [
            f'<b style="flex:1;text-align:center;font-weight:{400 if ok else 700}">{k}→{a}{"" if ok else "&nbsp;✗"}</b>'
            for k, a, ok in zip(y.tolist(), answers, right, strict=True)
        ]
        caption = f"{name} network: the digit → its answer"
        rows.append(_captioned(f'{strip}<div style="display:flex">{"".join(marks)}</div>', caption))
    return _row(*rows)


def guess_frame(image: Tensor, said: Mapping[str, int], y: int, number: int) -> str:
    """Return one large digit, with what it is and what networks say about it folded away, as HTML.

    Args:
        image: (1, H, W), values in [0, 1]. said: the answer of each network, by name. y: the true class.
        number: which of the digits to guess it is, counted from 1.
    """
    answers = ", ".join(f"the {name} network says {k}" for name, k in said.items())
    folded = (
        "<details><summary>What is it? Guess, then see what the networks say.</summary>"
        f"<p>It is a {y}; {answers}. (The attack was made for the {list(said)[-1]} network.)</p></details>"
    )
    picture = html_picture(image, f"Attacked picture {number}, for you to guess.", width=168, kind="png")
    return _row(picture, f'<div style="flex:1;min-width:15em">{folded}</div>')


def search_frame(tried: Sequence[tuple[float, bool]], ends: tuple[float, float], guess: float, alt: str) -> str:
    """Return a line of values of eps, in grey levels, with those tried, the range that is left, and a guess, as SVG.

    Args:
        tried: each eps and whether it fooled the model. ends: of the range, as powers of two. guess: an eps.
        alt: the figure in words.
    """

    def place(power: float) -> float:
        return 20 + 29 * (power + 6)

    parts = ['<path d="M20 46h290" stroke="currentColor" stroke-opacity="0.5"/>']
    for power in range(-6, 5, 2):
        parts.append(
            f'<path d="M{place(power):.0f} 42v8" stroke="currentColor"/>'
            f'<text x="{place(power):.0f}" y="70" text-anchor="middle">{Fraction(2) ** power}</text>'
        )
    left, right = map(place, ends)
    parts.append(
        f'<rect x="{left:.1f}" y="40" width="{right - left:.1f}" height="12" fill="{SKY}" fill-opacity="0.6"/>'
    )
    for eps, fooled in tried:
        x = place(log2(eps))
        look = f'fill="{ORANGE}"' if fooled else f'fill="none" stroke="{BLUE}" stroke-width="2"'
        parts.append(f'<circle cx="{x:.1f}" cy="46" r="5" {look}/>')
    x = place(log2(guess))
    anchor = "start" if x < 60 else "end" if x > 260 else "middle"
    parts.append(f'<path d="M{x:.1f} 36l-6 -12h12z"/><text x="{x:.1f}" y="18" text-anchor="{anchor}">your guess</text>')
    return _captioned(_svg(330, 76, alt, "".join(parts)), "eps in grey levels; a full dot: the model is fooled")


def tree_frame(looks: Sequence[tuple[int, float, float]], shown: int, alt: str) -> str:
    """Return how the two ends of the largest margin approach each other while a tree grows, as SVG.

    Args:
        looks: nodes so far, the bound from above and the best value from below. shown: how many looks are drawn.
        alt: the figure in words.
    """
    most = max(nodes for nodes, _, _ in looks)
    ends = [value for _, upper, lower in looks for value in (upper, lower)]
    top, bottom = max(*ends, 0.0), min(*ends, 0.0)

    def place(nodes: int, value: float) -> str:
        return f"{40 + 270 * nodes / most:.1f},{20 + 130 * (top - value) / max(top - bottom, 1e-9):.1f}"

    zero = place(0, 0.0).split(",")[1]
    parts = [
        f'<path d="M40 {zero}h270" stroke="currentColor" stroke-opacity="0.5" stroke-dasharray="4 4"/>',
        f'<text x="34" y="{float(zero) + 5:.1f}" text-anchor="end">0</text>',
    ]
    for value in (top, bottom):
        y = place(0, value).split(",")[1]
        if abs(float(y) - float(zero)) > 16:  # else it would touch the 0
            text = f"{value:.1f}".replace("-", "\u2212")
            parts.append(f'<text x="34" y="{float(y) + 5:.1f}" text-anchor="end">{text}</text>')
    for which, color, marker in ((1, BLUE, "above"), (2, ORANGE, "below")):
        points = [place(look[0], look[which]) for look in looks[:shown]]
        line = f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="3"/>'
        dots = "".join(
            f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"/>' for x, y in (point.split(",") for point in points)
        )
        parts.append(f"<g><title>{marker}</title>{line}{dots}</g>")
    parts.append(f'<text x="310" y="176" text-anchor="end">{most} nodes</text><text x="40" y="176">0</text>')
    return _captioned(_svg(330, 182, alt, "".join(parts)), "largest margin: blue from above, orange from below")


def slopes_frame(
    eps: float,
    network: Callable[[Tensor], Tensor],
    neurons: Sequence[tuple[str, Tensor, Tensor]],
    line: Tensor,
    intervals: float,
    alt: str,
) -> str:
    """Return a network of one number delta under the straight line that bounds it, and below it its neurons, as SVG.

    Args:
        eps: delta is between -eps and eps; above 0, at most 1.
        network: of delta, (M,) to (M,), for delta from -1 to 1.
        neurons: of each a title, its values at 81 points from -1 to 1, and those of its line at -eps and eps.
        line: (2,), the bound at -eps and eps. intervals: the bound by intervals. alt: the figure in words.
    """

    def across(delta: float, left: float = 165, half: float = 145) -> float:
        return left + half * delta

    def up(value: float) -> float:
        return 98 - 34 * value

    def path(x: Sequence[float], y: Sequence[float], look: str) -> str:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        return f'<polyline points="{points}" fill="none" {look}/>'

    delta = torch.linspace(-1, 1, 81)
    values = network(delta)
    inside = delta.abs() <= eps + 1e-6
    best = values[inside].max().item()
    bound, at = line.max().item(), eps * (2 * int(line.argmax()) - 1)
    axis = 'stroke="currentColor" stroke-opacity="0.5"'
    parts = [
        f'<rect x="{across(-eps):.1f}" y="8" width="{290 * eps:.1f}" height="196" fill="{SKY}" fill-opacity="0.15"/>',
        f'<path d="M20 {up(0)}h290" {axis}/><text x="314" y="{up(0) + 5}">0</text>',
        f'<path d="M{across(-eps):.1f} {up(intervals):.1f}H{across(eps):.1f}" {axis} stroke-dasharray="4 4"/>',
        f'<text x="{across(-eps) + 4:.1f}" y="{up(intervals) - 5:.1f}">intervals {_signed(intervals)}</text>',
        path(
            [across(d) for d in delta.tolist()], [up(v) for v in values.tolist()], f'stroke="{BLUE}" stroke-width="3"'
        ),
        path([across(-eps), across(eps)], [up(v) for v in line.tolist()], f'stroke="{ORANGE}" stroke-width="2"'),
        f'<circle cx="{across(at):.1f}" cy="{up(bound):.1f}" r="5" fill="{ORANGE}"/>',
        f'<text x="165" y="222" text-anchor="middle">true maximum {_signed(best)}, bound {_signed(bound)}: '
        f'<tspan font-weight="700">{"proved" if bound < 0 else "not proved"}</tspan></text>',
    ]
    for place, (title, active, ends) in enumerate(neurons):
        middle = 55 + 110 * place
        x = [across(d, middle, 48) for d in delta.tolist()]
        height = [300 - 16 * v for v in active.tolist()]
        parts += [
            f'<path d="M{middle - 48} 300h96" {axis}/><text x="{middle}" y="350" text-anchor="middle">{title}</text>',
            path(x, height, f'stroke="{BLUE}" stroke-width="2"'),
            path(
                [across(-eps, middle, 48), across(eps, middle, 48)],
                [300 - 16 * v for v in ends.tolist()],
                f'stroke="{ORANGE}" stroke-width="2"',
            ),
        ]
    return _svg(330, 358, alt, "".join(parts))


def html_picture(image: Tensor, alt: str, *, width: int = 144, kind: str = "webp", quality: int = 60) -> str:
    """Return an HTML image that holds its own content.

    Args:
        image: (1 or 3, H, W), values in [0, 1]. alt: what it shows, for those who do not see it.
        width: in CSS pixels; less where there is no room. kind, quality: as Pillow's `save` takes them.
    """
    height = round(width * image.shape[1] / image.shape[2])
    pixelated = (
        "" if max(width, height) < 2 * max(image.shape[1:]) and image.shape[0] == 3 else ";image-rendering:pixelated"
    )
    return (
        f'<img src="{_data_uri(image, kind, quality)}" alt="{escape(alt)}" width="{width}" height="{height}" '
        f'style="max-width:100%;height:auto;margin:0{pixelated}">'
    )


def _image_grid(images: Tensor, titles: Sequence[str] | None, rows: Sequence[str] | None = None) -> Figure:
    check_images(images, "images")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (N, 1 or 3, H, W); got {tuple(images.shape)}")
    if rows is not None and (len(rows) == 0 or len(images) % len(rows)):
        raise ValueError(f"rows must be a divisor of the number of images in number; got {len(rows)} of {len(images)}")
    columns = len(images) // len(rows or [""])
    if titles is not None and len(titles) != columns:
        raise ValueError(f"titles must have one for each of the {columns} images of a row; got {len(titles)}")
    lines = len(rows or [""])
    titles = [""] * columns if titles is None else titles
    if rows is None:  # fewer columns until no title is much wider than its image
        while columns > 1 and any(len(_fit(t, columns).split("\n")) > 2 + t.count("\n") for t in titles):
            lines += 1
            columns = ceil(len(images) / lines)
    titles = [_fit(title, columns) for title in titles]
    with plt.rc_context(STYLE):
        width = min(2.4, WIDTH / columns)
        height = width * images.shape[2] / images.shape[3]
        words = max(title.count("\n") + 1 if title else 0 for title in titles)
        size = (width * columns, (height + 0.04) * lines + (0.22 * words + 0.14 * (words > 0)) * (1 if rows else lines))
        figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
        for axes in grid.flat:
            axes.set_axis_off()
        for i, (axes, image) in enumerate(zip(grid.flat, images, strict=False)):
            _draw_image(axes, image)
            if i < len(titles):
                axes.set_title(titles[i], fontsize=10)
            if rows is not None and i % columns == 0:
                axes.set_axis_on()
                axes.set(xticks=[], yticks=[], ylabel=rows[i // columns])
                axes.spines[:].set_visible(False)
    return figure


def _fit(title: str, columns: int) -> str:
    """Break a title at spaces so that its lines fit above an image, as far as that is possible."""
    lines: list[str] = []
    for line in title.split("\n"):
        lines.append("")
        for word in line.split(" "):
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and TextPath((0, 0), longer, size=10).get_extents().width > 72 * WIDTH / columns - 4:
                lines.append(word)
            else:
                lines[-1] = longer
    return "\n".join(lines)


def _prediction_figure(model: NormalizedModel, x: Tensor, k: int) -> Figure:
    names, probs = zip(*top_predictions(model, x, k), strict=True)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2), width_ratios=(1, 1.2))
        _draw_image(left, x[0])
        bars = right.barh(range(k), probs)
        right.bar_label(bars, [_percent(p) for p in probs], padding=3)
        right.set(yticks=range(k), yticklabels=names, xlim=(0, 1.35), xlabel="probability", xticks=(0, 0.5, 1))
        right.invert_yaxis()
        right.grid(axis="y", visible=False)
    return figure


def _draw_image(axes: plt.Axes, image: Tensor) -> None:
    axes.imshow(image.detach().cpu().permute(1, 2, 0).float().clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()


def _data_uri(image: Tensor, kind: str, quality: int = 60) -> str:
    buffer = io.BytesIO()
    options = {"quality": quality, "method": 6} if kind == "webp" else {"optimize": True}
    to_pil_image((255 * image.detach().cpu().clamp(0, 1)).round().byte()).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode()}"


def _row(*parts: str) -> str:
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px 16px;line-height:1.4">{"".join(parts)}</div>'


def _captioned(part: str, caption: str) -> str:
    return f'<div style="min-width:0"><div>{escape(caption)}</div>{part}</div>'


def _svg(width: int, height: int, alt: str, content: str) -> str:
    return (
        f'<svg role="img" aria-label="{escape(alt)}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'style="max-width:100%;height:auto;overflow:visible" font-size="14" fill="currentColor">{content}</svg>'
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _percent(p: float) -> str:
    return f"{100 * p:.1f} %" if p < 0.9995 else "over 99.9 %"


def _encode(figure: Figure) -> str:
    """Return a figure as SVG, and close it."""
    buffer = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="svg", **SAVED)
    plt.close(figure)
    return re.sub(r"<image [^>]*>", _lighter, buffer.getvalue())


def _lighter(found: re.Match[str]) -> str:
    """Write a photograph within a figure as JPEG, a fifth of the size, and smooth; small pictures keep their pixels."""
    element = found[0]
    start, content, end = re.split(r"data:image/png;base64,([^\"]*)", element)
    picture = Image.open(io.BytesIO(b64decode(content)))
    if min(picture.size) < 100:
        return element
    picture.convert("RGB").save(buffer := io.BytesIO(), "jpeg", quality=80)
    end = end.replace("image-rendering:crisp-edges;image-rendering:pixelated", "")
    return f"{start}data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}{end}"


def _show(figure: Figure) -> None:
    display(SVG(_encode(figure)))
