"""A replica of Google Colab: each notebook, opened alone from its .ipynb in an empty folder, survives *Run all*.

    make test-colab                                             # builds .venv-colab, runs all six
    .venv-colab/bin/python tests/colab_replica.py 03_rpn        # one of them
    .venv-colab/bin/python tests/colab_replica.py 03_rpn --drive  # on a stand-in for Drive, then again in a new runtime

It runs under Colab's Python and versions (requirements-colab.txt), with a stand-in for `google.colab` and a clone of
this repository in place of GitHub: what is committed is what is tested. The numbers are those of the quick setting.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("0*.ipynb"))
EPOCHS = "rpn.epochs=1 boxhead.epochs=1 maskhead.epochs=1 joint.epochs=1"
QUICK = f"{EPOCHS} data.images=24 data.val_fraction=0.2 data.test_fraction=0.2"
DRIVE = "/content/drive"  # where the notebooks and lib/machine/folders.py look for it
MODULES = {
    "google/colab/__init__.py": "",
    "google/colab/drive.py": """
from pathlib import Path

def mount(folder):
    Path(folder, "MyDrive").mkdir(parents=True, exist_ok=True)
""",
    "sitecustomize.py": """
import os, google.colab

ismount = os.path.ismount
os.path.ismount = lambda folder: ismount(folder) or os.path.isdir(os.path.join(folder, "MyDrive"))
""",  # imported when Python starts: Colab's kernels have google.colab, and what is mounted there is a mount
}


def stand_in(folder: Path) -> Path:
    """A folder for PYTHONPATH that brings `google.colab`."""
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.lstrip("\n"))
    return folder


def published(folder: Path, drive: Path) -> Path:
    """A clone of this repository, as GitHub would have it, for which Drive is mounted at `drive`."""
    folder.parent.mkdir(parents=True)
    subprocess.run(["git", "-c", "advice.detachedHead=false", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for path in (folder / "lib" / "machine" / "folders.py", *folder.glob("notebooks/*.ipynb")):
        path.write_text(path.read_text(encoding="utf-8").replace(DRIVE, str(drive)), encoding="utf-8")
    who = ["-c", "user.name=replica", "-c", "user.email=replica@localhost"]
    subprocess.run(["git", *who, "commit", "--quiet", "-am", "Drive is elsewhere"], cwd=folder, check=True)
    return folder


def run_all(name: str, source: Path, runtime: Path, modules: Path, drive: bool) -> float:
    """*Run all* of one notebook in a new, empty runtime; returns wall seconds, or raises CellExecutionError."""
    (runtime / "content").mkdir(parents=True)
    (runtime / "tmp").mkdir()
    notebook = nbformat.read(source / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("USE_DRIVE = False", f"USE_DRIVE = {drive}")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MASKRCNN_", "PYTHON"))}
    own = {"PYTHONPATH": str(modules), "TMPDIR": str(runtime / "tmp"), "MASKRCNN_REPOSITORY": str(source)}
    quiet = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # its debugger's warnings
    place = {"metadata": {"path": str(runtime / "content")}}
    started = time.perf_counter()
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources=place)
    client.execute(env=inherited | own | quiet | {"MASKRCNN_SET": QUICK})
    shutil.rmtree(runtime)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="default: all six")
    parser.add_argument("--drive", action="store_true", help="keep everything on Drive, and run each a second time")
    args = parser.parse_args()
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout:
        print("What is not committed yet is not in it.")
    print(f"Python {sys.version.split()[0]}, notebooks and lib as committed, numbers: {QUICK}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder).resolve()
        modules = stand_in(here / "modules")
        source = published(here / "github" / "maskrcnn-from-its-parts", here / "drive")
        for name in args.names or NAMES:
            kept: dict[Path, int] = {}
            for turn in ("first", "second")[: 1 + args.drive]:
                try:
                    seconds = run_all(name, source, here / f"{name}-{turn}", modules, args.drive)
                except CellExecutionError as error:
                    sys.exit(f"error: {name} does not survive Run all ({error.ename}: {error.evalue})\n{error}")
                print(f"{name}: {turn} run, {seconds:.0f} s", flush=True)
                written = {path: path.stat().st_mtime_ns for path in (here / "drive").rglob("*.safetensors")}
                if kept and written != kept:
                    sys.exit(f"error: {name} trains again what is on Drive")
                kept = written


if __name__ == "__main__":
    main()
