"""The HDF5 files: read fast however they are chunked, from a copy that is whole; nothing outside them is read."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from lib.data import arrays
from lib.data.arrays import excess, open_array, quick_array
from lib.data.objects import FILES
from lib.data.reader import CourseDataset
from lib.machine import folders
from lib.machine.errors import say_once


@pytest.fixture(autouse=True)
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_WEIGHTS", str(tmp_path / "weights"))
    say_once.cache_clear()
    return tmp_path / "weights"


def plain(path: Path, count=60, **options) -> np.ndarray:
    """A file as `create_dataset` writes it, with chunks of h5py's choice."""
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (count, 3, 30, 40), np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=values, **{"compression": "gzip", **options})
    return values


def copies(weights):
    return [path for path in weights.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_file_with_chunks_of_many_images_is_copied_once(tmp_path, weights, capfd):
    path = tmp_path / "data" / "a.h5"
    values = plain(path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert excess(open_array(path)) > 10
    data = quick_array(path)
    assert data.chunks == (1, 3, 30, 40) and excess(data) == 1 and (data[:] == values).all()
    said = capfd.readouterr().err
    assert "a.h5: reading one entry inflates" in said and "GB" in said and "copy a.h5: 100%" in said
    (copy,) = copies(weights)
    stamp = copy.stat().st_mtime_ns
    assert (
        (quick_array(path)[7] == values[7]).all() and copy.stat().st_mtime_ns == stamp and capfd.readouterr().err == ""
    )
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("options", [{"chunks": (1, 3, 30, 40)}, {"chunks": (2, 3, 30, 40)}, {"compression": None}])
def test_a_file_that_is_fast_is_read_itself(tmp_path, weights, options):
    plain(tmp_path / "data" / "a.h5", **options)
    assert Path(quick_array(tmp_path / "data" / "a.h5").file.filename) == tmp_path / "data" / "a.h5"
    assert not weights.exists()


def test_a_changed_file_is_copied_again_in_the_copys_place(tmp_path, weights):
    path = tmp_path / "data" / "a.h5"
    plain(path)
    quick_array(path)
    values = plain(path, count=50)
    assert (quick_array(path)[:] == values).all() and len(copies(weights)) == 1
    os.utime(path, (1, 1))
    (copy,) = copies(weights)
    stamp = copy.stat().st_mtime_ns
    quick_array(path)
    assert copy.stat().st_mtime_ns > stamp
    values = plain(tmp_path / "other" / "a.h5", count=40)  # of the same name
    assert (quick_array(tmp_path / "other" / "a.h5")[:] == values).all() and len(copies(weights)) == 2


def cut(copy):
    copy.write_bytes(copy.read_bytes()[:-1000])


def garbage(copy):
    copy.write_bytes(b"no HDF5")


def other(copy):
    plain(copy, count=3)


@pytest.mark.parametrize("damage", [cut, garbage, other, Path.unlink])
def test_a_damaged_copy_is_written_again(tmp_path, weights, damage):
    values = plain(tmp_path / "data" / "a.h5")
    quick_array(tmp_path / "data" / "a.h5").file.close()
    damage(copies(weights)[0])
    assert (quick_array(tmp_path / "data" / "a.h5")[:] == values).all()


def test_an_interrupted_copy_leaves_nothing(tmp_path, weights, monkeypatch):
    values = plain(tmp_path / "data" / "a.h5")
    monkeypatch.setattr(arrays, "tqdm", lambda *_, **__: (i if i < 10 else 1 / 0 for i in range(0, 60, 10)))
    monkeypatch.setattr(arrays, "_BLOCK", 36_000)
    with pytest.raises(ZeroDivisionError):
        quick_array(tmp_path / "data" / "a.h5")
    assert not copies(weights)
    monkeypatch.undo()
    monkeypatch.setenv("MASKRCNN_WEIGHTS", str(weights))
    assert (quick_array(tmp_path / "data" / "a.h5")[:] == values).all()


@pytest.mark.parametrize("chunk", [7, 13, 60])
def test_memory_is_bounded_by_blocks(tmp_path, monkeypatch, chunk):
    values = plain(tmp_path / "data" / "a.h5", chunks=(chunk, 1, 10, 10))
    monkeypatch.setattr(arrays, "_BLOCK", 20 * 3600)
    monkeypatch.setattr(arrays, "tqdm", lambda starts, *_, **__: starts)
    assert (quick_array(tmp_path / "data" / "a.h5")[:] == values).all()


def test_without_room_the_file_is_read_as_it_is(tmp_path, weights, monkeypatch, capfd):
    values = plain(tmp_path / "data" / "a.h5")
    monkeypatch.setattr(arrays, "LEFT_FREE", 10**18)
    assert (quick_array(tmp_path / "data" / "a.h5")[:] == values).all() and not copies(weights)
    assert "no copy of it can be kept" in (said := capfd.readouterr().err) and "times slower" in said


def test_on_drive_every_file_is_copied_to_the_machine_once(tmp_path, weights, monkeypatch, capfd):
    (tmp_path / "drive").mkdir()
    values = plain(tmp_path / "drive" / "data" / "a.h5", chunks=(1, 3, 30, 40))
    monkeypatch.setattr(arrays, "DRIVE", (tmp_path / "drive").resolve())
    monkeypatch.setattr(folders, "DRIVE", (tmp_path / "drive").resolve())
    monkeypatch.setattr(folders, "LOCAL", tmp_path / "machine")
    monkeypatch.setenv("MASKRCNN_WEIGHTS", str(tmp_path / "drive" / "weights"))
    data = quick_array(tmp_path / "drive" / "data" / "a.h5")
    assert Path(data.file.filename).is_relative_to(tmp_path / "machine") and (data[:] == values).all()
    assert "a.h5: it lies in Google Drive; it is copied once to" in capfd.readouterr().err
    assert quick_array(tmp_path / "drive" / "data" / "a.h5").file.filename == data.file.filename
    assert capfd.readouterr().err == ""


def test_on_drive_a_file_without_an_entry_is_read_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "DRIVE", tmp_path.resolve())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (0, 300, 400), "u1", maxshape=(None, 300, 400), chunks=(1, 300, 400))
    assert Path(quick_array(tmp_path / "a.h5").file.filename) == tmp_path / "a.h5"


def test_a_copy_that_breaks_while_it_is_read_is_replaced_by_the_file(tmp_path, scenes, weights, capfd):
    for name in FILES.values():
        (tmp_path / name).write_bytes((scenes / name).read_bytes())
    with h5py.File(scenes / FILES["images"]) as file, h5py.File(tmp_path / FILES["images"], "w") as new:
        new.create_dataset("data", data=(images := file["data"][:]), compression="gzip", chunks=(12, 3, 30, 40))
    data = CourseDataset(tmp_path)
    data[0]
    (copy,) = copies(weights)
    with h5py.File(copy) as file:
        place = file["data"].id.get_chunk_info(5).byte_offset
    with open(copy, "r+b") as file:
        file.seek(place + 50)
        file.write(bytes(40))
    data = CourseDataset(tmp_path)
    assert all((data[i][0].numpy() == images[i]).all() for i in range(12))
    assert "is damaged: it is deleted" in capfd.readouterr().err and not copy.exists()


def external_storage(path, secret):
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (6,), "u1", external=[(str(secret), 0, 6)])


def external_link(path, secret):
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file["data"] = np.frombuffer(b"secret", np.uint8)
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "data")


def virtual(path, secret):
    external_link(path, secret)
    layout = h5py.VirtualLayout((6,), "u1")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "data", (6,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


def soft_link(path, secret):
    with h5py.File(path, "w") as file:
        file["data"] = h5py.SoftLink("/elsewhere")


def group(path, secret):
    with h5py.File(path, "w") as file:
        file.create_group("data")


def other_name(path, secret):
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)


def huge_chunk(path, secret):
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (2000, 3, 300, 400), "u1", chunks=(1000, 3, 300, 400), compression="gzip")


def text(path, secret):
    path.write_text("no HDF5")


def half(path, secret):
    plain(path)
    path.write_bytes(path.read_bytes()[:50_000])


REFUSED = {
    external_storage: "its 'data' in another file, which is not read",
    external_link: "its 'data' in another file",
    virtual: "its 'data' in another file",
    soft_link: "its 'data' in another file",
    group: "a group named 'data'",
    other_name: r"no data set named 'data', it holds \['images'\]",
    huge_chunk: "chunks of 360 MB.*with chunks of one image",
    text: "not a readable HDF5 file.*signature",
    half: "not a readable HDF5 file.*truncated",
}


@pytest.mark.parametrize("make, message", REFUSED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_not_read_is_said(tmp_path, make, message):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "data").mkdir()
    make(tmp_path / "data" / "a.h5", tmp_path / "secret")
    with pytest.raises(ValueError, match=rf"a\.h5 (has|is) .*{message}"):
        quick_array(tmp_path / "data" / "a.h5")


def test_a_split_of_a_folder_that_may_only_be_read(tmp_path, scenes, weights, monkeypatch, config, capfd):
    from lib.data import split

    write = split.write_split

    def refusing(folder, indices):
        if Path(folder) == tmp_path / "data":
            raise PermissionError(13, "Permission denied")
        write(folder, indices)

    monkeypatch.setattr(split, "write_split", refusing)
    drawn = split.load_split(tmp_path / "data", 12, config.data)
    (kept,) = copies(weights)
    assert json.loads(kept.read_text()) == drawn and "its split is kept in" in capfd.readouterr().err
    assert split.load_split(tmp_path / "data", 12, config.data.replaced({"seed": 5})) == drawn
    assert split.load_split(tmp_path / "data", 11, config.data) != drawn  # the data have changed
