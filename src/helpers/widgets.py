"""Interactive figures that work in Jupyter, in Colab and, with no kernel, on the book's site."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

import ipywidgets

from helpers.plots import training_frame
from helpers.training import History


def flipbook(frames: Sequence[bytes], captions: Sequence[str], description: str) -> ipywidgets.VBox:
    """Return a slider that leafs through pictures.

    All pictures are part of the widget, and slider and picture are linked in the browser, so it needs no kernel.

    Args:
        frames: JPEG files, at least one. captions: a line of text for each, below it and for screen readers.
        description: the slider's label.

    Raises:
        ValueError: there is no frame, or not one caption for each.
    """
    if not frames or len(captions) != len(frames):
        raise ValueError(f"frames and captions must be as many, at least 1; got {len(frames)} and {len(captions)}")
    pages = [
        ipywidgets.HTML(f"{_picture(frame, 'jpeg', caption)}<br>{escape(caption)}")
        for frame, caption in zip(frames, captions, strict=True)
    ]
    slider = ipywidgets.IntSlider(max=len(frames) - 1, description=description)
    if hasattr(ipywidgets, "Stack"):
        book = ipywidgets.Stack(pages, selected_index=0)
        ipywidgets.jslink((slider, "value"), (book, "selected_index"))
    else:  # ipywidgets 7, as on Colab: no Stack, and links made in the browser do not work there
        book = ipywidgets.Tab(pages, selected_index=0)
        for i in range(len(pages)):
            book.set_title(i, str(i))
        ipywidgets.link((slider, "value"), (book, "selected_index"))
    return ipywidgets.VBox([slider, book])


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
        self.value = _picture(training_frame(history, self.epochs), "png", caption)


def _picture(content: bytes, kind: str, alt: str) -> str:
    source = f"data:image/{kind};base64,{b64encode(content).decode()}"
    return f'<img src="{source}" alt="{escape(alt)}" style="max-width: 100%; height: auto">'
