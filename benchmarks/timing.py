"""Two ways of doing the same work, timed side by side in one process.

    rows = [compare("RPN step", ours, peer, runs=20)]
    print(table(rows)); save(rows, path)

Ours and the peer take turns, and which goes first alternates, so that both see the same machine. A ratio is the
peer's time over ours, of one pair of neighbouring runs: above 1, ours is the faster. Times are milliseconds.
"""

import argparse
import datetime
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from lib.machine.files import write_json
from lib.machine.folders import paths

PACKAGES = ("torch", "torchvision", "numpy", "pycocotools")


def seconds(work: Callable[[], object]) -> float:
    """The time that one call takes, until the GPU has finished too where there is one."""
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    """Wait for everything that a GPU has been given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def compare(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    runs: int,
    warmup: int = 2,
    before: tuple[Callable | None, Callable | None] = (None, None),
    **about,
) -> dict:
    """Time `ours` and `peer` in turns, `runs` times each after `warmup` untimed turns, and sum the times up in a row.

    `about` are columns of the row that come after its name; what is to be done `before` a turn of either is not timed.
    The garbage collector rests while the clock runs.
    """
    times, pair = np.zeros((runs, 2)), (ours, peer)
    for run in range(-warmup, runs):
        for which in (0, 1) if run % 2 == 0 else (1, 0):
            if before[which]:
                before[which]()
            with _no_garbage_collection():
                elapsed = seconds(pair[which])
            if run >= 0:
                times[run, which] = 1e3 * elapsed
    return row(name, times[:, 0], times[:, 1], **about)


def row(name: str, ours_ms: Sequence[float], peer_ms: Sequence[float], **about) -> dict:
    """Medians and quartiles of paired times, and of the ratio of each pair; `times_ms` keeps them all."""
    ours_ms, peer_ms = np.asarray(ours_ms), np.asarray(peer_ms)
    columns = {"ours ms": ours_ms, "peer ms": peer_ms, "ratio": peer_ms / ours_ms}
    result = {"what": name, **about, "threads": torch.get_num_threads(), "runs": len(ours_ms)}
    for column, values in columns.items():
        low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
        result |= {column: middle, f"{column} quartiles": [low, high]}
    return result | {"times_ms": {"ours": ours_ms.tolist(), "peer": peer_ms.tolist()}}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with this many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def table(rows: Sequence[dict]) -> str:
    """The rows as aligned text, one line each, medians with their quartiles in brackets; raw times are left out."""
    shown = [c for c in rows[0] if c != "times_ms" and not c.endswith(" quartiles")]
    cells = [shown] + [[_cell(r, c) for c in shown] for r in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    return "\n".join(
        "  ".join(text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    )


def _cell(values: dict, column: str) -> str:
    value, spread = values[column], values.get(f"{column} quartiles")
    text = (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
    return text + (f" [{spread[0]:.3g}, {spread[1]:.3g}]" if spread else "")


def machine() -> dict:
    """What the times were measured on: processor, cores, threads, GPU, versions and date."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(rows: Sequence[dict], path: str | Path, **about) -> Path:
    """Rows, machine and whatever else is to be said `about` them, as JSON; the file appears whole or not at all."""
    write_json({"machine": machine(), **about, "rows": list(rows)}, path)
    return Path(path)


def arguments(name: str, description: str, runs: int) -> argparse.ArgumentParser:
    """What every benchmark's command takes: `--threads`, `--runs` and `--out`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}), metavar="N")
    parser.add_argument("--runs", type=int, default=runs, help=f"timed runs of each side (default {runs})")
    out = paths().figures / "published" / "benchmarks" / f"{name}.json"
    parser.add_argument("--out", type=Path, default=out, metavar="FILE")
    return parser
