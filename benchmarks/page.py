"""What `compare` found, as the tables, sentences and figure of the page "How our loops compare"."""

import os
import platform
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import matplotlib.pyplot as plt
import torch

from helpers.plots import BLUE, ORANGE, SAVED, SKY, STYLE, WIDTH

PASS, TUTORIAL, OURS, PREPARED = "one pass alone", "the 2018 tutorial's loop", "ours", "ours, classifier as loaded"
STRONG, AUTOATTACK = "ours, all of `evaluate`", f"AutoAttack (pyautoattack {version('pyautoattack')})"
CASES = {"standard x 1": "standard", "standard x 100": "× 100", "robust x 1": "robust", "robust x 100": "× 100"}
PLAIN = "standard x 1", "robust x 1"
PACKAGES = ("torch", "torchvision", "timm", "numpy")


def machine(device: str) -> dict:
    """Return what the reader needs to know about where this was measured."""
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "packages": {name: version(name) for name in PACKAGES},
        "load": [os.getloadavg()[0]] if hasattr(os, "getloadavg") else [],
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def write(found: dict, path: Path) -> None:
    """Replace what stands between the marks of the page, and the figure beside it."""
    if "error_only" in found:
        blocks = {
            "machine": _machine(found["machine"]),
            "speed": _speed(found),
            "speed in words": _speed_in_words(found),
            "error only": _error_only(found["error_only"]),
            "strength": _strength(found["strength"]),
            "strength in words": _strength_in_words(found),
            "beside AutoAttack": _beside_autoattack(found["strength"]),
        }
        _draw(found, path.parent / "images" / "comparison.svg")
    else:
        blocks = {"gpu": f"## On a GPU\n\n{_machine(found['machine'])}\n\n{_speed(found)}"}
    fill(path, blocks)


def fill(path: Path, blocks: dict[str, str]) -> None:
    """Put each text between the marks of its name on the page."""
    text = path.read_text(encoding="utf-8")
    for name, content in blocks.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{path} must have the marks {begin} and {end} once each")
        text = re.sub(f"{begin}.*{end}", lambda _, b=begin, c=content, e=end: f"{b}\n{c}\n{e}", text, flags=re.DOTALL)
    path.write_text(text, encoding="utf-8")


def _spread(values: list[float]) -> str:
    """The median and, in brackets, the quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.2f} ({low:.2f}–{high:.2f})"


def _table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def _machine(where: dict) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    threads = f"{where['threads']} thread" + "s" * (where["threads"] > 1)
    load = " to ".join(f"{number:.1f}" for number in sorted(where["load"]))
    busy = f" Load average before and after the run: {load}; {where['threads']} is this run alone." if load else ""
    return f"Measured on {where['date']} on {where['processor']}, {threads}; {where['system']}; {packages}.{busy}"


def _speed(found: dict) -> str:
    settings = found["speed"]
    rows = []
    for name in (PASS, *settings[1]["ratios"]):
        cells = [_spread(s["ratios"][name]) if name in s["ratios"] else "" for s in settings]
        cells = ["1"] * len(settings) if name == PASS else cells
        memory = found["peaks"].get(name)
        rows.append([name, *cells, f"{memory:.0f}" if memory else ""])
    return _table(["", *(s["title"] for s in settings), "peak memory (MB)"], rows)


def _speed_in_words(found: dict) -> str:
    step = {name: median(ratios) for name, ratios in found["speed"][1]["ratios"].items()}
    library = found["fastest"]
    return (
        f"The fastest library is {library}. With {found['speed'][1]['examples']} photographs at a time and the "
        f"classifier as it is, a step of it takes {step[library]:.2f} passes and one of ours {step[OURS]:.2f}. On the "
        f"classifier as `load_classifier` delivers it, a step of ours takes {step[PREPARED]:.2f}: "
        f"{step[library] / step[PREPARED]:.1f} times faster than {library}, and "
        f"{step[TUTORIAL] / step[PREPARED]:.1f} times faster than the tutorial's loop."
    )


def _error_only(cases: list[dict]) -> str:
    rows = []
    for case in cases:
        for name, ratios in case["ratios"].items():
            rows.append([f"{case['title']}: {name}", _spread(ratios), f"{case['fooled'][name]} of {case['examples']}"])
    words = [
        f"{case['title']}, {case['steps']} steps: {median(case['faster']):.1f} times faster, and "
        + ("exactly the same examples fooled." if case["same"] else "not all the same examples fooled.")
        for case in cases
    ]
    table = _table(["", "passes in all", "fooled"], rows)
    return f"{table}\n\n" + "\n".join(f"- {line}" for line in words)


def _strength(rows: list[dict]) -> str:
    body = []
    for row in rows:
        accuracy = [
            f"{_accuracy(row, case):.1f} ({100 - 100 * row['low'][case]:.1f})" if case in row["wrong"] else ""
            for case in CASES
        ]
        body.append([row["name"], *accuracy, f"{sum(_seconds(row, case) for case in PLAIN):.1f}"])
    return _table(["", *CASES.values(), "seconds"], body)


def _accuracy(row: dict, case: str) -> float:
    """The robust accuracy that an attack leaves, in percent."""
    return 100 - 100 * sum(row["wrong"][case]) / len(row["wrong"][case])


def _seconds(row: dict, case: str) -> float:
    return row["seconds"][case]


def _between(values: list[float]) -> str:
    """The least and the greatest of some numbers, rounded; once, if they round to the same."""
    return " to ".join(dict.fromkeys(f"{value:.0f}" for value in (min(values), max(values))))


def _strength_in_words(found: dict) -> str:
    rows = {row["name"]: row for row in found["strength"]}
    blind = [_accuracy(rows[name], "standard x 100") for name in found["libraries"]]
    claimed = [100 * value for value in rows[TUTORIAL]["claimed"]]
    photographs = found["speed"][1]
    return (
        f"With the logits multiplied by 100, the libraries report a robust accuracy of the standard network of "
        f"{_between(blind)} %; ours reports {_accuracy(rows[OURS], 'standard x 100'):.0f} %. "
        f"The tutorial's loop by itself, which leaves the pixel box, would report {claimed[0]:.1f} % for the standard "
        f"network and {claimed[1]:.1f} % for the robust one. In the time table at $\\epsilon = 0.1/255$ the contenders "
        f"fool {_between(list(photographs['fooled'].values()))} of {photographs['examples']} photographs."
    )


def _beside_autoattack(rows: list[dict]) -> str:
    """Our strongest attacks and AutoAttack on the same digits, and what the scale of the logits changes."""
    *_, restarts, strong, reference = rows
    alone = {True: [], False: []}
    for case in PLAIN:
        pairs = list(zip(strong["wrong"][case], reference["wrong"][case], strict=True))
        for ours in alone:
            alone[ours].append(f"{sum(a != b and a == ours for a, b in pairs)}")
    gaps, left = (
        [f"{_accuracy(row, case) - _accuracy(reference, case):+.1f}" for case in PLAIN] for row in (strong, restarts)
    )
    times = [f"{_seconds(reference, case) / _seconds(strong, case):.1f}" for case in PLAIN]
    body = [
        ["robust accuracy, ours minus AutoAttack's (points)", *gaps],
        ["digits that only ours fools", *alone[True]],
        ["digits that only AutoAttack fools", *alone[False]],
        ["AutoAttack's time divided by ours", *times],
    ]
    changed = sum(_changed(strong, kind) for kind in ("standard", "robust"))
    as_long = sum(_seconds(reference, case) for case in PLAIN) / sum(_seconds(strong, case) for case in PLAIN)
    return (
        f"{_table(['', *(CASES[case] for case in PLAIN)], body)}\n\n"
        f"On the two networks together AutoAttack took {as_long:.1f} times as long as ours. Multiplying the logits by "
        f"100 changes our result of {changed} digits. The row with restarts is {left[0]} points from AutoAttack on the "
        f"standard network and {left[1]} on the robust one."
    )


def _changed(row: dict, kind: str) -> int:
    """The number of digits whose result is not the same with the logits times 100."""
    return sum(a != b for a, b in zip(*(row["wrong"][f"{kind} x {scale}"] for scale in (1, 100)), strict=True))


def _draw(found: dict, path: Path) -> None:
    """Draw the time of a step above, the robust accuracy below, a line for each contender."""
    settings = found["speed"]
    names = list(settings[1]["ratios"])
    rows = [row for row in found["strength"] if row["name"] in names]
    with plt.rc_context(STYLE):
        figure, (above, below) = plt.subplots(2, 1, figsize=(WIDTH, 6.4), height_ratios=[len(names), len(rows)])
        for k, (setting, color, marker) in enumerate(zip(settings, (BLUE, ORANGE, SKY), "os^", strict=True)):
            ratios = [
                (i + 0.22 * (k - 1), setting["ratios"][name])
                for i, name in enumerate(names)
                if name in setting["ratios"]
            ]
            for i, values in ratios:
                low, middle, high = quantiles(values, n=4, method="inclusive")
                above.plot([low, high], [i, i], color=color, linewidth=3, alpha=0.4)
                above.plot([middle], [i], color=color, marker=marker, linestyle="")
            above.plot([], [], color=color, marker=marker, linestyle="", label=setting["title"])
        above.axvline(1, color="0.5", linestyle="--", linewidth=1)
        above.set(xlabel="time of a step (plain passes)", xlim=(0, None), ylim=(len(names) - 0.5, -0.5))
        above.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        for i, row in enumerate(rows):
            plain, scaled = (_accuracy(row, f"standard x {scale}") for scale in (1, 100))
            below.plot([plain, scaled], [i, i], color="0.5", linewidth=1)
            below.plot([scaled], [i], color=ORANGE, marker="s", markersize=9, fillstyle="none", linestyle="")
            below.plot([plain], [i], color=BLUE, marker="o", linestyle="")
        below.plot([], [], color=BLUE, marker="o", linestyle="", label="logits as they are")
        below.plot([], [], color=ORANGE, marker="s", fillstyle="none", linestyle="", label="logits × 100")
        below.set(xlabel="robust accuracy, standard network (%)", xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
        below.set_yticks(range(len(rows)), [row["name"] for row in rows])
        for axes in (above, below):
            axes.legend(loc="lower left", bbox_to_anchor=(-0.35, 1), ncols=1, fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, **SAVED)
        plt.close(figure)
