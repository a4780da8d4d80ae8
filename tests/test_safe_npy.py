"""Object arrays: read however numpy saved them; a hostile pickle runs nothing and takes no memory."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from lib.data.safe_npy import load_object_array


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def write(path, value, protocol=None, shape=None):
    """A `.npy` of objects: `value` pickled, or the pickle's own bytes."""
    with open(path, "wb") as file:
        shape = getattr(value, "shape", (1,)) if shape is None else shape
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
        file.write(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


def column(*entries):
    made = np.empty(len(entries), object)
    for n, entry in enumerate(entries):
        made[n] = entry
    return made


@pytest.mark.parametrize("inside_array", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_cannot_run_code(tmp_path, inside_array, protocol):
    payload = Malicious(tmp_path / "owned")
    path = write(tmp_path / "x.npy", column(payload) if inside_array else payload, protocol)
    with pytest.raises(ValueError, match=r"x.npy is not a safe .npy array of arrays: asks for .*open"):
        load_object_array(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("entry", ["text", None, {"a": 1}, np.array(["text"]), True, [[1, "a"]], np.ones(2, complex)])
def test_only_numeric_arrays_come_out(tmp_path, entry):
    with pytest.raises(ValueError, match="one numeric array an image"):
        load_object_array(write(tmp_path / "x.npy", column(entry)))


SAVED = {
    "arrays": (column(np.array([1, 2]), np.array([3.0])), [[1, 2], [3]]),
    "big-endian, by column": (column(np.array([[1, 2], [3, 4]], ">i4", order="F")), [[1, 2, 3, 4]]),
    "lists": (np.array([[1, 2], [3]], object), [[1, 2], [3]]),
    "lists of boxes": (np.array([[[1, 2]], [[5, 6], [1, 1]]], object), [[1, 2], [5, 6, 1, 1]]),
    "equal numbers as objects": (np.array([[1, 2], [3, 4]], object), [[1, 2], [3, 4]]),
    "objects in objects": (column(column(np.array([1.0, 2]), np.array([3.0, 4]))), [[1, 2, 3, 4]]),
    "tuples and scalars": (column((1, 2.5), np.float32(3), 4), [[1, 2.5], [3], [4]]),
    "nothing": (column([], np.zeros((0, 4))), [[], []]),
    "one list in a box": (np.array(None, object), [[1], [2, 3]]),
}  # fmt: skip
SAVED["one list in a box"][0][()] = [[1], np.array([2, 3])]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("value, expected", SAVED.values(), ids=SAVED.keys())
def test_every_way_to_save_objects(tmp_path, value, expected, protocol):
    loaded = load_object_array(write(tmp_path / "x.npy", value, protocol))
    assert [entry.ravel().tolist() for entry in loaded] == expected


@pytest.mark.parametrize("kind", ["<i8", ">i2", "u1", "<f4"])
def test_one_array_for_all_images(tmp_path, kind):
    np.save(tmp_path / "x.npy", np.arange(8).reshape(2, 1, 4).astype(kind))
    assert [entry.tolist() for entry in load_object_array(tmp_path / "x.npy")] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    np.save(tmp_path / "x.npy", np.asfortranarray(np.arange(6).reshape(3, 2).astype(kind)))
    assert [entry.tolist() for entry in load_object_array(tmp_path / "x.npy")] == [[0, 1], [2, 3], [4, 5]]


def header(shape, kind):
    text = str({"descr": kind, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text


def nested(levels):
    """A pickle of a list that names the list before it twice, so many times over: 2 ** levels numbers."""
    code = b"\x80\x04]q\x00K\x01a"
    for n in range(levels):
        code += b"]q" + bytes([n + 1]) + b"(" + (b"h" + bytes([n])) * 2 + b"e"
    return code + b"."


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
BOMBS = {  # what each would take
    "3e9 entries of no size": header((3_000_000_000, 0), "<f4"),
    "3e9 numbers": header((3_000_000_000,), "<f4"),
    "a memo of 2.4 GB": header((1,), "|O") + b"\x80\x02Nr\xff\xff\xff\x08.",
    "bytes of 4 GB": header((1,), "|O") + b"\x80\x03B\xff\xff\xff\xff.",
    "bytes of 8 EB": header((1,), "|O") + b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "bytearray of 2 GB": header((1,), "|O") + b"\x80\x05\x96\x00\x00\x00\x80\x00\x00\x00\x00.",
    "a list of 8 GB": header((1,), "|O")
    + (b"\x80\x02" + RECONSTRUCT + b"K\x00\x85U\x01btR(K\x01J\x00\x00\x00\x40\x85")
    + b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R\x89]K\x01atb.",
    "a number of a million digits": header((1,), "|O") + b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
    "lists that name lists": header((1,), "|O") + nested(40),
}  # fmt: skip


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_nothing_swells(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="x.npy is not a safe"):
            load_object_array(tmp_path / "x.npy")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_list_that_holds_itself(tmp_path):
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match="x.npy is not a safe"):
        load_object_array(write(tmp_path / "x.npy", loop))
