"""Object arrays from `.npy` files, which are pickles, loaded so that nothing but numpy arrays can come out."""

import pickle
from pathlib import Path

import numpy as np


class _ArrayUnpickler(pickle.Unpickler):
    """Lets nothing but numpy arrays come out of a pickle: every other name it asks for is refused."""

    def find_class(self, module: str, name: str):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if name == "_reconstruct" and module in {"numpy.core.multiarray", "numpy._core.multiarray"}:
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):
            return _latin1  # how protocol 2 spells bytes
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def load_object_array(path: str | Path) -> np.ndarray:
    """A one-dimensional `.npy` object array of numeric arrays, loaded so that the file cannot run code.

    Raises ValueError when the file is no such array or its pickle asks for anything else than numpy arrays.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            old, new = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
            _, _, dtype = old(file) if version == (1, 0) else new(file)
            if dtype.hasobject:
                array = _ArrayUnpickler(file).load()
            else:
                file.seek(0)
                array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged pickle can raise almost anything
        raise ValueError(f"{path} is not a safe .npy array of arrays: {error}") from None
    entries = list(array) if isinstance(array, np.ndarray) and array.ndim else [None]
    if not all(isinstance(entry, np.ndarray) and entry.dtype.kind in "iuf" for entry in entries):
        raise ValueError(f"{path} must hold one numeric array an image, and nothing else")
    return array
