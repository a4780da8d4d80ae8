"""Execute the notebooks in order, data first; what trains is shown, and kept in run.log beside the weights."""

import argparse
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from lib.config import Config, load_config
from lib.data.reader import CourseDataset
from lib.data.sources import ensure_data, weights_folder, what_is_made
from lib.machine.files import make_folder
from lib.machine.folders import root
from lib.notebook.execute import NOTEBOOKS, execute
from lib.speed.pace import measured_pass, minutes, room, stage_seconds
from lib.training.checkpoint import stage_path

TRAINED_BY = dict(zip(NOTEBOOKS[2:], (("rpn", "rpn"), ("boxhead",), ("maskhead",), ("joint",)), strict=True))
REST, REST_PASSES = 20.0, 300  # seconds, and images through the backbone, that a notebook takes beside its training,
SHARES = dict(zip(NOTEBOOKS, (0.5, 0.4, 1.1, 0.6, 1.0, 2.4), strict=True))  # times this, as measured with hardly any


def run(names: list[str], solutions: bool = False) -> dict[str, float]:
    """The data, then these notebooks, up to the first NotebookError; returns the wall seconds of each.

    KeyboardInterrupt says where it was stopped, and how to go on.
    """
    config = load_config(os.environ.get("MASKRCNN_PROFILE", "demo"))
    source = os.environ.get("MASKRCNN_SOURCE", "synthetic")
    print(_announcement(names, config, source), flush=True)
    started, log = time.perf_counter(), weights_folder(source, config) / "run.log"
    try:
        data = ensure_data(source, config)
        seconds = {"data": time.perf_counter() - started}
        expected, room_taken = _expected(names, config, CourseDataset(data, "train", config.data), log.parent)
        cost = f"{minutes(sum(expected.values()))}, {room_taken}, by a pass that was measured here"
        _tell(log, f"{cost}; what trains is also told in {log}")
        for name in names:
            seconds[name] = execute(name, root(), None, solutions, partial(_tell, log))
            left = sum(expected[n] for n in names if n not in seconds)
            left *= (sum(seconds.values()) - seconds["data"] + left) / sum(expected.values())
            _tell(log, f"{name} done in {seconds[name]:.0f} s" + f"; {minutes(left)} left" * (left > 0))
    except KeyboardInterrupt as stop:
        where = str(stop) or "stopped before the first notebook"
        raise KeyboardInterrupt(f"{where}: the same command goes on, and what is trained is kept") from None
    return seconds


def _announcement(names: list[str], config: Config, source: str) -> str:
    """What the run will do, before it starts."""
    processor = "a GPU" if torch.cuda.is_available() else f"the CPU ({torch.get_num_threads()} threads)"
    trained = ", ".join(sorted(file.stem for file in weights_folder(source, config).glob("*.safetensors"))) or "none"
    what = f"{len(names)} notebook(s), profile {config.profile}, on {processor}; {what_is_made(source, config)}"
    return f"{what}; stages trained already: {trained}"


def _expected(names: list[str], config: Config, train: CourseDataset, weights: Path) -> tuple[dict[str, float], str]:
    """The seconds that each notebook will take, about, by a pass that is measured now; memory and disk in words."""
    one, kept, parameters = measured_pass(config)
    stages = {name: [s for s in TRAINED_BY.get(name, ()) if not stage_path(weights, s).exists()] for name in names}
    rest = REST + REST_PASSES * one
    seconds = {
        name: SHARES[name] * rest + sum(stage_seconds(s, config, len(train), one) for s in stages[name])
        for name in names
    }
    return seconds, room(config, len(train), kept, parameters)


def _tell(log: Path, line: str) -> None:
    """Print a line above the bar, and add it with the time to the log."""
    tqdm.write(line)
    make_folder(log.parent)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NOTEBOOKS, default=list(NOTEBOOKS), metavar="NAME")
    solutions = "execute them with their exercises solved, and write notebooks/solutions/*.ipynb alone"
    parser.add_argument("--solutions", action="store_true", help=solutions)
    args = parser.parse_args(argv)
    seconds = run(args.only, args.solutions)
    seconds["total"] = sum(seconds.values())
    print("\n".join(f"{step:<12} {duration:8.1f} s" for step, duration in seconds.items()))
