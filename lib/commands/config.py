"""Show every number of the system: its values in both profiles, what it is and may be, and its section."""

import argparse
from collections.abc import Iterator, Sequence

from lib.config import PROFILES, Config, load_config
from lib.machine.numbers import allowed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib config", description=__doc__)
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="show what these make of it")
    args = parser.parse_args(argv)
    configs = {name: load_config(name, args.set) for name in sorted(PROFILES, reverse=True)}
    rows = [("number", *configs, "what it is; what it may be; section", ""), *_rows(configs)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(configs) + 1)]
    for *cells, meaning, section in rows:
        print("  ".join([*(f"{c:{w}}" for c, w in zip(cells, widths, strict=True)), f"{meaning}{section}"]))


def _rows(configs: dict[str, Config]) -> Iterator[tuple[str, ...]]:
    for path, field in next(iter(configs.values())).paths().items():
        if field.metadata:  # else it is no number: the profile's name, the joint stage's changes
            unit = f", in {field.metadata['unit']}" if "unit" in field.metadata else ""
            section = f"; {field.metadata['section']}" if field.metadata["section"] else ""
            values = (_value(config, path) for config in configs.values())
            yield path, *values, f"{field.metadata['meaning']}; {allowed(field)}{unit}", section


def _value(config: Config, path: str) -> str:
    """A value, and the joint stage's where that is another: "1 (joint 2)"."""
    values = [config.value(path), config.of_stage("joint").value(path)]
    own, joint = (",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value}" for value in values)
    return own if own == joint else f"{own} (joint {joint})"
