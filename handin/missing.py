"""What a submission lacks, one sentence each: it is packed all the same."""

import re
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from handin.exports import exports
from lib.machine.errors import listed
from lib.notebook.execute import NOTEBOOKS

NEEDED = {
    "README.md": "it says how to run the code: the sheet asks for it",
    "weights/scenes_backbone.safetensors": "without it the demo does not run",
    "report/where.md": "`python -m handin where` writes it",
}


def missing(project: Path, figures: Path) -> list[str]:
    """All sentences, in the order of the zip's worth: notebooks, figures, report, the rest."""
    notebooks = [said for name in NOTEBOOKS if (said := notebook_lacks(project / "notebooks" / f"{name}.ipynb"))]
    rest = [f"{name} is missing: {why}." for name, why in NEEDED.items() if not (project / name).is_file()]
    return [*notebooks, *figures_lack(project, figures), *report_lacks(project / "report"), *rest]


def notebook_lacks(path: Path) -> str:
    """A sentence, or nothing, on an executed notebook beside the .py that it was made from."""
    name, again = f"notebooks/{path.name}", f"run `python -m lib run --only {path.stem}`."
    if not path.is_file():
        return f"{name} is missing: {again}"
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.reader.NotJSONError):
        return f"{name} is no notebook: {again}"
    if _texts(notebook) != _texts(jupytext.read(path.with_suffix(".py"), fmt="py:percent")):
        return f"{name} is older than {path.stem}.py, whose cells are others: {again}"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    return "" if counts == list(range(1, len(counts) + 1)) else f"{name} was not executed from top to bottom: {again}"


def _texts(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def figures_lack(project: Path, figures: Path) -> list[str]:
    """Sentences on the run's figures, tables and scores."""
    files = [file for export in exports(project) for file in export.files] + ["metrics.json"]
    lacking = [file for file in files if not (figures / file).is_file()]
    if len(lacking) == len(files):
        return [f"{figures} holds no figures of a run: `make run` makes them."]
    told = [f"{figures} lacks {listed(lacking)}: run the notebooks that export them."] if lacking else []
    explorer = "figures/explorer.html is missing: `make explorer` writes it."
    return told if (figures / "explorer.html").is_file() else [*told, explorer]


def report_lacks(report: Path) -> list[str]:
    """Sentences on the report: its PDF, beside its sources, and what in them is still the kit's text."""
    source, pdf = report / "report.tex", report / "report.pdf"
    if not source.is_file():
        return [] if pdf.is_file() else ["report/report.pdf is missing: write the report, which the sheet asks for."]
    told = []
    if not pdf.is_file():
        told = ["report/report.pdf is missing, so the zip has its sources: `make report` compiles it where LaTeX is."]
    elif pdf.stat().st_mtime < source.stat().st_mtime:
        told = ["report/report.pdf is older than report.tex: `make report`."]
    if left := own(source.read_text(encoding="utf-8")):
        told.append(f"report/report.tex has {left} passages that are still to be made your own.")
    return told


def own(source: str) -> int:
    """How many passages of a LaTeX source only the student can write, and are the kit's still."""
    return len(re.findall(r"\\own\b", re.sub(r"(?m)(?<!\\)%.*$", "", source)))
