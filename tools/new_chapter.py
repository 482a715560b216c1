"""Begin a chapter: a copy of `tools/chapter_template.ipynb` with its number and name, run, and in the contents.

python tools/new_chapter.py 90_next_question        (make new-chapter NAME=90_next_question)
"""

import re
import sys
from pathlib import Path

import nbformat
from execute import execute

ROOT = Path(__file__).parents[1]
TEMPLATE = "tools/chapter_template.ipynb"
TITLE, STEM, NUMBER = "A title: what the chapter is about", "99_template", "99"


def listed(name: str, contents: str) -> str:
    """Return `_toc.yml` with a chapter more, after all those that come before it by name."""
    lines = contents.splitlines()
    chapters = {i: line.split("notebooks/")[1] for i, line in enumerate(lines) if "- file: notebooks/" in line}
    at = max((i for i, other in chapters.items() if other < name), default=min(chapters) - 1)
    lines.insert(at + 1, f"      - file: notebooks/{name}")
    return "\n".join(lines) + "\n"


def begin(name: str, root: Path = ROOT) -> Path:
    """Write the new chapter and its line in `_toc.yml`; return the chapter's path.

    Raises:
        SystemExit: `name` is not two digits, an underscore and words in lower case, or the number is taken.
    """
    if not re.fullmatch(r"\d\d(_[a-z0-9]+)+", name) or int(name[:2]) == int(NUMBER):
        raise SystemExit("usage: make new-chapter NAME=90_next_question (two digits, then words in lower case)")
    for other in root.glob(f"notebooks/{name[:2]}_*.ipynb"):
        raise SystemExit(f"there is a chapter {int(name[:2])} already: {other.relative_to(root)}")
    chapter = nbformat.read(root / TEMPLATE, as_version=4)
    for cell in chapter.cells:
        text = cell.source.replace(STEM, name).replace(TITLE, name[3:].replace("_", " ").capitalize())
        cell.source = re.sub(rf"\b{NUMBER}\b", str(int(name[:2])), text)
        for prompt, words in cell.metadata.get("mystnb", {}).items():
            if isinstance(words, str):
                cell.metadata["mystnb"][prompt] = re.sub(rf"\b{NUMBER}\b", str(int(name[:2])), words)
    path = root / "notebooks" / f"{name}.ipynb"
    path.write_text(nbformat.writes(execute(chapter, path.parent)) + "\n", encoding="utf-8")
    contents = root / "_toc.yml"
    contents.write_text(listed(name, contents.read_text()))
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make new-chapter NAME=90_next_question")
    print(
        f"Begun: {begin(sys.argv[1]).relative_to(ROOT)}, and listed in _toc.yml. CONTRIBUTING.md says what comes next."
    )
