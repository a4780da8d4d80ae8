"""Executing a notebook: what is kept, left out, and left by a failure. Requirements that Colab meets."""

import os
import shutil
import time

import jupytext
import nbformat
import pytest

from lib.__main__ import main
from lib.commands import run
from lib.config import load_config
from lib.data import sources
from lib.data.reader import FILES
from lib.data.sources import ensure_data, weights_folder
from lib.data.split import write_split
from lib.machine.folders import paths, root
from lib.notebook.execute import NOTEBOOKS, NotebookError, execute

NOTEBOOK = """# %% [markdown]
# # A claim

# %%
import os, pathlib
from tqdm import tqdm
for epoch in range(2):
    for _ in tqdm(range(3)):
        pass
    print("epoch", epoch, flush=True)
print("kept", os.environ["WORD"], pathlib.Path.cwd())

# %%
import ipywidgets
ipywidgets.IntSlider(3)

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
_ = plt.plot([0, 1])
"""


FAILING = """# %% [markdown]
# text

# %%
print("before")

# %%
raise ValueError("two\\nlines")
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_data.py").write_text(NOTEBOOK)
    return tmp_path


def test_outputs_stay_and_noise_goes(project):
    seconds = execute("01_data", project, {"WORD": "hello"})
    path = project / "notebooks/01_data.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    title, code, slider, plot = notebook.cells
    assert seconds > 0
    assert [cell.id for cell in notebook.cells] == ["cell-001", "cell-002", "cell-003", "cell-004"]
    text = "epoch 0\nepoch 1\nkept hello notebooks\n"
    assert code.outputs == [{"name": "stdout", "output_type": "stream", "text": text}]
    assert list(slider.outputs[0].data) == ["text/plain"]
    assert "image/png" in plot.outputs[0].data
    assert "widgets" not in notebook.metadata and title.metadata == code.metadata == {}

    first = path.read_bytes()
    execute("01_data", project, {"WORD": "hello"})
    assert path.read_bytes() == first


def test_jupyter_opens_what_ran_however_its_text_is_spaced(project):
    """Two blank lines below text are not as Jupytext writes them: the pair opens because the .py is the newer."""
    text, notebook = (project / "notebooks" / f"01_data.{ending}" for ending in ("py", "ipynb"))
    (project / "jupytext.toml").write_text((root() / "jupytext.toml").read_text())
    text.write_text("# %% [markdown]\n# text\n\n\n# %%\nprint('ran')\n")
    os.utime(text, (time.time() - 600,) * 2)
    execute("01_data", project)
    manager = jupytext.TextFileContentsManager()
    manager.root_dir = str(project)
    for path in (text, notebook):
        model = manager.get(str(path.relative_to(project)), type="notebook")
        assert model["content"].cells[1].outputs[0].text == "ran\n"


def test_a_failing_cell_is_named_and_the_earlier_notebook_kept(project):
    folder = project / "notebooks"
    (folder / "01_data.ipynb").write_text("earlier")
    (folder / "01_data.py").write_text(FAILING)
    with pytest.raises(NotebookError, match="01_data stopped at cell 3 of 3: ValueError: two lines.*"):
        execute("01_data", project)
    assert (folder / "01_data.ipynb").read_text() == "earlier"
    partial = nbformat.read(folder / "01_data.failed.ipynb", as_version=4)
    assert partial.cells[1].outputs[0].text == "before\n"
    assert partial.cells[2].outputs[0].output_type == "error"
    (folder / "01_data.py").write_text("# %%\nprint('mended')\n")
    execute("01_data", project)
    assert sorted(path.name for path in folder.iterdir()) == ["01_data.ipynb", "01_data.py"]


def test_scenes_are_written_once_and_never_over_data(monkeypatch, tmp_path):
    calls, folder, write = [], tmp_path / "synthetic", sources.write_scenes
    monkeypatch.setenv("MASKRCNN_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "write_scenes", lambda *arguments: calls.append(arguments) or write(*arguments))
    config = load_config("demo", ["data.images=5", "data.seed=3"])
    assert ensure_data("synthetic", config) == ensure_data("synthetic", config) == folder
    assert calls == [(folder, 5, 3)]
    write_split(folder, {"train": range(5)})
    with pytest.raises(
        ValueError,
        match="split.json has no images in its val and test split: set .* delete that file",
    ):
        ensure_data("synthetic", config)
    (folder / FILES["labels"]).unlink()
    for source in ("synthetic", "course"):
        with pytest.raises(FileNotFoundError, match=f"is missing: it is looked for in {tmp_path / source}"):
            ensure_data(source, config)
    assert len(calls) == 1


def test_each_source_has_weights_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKRCNN_WEIGHTS", str(tmp_path))
    config = load_config("demo")
    assert weights_folder("synthetic", config) == tmp_path / "demo"
    assert weights_folder("course", config) == tmp_path / "demo-course"


@pytest.fixture
def scenes_of_the_run(monkeypatch, scenes, tmp_path):
    """Twelve scenes, nine of them to train on, where `make run` looks for its data."""
    shutil.copytree(scenes, tmp_path / "data" / "synthetic")
    write_split(tmp_path / "data" / "synthetic", {"train": range(9), "val": [9], "test": [10, 11]})
    monkeypatch.setenv("MASKRCNN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MASKRCNN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(run, "measured_pass", lambda config: (0.5, 0.0, 0))


@pytest.mark.usefixtures("scenes_of_the_run")
def test_the_run_stops_at_the_first_failure_in_one_line(monkeypatch, capsys):
    def fail(name, root, env, solutions, say):
        raise NotebookError(f"{name} stopped")

    monkeypatch.setattr(run, "execute", fail)
    with pytest.raises(SystemExit, match="^error: 03_rpn stopped$"):
        main(["run", "--only", "03_rpn", "04_boxhead"])
    assert "2 notebook(s)" in capsys.readouterr().out


@pytest.mark.usefixtures("scenes_of_the_run")
def test_the_run_tells_what_is_left_and_ends_with_a_table_of_seconds(monkeypatch, capsys):
    """A pass of an image takes 0.5 s. A notebook takes 20 s and 300 passes, 01 half of that; a training 450 s."""
    monkeypatch.setattr(run, "stage_seconds", lambda stage, config, images, one: one * images * 100)
    monkeypatch.setattr(run, "execute", lambda name, root, env, solutions, say: say(f"rpn: {name}") or 60.0)
    main(["run"])
    lines = capsys.readouterr().out.splitlines()
    table = lines[-8:]
    assert [line.split()[0] for line in table] == ["data", *NOTEBOOKS, "total"]
    assert float(table[-1].split()[1]) >= 360.0  # 3185 s are left after 60 s where 85 s were expected: 3161 s
    log = (paths().weights / "demo" / "run.log").read_text().splitlines()
    assert [line[21:] for line in log] == lines[1:-8]
    assert log[0][21:].startswith("about 38 to 76 minutes, 0.0 GB of memory")  # 6 * 170 s + 5 * 450 s
    assert "rpn: 01_data" in log[1] and log[2].endswith("01_data done in 60 s; about 37 to 74 minutes left")
    assert log[-1].endswith("06_eval done in 60 s")
