"""The set-up cell finds the project wherever it may lie, fetches it on Colab, and says in one sentence what to do."""

import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

from lib.machine.folders import root
from lib.notebook.execute import NOTEBOOKS

NAME = "maskrcnn-from-its-parts"


@pytest.fixture
def cell():
    """The part of the cell that finds the project, as a program that prints where it was found."""
    notebook = jupytext.read(root() / "notebooks" / f"{NOTEBOOKS[0]}.py", fmt="py:percent")
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "code").replace("%matplotlib", "# ")
    return source.partition("from lib")[0].replace("import matplotlib.pyplot as plt", "") + "print(root)\n"


@pytest.fixture
def content(tmp_path):
    """An empty folder, as a fresh Colab has."""
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def project(folder: Path, mark="whole") -> Path:
    """Something that looks like the project."""
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "config.py").write_text(mark)
    return folder


def repository(folder: Path, mark="whole") -> Path:
    project(folder, mark)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def run(cell, content, address="https://127.0.0.1:1/ada/maskrcnn-from-its-parts", colab=True, drive=False):
    """Run the cell in `content`, Drive mounted beside it -> what it prints, or its one line of error."""
    mount = content.parent / "drive"
    stand_in = (
        "import sys, types, pathlib\n"
        "colab, drive = types.ModuleType('google.colab'), types.ModuleType('google.colab.drive')\n"
        "drive.mount = lambda folder: pathlib.Path(folder, 'MyDrive').mkdir(parents=True, exist_ok=True)\n"
        "google, colab.drive = types.ModuleType('google'), drive\n"
        "google.colab = colab\n"
        "sys.modules |= {'google': google, 'google.colab': colab, 'google.colab.drive': drive}\n"
    )
    text = cell.replace("/content/drive", str(mount)).replace("USE_DRIVE = False", f"USE_DRIVE = {drive}")
    report = "except FileNotFoundError as error:\n    print(*error._render_traceback_(), sep='')\n"
    program = stand_in * colab + "try:\n" + "".join(f"    {line}\n" for line in text.splitlines()) + report
    command, environment = [sys.executable, "-c", program], {"PATH": "/usr/bin:/bin", "MASKRCNN_REPOSITORY": address}
    result = subprocess.run(command, cwd=content, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


PLACES = [".", "..", f"{NAME}", f"{NAME}-main", f"{NAME}-main (1)"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("colab", [True, False])
def test_the_project_is_found_where_it_lies(cell, content, place, colab):
    folder = project(content / place if place != "." else content).resolve()
    assert run(cell, content, colab=colab) == str(folder)


def test_the_project_is_found_on_drive_where_that_is_mounted(cell, content):
    folder = project(content.parent / "drive" / "MyDrive" / NAME)
    assert run(cell, content, drive=True) == str(folder)


def test_it_is_cloned_and_found_again(cell, content, tmp_path):
    source = repository(tmp_path / "elsewhere" / f"{NAME}.git")
    assert run(cell, content, str(source)) == str(content / NAME)
    shutil.rmtree(source)
    assert run(cell, content, str(source)) == str(content / NAME)


@pytest.mark.parametrize("left", [f"{NAME}/.git/HEAD", f"{NAME}/data/own.txt", ".fetched/lib/config.py"])
def test_half_a_clone_is_replaced_and_nothing_is_lost(cell, content, tmp_path, left):
    (content / left).parent.mkdir(parents=True)
    (content / left).write_text("half")
    source = repository(tmp_path / "elsewhere" / NAME)
    assert run(cell, content, str(source)) == str(content / NAME)
    assert (content / NAME / "lib" / "config.py").read_text() == "whole"
    kept = [path.read_text() for path in content.glob(f"{NAME}.*/**/*") if path.is_file()]
    assert kept == ["half"] * left.startswith(NAME)


@pytest.mark.parametrize("inside", ["", f"{NAME}-main"])
@pytest.mark.parametrize("colab", [True, False])
def test_an_uploaded_zip_is_unpacked_whatever_its_name(cell, content, tmp_path, inside, colab):
    project(tmp_path / "packed" / inside)
    shutil.make_archive(str(content / "anything (2)"), "zip", tmp_path / "packed")
    (content / "other.zip").write_bytes(b"PK half an upload")
    assert run(cell, content, colab=colab) == str(content / NAME)
    assert (content / NAME / "lib" / "config.py").read_text() == "whole"


@pytest.mark.parametrize(
    "address, colab, words",
    [
        ("https://127.0.0.1:1/ada/parts", True, ["https://127.0.0.1:1/ada/parts", "fatal", "folder parts-main"]),
        ("/nowhere/parts", True, ["/nowhere/parts was not fetched", "fatal"]),
        ("https://127.0.0.1:1/ada/parts.git", False, ["on Colab alone", "folder parts-main"]),
    ],
)
def test_without_the_project_one_sentence_says_what_to_do(cell, content, address, colab, words):
    said = run(cell, content, address, colab)
    assert len(said.splitlines()) == 1 and not [word for word in words if word not in said], said
    assert all(word in said for word in ("set REPOSITORY", "bring its zip", "MyDrive with USE_DRIVE"))
    assert list(content.iterdir()) == []
