"""A stage's history on disk: `<stage>_history.csv`, one row an epoch with losses, learning rate and seconds."""

import csv
import json
from pathlib import Path

from lib.machine.files import written_whole
from lib.training.checkpoint import read_metadata, stage_path


def write_history(weights: Path, name: str, history: list[dict]) -> None:
    with written_whole(weights / f"{name}_history.csv") as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in history for key in row)))
        writer.writeheader()
        writer.writerows(history)


def read_history(weights: str | Path, name: str) -> list[dict]:
    """The rows of a stage's history as numbers, for the learning curves.

    Where the csv is missing or damaged, those that the stage's file holds: without the seconds.
    """
    try:
        with open(Path(weights) / f"{name}_history.csv", newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error):
        return json.loads(read_metadata(stage_path(weights, name)).get("history", "[]"))
