"""The report's tables and figures: what the notebooks export to `figures/`.

A table is a list of dicts with the same keys in the same order: `{"stage": "joint", "box AP": 0.41}`. A score lies
in [0, 1] and is shown with three digits; None, a score without objects to find, as a dash. Equal rows give equal bytes.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from IPython.display import Markdown
from matplotlib.figure import Figure

from lib.machine.files import written_whole
from lib.machine.folders import paths
from lib.notebook import draw
from lib.training.history import read_history

NO_VALUE = "–"
_WORDS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", NO_VALUE: "endash"}
LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {c: f"\\text{word}{{}}" for c, word in _WORDS.items()})


def save_table(rows: Sequence[Mapping], name: str, folder: Path | str | None = None) -> list[Path]:
    """Write `name`.csv, values in full, and `name`.tex, a tabular to \\input in the report; returns the two paths.

    Each file appears whole or not at all. Raises ValueError for no rows, or rows with different columns.
    """
    folder = Path(folder or paths().figures)
    written = [folder / f"{name}.csv", folder / f"{name}.tex"]
    head, *body = (" & ".join(cell.translate(LATEX) for cell in row) + r" \\" for row in _cells(rows))
    alignment = "".join("r" if number else "l" for number in _numeric(rows))
    tex = [f"\\begin{{tabular}}{{{alignment}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}", ""]
    with written_whole(written[0]) as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([rows[0], *(row.values() for row in rows)])
    with written_whole(written[1]) as part:
        part.write_text("\n".join(tex), encoding="utf-8")
    return written


def read_table(name: str, folder: Path | str | None = None) -> list[dict]:
    """The rows of a table that `save_table` wrote, their values as text. FileNotFoundError names a missing one."""
    with open(Path(folder or paths().figures) / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(rows: Sequence[Mapping]) -> Markdown:
    """The table as a notebook shows it. Raises ValueError like `save_table`."""
    head, *body = ([cell.replace("<", "&lt;").replace("|", r"\|") for cell in row] for row in _cells(rows))
    rule = ["---:" if number else ":---" for number in _numeric(rows)]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body)))


def before_after(scores_by_stage: Mapping[str, Mapping]) -> list[dict]:
    """What each stage adds (§8): its box and mask AP, AP50 and AP75 as `evaluate_model` measured them after it."""
    columns = [(kind, name) for kind in ("box", "mask") for name in ("AP", "AP50", "AP75")]
    return [
        {"stage": stage} | {f"{kind} {name}": scores.get(kind, {}).get(name) for kind, name in columns}
        for stage, scores in scores_by_stage.items()
    ]


def learning_curves_figure(weights: Path | str, stage: str) -> Figure:
    """A stage's losses over its epochs, one panel a loss (train dotted, val solid), from its history in `weights`.

    It is not one of pyplot's: end a cell with it, and save it with save_figure.
    """
    history = read_history(weights, stage)
    names = [key.removeprefix("train_") for key in history[0] if key.startswith("train_")]
    fig = Figure(figsize=(3.2 * max(len(names), 2), 3), layout="constrained")
    for ax, name in zip(fig.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        draw.curves(ax, history, [name]).set_ylim(0, 1.05 * ax.dataLim.ymax)
    return fig


def _cells(rows: Sequence[Mapping]) -> list[list[str]]:
    """The table as text, its head first."""
    if not rows:
        raise ValueError("a table needs at least one row")
    for number, row in enumerate(rows, start=1):
        if list(row) != list(rows[0]):
            raise ValueError(f"row {number} of the table has the columns {list(row)}, row 1 has {list(rows[0])}")
    return [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]


def _text(value: object) -> str:
    if value is None:
        return NO_VALUE
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _numeric(rows: Sequence[Mapping]) -> list[bool]:
    """For each column whether it holds numbers, or nothing."""
    return [all(isinstance(row[name], (int, float, type(None))) for row in rows) for name in rows[0]]
