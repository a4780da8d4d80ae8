"""The one entry for what is handed in: `python -m handin COMMAND ...`; `python -m handin COMMAND --help` says more."""

import importlib
import sys

from handin import COMMANDS
from lib.machine.errors import command_errors


def usage() -> str:
    lines = (f"  {name:{max(map(len, COMMANDS))}}  {what}" for name, what in COMMANDS.items())
    return "\n".join(["usage: python -m handin COMMAND ...", "", *lines])


@command_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one line on stderr and status 1."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name in COMMANDS:
        importlib.import_module(f"handin.{name}").main(rest)
    else:
        raise ValueError(f"there is no command {name!r}: choose one of {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
