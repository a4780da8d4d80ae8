"""The report's tables and learning curves: what is written, escaped, refused, and the same bytes twice."""

import csv

import pytest

from lib.machine.folders import paths
from lib.notebook import report
from lib.notebook.figures import save_figure
from lib.training.history import write_history

ROWS = [
    {"stage": "box_head", "AP > 50 %": 0.12345, "images": 1200, "note": "a|b & c"},
    {"stage": "joint", "AP > 50 %": None, "images": 90, "note": r"\x_{1}"},
]


def test_a_table_is_saved_in_full_and_as_latex(tmp_path):
    paths = report.save_table(ROWS, "ap", tmp_path)
    assert [path.name for path in paths] == ["ap.csv", "ap.tex"] == sorted(path.name for path in tmp_path.iterdir())
    with open(paths[0], newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"stage": "box_head", "AP > 50 %": "0.12345", "images": "1200", "note": "a|b & c"},
            {"stage": "joint", "AP > 50 %": "", "images": "90", "note": r"\x_{1}"},
        ]
    assert paths[1].read_text().splitlines() == [
        r"\begin{tabular}{lrrl}",
        r"\hline",
        r"stage & AP \textgreater{} 50 \% & images & note \\",
        r"\hline",
        r"box\_head & 0.123 & 1,200 & a|b \& c \\",
        r"joint & \textendash{} & 90 & \textbackslash{}x\_\{1\} \\",
        r"\hline",
        r"\end{tabular}",
    ]


def test_tables_go_to_the_figures_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKRCNN_FIGURES", str(tmp_path / "figures"))
    assert {path.parent for path in report.save_table(ROWS, "ap")} == {paths().figures}


def test_markdown_shows_markup_as_text():
    assert "&lt;script>" in report.markdown([{"class": "<script>"}]).data


def test_markdown_shows_the_same_table():
    assert report.markdown(ROWS).data.splitlines() == [
        "| stage | AP > 50 % | images | note |",
        "| :--- | ---: | ---: | :--- |",
        r"| box_head | 0.123 | 1,200 | a\|b & c |",
        r"| joint | – | 90 | \x_{1} |",
    ]


@pytest.mark.parametrize("write", [report.markdown, lambda rows: report.save_table(rows, "ap")])
def test_a_table_without_rows_or_with_odd_rows_is_refused(write, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKRCNN_FIGURES", str(tmp_path))
    with pytest.raises(ValueError, match="at least one row"):
        write([])
    with pytest.raises(ValueError, match="row 2 of the table has the columns"):
        write([{"a": 1, "b": 2}, {"a": 1}])
    assert list(tmp_path.iterdir()) == []


def test_before_and_after_of_each_stage():
    box, mask = {"AP": 0.2, "AP50": 0.5, "AP75": None, "per_class": {}}, {"AP": 0.1, "AP50": 0.3, "AP75": 0.05}
    rows = report.before_after({"boxhead": {"images": 9, "box": box}, "joint": {"box": box, "mask": mask}})
    columns = ["stage", "box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75"]
    assert [list(row) for row in rows] == [columns, columns]
    assert list(rows[0].values()) == ["boxhead", 0.2, 0.5, None, None, None, None]
    assert list(rows[1].values()) == ["joint", 0.2, 0.5, None, 0.1, 0.3, 0.05]


def test_learning_curves_have_a_panel_a_loss_and_the_same_bytes_twice(tmp_path):
    losses = ("rpn_objectness", "rpn_box")
    history = [
        {"epoch": e, "lr": 0.1, "seconds": 2.0}
        | {f"{split}_{name}": 1 / e for split in ("train", "val") for name in losses}
        for e in (1, 2, 3)
    ]
    write_history(tmp_path, "rpn", history)
    figures = [report.learning_curves_figure(tmp_path, "rpn") for _ in range(2)]
    assert [[line.get_label() for line in ax.lines] for ax in figures[0].axes] == [
        ["rpn objectness, train", "rpn objectness, val"],
        ["rpn box, train", "rpn box, val"],
    ]
    first, second = (save_figure(fig, f"curves{n}", tmp_path) for n, fig in enumerate(figures))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_saved_table_reads_back_as_text(tmp_path):
    report.save_table([{"stage": "joint", "box AP": 0.5, "note": None}], "t", tmp_path)
    assert report.read_table("t", tmp_path) == [{"stage": "joint", "box AP": "0.5", "note": ""}]
