"""Run: the data, then the six notebooks in order (`make run`, or `python -m lib.run --only 03_rpn`).

A notebook is read from its .py, executed in a kernel of its own with `notebooks/` as its folder, and written
as .ipynb once every cell has run. What would differ between two equal runs (ids, timings, progress bars, the
state of widgets) stays out of the file. Durations are wall seconds.
"""

import argparse
import base64
import os
import re
import time
from pathlib import Path

import jupytext
import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from lib import runtime
from lib.config import Config, load_config
from lib.data import FILES
from lib.synthetic import write_scenes

NOTEBOOKS = ("01_data", "02_anchors", "03_rpn", "04_boxhead", "05_maskhead", "06_eval")
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS = re.compile(r"\d+%\|.*\|")  # a tqdm bar
METADATA = {
    # as in jupytext.toml: where the .ipynb is the newer, Jupytext opens a .py by what its .ipynb says
    "jupytext": {"cell_metadata_filter": "-all", "notebook_metadata_filter": "-all"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class NotebookError(ValueError):
    """A notebook stopped; the message names it, the cell, the error and the file with what ran."""


def execute(name: str, root: Path, env: dict[str, str] | None = None) -> float:
    """Execute `root/notebooks/name.py`, `env` added to the environment, and write `name.ipynb` beside it.

    Returns wall seconds. Raises NotebookError when a cell fails: the earlier .ipynb stays as it was, and what
    ran is in `name.failed.ipynb`.
    """
    root = Path(root).resolve()
    folder = root / "notebooks"
    notebook = jupytext.read(folder / f"{name}.py", fmt="py:percent")
    failed = folder / f"{name}.failed.ipynb"
    started, reached = time.perf_counter(), []
    with tqdm(total=len(notebook.cells), desc=name, unit="cell", leave=False, disable=None) as bar:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(folder)}},
            on_cell_start=lambda cell, cell_index: (reached.append(cell_index), bar.update()),
        )
        try:
            client.execute(env=os.environ | (env or {}))
        except (CellExecutionError, DeadKernelError) as error:
            _write(_clean(notebook, root), failed)
            place = f"{name} stopped at cell {len(reached)} of {len(notebook.cells)}"
            raise NotebookError(f"{place}: {_reason(error)}. What ran is in {failed}") from None
    _write(_clean(notebook, root), folder / f"{name}.ipynb")
    (folder / f"{name}.py").touch()  # Jupyter opens a pair whose .ipynb is the newer only if both hold the same text
    failed.unlink(missing_ok=True)
    return time.perf_counter() - started


def _reason(error: Exception) -> str:
    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {' '.join(str(error.evalue).split())}"
    return "its kernel died, most often for want of memory"


def _clean(notebook: NotebookNode, root: Path) -> NotebookNode:
    """The notebook without what changes from run to run or from machine to machine, in place."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"cell-{number:03d}", NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [output for output in _join_streams(cell.outputs) if _clean_output(output, f"{root}/")]
    return notebook


def _join_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Consecutive pieces of one stream as one output: how they are cut depends on timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == "stream" and output.name == joined[-1].get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _clean_output(output: NotebookNode, root: str) -> bool:
    """Take progress bars, widgets and the path of `root` out of an output, in place; false if it is empty."""
    if output.output_type == "stream":
        lines = [line.rsplit("\r", 1)[-1] for line in output.text.replace(root, "").split("\n")]
        output.text = "\n".join(line for line in lines if not PROGRESS.search(line))
        return bool(output.text.strip())
    if output.output_type == "error":
        return True
    output.metadata = NotebookNode()
    if "image/png" in output.data:
        smaller = runtime.palette_png(base64.b64decode(output.data["image/png"]))
        output.data["image/png"] = base64.b64encode(smaller).decode()
    is_widget = output.data.pop(WIDGET, None) is not None
    return bool(output.data) and not (is_widget and PROGRESS.search(output.data.get("text/plain", "")))


def _write(notebook: NotebookNode, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    nbformat.write(notebook, part)
    part.replace(path)


def needs_scenes(source: str) -> bool:
    """Whether the built-in scenes are asked for and none of their four files is there."""
    folder = runtime.paths().data / source
    return source == "synthetic" and not any((folder / name).exists() for name in FILES.values())


def ensure_data(source: str, config: Config) -> Path:
    """The folder `data/<source>`; the built-in scenes ("synthetic") are written first if they are missing."""
    folder = runtime.paths().data / source
    if needs_scenes(source):
        write_scenes(folder, config.synthetic_images, config.synthetic_seed)
    return folder


def weights_folder(source: str, config: Config) -> Path:
    """`weights/<profile>` for the built-in scenes, `weights/<profile>-<source>` for other data."""
    return runtime.paths().weights / "-".join([config.profile] + [source] * (source != "synthetic"))


def run(names: list[str]) -> dict[str, float]:
    """The data, then these notebooks, up to the first NotebookError; returns the wall seconds of each."""
    config = load_config(os.environ.get("MASKRCNN_PROFILE", "demo"))
    source = os.environ.get("MASKRCNN_SOURCE", "synthetic")
    print(_announcement(names, config, source), flush=True)
    started = time.perf_counter()
    ensure_data(source, config)
    seconds = {"data": time.perf_counter() - started}
    for name in names:
        seconds[name] = execute(name, runtime.root())
        print(f"{name} done in {seconds[name]:.0f} s", flush=True)
    return seconds


def _announcement(names: list[str], config: Config, source: str) -> str:
    """What the run will do and cost, before it starts."""
    processor = "a GPU" if torch.cuda.is_available() else f"the CPU ({torch.get_num_threads()} threads)"
    data = f"{config.synthetic_images} scenes to write" if needs_scenes(source) else f"data/{source} as it is"
    trained = sorted(file.stem for file in weights_folder(source, config).glob("*.safetensors"))
    return (
        f"{len(names)} notebook(s), profile {config.profile}, on {processor}; {data}; "
        f"stages trained already: {', '.join(trained) or 'none'}.\n"
        "From nothing, the demo profile takes about 11 minutes on two CPU cores and 1 GB of disk."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.run", description="Execute the notebooks in order.")
    parser.add_argument("--only", nargs="+", choices=NOTEBOOKS, default=list(NOTEBOOKS), metavar="NAME")
    names = parser.parse_args(arguments).only
    with runtime.command_errors():
        seconds = run(names)
    seconds["total"] = sum(seconds.values())
    print("\n".join(f"{step:<12} {duration:8.1f} s" for step, duration in seconds.items()))


if __name__ == "__main__":
    main()
