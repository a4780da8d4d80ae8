"""Badges: the repository's owner/name, kept in pyproject.toml, copied to every place that spells it out.

`python -m lib badges` (or `make badges`) rewrites the Colab links of README.md and of the notebooks, and the
line `REPOSITORY = "owner/name"` of their set-up cell, in .py and .ipynb alike. A second run changes nothing.
"""

import re
import tomllib
from pathlib import Path

from lib.machine.files import written_whole

GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")
COLAB = re.compile(r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(/blob/)")
ASSIGNMENT = re.compile(r'(REPOSITORY = \\?")[\w.-]+/[\w.-]+(\\?")')  # in an .ipynb the quotes are escaped


def repository(root: Path) -> str:
    """`owner/name` of `[project.urls] Repository` in pyproject.toml; ValueError for any other address."""
    path = root / "pyproject.toml"
    address = tomllib.loads(path.read_text()).get("project", {}).get("urls", {}).get("Repository", "")
    if match := GITHUB.fullmatch(address):
        return match[1]
    raise ValueError(f"{path}: [project.urls] Repository is {address!r}; it must read https://github.com/OWNER/NAME")


def rewrite(root: Path) -> list[Path]:
    """Write the repository's name into README.md and the notebooks; returns the files that changed."""
    name = repository(root)
    changed = []
    for path in [root / "README.md", *sorted(root.glob("notebooks/*.py")), *sorted(root.glob("notebooks/*.ipynb"))]:
        old = path.read_text(encoding="utf-8")
        new = ASSIGNMENT.sub(rf"\g<1>{name}\g<2>", COLAB.sub(rf"\g<1>{name}\g<2>", old))
        if new != old:
            with written_whole(path) as part:
                part.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed
