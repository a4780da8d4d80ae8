"""The repository's owner/name, kept in pyproject.toml, copied to every place that spells it out."""

import argparse
from collections.abc import Sequence

from lib.machine.folders import root
from lib.notebook.badges import rewrite


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser("python -m lib badges", description=__doc__).parse_args(argv)
    changed = rewrite(root())
    print("\n".join(f"rewrote {path.relative_to(root())}" for path in changed) or "nothing to rewrite")
