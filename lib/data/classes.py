"""The classes of a data set: their names, kept beside its four files unless they are the course's."""

from collections.abc import Iterable
from pathlib import Path

from lib.machine.files import read_json, write_json
from lib.maskrcnn import COURSE_CLASSES

CLASSES_FILE = "classes.json"
MOST_CLASSES, LONGEST_NAME = 1000, 100
MARKUP = "<>$`"  # would be taken for HTML, mathematics or code where names are shown


def read_classes(folder: str | Path) -> tuple[str, ...]:
    """The names of labels 1, 2, ...: a JSON list in `classes.json`, without that file the course's; else ValueError."""
    path = Path(folder) / CLASSES_FILE
    return checked_classes(read_json(path), path) if path.is_file() else COURSE_CLASSES


def write_classes(folder: str | Path, classes: Iterable[str]) -> None:
    """Store the names; those of the course need no file, and an earlier one goes."""
    path = Path(folder) / CLASSES_FILE
    classes = checked_classes(list(classes), path)
    if classes == COURSE_CLASSES:
        path.unlink(missing_ok=True)
    else:
        write_json(list(classes), path)


def checked_classes(names: object, where: object) -> tuple[str, ...]:
    """The names as a tuple; ValueError, beginning with `where`, says what is wrong with them."""
    if not isinstance(names, list) or not 1 <= len(names) <= MOST_CLASSES:
        raise ValueError(f'{where} must be a list of 1 to {MOST_CLASSES} names, such as ["cat", "dog"]')
    for n, name in enumerate(names, start=1):
        fits = isinstance(name, str) and name.strip() and name.isprintable() and len(name) <= LONGEST_NAME
        if not fits or set(name) & set(MARKUP):
            wanted = f"printable text of 1 to {LONGEST_NAME} letters without any of {MARKUP}"
            raise ValueError(f"{where}: name {n} is {name!r:.120}: give {wanted}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{where} has the name {twice[0]!r} twice: a class has one name of its own")
    return tuple(names)
