"""Write report/where.md: each demand of the assignment sheet, and the notebook, function, test and figure that meet it.

The list itself is handin/where.toml, where every reference has a name that a test looks up.
"""

import argparse
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from handin.exports import heading_link
from lib.machine.files import written_whole
from lib.machine.folders import root

PAGE = "report/where.md"
INTRO = """# Where each demand of the assignment is met

Written by `python -m handin where` from `handin/where.toml`; tests hold that every name in it exists. Figures and
tables in the last column are those of your own run, in `figures/` after `make run`. In bold what the sheet gives for
it. What only you can write stands in the sources of the report, marked as such."""
HEAD = "| asked for | notebook | code | tests | figures, tables, report |\n| :--- | :--- | :--- | :--- | :--- |"


def where() -> tuple[dict[str, str], list[dict]]:
    """The titles of the sheet's sections by their number, in order, and the demands, as handin/where.toml has them."""
    content = tomllib.loads((root() / "handin" / "where.toml").read_text(encoding="utf-8"))
    return content["titles"], content["demand"]


def page() -> str:
    """The text of report/where.md: a table for each section."""
    sections, demands = where()
    parts = [INTRO]
    for number, title in sections.items():
        rows = [_row(demand) for demand in demands if demand["section"] == number]
        parts.append("\n".join([f"## §{number} {title}\n", HEAD, *rows]))
    return "\n\n".join(parts) + "\n"


def _row(demand: Mapping) -> str:
    columns: tuple[tuple[str, Callable[[str], str]], ...] = (("notebook", _cell), ("lib", _code), ("test", _test))
    cells = [demand["asks"] + (f", **{demand['weight']} %**" if "weight" in demand else "")]
    cells += [", ".join(map(link, demand.get(key, ()))) for key, link in columns]
    shown = [*map(_export, demand.get("shows", ())), *map(_paper, demand.get("paper", ()))]
    return f"| {' | '.join([*cells, ', '.join(shown)])} |"


def _cell(reference: str) -> str:
    notebook, heading = reference.split(": ", 1)
    return f"[{notebook[:2]} {heading}]({heading_link(notebook, heading, (root() / PAGE).parent)})"


def _code(reference: str) -> str:
    """The module's file: a line number would be out of date with the next change."""
    path = lib_module(reference)
    return f"[`{reference}`](../{path.relative_to(root()).as_posix()})"


def lib_module(reference: str) -> Path:
    """The file that defines `module.attribute` of lib; ValueError where no part of the name is a module."""
    names = reference.split(".")
    for count in range(len(names), 0, -1):
        if (path := (root() / "lib").joinpath(*names[:count]).with_suffix(".py")).is_file():
            return path
    raise ValueError(f"handin/where.toml names lib.{reference}, which is in no module")


def _test(reference: str) -> str:
    module, name = reference.split(".")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../tests/{module}.py)"


def _export(reference: str) -> str:
    kind, name = reference.split()
    return f"[{name}](../figures/{name}.{'png' if kind == 'figure' else 'csv'})"


def _paper(reference: str) -> str:
    path, _, section = reference.partition(": ")
    return f"[{path}](../{path})" + f", {section}" * bool(section)


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser("python -m handin where", description=__doc__).parse_args(argv)
    with written_whole(root() / PAGE) as part:
        part.write_text(page(), encoding="utf-8")
    print(f"{root() / PAGE} is written")
