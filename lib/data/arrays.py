"""The course's HDF5 files: opened so that nothing outside them is read, and copied once where they are slow to read.

Chunks that h5py chooses by itself hold a little of many images: (205, 1, 19, 50) of images (I, 3, 300, 400). One image
then takes the inflating of 205. Such a file is copied, block by block, to one whose chunks are images.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import h5py
from tqdm import tqdm

from lib.machine.errors import say_once
from lib.machine.files import one_at_a_time, written_whole
from lib.machine.folders import DRIVE, LEFT_FREE, copies_folder

LARGEST_CHUNK = 2**27  # bytes: a few of them inflate a file of any size
SLOW = 4  # times what is asked for may be inflated
_BLOCK = 2**27  # bytes read at once for a copy


def open_array(path: Path) -> h5py.Dataset:
    """The data set `data` of an HDF5 file, read only.

    Raises ValueError, with the reason, where there is none, or where it would read another file or expand a huge chunk.
    """
    try:
        file = h5py.File(path, "r")
        link = file.get("data", getlink=True)
        data = file["data"] if isinstance(link, h5py.HardLink) else None
        problem = _problem(data, link, sorted(file))
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(f"{path} is not a readable HDF5 file ({error}): copy or download it again") from None
    if problem:
        raise ValueError(f"{path} {problem}")
    return data


def _problem(data: Any, link: Any, held: list[str]) -> str | None:
    """Why `data` of an HDF5 file is not read."""
    if link is None:
        return f"has no data set named 'data', it holds {held!r:.200}: is it another file?"
    if data is not None and not isinstance(data, h5py.Dataset):
        return "has a group named 'data': it must be a data set of numbers"
    if data is None or data.is_virtual or data.external:
        return "has its 'data' in another file, which is not read: store the values in this one"
    chunk = math.prod(data.chunks or (0,)) * data.dtype.itemsize
    if chunk > LARGEST_CHUNK:
        fix = f"write it again with chunks of one image, {(1, *data.shape[1:])}"
        return f"has chunks of {chunk / 1e6:.0f} MB, and {LARGEST_CHUNK / 1e6:.0f} MB at most are expanded: {fix}"
    return None


def excess(data: h5py.Dataset) -> float:
    """How many times its own size must be inflated to read one entry of the first axis."""
    if not data.chunks or not data.size:
        return 1.0
    return data.chunks[0] * math.prod(-(-n // c) * c / n for n, c in zip(data.shape[1:], data.chunks[1:], strict=True))


def quick_array(path: Path) -> h5py.Dataset:
    """The data set `data` of an HDF5 file, from its copy on a local disk where reading the file itself is slow."""
    data = open_array(path)
    slow = excess(data) > SLOW
    if not data.size or not (slow or path.resolve().is_relative_to(DRIVE)):
        return data
    stat, copy = path.stat(), copies_folder(path.parent) / path.name
    source = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    try:
        if not _is_copy(copy, data, source):
            with one_at_a_time(copy.parent, "copies data files"):
                if not _is_copy(copy, data, source):  # another process may have written it
                    _copy(data, copy, source)
        return open_array(copy)
    except OSError as error:
        why = f"no copy of it can be kept in {copy.parent} ({error})"
        say_once(f"{path}: {why}; it is read as it is" + f", {excess(data):.0f} times slower" * slow)
        return data


def _is_copy(copy: Path, data: h5py.Dataset, source: str) -> bool:
    try:
        found = open_array(copy)
        with found.file:
            return (found.shape, found.dtype, found.attrs.get("source")) == (data.shape, data.dtype, source)
    except ValueError:  # missing or damaged
        return False


def _copy(data: h5py.Dataset, copy: Path, source: str) -> None:
    """Write the copy in blocks of whole chunks; OSError where the disk has no room for it."""
    copy.unlink(missing_ok=True)  # of an earlier state of the file
    free = shutil.disk_usage(copy.parent).free - LEFT_FREE
    if data.nbytes > free:
        raise OSError(f"it may take {data.nbytes / 1e9:.2f} GB, of the disk {max(free, 0) / 1e9:.2f} GB may be used")
    name = Path(data.file.filename)
    cost = f"about {data.nbytes / 5e7:.0f} s and at most {data.nbytes / 1e9:.2f} GB"
    why = f"reading one entry inflates {excess(data):.0f} of them" if excess(data) > SLOW else "it lies in Google Drive"
    say_once(f"{name}: {why}; it is copied once to {copy} in {cost}")
    entry, chunk = data.nbytes // len(data), data.chunks[0] if data.chunks else 1
    rows = max(1, _BLOCK // entry)
    rows = max(rows - rows % chunk, min(rows, chunk))
    shape, kept = (1, *data.shape[1:]), {"compression": "lzf", "fletcher32": True}  # with a checksum
    with written_whole(copy) as part, h5py.File(part, "w") as file:
        new = file.create_dataset("data", data.shape, data.dtype, chunks=shape, **kept)
        new.attrs["source"] = source
        for start in tqdm(range(0, len(data), rows), f"copy {name.name}", unit="block"):
            new[start : start + rows] = data[start : start + rows]
