"""Ctrl-C, a notebook's interrupt and SIGTERM: noted, so that work can be put by before it ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM are added in place of ending the process; a second one ends it at once.

    Outside the main thread signals do as they did. Raises KeyboardInterrupt at the end where what ran inside took no
    notice of one: it came after the last look at the list.
    """
    noted: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        noted.append(number)
        restore()

    for number in numbers:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
    if noted:
        raise KeyboardInterrupt
