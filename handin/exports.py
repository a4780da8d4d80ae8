"""What the notebooks export to `figures/`, where in them, and the captions.

A figure is `NAME.pdf` and `NAME.png`, a table `NAME.csv` and `NAME.tex`; both may have the same name. A cell's number
counts from 1, as in the notebook's ids.
"""

import os
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

import jupytext

from lib.machine.folders import root
from lib.notebook.execute import NOTEBOOKS

ENDINGS = {"figure": ("pdf", "png"), "table": ("csv", "tex")}
DRAWING = 100_000  # bytes of a PDF, at most; a larger one is full of pixels, and the PNG serves as well
CALL = re.compile(r'\bsave_(figure|table)\([^"]*?"(\w+)"')  # the name is the call's only text
HEADING = re.compile(r"^(#+) (.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Export:
    """A figure or table that a notebook writes: in which cell, under which headings (from `##` downwards)."""

    kind: str
    name: str
    notebook: str
    cell: int
    headings: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{ending}" for ending in ENDINGS[self.kind])


def is_drawing(pdf: Path) -> bool:
    """Whether a figure is lines and words, in few bytes; what is full of pixels is smaller as PNG."""
    return pdf.is_file() and pdf.stat().st_size <= DRAWING


@cache
def exports(project: Path | None = None) -> tuple[Export, ...]:
    """All that the project's notebooks export, in the order of their cells."""
    folder = (project or root()) / "notebooks"
    return tuple(found for name in NOTEBOOKS for found in _exports_of(folder / f"{name}.py"))


def _exports_of(path: Path) -> list[Export]:
    found, headings = [], list[str]()
    for number, cell in enumerate(jupytext.read(path, fmt="py:percent").cells, start=1):
        if cell.cell_type == "markdown":
            for hashes, title in HEADING.findall(cell.source):
                headings = [*headings[: len(hashes) - 1], title]
        else:
            calls = CALL.findall(cell.source)
            found += [Export(kind, name, path.stem, number, tuple(headings[1:])) for kind, name in calls]
    return found


def titles(path: Path) -> list[str]:
    """The headings of a notebook's .py, its title first."""
    cells = jupytext.read(path, fmt="py:percent").cells
    return [title for cell in cells if cell.cell_type == "markdown" for _, title in HEADING.findall(cell.source)]


def captions() -> dict[str, dict[str, str]]:
    """`captions()["figure"]["03_recall"]`, likewise "table", and "benchmark" for the tables of benchmarks/."""
    return tomllib.loads((root() / "handin" / "captions.toml").read_text(encoding="utf-8"))


def heading_link(notebook: str, heading: str, folder: Path) -> str:
    """A link's target, from a page in `folder`, to a heading of an executed notebook, as Jupyter names it."""
    path = Path(os.path.relpath(root() / "notebooks" / f"{notebook}.ipynb", folder)).as_posix()
    return f"{quote(path)}#{quote(heading.replace('`', '').replace(' ', '-'))}"
