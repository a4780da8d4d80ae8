"""Write made-up scenes as the course's four files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib.data.scenes import write_scenes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the four files")
    parser.add_argument("--images", type=int, default=1000, help="how many scenes (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default 0)")
    write_scenes(**vars(parser.parse_args(argv)))
