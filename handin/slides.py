"""`make slides`: slides.pdf for the five-minute video and notes.pdf with what to say, from the run's numbers."""

from collections.abc import Sequence

from handin import report


def main(argv: Sequence[str] | None = None) -> None:
    report.main(argv, "slides", ("slides", "notes"))
