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

from helpers.plots import STYLE

PASS, TUTORIAL, OURS, PREPARED = "one pass alone", "the 2018 tutorial's loop", "ours", "ours, classifier as loaded"
PACKAGES = ("torch", "torchvision", "timm", "numpy")


def machine(device: str) -> dict:
    """Return what the reader needs to know about where this was measured."""
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "packages": {name: version(name) for name in PACKAGES},
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def write(found: dict, path: Path) -> None:
    """Replace what stands between the marks of the page, and the figure beside it."""
    text = path.read_text(encoding="utf-8")
    if "error_only" in found:
        blocks = {
            "machine": _machine(found["machine"]),
            "speed": _speed(found),
            "speed in words": _speed_in_words(found),
            "error only": _error_only(found["error_only"]),
            "strength": _strength(found["strength"]),
            "strength in words": _strength_in_words(found),
        }
        _draw(found, path.parent / "images" / "comparison.png")
    else:
        blocks = {"gpu": f"## On a GPU\n\n{_machine(found['machine'])}\n\n{_speed(found)}"}
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
    return f"Measured on {where['date']} on {where['processor']}, {threads}; {where['system']}; {packages}."


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
    header = ["", "standard, logits as they are", "× 100", "× 1,000"]
    header += ["robust, logits as they are", "× 100", "× 1,000", "photographs fooled"]
    body = []
    for row in rows:
        cells = ["" if value is None else f"{100 * value:.1f}" for value in row["accuracy"]]
        body.append([row["name"], *cells, "" if row["fooled"] is None else f"{row['fooled']}"])
    return _table(header, body)


def _strength_in_words(found: dict) -> str:
    rows = {row["name"]: row for row in found["strength"]}
    strong, reference = found["strength"][-2:]
    gaps = [100 * (strong["accuracy"][i] - reference["accuracy"][i]) for i in (0, 3)]
    blind = [100 * rows[name]["accuracy"][2] for name in found["libraries"]]
    claimed = [100 * value for value in rows[TUTORIAL]["claimed"]]
    return (
        f"With restarts, ours ends {gaps[0]:+.1f} points from AutoAttack on the standard network and {gaps[1]:+.1f} on "
        f"the robust one. With the logits multiplied by 1,000 the libraries report a robust accuracy of the standard "
        f"network of {min(blind):.0f} to {max(blind):.0f} %; ours reports {100 * rows[OURS]['accuracy'][2]:.0f} %. "
        f"The tutorial's loop by itself, which also attacks images that are none, would report "
        f"{claimed[0]:.1f} % for the standard network and {claimed[1]:.1f} % for the robust one."
    )


def _draw(found: dict, path: Path) -> None:
    """Draw time per step in three panels and strength in a fourth, one row for each contender."""
    settings = found["speed"]
    names = list(settings[1]["ratios"])
    accuracy = {row["name"]: row["accuracy"] for row in found["strength"]}
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(9, 6.2), sharey=True, layout="constrained")
        for axes, setting in zip(grid.flat[:3], settings, strict=True):
            for i, name in enumerate(names):
                if name in setting["ratios"]:
                    values = setting["ratios"][name]
                    low, _, high = quantiles(values, n=4, method="inclusive")
                    middle, color = median(values), "C0" if name in (OURS, PREPARED) else "C1"
                    marker = "o" if name in (OURS, PREPARED) else "s"
                    axes.plot([low, high], [i, i], color=color, marker="", linewidth=3, alpha=0.5)
                    axes.plot([middle], [i], color=color, marker=marker, markersize=7)
                    axes.annotate(f"{middle:.2f}", (middle, i), (0, 7), textcoords="offset points", ha="center", size=9)
            axes.axvline(1, color="0.4", linestyle="--", linewidth=1)
            axes.set(title=setting["title"], xlabel="time of a step (plain passes)", xlim=(0, None))
        axes = grid.flat[3]
        for i, name in enumerate(names):
            if name in accuracy:
                plain, scaled = (100 * accuracy[name][k] for k in (0, 1))
                axes.plot([plain, scaled], [i, i], color="0.6", marker="", linewidth=1)
                axes.plot([scaled], [i], color="C1", marker="s", markersize=10, markerfacecolor="none")
                axes.plot([plain], [i], color="C0", marker="o", markersize=7)
        axes.plot([], [], color="C0", marker="o", linestyle="", label="logits as they are")
        axes.plot([], [], color="C1", marker="s", linestyle="", markerfacecolor="none", label="logits × 100")
        axes.set(title="standard digits network", xlabel="robust accuracy reported (%)", xlim=(0, 100))
        axes.legend(loc="lower right", fontsize=9)
        grid[0, 0].set_yticks(range(len(names)), names)
        grid[0, 0].set_ylim(len(names) - 0.5, -0.7)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)
