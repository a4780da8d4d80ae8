"""Executing a notebook, as `python -m lib run` does with all six.

It is read from its .py, executed in a kernel of its own with `notebooks/` as its folder, and written as .ipynb once
every cell has run. What would differ between two equal runs (ids, timings, progress bars, the state of widgets) stays
out of the file. Durations are wall seconds.
"""

import asyncio
import base64
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from lib.config import STAGES
from lib.machine.files import written_whole
from lib.notebook.exercises import mark_for_nbgrader, solved, worked
from lib.notebook.figures import palette_png

NOTEBOOKS = ("01_data", "02_anchors", "03_rpn", "04_boxhead", "05_maskhead", "06_eval")
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS = re.compile(r"\d+%\|.*\|")  # a tqdm bar
TRAINING = re.compile(rf"({'|'.join(STAGES)}|features)(: | +\d+/\d+ )")  # how a line that a training prints begins
METADATA = {
    # as in jupytext.toml: where the .ipynb is the newer, Jupytext opens a .py by what its .ipynb says
    "jupytext": {"cell_metadata_filter": "cellView,-all", "notebook_metadata_filter": "-all"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class NotebookError(ValueError):
    """A notebook stopped; the message names it, the cell, the error and the file with what ran."""


class Client(NotebookClient):
    """A client whose `bar` counts cells and shows a training's, and that hands an interruption on to the kernel.

    `say` gets each line that a training prints. What trains saves its state when it is interrupted; a second time
    ends the kernel at once.
    """

    bar: tqdm
    say: Callable[[str], None]
    reached, stopped = 0, False

    async def async_start_new_kernel(self, **options: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(RuntimeError):  # on Windows, and outside the main thread, signals do as they did
                asyncio.get_running_loop().add_signal_handler(number, self._stop)
        await super().async_start_new_kernel(**options)

    def begin(self, cell: NotebookNode, cell_index: int) -> None:
        if self.stopped:
            raise DeadKernelError("stopped between two cells")
        self.reached = cell_index + 1
        self.bar.update()
        self._begun = {"stdout": "", "stderr": ""}  # the line of each stream that has no end yet

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        if msg["msg_type"] == "stream":
            stream = msg["content"]["name"]
            *lines, begun = (self._begun[stream] + msg["content"]["text"]).split("\n")
            for line in filter(TRAINING.match, (line.rsplit("\r", 1)[-1] for line in lines)):
                self.say(line)
            self._begun[stream] = begun = begun.rsplit("\r", 1)[-1]
            self.bar.set_postfix_str(begun.strip() if PROGRESS.search(begun) else "")
        return super().process_message(msg, cell, cell_index)

    def _stop(self) -> None:
        if self.km is not None and self.km.has_kernel:
            ends: Any = self.km.shutdown_kernel(now=True) if self.stopped else self.km.interrupt_kernel()
            self._stopping = asyncio.ensure_future(ends)
        self.stopped = True


def execute(
    name: str,
    root: Path,
    env: dict[str, str] | None = None,
    solutions: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> float:
    """Execute `root/notebooks/name.py`, `env` added to the environment, and write `name.ipynb` beside it.

    With `solutions`, execute it with the worked ones in its exercises' places, and write `solutions/name.ipynb` alone.
    `say` gets the lines that trainings print. Returns wall seconds. Raises NotebookError when a cell fails: the earlier
    .ipynb stays as it was, and what ran is in `name.failed.ipynb`; KeyboardInterrupt, which says where, at Ctrl-C or
    SIGTERM.
    """
    root = Path(root).resolve()
    folder = root / "notebooks"
    notebook = solved(name, folder) if solutions else jupytext.read(folder / f"{name}.py", fmt="py:percent")
    failed = folder / f"{name}.failed.ipynb"
    started = time.perf_counter()
    settings: dict[str, Any] = {"timeout": None, "kernel_name": "python3", "extra_arguments": ["--log-level=ERROR"]}
    client = Client(notebook, record_timing=False, resources={"metadata": {"path": str(folder)}}, **settings)
    with tqdm(total=len(notebook.cells), desc=name, unit="cell", leave=False, disable=None) as bar:
        client.bar, client.say, client.on_cell_start = bar, say, client.begin
        try:
            client.execute(env=os.environ | (env or {}))
        except (CellExecutionError, RuntimeError, AssertionError) as error:  # of the client, once its kernel is gone
            where = f"{name} stopped at cell {client.reached} of {len(notebook.cells)}"
            if client.stopped:
                raise KeyboardInterrupt(where) from None
            _write(_clean(notebook, root), failed)
            raise NotebookError(f"{where}: {_reason(error)}. What ran is in {failed}") from None
    if solutions:
        notebook, folder = worked(notebook, name, folder), folder / "solutions"
    _write(_clean(notebook, root), folder / f"{name}.ipynb")
    (folder / f"{name}.py").touch()  # Jupyter opens a pair whose .ipynb is the newer only if both hold the same text
    failed.unlink(missing_ok=True)
    return time.perf_counter() - started


def _reason(error: Exception) -> str:
    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {' '.join(str(error.evalue).split())}"
    return "its kernel died, most often for want of memory; the same command goes on from what was saved"


def _clean(notebook: NotebookNode, root: Path) -> NotebookNode:
    """The notebook without what changes from run to run or from machine to machine, in place."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:03d}"
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "cellView"})
        if cell.cell_type == "code":
            kept = [output for output in _join_streams(cell.outputs) if _clean_output(output, f"{root}/")]
            cell.outputs = _join_streams(kept)  # progress bars stood between them
    mark_for_nbgrader(notebook)
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
        smaller = palette_png(base64.b64decode(output.data["image/png"]))
        output.data["image/png"] = base64.b64encode(smaller).decode()
    is_widget = output.data.pop(WIDGET, None) is not None
    return bool(output.data) and not (is_widget and PROGRESS.search(output.data.get("text/plain", "")))


def _write(notebook: NotebookNode, path: Path) -> None:
    with written_whole(path) as part:
        nbformat.write(notebook, part)
