"""The zip that is handed in: what is in it and what is not, what it lacks, the same bytes, and that it runs."""

import os
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pytest

from handin import COMMANDS, submission
from handin.__main__ import main
from handin.exports import DRAWING
from handin.missing import missing
from lib.machine.folders import FOLDERS, root
from lib.notebook.execute import NOTEBOOKS
from tests.colab_replica import QUICK

BACKBONE = "weights/scenes_backbone.safetensors"
FORBIDDEN = {  # in the project, and not to be handed in
    *("data/synthetic/images.h5", "weights/demo/rpn.safetensors", "lib/rpn.pth", "notebooks/03_rpn.failed.ipynb"),
    *("lib/__pycache__/rpn.cpython-311.pyc", ".venv/pyvenv.cfg", "student/lib/rpn.py", "lib/.ipynb_checkpoints/x"),
    *("figures/01_gone.png", "figures/01_montage.pdf", "my_photos.zip", "report/slides.pdf", "lib/.hidden"),
}
OF_A_RUN = ("01_montage.png", "02_pyramid.pdf", "02_pyramid.png", "metrics.json", "explorer.html", "index.md")


@pytest.fixture
def project(tmp_path):
    """A copy of the project without git after a run, with much in it that is nobody's business."""
    tracked = ("lib", "notebooks", "handin", "report", "figures/published")
    ignore = shutil.ignore_patterns("__pycache__", "generated", "*.pdf", ".*", "*.failed.ipynb")
    for name in tracked:
        shutil.copytree(root() / name, tmp_path / name, ignore=ignore)
    for name in ("README.md", "LICENSE", "Makefile", "pyproject.toml", "requirements.txt", "jupytext.toml", BACKBONE):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(root() / name, tmp_path / name)
    for name in [*FORBIDDEN, *(f"figures/{name}" for name in OF_A_RUN), "own_part.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "figures/01_montage.pdf").write_bytes(bytes(DRAWING + 1))
    return tmp_path


def submit(project):
    """The sentences, and the names in the zip."""
    said = submission.submit(project, project / "figures")
    with zipfile.ZipFile(project / submission.NAME) as file:
        assert file.testzip() is None
        return said, set(file.namelist())


def test_what_is_in_it_and_what_is_not(project):
    said, names = submit(project)
    wanted = {"README.md", "requirements.txt", BACKBONE, "report/where.md", "figures/published/metrics.json"}
    wanted |= {f"notebooks/{name}.{ending}" for name in NOTEBOOKS for ending in ("py", "ipynb")}
    wanted |= {"lib/rpn.py", "handin/where.toml", "own_part.py", *(f"figures/{name}" for name in OF_A_RUN)}
    assert not wanted - names and not FORBIDDEN & names
    assert not [name for name in names if name.startswith(("data/", ".", "student/", "weights/demo"))]
    told = next(line for line in said if line.startswith("left out: "))
    named = ("data/", "weights/demo/", "student/", "my_photos.zip", "figures/01_gone.png", "lib/rpn.pth")
    assert all(name in told for name in named) and "__pycache__" not in told and ".venv" not in told
    assert "MB each: figures, 1" in " ".join(said) and "01_montage.pdf" not in told


def test_the_same_bytes_whenever_it_is_packed(project):
    submit(project)
    first = (project / submission.NAME).read_bytes()
    for path in project.rglob("*.py"):
        os.utime(path, (10**9, 10**9))
    submit(project)
    assert (project / submission.NAME).read_bytes() == first


def test_unpacked_it_packs_itself_again(project, tmp_path):
    submit(project)
    again = tmp_path / "unpacked"
    with zipfile.ZipFile(project / submission.NAME) as file:
        file.extractall(again)
    submit(again)
    assert (again / submission.NAME).read_bytes() == (project / submission.NAME).read_bytes()


def test_what_is_too_large_is_refused_by_name_and_the_earlier_zip_kept(project, monkeypatch):
    (project / submission.NAME).write_text("earlier")
    monkeypatch.setattr(submission, "LIMIT", 5_000_000)
    with pytest.raises(ValueError, match=r"would have \d+\.\d of 5 MB; the largest are weights/scenes_backbone"):
        submit(project)
    assert (project / submission.NAME).read_text() == "earlier"


def test_a_compiled_report_replaces_what_its_sources_need(project):
    (project / "report/generated").mkdir()
    for name in ("generated/numbers.tex", "report.tex"):
        (project / "report" / name).touch()
    assert {"report/generated/numbers.tex", "report/report.tex"} <= submit(project)[1]
    (project / "report/report.pdf").touch()
    assert {"report/report.pdf", "report/report.tex"} <= (names := submit(project)[1])
    assert "report/generated/numbers.tex" not in names


def test_each_thing_that_is_missing_is_a_sentence(project):
    notebooks, figures, report = project / "notebooks", project / "figures", project / "report"
    (notebooks / "01_data.ipynb").unlink()
    (notebooks / "02_anchors.ipynb").write_text("{")
    with open(notebooks / "03_rpn.py", "a") as file:
        file.write("\n# %%\nprint('new')\n")
    notebook = nbformat.read(notebooks / "04_boxhead.ipynb", as_version=4)
    next(cell for cell in notebook.cells if cell.cell_type == "code").execution_count = None
    nbformat.write(notebook, notebooks / "04_boxhead.ipynb")
    (project / BACKBONE).unlink()
    (figures / "explorer.html").unlink()
    (report / "report.tex").write_text("% \\own{}\n\\own{Names}\n")
    said = missing(project, figures)
    again = "run `python -m lib run --only"
    assert said[:4] == [
        f"notebooks/01_data.ipynb is missing: {again} 01_data`.",
        f"notebooks/02_anchors.ipynb is no notebook: {again} 02_anchors`.",
        f"notebooks/03_rpn.ipynb is older than 03_rpn.py, whose cells are others: {again} 03_rpn`.",
        f"notebooks/04_boxhead.ipynb was not executed from top to bottom: {again} 04_boxhead`.",
    ]
    rest = iter(said[4:])
    for part in (" lacks ", "explorer.html is missing", "report.pdf is missing", "has 1 passages", "backbone.safe"):
        assert part in next(rest)
    assert next(rest, None) is None


def test_what_is_older_and_what_is_not_there_at_all(project):
    report = project / "report"
    for name, seconds in (("report.pdf", 1_000), ("report.tex", 2_000)):
        (report / name).touch()
        os.utime(report / name, (seconds, seconds))
    assert "report/report.pdf is older than report.tex: `make report`." in missing(project, project / "figures")
    said = missing(project, project / "nowhere")
    assert f"{project / 'nowhere'} holds no figures of a run: `make run` makes them." in said
    shutil.rmtree(report)
    said = missing(project, project / "figures")
    assert any("write the report" in line for line in said) and any("where.md is missing" in line for line in said)


def test_the_zip_runs_by_its_own_readme(project, tmp_path):
    """Unpacked, the command that the README gives for one notebook executes it, and exports its figures."""
    submit(project)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(project / submission.NAME) as file:
        file.extractall(unpacked)
    command = "-m lib run --only 01_data".split()
    assert " ".join(command).replace("01_data", "03_rpn") in (unpacked / "README.md").read_text()
    before = (unpacked / "notebooks" / "01_data.ipynb").read_bytes()
    clean = {key: value for key, value in os.environ.items() if key not in FOLDERS.values()}
    result = subprocess.run(
        [sys.executable, *command], cwd=unpacked, env=clean | {"MASKRCNN_SET": QUICK}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (unpacked / "figures" / "01_scales.pdf").is_file()
    assert (unpacked / "notebooks" / "01_data.ipynb").read_bytes() != before


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: python -m handin {name}")


def test_an_unknown_command_is_one_line(capsys):
    main([])
    assert "submission" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^error: there is no command 'sumbission': choose one of explorer, report, "):
        main(["sumbission"])
