"""List all problems of a data set's files; exit status 1 if there are any and no cleaned copy is asked for."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lib.data.check import Checked


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib check", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the four course files")
    parser.add_argument("--repair", type=Path, metavar="OUT", help="write a copy without the problems to this folder")
    args = parser.parse_args(argv)
    checked = Checked(args.folder)
    for problem in checked.problems:
        print(problem.text)
    counts = Counter(problem.kind for problem in checked.problems)
    print("\n".join([f"{args.folder}: {counts.total()} problem(s)", *(f"{n:7} {kind}" for kind, n in counts.items())]))
    print("".join(f"remark: {remark}\n" for remark in checked.remarks), end="")
    if args.repair:
        left_out = checked.repair(args.repair)
        print(f"Wrote {len(checked.labels) - left_out} of {len(checked.labels)} images to {args.repair}.")
    sys.exit(bool(counts) and not args.repair)
