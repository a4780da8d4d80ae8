"""Mask R-CNN, one part a file: the parts lie here, what serves them in the folders below."""

import sys

COMMANDS = {
    "run": "execute the notebooks in order, data first",
    "train": "train one stage, or all of them in order",
    "evaluate": "score trained weights on images never trained on",
    "predict": "find objects in your own pictures",
    "coco": "convert a data set in COCO's format to the course's four files",
    "check": "list all that is wrong with a data set, or write a copy without it",
    "scenes": "write made-up scenes as the course's four files",
    "pretrain": "make the backbone of the demo profile",
    "config": "show every number, its values in both profiles, its range and meaning",
    "student": "write the student version: parts and answers left to be written",
    "badges": "copy the repository's name from pyproject.toml to all places that spell it out",
}
_EARLIER = {name: name for name in COMMANDS} | {"synthetic": "scenes"}  # as in `python -m lib.synthetic`

if sys.argv[:1] == ["-m"]:  # Python is looking for a module to run
    for _name in (argument.removeprefix("lib.") for argument in sys.orig_argv if argument.startswith("lib.")):
        if _name in _EARLIER:
            raise SystemExit(f"error: `python -m lib.{_name}` is now `python -m lib {_EARLIER[_name]}`")
