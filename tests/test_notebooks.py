"""The six notebooks: pairs in step, one set-up cell, the house's form, and a run from nothing to a score."""

import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time

import jupytext
import nbformat
import numpy as np
import pytest
from jupytext.cli import jupytext as jupytext_command

from lib.data.scenes import scene
from lib.data.writer import CourseWriter
from lib.machine.folders import FOLDERS, root
from lib.notebook import student
from lib.notebook.execute import METADATA, NOTEBOOKS, WIDGET, execute
from tests.colab_replica import QUICK

FOLDER = root() / "notebooks"
WITH_BROWSER = NOTEBOOKS[1:]
FORBIDDEN = (
    "autoreload",
    "enable_custom_widget_manager",
    "ipympl",
    "matplotlib widget",
    "Tab(",
    "Accordion(",
)
DEFINES_A_MODEL = re.compile(r"^\s*class \w|nn\.Module|@dataclass", re.MULTILINE)
FLAT = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "cellView,-all"}  # compare cells, not headers

every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def source(name):
    """The notebook as reviewed: its .py."""
    return jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")


def product(name):
    """The notebook as committed: its .ipynb."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def percent(notebook):
    """The cells as py:percent text with what folds them, without any header or other metadata."""
    notebook.metadata = nbformat.from_dict({"jupytext": dict(FLAT)})
    return jupytext.writes(notebook, fmt="py:percent")


@every_notebook
def test_pair_is_in_step(name):
    assert percent(product(name)) == percent(source(name)), f"run `python -m lib run --only {name}`"


@pytest.fixture
def pairs(tmp_path):
    """A copy of the six pairs as after a run: each .ipynb ten minutes newer than its .py."""
    shutil.copy(root() / "jupytext.toml", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in NOTEBOOKS:
        for ending in ("py", "ipynb"):
            shutil.copy(FOLDER / f"{name}.{ending}", tmp_path / "notebooks")
        age(tmp_path / "notebooks" / f"{name}.py")
    return tmp_path


def age(path):
    os.utime(path, (time.time() - 600,) * 2)


def jupyter(root):
    """Jupyter's access to the files below `root`, as it is with Jupytext's extension."""
    manager = jupytext.TextFileContentsManager()
    manager.root_dir = str(root)
    return manager


@every_notebook
@pytest.mark.parametrize("ending", ["ipynb", "py"])
def test_jupyter_opens_and_saves_a_pair_after_a_run(pairs, name, ending):
    manager, path = jupyter(pairs), f"notebooks/{name}.{ending}"
    model = manager.get(path, type="notebook")
    assert any(cell.outputs for cell in code_cells(model["content"]))
    manager.save(model, path)
    for file in (f"{name}.py", f"{name}.ipynb"):
        assert (pairs / "notebooks" / file).read_text() == (FOLDER / file).read_text()


def test_sync_leaves_the_text_and_the_format_check_passes(pairs):
    jupytext_command(["--quiet", "--sync", *(str(path) for path in (pairs / "notebooks").glob("*.ipynb"))])
    for path in (pairs / "notebooks").glob("*.py"):
        assert path.read_text() == (FOLDER / path.name).read_text(), "touch the .ipynb, then jupytext --sync"
    shutil.copy(root() / "pyproject.toml", pairs)
    command = [sys.executable, "-m", "ruff", "format", "--check", "--no-cache", "."]
    result = subprocess.run(command, cwd=pairs, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@every_notebook
def test_text_is_spaced_as_jupytext_writes_it(name):
    """One blank line between cells, two after a function and before what leads to one: else a pair does not open."""
    assert (FOLDER / f"{name}.py").read_text() == percent(source(name))


def test_the_same_set_up_cell_everywhere():
    cells = {name: code_cells(source(name))[0].source for name in NOTEBOOKS}
    assert "REPOSITORY = " in cells["01_data"]
    assert {name for name, cell in cells.items() if cell != cells["01_data"]} == set()


@every_notebook
def test_form(name):
    notebook = source(name)
    codes, text = code_cells(notebook), "\n".join(cell.source for cell in notebook.cells)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.lstrip().startswith("# ")
    assert f"blob/main/notebooks/{name}.ipynb" in first.source
    assert len(notebook.cells) - len(codes) >= len(codes), "at least one markdown cell to each code cell"
    for cell in codes:
        assert len(cell.source.splitlines()) <= 40, cell.source[:80]
        assert not DEFINES_A_MODEL.search(cell.source), "parts live in lib/"
    assert not [word for word in FORBIDDEN if word in text]


@every_notebook
def test_a_notebook_is_read_in_an_hour(name):
    """At most 115 cells and 2,800 words, code and appendix not counted."""
    cells, appendix = [], False
    for cell in source(name).cells:
        if heading := re.match(r"## (.*)", cell.source):
            appendix = cell.cell_type == "markdown" and heading[1].startswith("Appendix")
        cells += [] if appendix else [cell]
    assert len(cells) <= 115
    assert sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown") <= 2800


@pytest.mark.parametrize("name", WITH_BROWSER)
def test_the_browser_is_the_last_cell(name):
    cells = code_cells(source(name))
    uses = [number for number, cell in enumerate(cells) if re.search(r"\bbrowser\.\w", cell.source)]
    assert uses == [len(cells) - 1]


def has_still(notebook):
    """Whether the last code cell's only output is a picture and a sentence: no widget, and nothing that went wrong."""
    (output,) = code_cells(notebook)[-1].outputs
    return output.data.keys() == {"image/jpeg", "text/plain"} and len(output.data["image/jpeg"]) > 5_000


@pytest.mark.parametrize("name", WITH_BROWSER)
def test_a_page_without_widgets_shows_the_browser_as_a_picture(name):
    assert has_still(product(name))


@every_notebook
def test_committed_outputs(name):
    notebook = product(name)
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells] == [f"cell-{n + 1:03d}" for n in range(len(notebook.cells))]
    assert notebook.metadata == METADATA
    codes = code_cells(notebook)
    counts = [cell.execution_count for cell in codes]
    assert counts == list(range(1, len(codes) + 1)), "one run, top to bottom"
    outputs = [output for cell in codes for output in cell.outputs]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/png" in kinds, "figures inline"
    assert "error" not in {output.output_type for output in outputs}
    assert WIDGET not in kinds
    text = json.dumps([output for output in outputs if output.output_type != "error"])
    assert not re.search(r" at 0x[0-9a-f]{6}", text), "an object's address changes from run to run"


@every_notebook
def test_inline_figures_are_of_screen_size(name):
    for cell in code_cells(product(name)):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                width = struct.unpack(">I", base64.b64decode(output.data["image/png"])[16:20])[0]
                assert width <= 1600, cell.source[:80]


@pytest.fixture
def project(tmp_path):
    """A copy of the project without outputs and data, whose folders are its own."""
    for name in ("lib", "notebooks", "benchmarks", "handin"):
        ignore = shutil.ignore_patterns("__pycache__", "*.ipynb", ".*")
        shutil.copytree(root() / name, tmp_path / name, ignore=ignore)
    shutil.copy(root() / "pyproject.toml", tmp_path)
    (tmp_path / "weights").mkdir()
    shutil.copy(root() / "weights" / "scenes_backbone.safetensors", tmp_path / "weights")
    (tmp_path / "figures" / "published").mkdir(parents=True)
    for table in ("06_accuracy", "06_stages", "06_cost"):  # measured by the benchmarks, and part of the project
        shutil.copy(root() / "figures" / "published" / f"{table}.csv", tmp_path / "figures" / "published")
    return tmp_path


def as_a_reader_comes_to(name, project):
    """The project's lib without what readers write in later notebooks; whether this one has solved exercises."""
    shutil.copytree(root() / "lib", project / "lib", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    student.blank_parts(project / "lib", set(NOTEBOOKS[NOTEBOOKS.index(name) + 1 :]) & student.PARTS.keys())
    return (project / "notebooks" / "solutions" / f"{name}.py").is_file()


def run_all_six(project, source, by_a_reader=False):
    """Execute them at the quick setting -> the metrics of 06. By a reader: without later parts, exercises solved."""
    own = {variable: str(project / name) for name, variable in FOLDERS.items()}
    environment = own | {"MASKRCNN_SET": QUICK, "MASKRCNN_PROFILE": "demo", "MASKRCNN_SOURCE": source}
    for name in NOTEBOOKS:
        solutions = by_a_reader and as_a_reader_comes_to(name, project)
        execute(name, project, environment, solutions)
        result = project / "notebooks" / ("solutions" if solutions else "") / f"{name}.ipynb"
        assert not solutions or "not done yet" not in result.read_text()
        assert solutions or name not in WITH_BROWSER or has_still(nbformat.read(result, as_version=4)), name
    return json.loads((project / "figures" / "metrics.json").read_text())


def test_all_six_run_from_nothing(project):
    metrics = run_all_six(project, "synthetic", by_a_reader=True)
    pdf, png = ({path.stem for path in project.glob(f"figures/*.{ending}")} for ending in ("pdf", "png"))
    assert pdf == png
    assert {figure[:2] for figure in pdf} == {name[:2] for name in NOTEBOOKS}, "each exports its figures"
    assert {"split", "images", "box", "mask", "rpn", "course"} <= set(metrics) and metrics["split"] == "test"


@pytest.mark.parametrize("count", [1, 80])
def test_all_six_run_under_other_classes(project, count):
    """A set of one class, and one of eighty of which most have no object in any split."""
    classes = [f"kind {n}" for n in range(1, count + 1)]
    with CourseWriter(project / "data" / "own", classes) as writer:
        for n in range(24):
            image, labels, boxes, masks = scene(np.random.default_rng([5, n]))
            writer.add(image, (labels + 7 * n) % count + 1, boxes, masks)
    metrics = run_all_six(project, "own")
    assert list(metrics["box"]["per_class"]) == classes
