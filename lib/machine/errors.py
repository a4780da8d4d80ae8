"""A user's mistake ends in one line."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

NAMED = 10  # of many problems, those that a message names


@contextmanager
def command_errors() -> Iterator[None]:
    """Turn a ValueError or OSError (a user's mistake), or an interruption, into one line on stderr and exit status 1.

    A context manager, and a decorator of a command's `main`: `@command_errors()`.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit("error: " + " ".join(str(error).split())) from None
    except KeyboardInterrupt as stop:
        raise SystemExit(f"stopped: {stop}".rstrip(": ")) from None


@cache
def say_once(text: str) -> None:
    """Tell the user, on stderr, what happened and went on; the same sentence once."""
    print(text, file=sys.stderr, flush=True)


def listed(problems: Sequence[str]) -> str:
    """The first ten problems and how many more there are, as part of one sentence."""
    rest = [f"and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
    return "; ".join([*problems[:NAMED], *rest])
