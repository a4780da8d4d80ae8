"""`make slides`: slides.pdf for the five-minute video and notes.pdf with what to say, from the run's numbers."""

import argparse
from collections.abc import Sequence

from handin.report import hand_in


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser("python -m handin slides", description=__doc__).parse_args(argv)
    hand_in(("slides", "notes"))
