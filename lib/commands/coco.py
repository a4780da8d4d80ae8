"""COCO -> the four course files; its photographs from the network, with --download."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib.data.coco import convert
from lib.data.download import IMAGES, SETS, download
from lib.data.split import SPLITS
from lib.machine.folders import paths


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib coco", description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of the photographs")
    parser.add_argument("--annotations", type=Path, help="COCO instances JSON")
    parser.add_argument("--out", type=Path, help="folder to write to; with --download, data/coco")
    parser.add_argument("--download", choices=SETS, help=f"COCO's own, {IMAGES} images unless --limit says otherwise")
    parser.add_argument("--max-objects", type=int, metavar="K", help="leave out images with more objects")
    parser.add_argument("--min-size", type=float, default=0, metavar="PX", help="least sqrt(w h) at 300x400")
    parser.add_argument("--limit", type=int, metavar="N", help="write the first N images")
    parser.add_argument("--split", choices=SPLITS, help="the whole set is of this split")
    parser.add_argument("--classes", metavar="CHOICE", help='"cat=pet,dog=pet,car", "all", or a FILE.json of pairs')
    parser.add_argument("--keep-empty", action="store_true", help="write images without objects too")
    parser.add_argument("--strict", action="store_true", help="anything left out is an error")
    parser.add_argument("--skip-broken", action="store_true", help="leave out what cannot be used, and list it")
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value != parser.get_default(name)}
    if name := given.pop("download", None):
        if others := given.keys() - {"out", "limit"}:
            parser.error(f"with --download go --out and --limit, not --{min(others).replace('_', '-')}")
        download(name, **{"out": paths().data / "coco", **given})
    elif missing := {"images", "annotations", "out"} - given.keys():
        parser.error(f"the following arguments are required: {', '.join(f'--{option}' for option in sorted(missing))}")
    else:
        convert(**given)
