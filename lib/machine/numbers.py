"""Groups of numbers: frozen dataclasses whose values are checked whenever they are set.

    @dataclass(frozen=True)
    class RPNConfig(Numbers):
        nms_iou: float = share(0.7, "two proposals that overlap more are one", "§4.6")

Every number stands beside the part that reads it, with its meaning, range, unit and section of the assignment. Groups
hold groups, and a path names a number in them: `rpn.nms_iou`.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Self


def number(default: Any, meaning: str, section: str = "", **rule: Any) -> Any:
    """A field with its default, its meaning, its section of the assignment, and rules of what it may be.

    These are any of: `low`, `above` and `high`, the limits of a number or of each of a tuple's; the `options` of a
    text; the `length` of a tuple; the `unit`.
    """
    return field(default=default, metadata={"meaning": meaning, "section": section, **rule})


count = partial(number, low=1)
share = partial(number, low=0, high=1)


@dataclass(frozen=True)
class Numbers:
    """The base of all groups. A whole number serves as a float and a list as a tuple, no other type as another.

    Raises ValueError for a value of another type or out of its range, in a sentence that begins with the field's name.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.metadata:
                object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))

    def replaced(self, values: Mapping[str, Any]) -> Self:
        """A copy with these values, by their paths within this group: {"test.post_nms": 300}.

        ValueError begins with the path of a name that does not exist, or of a value that cannot be.
        """
        by_name: dict[str, dict[str, Any]] = {}
        for path, value in values.items():
            name, _, rest = path.partition(".")
            by_name.setdefault(name, {})[rest] = value
        return dataclasses.replace(self, **{name: self._changed(name, inner) for name, inner in by_name.items()})

    def _changed(self, name: str, inner: dict[str, Any]) -> Any:
        if name not in self.__dataclass_fields__:
            near = difflib.get_close_matches(name, self.__dataclass_fields__, 1)
            raise ValueError(f"{name} is no field" + (f": did you mean {near[0]}?" if near else ""))
        group = getattr(self, name)
        if isinstance(group, Numbers) == ("" in inner):
            group = f"has fields of its own: set {', '.join(group.paths())}" if "" in inner else "has no fields"
            raise ValueError(f"{name} {group}")
        if "" in inner:
            return inner[""]
        try:
            return group.replaced(inner)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None

    def paths(self) -> dict[str, dataclasses.Field]:
        """All fields by their paths, those of the groups within this one included."""
        found: dict[str, dataclasses.Field] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            inner = value.paths() if isinstance(value, Numbers) else {"": f}
            found |= {f"{f.name}.{path}".rstrip("."): inner_field for path, inner_field in inner.items()}
        return found

    def value(self, path: str) -> Any:
        """The value at a path."""
        name, _, rest = path.partition(".")
        return getattr(self, name).value(rest) if rest else getattr(self, name)


def _checked(f: dataclasses.Field, value: Any) -> Any:
    """The value as the field's own type; ValueError otherwise, or out of the field's range."""
    several = isinstance(f.default, tuple)
    given = value if several and isinstance(value, (list, tuple)) else [value]
    kind = float if several else type(f.default)
    typed = tuple(float(v) if kind is float and type(v) is int else v for v in given)
    fits = bool(typed) and all(type(v) is kind and _in_range(f, v) for v in typed)
    if not fits or (several and (given is not value or len(typed) != f.metadata.get("length", len(typed)))):
        raise ValueError(f"{f.name} cannot be {value!r}: {f.metadata['meaning']}; {allowed(f)}")
    return typed if several else typed[0]


def _in_range(f: dataclasses.Field, value: Any) -> bool:
    rule = f.metadata
    if isinstance(value, str):
        return value in rule.get("options", [value])
    in_limits = rule.get("low", value) <= value <= rule.get("high", value) and value > rule.get("above", -math.inf)
    return math.isfinite(value) and in_limits


def allowed(f: dataclasses.Field) -> str:
    """What a field may be, in words: "a number from 0 to 1"."""
    rule = f.metadata
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", tuple: "a list of numbers"}
    text = f"{rule['length']} numbers" if "length" in rule else words[type(f.default)]
    text = f"one of {', '.join(rule['options'])}" if "options" in rule else text
    limits = {"from": "low", "above": "above", "up to": "high"}
    return " ".join([text, *(f"{word} {rule[key]}" for word, key in limits.items() if key in rule)])
