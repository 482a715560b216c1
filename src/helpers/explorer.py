"""What the interactive figures have in common: how one follows its controls, with a kernel and without."""

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from itertools import product
from typing import Any, NamedTuple

import ipywidgets

WAIT = 0.2  # seconds without another change before a figure computes: a slider on its way asks for nothing
_worker = ThreadPoolExecutor(1)  # one computation at a time, whatever the number of figures
ROOM = {"description_width": "8em"}
WIDE = {"width": "26em", "max_width": "98%"}


class Frame(NamedTuple):
    """One state of a figure."""

    html: str
    words: str  # plain text, the line below it


class Explorer(ipywidgets.VBox):
    """A figure that follows its controls: in a notebook by computing, on the book's site from stored states.

    With a kernel, a thread answers a change of a control, and the page never waits. Only the last wish counts: what was
    asked for before is dropped, and so is its result if it was already being computed. Without a kernel, the
    site's `book/assets/widgets.js` offers those values of each control that are stored, and shows the state that they
    name; a control with one stored value is hidden.

    Args:
        draw: takes a value for each control, by name, and returns the state. It runs in a thread, one call at a time.
        controls: widgets with options (`SelectionSlider`, `Dropdown`) by the names that `draw` uses.
        stored: for each control the values to store; all combinations are drawn now.
        extra: more widgets, put below the controls.
        play: the name of a slider that gets a button which moves it from step to step.

    Raises:
        ValueError: a stored value is no option of its control, or the control's present value is not stored.
    """

    def __init__(
        self,
        draw: Callable[..., Frame],
        controls: Mapping[str, Any],
        stored: Mapping[str, Sequence[Any]],
        extra: Sequence[ipywidgets.Widget] = (),
        play: str | None = None,
    ) -> None:
        self.draw, self.controls = draw, dict(controls)
        kept = []  # the places of the stored values among the options
        for name, control in self.controls.items():
            options = [option[1] if isinstance(option, tuple) else option for option in control.options]
            if not set(stored[name]) <= set(options) or control.value not in stored[name]:
                raise ValueError(
                    f"stored must have options of {name!r}, and its present value {control.value!r} among them; "
                    f"got {list(stored[name])}"
                )
            kept.append([options.index(value) for value in stored[name]])
            control.style, control.layout = ROOM, WIDE
        wishes = product(*(stored[name] for name in self.controls))
        self.frames = {wish: draw(**dict(zip(self.controls, wish, strict=True))) for wish in wishes}
        self.picture, self.words = ipywidgets.HTML(), ipywidgets.HTML()
        self.words.add_class("explorer-words")
        played = None if play is None else list(self.controls).index(play)
        store = ipywidgets.HTML(_pack(kept, list(self.frames.values()), played), layout={"display": "none"})
        if play is not None:  # in the browser the button moves the slider, in Python the slider is followed
            slider = self.controls[play]
            button = ipywidgets.Play(max=len(slider.options) - 1, value=slider.index, interval=700)
            ipywidgets.jslink((button, "value"), (slider, "index"))
            extra = [button, *extra]
        super().__init__([*self.controls.values(), *extra, self.picture, self.words, store])
        self.add_class("explorer")
        self._number, self._lock, self._timer = 0, threading.Lock(), threading.Timer(0, int)
        self.follow()
        for control in self.controls.values():
            control.observe(self.follow, "value")

    def __repr__(self) -> str:  # what a notebook stores as text: the same in every run
        return f"Explorer({', '.join(self.controls)})"

    def follow(self, change: object = None) -> None:
        """Show the state that the controls ask for: at once if it is known, else when it has been computed."""
        wish = tuple(control.value for control in self.controls.values())
        with self._lock:
            self._number += 1  # whatever is under way is out of date now
            self._timer.cancel()
            if wish in self.frames:
                self._show(self.frames[wish])
            else:
                self.words.value = "Computing …"
                self._timer = threading.Timer(WAIT, _worker.submit, (self._compute, self._number, wish))
                self._timer.daemon = True
                self._timer.start()

    def _compute(self, number: int, wish: tuple[Any, ...]) -> None:
        if number != self._number:
            return
        try:
            frame = self.draw(**dict(zip(self.controls, wish, strict=True)))
        except Exception as error:  # in a thread nobody would see it
            frame = failure(error)
        with self._lock:
            if number == self._number:
                self._show(frame)

    def _show(self, frame: Frame) -> None:
        self.picture.value, self.words.value = frame.html, escape(frame.words)


def failure(error: Exception) -> Frame:
    """Return the state that says what went wrong."""
    return Frame("", f"{type(error).__name__}: {error}")


def _pack(kept: list[list[int]], frames: list[Frame], play: int | None) -> str:
    """Return the stored states for the site's script, in a form that browsers leave alone.

    Long attributes, pictures above all, are stored once, however many states share them.
    """
    shared: dict[str, int] = {}
    packed = [
        [re.sub(r'"([^"]{60,})"', lambda long: f'"{{{shared.setdefault(long[1], len(shared))}}}"', html), escape(words)]
        for html, words in frames
    ]
    content = json.dumps({"kept": kept, "frames": packed, "shared": list(shared), "play": play}).replace("</", "<\\/")
    return f'<script type="application/json">{content}</script>'
