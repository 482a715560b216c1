"""The book's figures, in one style. Each function shows its figure below the cell and returns nothing."""

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from IPython.display import Image, display
from matplotlib.figure import Figure
from torch import Tensor

from helpers._validation import check_images, check_number
from helpers.models import NormalizedModel
from helpers.risk import wilson_interval
from helpers.training import History

# Okabe and Ito's palette: told apart by readers with any common form of colour blindness. Markers differ as well.
STYLE = {
    "axes.prop_cycle": plt.cycler(
        color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"], marker=["o", "s", "^", "D", "v"]
    ),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.size": 11,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}


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
        images: (N, 1 or 3, H, W), values in [0, 1], row by row. titles: one for each image of the first row.
        rows: if given, the name of each row; there are as many rows, of equal length.

    Raises:
        TypeError, ValueError: these are not images in [0, 1], or the numbers of titles or rows do not fit N.
    """
    _show(_image_grid(images, titles, rows), "jpeg")


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
        f"x\n{before[0]}, {_percent(before[1])}",
        f"delta\ntimes {factor:g}",
        f"x + delta\n{after[0]}, {_percent(after[1])}",
    ]
    _show(_image_grid(torch.cat([x, amplify(x_adv - x, factor), x_adv]), titles), "jpeg")


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
    _show(_prediction_figure(model, x, k), "jpeg")


def prediction_frame(model: NormalizedModel, x: Tensor, k: int = 5) -> bytes:
    """Return the figure of `show_predictions` as a small JPEG file, for `widgets.flipbook`."""
    return _encode(_prediction_figure(model, x, k), "jpeg", dpi=90)


def plot_lines(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    counts_of: int | None = None,
) -> None:
    """Plot labelled lines over common x values.

    Args:
        x: the values on the horizontal axis.
        lines: a label and as many numbers as `x` has, for each line.
        xlabel, ylabel: names of the axes, with units. xscale: "linear" or "log".
        counts_of: if given, the numbers are counts out of this many examples: they are shown as percentages, each with
            its 95 % Wilson interval (Wilson 1927).

    Raises:
        ValueError: a line is not as long as `x`.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for label, values in lines.items():
            if len(values) != len(x):
                raise ValueError(f"lines must have {len(x)} numbers each, as x has; {label!r} has {len(values)}")
            if counts_of is not None:
                low, high = zip(*(wilson_interval(int(c), counts_of) for c in values), strict=True)
                low, high = [100 * p for p in low], [100 * p for p in high]
                axes.fill_between(x, low, high, alpha=0.2)
                values = [100 * int(c) / counts_of for c in values]
            axes.plot(x, values, label=label, markevery=max(1, len(x) // 12))
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale)
        if len(lines) > 1:
            axes.legend()
    _show(figure, "png")


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
        figure, axes = plt.subplots(figsize=(7, 5.2), layout="constrained")
        axes.imshow(values.cpu().numpy(), cmap="cividis", aspect="auto")
        middle = (values.nan_to_num(torch.inf).min() + values.nan_to_num(-torch.inf).max()) / 2
        for row in range(values.shape[0]):
            for column in range(values.shape[1]):
                value = values[row, column]
                if not value.isnan():
                    color = "black" if value > middle else "white"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.set(xticks=range(values.shape[1]), yticks=range(values.shape[0]))
        axes.grid(visible=False)
    _show(figure, "png")


def training_frame(history: History, epochs: int) -> bytes:
    """Return the training curve so far as a PNG file, for `widgets.LiveCurve`: errors against epochs.

    Args:
        history: what `train` gives to its `on_epoch`. epochs: how many there will be.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
        done = range(1, len(history.error) + 1)
        axes.plot(done, [100 * error for error in history.error], label="training examples, as trained on")
        if history.validation:
            axes.plot(done, [100 * value for value in history.validation], label="validation")
        axes.set(xlim=(0.5, epochs + 0.5), ylim=(0, 100), xlabel="epoch", ylabel="error (%)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return _encode(figure, "png", dpi=90)


def _image_grid(images: Tensor, titles: Sequence[str] | None, rows: Sequence[str] | None = None) -> Figure:
    check_images(images, "images")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (N, 1 or 3, H, W); got {tuple(images.shape)}")
    if rows is not None and (len(rows) == 0 or len(images) % len(rows)):
        raise ValueError(f"rows must be a divisor of the number of images in number; got {len(rows)} of {len(images)}")
    columns = len(images) // len(rows or [""])
    if titles is not None and len(titles) != columns:
        raise ValueError(f"titles must have one for each of the {columns} images of a row; got {len(titles)}")
    with plt.rc_context(STYLE):
        width = min(3, 7.2 / columns)  # inches; about seven fill the page's column
        height = width * images.shape[2] / images.shape[3]
        lines = max((title.count("\n") + 1 for title in titles or ()), default=0)
        size = (width * columns, height * len(rows or [""]) + 0.22 * lines)
        figure, grid = plt.subplots(len(rows or [""]), columns, figsize=size, layout="constrained", squeeze=False)
        for i, axes in enumerate(grid.flat):
            _draw_image(axes, images[i])
            if titles is not None and i < columns:
                axes.set_title(titles[i], fontsize=11)
            if rows is not None and i % columns == 0:
                axes.set_axis_on()
                axes.set(xticks=[], yticks=[], ylabel=rows[i // columns])
                axes.spines[:].set_visible(False)
    return figure


def _prediction_figure(model: NormalizedModel, x: Tensor, k: int) -> Figure:
    names, probs = zip(*top_predictions(model, x, k), strict=True)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained", width_ratios=(1, 1.4))
        _draw_image(left, x[0])
        bars = right.barh(range(k), probs)
        right.bar_label(bars, [_percent(p) for p in probs], padding=3)
        right.set(yticks=range(k), yticklabels=names, xlim=(0, 1.18), xlabel="probability", xticks=(0, 0.5, 1))
        right.invert_yaxis()
        right.grid(axis="y", visible=False)
    return figure


def _draw_image(axes: plt.Axes, image: Tensor) -> None:
    axes.imshow(image.detach().cpu().permute(1, 2, 0).float().clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()


def _percent(p: float) -> str:
    return f"{100 * p:.1f} %" if p < 0.9995 else "over 99.9 %"


def _encode(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, **({"pil_kwargs": {"quality": 85}} if kind == "jpeg" else {}))
    plt.close(figure)
    return buffer.getvalue()


def _show(figure: Figure, kind: str) -> None:
    """Show photographs as JPEG and lines as PNG: each is the smaller for what it holds."""
    display(Image(_encode(figure, kind, dpi=110)))
