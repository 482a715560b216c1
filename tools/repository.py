"""The repository's address: kept in `_config.yml`, repeated in a few other files, changed everywhere by one command.

python tools/repository.py https://github.com/you/your-fork        (make repository URL=...)
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = "_config.yml"


def address(root: Path = ROOT) -> str:
    """Return the repository's address, as `_config.yml` has it."""
    found = re.search(r"^  url: (https://github\.com/[\w.-]+/[\w.-]+)$", (root / HOME).read_text(), re.MULTILINE)
    if not found:
        raise SystemExit(f"{HOME} has no line '  url: https://github.com/owner/name' below 'repository:'")
    return found[1]


def owner_and_name(url: str) -> str:
    """Return the `owner/name` of an address; the chapters are opened in Colab, which knows GitHub only."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", url)
    if not found:
        raise SystemExit("usage: make repository URL=https://github.com/owner/name")
    return found[1]


def site_address(repository: str) -> str:
    """Return the address at which GitHub Pages shows a repository's site."""
    owner, name = owner_and_name(repository).split("/")
    host = f"https://{owner.lower()}.github.io/"
    return host if f"https://{name.lower()}/" == host else f"{host}{name}/"


def carriers(root: Path = ROOT) -> list[Path]:
    """Return the files that may repeat the address."""
    named = [root / name for name in (HOME, "README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml")]
    patterns = ("notebooks/*.ipynb", "tools/*.ipynb", "book/*.md", "book/*.bib", "src/**/*.py")
    return [path for path in named if path.is_file()] + sorted(path for p in patterns for path in root.glob(p))


def move(url: str, root: Path = ROOT) -> list[Path]:
    """Write the new address wherever the old one was; return the files that changed."""
    old, new = owner_and_name(address(root)), owner_and_name(url)
    changed = []
    for path in carriers(root):
        text = path.read_text(encoding="utf-8")
        # `owner/name` as a whole, on GitHub or below Colab's /github/; not the beginning of a longer name.
        moved = re.sub(rf"(github\.com|/github)/{re.escape(old)}(?![\w-])", rf"\1/{new}", text)
        moved = moved.replace(site_address(f"https://github.com/{old}"), site_address(f"https://github.com/{new}"))
        if moved != text:
            path.write_text(moved, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make repository URL=https://github.com/owner/name")
    for path in move(sys.argv[1]):
        print(path.relative_to(ROOT))
