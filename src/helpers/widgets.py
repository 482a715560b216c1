"""Interactive figures that work in Jupyter, in Colab and, with no kernel, on the book's site."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

import ipywidgets


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
        ipywidgets.HTML(
            f'<img src="data:image/jpeg;base64,{b64encode(frame).decode()}" alt="{escape(caption)}" '
            f'style="max-width: 100%; height: auto"><br>{escape(caption)}'
        )
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
