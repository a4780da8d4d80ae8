"""Captions, and the pages that list what the notebooks and benchmarks export."""

import re
import string
from urllib.parse import unquote

import jupytext
import pytest

from handin import index
from handin.exports import CALL, HEADING, captions, exports
from lib.machine.folders import root
from lib.notebook.execute import NOTEBOOKS

PUBLISHED = root() / index.PUBLISHED
NEUTRAL = set(string.ascii_letters + string.digits + " .,:;'()-/")  # means itself in LaTeX and in Markdown


@pytest.mark.parametrize("kind", ["figure", "table"])
def test_every_export_has_a_caption_and_every_caption_an_export(kind):
    found = [export.name for export in exports() if export.kind == kind]
    assert len(found) == len(set(found)) and list(captions()[kind]) == found


def test_every_call_in_the_notebooks_is_found():
    calls = [re.findall(r"save_(?:figure|table)\(", (root() / f"notebooks/{n}.py").read_text()) for n in NOTEBOOKS]
    assert len(exports()) == sum(map(len, calls)) > 60
    assert CALL.findall('_ = save_figure(f(a), "x")\nreport.save_table(rows, "y")') == [("figure", "x"), ("table", "y")]


def test_every_table_of_the_benchmarks_has_a_caption():
    own = {export.name for export in exports() if export.kind == "table"}
    assert set(captions()["benchmark"]) == {path.stem for path in PUBLISHED.glob("*.csv")} - own


@pytest.mark.parametrize("kind", ["figure", "table", "benchmark"])
def test_captions_are_plain_sentences(kind):
    for name, caption in captions()[kind].items():
        assert set(caption) <= NEUTRAL, (name, set(caption) - NEUTRAL)
        assert caption.endswith(".") and "  " not in caption and 8 <= len(caption.split()) <= 60, name


def test_an_export_knows_its_cell():
    for export in exports():
        cells = jupytext.read(root() / "notebooks" / f"{export.notebook}.py", fmt="py:percent").cells
        assert f'"{export.name}"' in cells[export.cell - 1].source
        above = [t for c in cells[: export.cell] if c.cell_type == "markdown" for _, t in HEADING.findall(c.source)]
        assert above[-1] == export.headings[-1]


@pytest.fixture
def figures(tmp_path):
    """Of a run: one figure, a table, half a figure, and a figure of an earlier version."""
    for name in ("01_montage.pdf", "01_montage.png", "02_pyramid.pdf", "01_gone.pdf", "01_gone.png", "metrics.json"):
        (tmp_path / name).touch()
    (tmp_path / "01_statistics.csv").write_text("class,objects,of all\nvehicle,1200,0.25\nperson,7,\n")
    (tmp_path / "01_statistics.tex").touch()
    return tmp_path


def test_the_index_shows_what_is_there(figures):
    missing = index.write_index(figures)
    page = (figures / "index.md").read_text()
    titles = re.findall(r"^## (.*)", page, re.M)
    assert titles == ["01_montage, figure", "01_statistics, table"]
    assert "![01_montage](01_montage.png)" in page and captions()["figure"]["01_montage"] in page
    assert "| vehicle | 1,200 | 0.250 |\n| person | 7 | – |" in page
    assert "[metrics.json](metrics.json)" in page and "explorer" not in page and "gone" not in page
    assert "01_statistics.png" in missing and "02_pyramid.png" in missing and "01_statistics.csv" not in missing


def test_links_of_the_index_lead_to_headings(figures):
    index.write_index(figures)
    links = re.findall(r"\]\(([^)#]+\.ipynb)#([^)]+)\)", (figures / "index.md").read_text())
    assert len(links) == 3  # the notebook, and each export's heading
    for path, anchor in links:
        text = (figures / unquote(path)).with_suffix(".py").read_text()
        assert unquote(anchor) in {title.replace(" ", "-") for _, title in re.findall(r"^# (#+) (.+)$", text, re.M)}


def test_without_figures_there_is_no_index(tmp_path):
    with pytest.raises(ValueError, match="holds no figure that a notebook exports: `make run` first"):
        index.write_index(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_published_page_is_up_to_date():
    page = (PUBLISHED / "README.md").read_text()
    assert page == index.published_page(PUBLISHED), "run `python -m handin index`"
    assert {path.stem for path in PUBLISHED.glob("*.csv")} <= set(re.findall(r"^## (\w+),", page, re.M))
