"""What a report looks like: as lines of text, and as Markdown."""

from collections.abc import Iterable
from textwrap import wrap
from typing import TYPE_CHECKING

from helpers.protocol import CLEAN, NOT_NEEDED, Protocol

if TYPE_CHECKING:
    from helpers.report import Report

LIMITS = (
    "An attack shows that an image can be misread, never that it cannot: the true error may be higher.",
    "No attack here was made for this model. If it rounds, draws random numbers or detects, attack that part too.",
    "The numbers hold for this perturbation set and for images drawn like these, and for nothing else.",
)


def text(report: "Report") -> str:
    """Return the report as lines of text, at most 76 columns wide."""
    rows = _rows(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [*_wrapped(_heading(report)), ""]
    for name, *numbers in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    lines += ["", _robust_accuracy(report), ""]
    lines += _wrapped((f"{'  ok' if well else 'LOOK'}  {said}" for well, said in report.signs()), "      ")
    lines += _wrapped((f"WARNED  {said}" for said in report.warned()), "      ")
    lines += _wrapped((f"NOT RUN  {what}" for what in _not_run(report)), "      ")
    return "\n".join([*lines, "", *_wrapped(_how(report)), "", *_wrapped(["What this does not prove:", *LIMITS])])


def markdown(report: "Report") -> str:
    """Return the report as Markdown, with tables."""
    title, *rows = (f"| {' | '.join(row)} |" for row in _rows(report))
    lines = ["# Robustness report", "", *(f"- {line}" for line in _heading(report)), "", title]
    lines += ["|:--|--:|--:|--:|--:|", *rows, ""]
    lines += [
        "An image is an error if the model is wrong on it or under the attack; in a row with +, under any so far."
    ]
    lines += [f"{_robust_accuracy(report)}.", "", "## Signs of a broken attack", ""]
    lines += [f"- {'ok' if well else '**LOOK**'}: {said}" for well, said in report.signs()]
    lines += [f"- **WARNED** {said}" for said in report.warned()]
    lines += [f"- **NOT RUN** {what}" for what in _not_run(report)]
    if curve := report.curve:
        budgets = next(iter(curve.values()))
        lines += ["", f"## Errors among the first {report.curve_count} images, against eps", ""]
        lines += [f"| eps | {' | '.join(f'{eps:.4g}' for eps in budgets)} |", "|:--|" + "--:|" * len(budgets)]
        lines += [f"| {name} | {' | '.join(map(str, row.values()))} |" for name, row in curve.items()]
    lines += ["", "## How it was done", "", *(f"- {line}" for line in _how(report))]
    return "\n".join([*lines, "", "## What this does not prove", "", *(f"- {line}" for line in LIMITS), ""])


def _rows(report: "Report") -> list[list[str]]:
    """Return the table: what was tried, the error, its end or ends, on how many images, and how long it took."""
    rows = [["tried", "error", "95 % (Wilson)", "images", "seconds"]]
    for name in [CLEAN, *report.rungs]:
        e = report.error(name)
        tried = sum(letter != NOT_NEEDED for part in report.parts.values() for letter in part["found"][name])
        if e.side == "two-sided":
            error, ends, seconds = f"{100 * e.value:.1f} %", f"{100 * e.low:.1f} to {100 * e.high:.1f} %", ""
        else:
            error, ends = f"at least {100 * e.value:.1f} %", f"{100 * e.low:.1f} % or more"
            seconds = f"{report.seconds(name):.1f}"
        rows.append([name, error, ends, f"{tried:,}", seconds])
    return rows


def _wrapped(lines: Iterable[str], indent: str = "  ") -> list[str]:
    return [part for line in lines for part in wrap(line, 76, subsequent_indent=indent, drop_whitespace=True) or [""]]


def _heading(report: "Report") -> list[str]:
    settings, protocol = report.settings, report.settings["protocol"]
    classes = next(iter(report.parts.values()))["classes"]
    budget = f"eps {protocol['eps']:.4g}"
    if protocol["norm"] == "linf":
        budget += f" ({255 * protocol['eps']:.4g} of 255 grey levels)"
    of = f" of {report.expected:,}" if report.expected not in (None, len(report)) else ""
    norm = {"linf": "l-inf", "l2": "l2"}[protocol["norm"]]
    lines = [
        f"Robustness of {settings['model']}, {classes} classes",
        f"{len(report):,}{of} images, {norm}, {budget}, in the pixel box",
    ]
    if report.stopped:
        lines.append(f"NOT COMPLETE: {report.stopped}. evaluate(..., resume=report) goes on.")
    if report.late:
        lines.append(f"TIME RAN OUT: {report.late:,} images that still stand did not get every attack.")
    return lines


def _robust_accuracy(report: "Report") -> str:
    single = any(part["random"] for part in report.parts.values())
    caution = " of single answers, which is no bound, since the model is random" if single else ""
    return f"robust accuracy: at most {100 * (1 - report.robust_error.value):.1f} %{caution}"


def _not_run(report: "Report") -> list[str]:
    missing = [] if report.curve else ["errors at an eps where any image can become any other: curve is 0"]
    if not Protocol(**report.settings["protocol"]).blind:
        why = "queries is 0" if report.settings["protocol"]["norm"] == "linf" else "Square, here, is for l-inf"
        missing.append(f"an attack without gradients: {why}")
    return missing


def _how(report: "Report") -> list[str]:
    settings = report.settings
    choices = [f"{name} {value}" for name, value in settings["protocol"].items() if name not in ("eps", "norm")]
    return [
        f"Choices: {', '.join(choices)}, batches of {settings['batch_size']}.",
        f"Time: {settings.get('seconds', 0):.0f} seconds on {settings['device']}, begun {settings['begun']}.",
        f"Versions: {', '.join(f'{name} {number}' for name, number in settings['versions'].items())}.",
    ]
