"""Write figures/index.md: every figure and table that the notebooks export, with its caption and its cell.

What benchmarks and our own run left in figures/published gets a page of its own there, README.md, which GitHub shows.
Files that no notebook exports (any more) are not listed.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from handin.exports import Export, captions, exports, heading_link, titles
from lib.machine.files import written_whole
from lib.machine.folders import paths, root
from lib.notebook.report import markdown, read_table

PUBLISHED = "figures/published"
OTHERS = {  # files that are neither a figure nor a table
    "explorer.html": "a page to look around in the test images, stage by stage; it needs no kernel and no network",
    "metrics.json": "all scores of the run",
}


def write_index(figures: Path) -> list[str]:
    """Write `figures`/index.md; returns what the notebooks export and this run has not (yet), by file name.

    Raises ValueError where nothing was exported.
    """
    there = exported(figures)
    if not there:
        raise ValueError(f"{figures} holds no figure that a notebook exports: `make run` first")
    with written_whole(figures / "index.md") as part:
        part.write_text(_page(there, figures), encoding="utf-8")
    return [file for export in exports() for file in export.files if not (figures / file).is_file()]


def exported(figures: Path) -> list[Export]:
    """The figures and tables that are there, each with all its files."""
    return [export for export in exports() if all((figures / file).is_file() for file in export.files)]


def _page(there: Sequence[Export], figures: Path) -> str:
    """All exports by notebook, each with its picture or table."""
    parts = ["# Figures and tables of this run", "Written by `python -m handin index`, in the order of the notebooks."]
    parts += [f"[{name}]({name}): {what}." for name, what in OTHERS.items() if (figures / name).is_file()]
    for notebook in dict.fromkeys(export.notebook for export in there):
        title = titles(root() / "notebooks" / f"{notebook}.py")[0]
        parts.append(f"# [{title}]({heading_link(notebook, title, figures)})")
        parts += [part for export in there if export.notebook == notebook for part in _entry(export, figures)]
    return "\n\n".join(parts) + "\n"


def _entry(export: Export, folder: Path) -> list[str]:
    return [f"## {export.name}, {export.kind}", *_shown(export.kind, export.name, folder), _origin(export, folder)]


def _shown(kind: str, name: str, folder: Path) -> list[str]:
    """The picture or the table's rows, and the caption."""
    caption = captions()[kind][name]
    return [f"![{name}]({name}.png)" if kind == "figure" else markdown(typed_table(name, folder)).data, caption]


def _origin(export: Export, folder: Path) -> str:
    """The files to take into a report, and the notebook's heading and cell that write them."""
    files = ", ".join(f"[{file}]({file})" for file in export.files if (folder / file).is_file())
    link = heading_link(export.notebook, export.headings[-1], folder)
    return f"{files} · {export.notebook}, [{' › '.join(export.headings)}]({link}), cell {export.cell}"


def typed_table(name: str, folder: Path) -> list[dict]:
    """A saved table's rows with numbers as numbers and None where there is no value, as they were when it was saved."""
    return [{column: _value(text) for column, text in row.items()} for row in read_table(name, folder)]


def _value(text: str) -> str | int | float | None:
    """A cell of a table.

    >>> [_value(text) for text in ("12", "0.5", "12 %", "")]
    [12, 0.5, '12 %', None]
    """
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text or None


def published_page(folder: Path) -> str:
    """The page of the tables and pictures that the repository ships."""
    intro = "Tables, scores and a picture of a run of ours, and what the commands in `benchmarks/` measured."
    parts = ["# What the project ships of its own results", f"{intro} Written by `python -m handin index`."]
    notebooks = {(export.kind, export.name): export for export in exports()}
    for path in sorted([*folder.glob("*.csv"), *folder.glob("*.png")]):
        kind, name = "figure" if path.suffix == ".png" else "table", path.stem
        if export := notebooks.get((kind, name)):
            parts += _entry(export, folder)
        elif kind == "table" and name in captions()["benchmark"]:
            parts += [f"## {name}, table", *_shown("benchmark", name, folder), _measured_by(name, folder)]
    return "\n\n".join([*parts, "[metrics.json](metrics.json): all scores of the run.", ""])


def _measured_by(name: str, folder: Path) -> str:
    """The command of `benchmarks/` that writes this table."""
    modules = sorted((root() / "benchmarks").glob("*.py"))
    module = next(path for path in modules if f'"{name}"' in path.read_text(encoding="utf-8"))
    link = Path(os.path.relpath(module, folder)).as_posix()
    return f"[{name}.csv]({name}.csv), [{name}.tex]({name}.tex) · [`python -m benchmarks.{module.stem}`]({link})"


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser("python -m handin index", description=__doc__).parse_args(argv)
    published = root() / PUBLISHED
    with written_whole(published / "README.md") as part:
        part.write_text(published_page(published), encoding="utf-8")
    missing = write_index(paths().figures)
    print(f"{paths().figures / 'index.md'} and {published / 'README.md'} are written")
    if missing:
        print("not exported by this run: " + ", ".join(missing))
