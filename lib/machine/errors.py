"""A user's mistake ends in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


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
