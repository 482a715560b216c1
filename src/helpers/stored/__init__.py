"""Experiments that take too long to run on every opening of a chapter: their results are kept here, as JSON.

A chapter calls `stored(name, run)`. It returns what is kept, and prints when that was computed and in how many seconds.
With the environment variable `RECOMPUTE=1`, as in `RECOMPUTE=1 make execute`, it runs the experiment and keeps what
comes out.
"""

import json
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

VARIABLE = "RECOMPUTE"
FOLDER = Path(__file__).parent


def stored(name: str, run: Callable[[], Any]) -> Any:
    """Return the kept result of an experiment; with `RECOMPUTE=1` in the environment run it, and keep what it returns.

    Args:
        name: of the experiment, and of its file beside this module.
        run: function without arguments; what it returns must be JSON: numbers, text, lists, dictionaries.

    Returns:
        What `run` returned when it was run last, as JSON gives it back: a tuple as a list, keys as text.

    Raises:
        FileNotFoundError: nothing is kept under this name.
        TypeError: `run` returned something that JSON cannot hold.
        ValueError: `RECOMPUTE` is neither empty nor 0 nor 1.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE} must be 1 (run stored experiments again), 0 or empty; got {wish!r}")
    path = FOLDER / f"{name}.json"
    if wish == "1":
        begin = time.process_time()
        result = run()
        kept = {"date": date.today().isoformat(), "seconds": round(time.process_time() - begin), "result": result}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    elif not path.exists():
        raise FileNotFoundError(
            f"nothing is stored as {name!r}: set {VARIABLE}=1 to run the experiment and keep its result"
        )
    kept = json.loads(path.read_text(encoding="utf-8"))
    print(f"Stored: computed on {kept['date']} in {kept['seconds']:,} CPU s.")
    print(f"{VARIABLE}=1 runs it again.")
    return kept["result"]
