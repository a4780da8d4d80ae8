"""Object arrays from `.npy` files, which are pickles, read so that no code runs and nothing swells.

The pickle's instructions are gone through before it is loaded: only those that numpy writes for arrays, lists and
numbers may occur, and no length in them may exceed the file. Its arrays are made here, from bytes that are there.
"""

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

_SIZES = {0: b"(.N\x88\x89]aetRb)\x85\x86\x87\x93\x94", 1: b"\x80Khq", 2: b"M", 4: b"Jjr", 8: b"G\x95"}
_ARGUMENT = {code: size for size, codes in _SIZES.items() for code in codes}  # bytes that follow an instruction
_COUNTED = {**dict.fromkeys(b"CU\x8c\x8a", 1), **dict.fromkeys(b"BTX", 4)}  # bytes of a length, so many bytes follow
_PUT, _GLOBAL = ord("r"), ord("c")
_DEEPEST = 6  # lists in lists


class _Kind:
    """A dtype: of numbers, or of objects."""

    def __init__(self, code: str, *_: object):
        if not re.fullmatch("[iuf][1248]|O8?", code):
            raise pickle.UnpicklingError(f"holds values of the type {code!r}, not numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array's values: numbers in an array, or a list of objects with its shape."""

    def __init__(self, *_: object):
        self.shape: tuple[int, ...] = (0,)
        self.values: Any = []

    def __setstate__(self, state: tuple) -> None:
        *_, self.shape, kind, by_column, values = state
        if not kind.dtype.hasobject:
            order: Any = "F" if by_column else "C"
            self.values = np.frombuffer(_bytes(values), kind.dtype).reshape(self.shape, order=order)
        elif math.prod(self.shape) == len(values) and min(self.shape, default=0) >= 0:
            self.values = values  # a list may be that of many arrays: it is not copied
        else:
            raise pickle.UnpicklingError(f"has {len(values)} values for the shape {self.shape!r:.100}")

    def rows(self) -> list:
        """The entries along the first axis."""
        if isinstance(self.values, np.ndarray):
            return [row.ravel() for row in self.values]
        if len(self.shape) == 1:
            return self.values
        step = math.prod(self.shape[1:])
        return [self.values[i * step : (i + 1) * step] for i in range(self.shape[0])]


def _bytes(value: str | bytes) -> bytes:
    """Bytes, which protocol 2 spells as text."""
    return value.encode("latin1") if isinstance(value, str) else value


def _scalar(kind: _Kind, value: bytes) -> float:
    return np.frombuffer(_bytes(value), kind.dtype)[0].item()


class _ArrayUnpickler(pickle.Unpickler):
    """Lets nothing but numpy arrays come out of a pickle: every other name it asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        makers = {"ndarray": object, "dtype": _Kind, "_reconstruct": _Array, "scalar": _scalar}
        if name in makers and module in {"numpy", "numpy.core.multiarray", "numpy._core.multiarray"}:
            return makers[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text
        if name == "bytes":
            return lambda *_: b""
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def _check_instructions(code: bytes) -> None:
    """Refuse a pickle with an instruction that arrays do not need, or with a length beyond its own end."""
    at, end = 0, len(code)
    while at < end:
        op = code[at]
        if op in _ARGUMENT:
            if op == _PUT and int.from_bytes(code[at + 1 : at + 5], "little") > end:
                raise pickle.UnpicklingError("remembers more than it holds")
            at += 1 + _ARGUMENT[op]
        elif op in _COUNTED:
            start = at + 1 + _COUNTED[op]
            at = start + int.from_bytes(code[at + 1 : start], "little")
        elif op == _GLOBAL and (lines := re.compile(rb"[^\n]*\n[^\n]*\n").match(code, at)):
            at = lines.end()
        else:
            raise pickle.UnpicklingError(f"has the instruction {op:#x}, which numbers do not need")
    if at > end:
        raise pickle.UnpicklingError("ends too early")


def load_object_array(path: str | Path) -> np.ndarray:
    """The numbers of a `.npy` file, an object array (I,) of numeric arrays, one an image, however numpy saved them.

    An image's numbers may be an array, nested lists, a row of one big array, or a single number. Raises ValueError,
    and runs and expands nothing, where the file holds anything else.
    """
    try:
        return _load(Path(path).read_bytes())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        what = f"{path} is not a safe .npy array of arrays: {error}"
        fix = "it must hold one numeric array an image, and nothing else, as np.asarray makes it"
        raise ValueError(f"{what}; {fix}") from None


def _load(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    old, new = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    shape, by_column, dtype = old(file) if version == (1, 0) else new(file)
    code = content[file.tell() :]
    if dtype.hasobject:
        _check_instructions(code)
        loaded = _ArrayUnpickler(io.BytesIO(code), encoding="latin1").load()
    else:
        loaded, kind = _Array(), _Kind(dtype.str[1:])
        kind.dtype = dtype  # with its order of bytes
        loaded.__setstate__((shape, kind, by_column, code))
    if isinstance(loaded, _Array) and loaded.shape == ():  # one list in a box
        (loaded,) = loaded.values
    rows = loaded.rows() if isinstance(loaded, _Array) and loaded.shape[0] <= len(content) else loaded
    if not isinstance(rows, list):
        raise ValueError(f"holds {type(rows).__name__}")
    left = [max(10**6, 8 * len(content))]  # numbers that may come: a list can be named many times
    column = np.empty(len(rows), object)
    column[:] = [_joined(row, left) for row in rows]
    return column


def _joined(value: Any, left: list[int], depth: int = 0) -> np.ndarray:
    """An array, or numbers in nested lists, tuples and arrays as one flat array; `left` counts down."""
    if isinstance(value, _Array):
        value = value.values
    if type(value) in (int, float):
        value = [value]
    if not isinstance(value, (np.ndarray, list, tuple)) or depth > _DEEPEST:
        raise ValueError(f"an image has {type(value).__name__}")
    left[0] -= 1 + (value.size if isinstance(value, np.ndarray) else len(value))
    if left[0] < 0:
        raise ValueError("it swells when it is read")
    if isinstance(value, np.ndarray):
        return value
    if all(type(v) in (int, float) for v in value):
        return np.array(value, float)
    return np.concatenate([_joined(v, left, depth + 1).ravel() for v in value])
