import pickle

import numpy as np
import pytest

from lib.data.safe_npy import load_object_array


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("inside_array", [True, False])
def test_a_pickle_cannot_run_code(tmp_path, inside_array):
    payload = Malicious(tmp_path / "owned")
    column = np.empty(1, object)
    column[0] = payload if inside_array else np.zeros(1)
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        pickle.dump(column if inside_array else payload, file)
    with pytest.raises(ValueError, match=r"x.npy is not a safe .npy array of arrays: asks for .*open"):
        load_object_array(tmp_path / "x.npy")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("entry", ["text", None, {"a": 1}, np.array(["text"])])
def test_only_numeric_arrays_come_out(tmp_path, entry):
    column = np.empty(1, object)
    column[0] = entry
    np.save(tmp_path / "x.npy", column, allow_pickle=True)
    with pytest.raises(ValueError, match="one numeric array an image"):
        load_object_array(tmp_path / "x.npy")
