"""Run the chapters and store their outputs, so that the same code always writes the same file.

    python tools/execute.py notebooks/*.ipynb        (make execute)

Whatever would differ between two runs without meaning anything is left out or made regular: timings, the name of the
kernel, Python's version, the random identifiers of widgets. The picture made by the one cell tagged `hero` is also
written to `book/images`, for the landing page and the README.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
STATE = "application/vnd.jupyter.widget-state+json"


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run every cell of a notebook in a fresh kernel and return the notebook with its outputs, made regular."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    NotebookClient(
        notebook,
        timeout=3600,
        startup_timeout=120,
        record_timing=False,
        coalesce_streams=True,  # one output for all that a cell prints, however the kernel cut it into messages
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    notebook.metadata["language_info"] = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return number_widgets(notebook)


def number_widgets(notebook: NotebookNode) -> NotebookNode:
    """Replace the widgets' random identifiers by their number in the order of creation."""
    text = nbformat.writes(notebook)
    for number, old in enumerate(notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})):
        text = text.replace(old, f"{number:032x}")
    return nbformat.reads(text, as_version=4)


def hero(notebook: NotebookNode) -> str | None:
    """Return the figure made by the cell tagged `hero`, as SVG, if the notebook has one."""
    for cell in notebook.cells:
        if "hero" in cell.metadata.get("tags", []):
            for output in cell.outputs:
                if "image/svg+xml" in output.get("data", {}):
                    return output.data["image/svg+xml"]
    return None


def main(paths: list[str]) -> None:
    """Run the notebooks at these paths and write each back when it has run to its end."""
    for path in map(Path, paths):
        print(f"running {path}", flush=True)
        notebook = execute(nbformat.read(path, as_version=4), path.parent)
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        if picture := hero(notebook):
            target = ROOT / "book" / "images" / "hero.svg"
            target.parent.mkdir(exist_ok=True)
            target.write_text(picture, encoding="utf-8")
            print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
