"""Execute the notebooks in order, data first."""

import argparse
import os
import time
from collections.abc import Sequence

import torch

from lib.config import Config, load_config
from lib.data.sources import ensure_data, weights_folder, what_is_made
from lib.machine.folders import root
from lib.notebook.execute import NOTEBOOKS, execute


def run(names: list[str], solutions: bool = False) -> dict[str, float]:
    """The data, then these notebooks, up to the first NotebookError; returns the wall seconds of each."""
    config = load_config(os.environ.get("MASKRCNN_PROFILE", "demo"))
    source = os.environ.get("MASKRCNN_SOURCE", "synthetic")
    print(_announcement(names, config, source), flush=True)
    started = time.perf_counter()
    ensure_data(source, config)
    seconds = {"data": time.perf_counter() - started}
    for name in names:
        seconds[name] = execute(name, root(), solutions=solutions)
        print(f"{name} done in {seconds[name]:.0f} s", flush=True)
    return seconds


def _announcement(names: list[str], config: Config, source: str) -> str:
    """What the run will do and cost, before it starts."""
    processor = "a GPU" if torch.cuda.is_available() else f"the CPU ({torch.get_num_threads()} threads)"
    trained = ", ".join(sorted(file.stem for file in weights_folder(source, config).glob("*.safetensors"))) or "none"
    what = f"{len(names)} notebook(s), profile {config.profile}, on {processor}; {what_is_made(source, config)}"
    cost = "From nothing, the demo profile takes 5 to 10 minutes on two CPU cores and 1 GB of disk."
    return f"{what}; stages trained already: {trained}.\n{cost}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NOTEBOOKS, default=list(NOTEBOOKS), metavar="NAME")
    solutions = "execute them with their exercises solved, and write notebooks/solutions/*.ipynb alone"
    parser.add_argument("--solutions", action="store_true", help=solutions)
    args = parser.parse_args(argv)
    seconds = run(args.only, args.solutions)
    seconds["total"] = sum(seconds.values())
    print("\n".join(f"{step:<12} {duration:8.1f} s" for step, duration in seconds.items()))
