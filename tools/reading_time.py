"""How long the notebooks take to read, measured.

    python tools/reading_time.py notebooks/*.ipynb        (make reading-time)

An adult reads about 230 words a minute; a figure, moving ones included, takes half a minute, and a code cell in view
one minute. What is folded away counts as nothing: cells tagged hide-input or hide-cell, and text within `<details>`.
A chapter is read up to its exercises, and then once more from "What we did not tell you" to the references.
The exercises are counted apart, folded findings and solutions included: to read them, not to solve them.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

WORDS_A_MINUTE, MINUTES_A_FIGURE, MINUTES_A_CODE_CELL = 230, 0.5, 1
FOLDED = {"hide-input", "hide-cell"}
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass
class Reading:
    """What there is to read, and how long it takes."""

    words: int = 0
    figures: int = 0
    code_cells: int = 0

    @property
    def minutes(self) -> float:
        return self.words / WORDS_A_MINUTE + self.figures * MINUTES_A_FIGURE + self.code_cells * MINUTES_A_CODE_CELL


def words(markdown: str) -> int:
    """Count the words of a Markdown text: what stands between spaces and holds a letter or a digit.

    Addresses of links and HTML tags are not read. A formula counts as it is typed, spaces and all.
    """
    text = re.sub(r"\]\([^)]*\)|<[a-z/!][^>]*>", " ", markdown)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def figures(cell: NotebookNode) -> int:
    """Count the pictures and the widgets among a cell's outputs."""
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    return sum(WIDGET in kinds or any(kind.startswith("image/") for kind in kinds) for kinds in data)


def reading_time(notebook: NotebookNode) -> tuple[Reading, Reading]:
    """Return what there is to read of a notebook: the text, and its exercises."""
    text, exercises = Reading(), Reading()
    part = ""
    for cell in notebook.cells:
        if heading := re.match(r"## (.+)", cell.source):
            part = heading[1]
        if part in ("References", "Next"):
            continue
        reading = exercises if part == "Exercises" else text
        tags = set(cell.metadata.get("tags", []))
        folded = part != "Exercises"
        if cell.cell_type == "markdown":
            source = re.sub("<details>.*?</details>", "", cell.source, flags=re.DOTALL) if folded else cell.source
            reading.words += words(source)
        elif cell.cell_type == "code":
            reading.figures += 0 if folded and "hide-cell" in tags else figures(cell)
            reading.code_cells += not (FOLDED & tags if folded else FOLDED & tags and "solution" not in tags)
    return text, exercises


def main(paths: list[str]) -> None:
    """Print a line for each notebook."""
    print(f"{'':24} words  figures  code cells  minutes  exercises")
    for path in map(Path, paths):
        text, exercises = reading_time(nbformat.read(path, as_version=4))
        print(
            f"{path.stem:24} {text.words:5}  {text.figures:7}  {text.code_cells:10}  {text.minutes:7.0f}"
            f"  {exercises.minutes:9.0f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
