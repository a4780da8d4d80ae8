"""Write the student version: the project with its parts and its notebooks' answers left to be written."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib.machine.folders import root
from lib.notebook.student import PARTS, write_student


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib student", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("student"), help="a new folder (default: student)")
    out = parser.parse_args(argv).out
    write_student(root(), out)
    print(f"{sum(map(len, PARTS.values()))} functions of lib/ are left to be written in {out}")
