"""Files that appear whole or not at all, and folders that one process at a time writes to."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lib.machine import folders

_FULL_OR_CLOSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTCONN}


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path to write to in place of `path`, in the same folder, which is made if it is missing.

    Where the block ends well, what was written there is flushed to the disk and takes the place of `path`; else `path`
    stays as it was. Raises OSError where the disk is full or closed to writing, or Google Drive is not there.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        make_folder(path.parent)
        yield part
        _flush(part)
        part.replace(path)
        with suppress(OSError):  # not every file system lets a folder be flushed
            _flush(path.parent)
    except OSError as error:
        if error.errno not in _FULL_OR_CLOSED:
            raise
        advice = "make room there, or choose another folder; what was there before is kept"
        raise OSError(f"{path} cannot be written ({error.strerror}): {advice}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(content: object, path: str | Path) -> None:
    """Content as JSON, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32; ValueError names a file that is none."""
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # lists in lists in lists ...
        raise ValueError(f"{path} is not valid JSON ({error})") from None


def make_folder(folder: Path) -> None:
    """Make a folder, unless it belongs in Google Drive and Drive is not mounted: OSError then, not a folder beside."""
    if folder.resolve().is_relative_to(folders.DRIVE) and not os.path.ismount(folders.DRIVE):
        what = f"{folder} lies in Google Drive, which is not mounted (any more)"
        raise OSError(f"{what}: mount it again, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path) -> None:
    """OSError where a file cannot be written to the folder."""
    with written_whole(folder / ".write_test") as part:
        part.write_bytes(bytes(4096))
    (folder / ".write_test").unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete the half-written files that killed processes left; call this where no other process writes."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(folder: Path, what: str, wait: bool = True) -> Iterator[None]:
    """The block runs while no other process is in one of this folder; `what` says what both do, in a sentence.

    The second says so and waits; without `wait` it raises ValueError. A process that is killed leaves no lock behind.
    Where the file system knows no locks, or the folder may only be read, nothing is locked.
    """
    lock = FileLock(folder / ".lock")
    with suppress(OSError, NotImplementedError):
        make_folder(folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise ValueError(f"another process {what} in {folder}: wait for its end, or choose another") from None
            print(f"another process {what} in {folder}: waiting for its end", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _flush(path: Path) -> None:
    """Have the system write what it holds of a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
