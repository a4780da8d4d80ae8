"""COCO's photographs by download, as the course files: the annotations, then the photographs chosen by them alone.

An image is chosen that has one or two objects of the course's classes and no other: one that is smaller, or part of a
crowd, would have no label and be taught as background. What has arrived is kept in `download/`, beside the four files.
"""

import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from urllib.parse import urlsplit
from zipfile import BadZipFile, ZipFile

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from lib.data import coco, coco_json
from lib.data.coco_json import Photograph, Report
from lib.data.pictures import read_picture
from lib.data.writer import CourseWriter
from lib.machine.errors import listed
from lib.machine.files import make_folder, one_at_a_time, remove_leftovers, written_whole
from lib.machine.folders import LEFT_FREE

ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
SETS = ("train2017", "val2017")
IMAGES = 3265  # as many as the course has
MOST_OBJECTS, MIN_SIZE = 2, 32  # as in the course, where the smallest sqrt(w h) is 33 pixels of the frame
ZIP_BYTES, JSON_BYTES, PHOTO_BYTES = 253e6, 470e6, 170e3  # of train2017, the last a mean: what it costs, about
EXAMPLE_BYTES = 300e3  # an image, its masks with it, in the four files
MOST_PHOTO_BYTES = 20e6  # more is no photograph of COCO's
THREADS, TIMEOUT = 8, (10, 30)  # TIMEOUT: seconds to connect, and without a byte
PAUSES = (0, 1, 2, 4)  # seconds before each try
LONGEST_WAIT = 60  # seconds, of those that a busy server asks for


class Patience(Retry):
    """Asks again when a busy server says, yet waits a minute at most."""

    def get_retry_after(self, response):
        return min(super().get_retry_after(response) or 0, LONGEST_WAIT)


def cost(images: int) -> str:
    """What is downloaded for so many images, and what it takes."""
    gigabytes = (ZIP_BYTES + images * PHOTO_BYTES) / 1e9
    what = f"COCO's annotations and at most {images} of its photographs to download"
    return f"{what}: about {gigabytes:.1f} GB, and {_disk_bytes(images) / 1e9:.1f} GB of disk"


def _disk_bytes(images: int) -> float:
    return ZIP_BYTES + JSON_BYTES + images * (PHOTO_BYTES + EXAMPLE_BYTES)


def download(name: str, out: Path, limit: int = IMAGES) -> None:
    """Write the first `limit` images of COCO's set `name` that are chosen, or all there are, as course files in `out`.

    One photograph in a hundred may fail to arrive: it is named, and the next takes its place. ValueError where more do
    or the annotations do, where the disk has no room, or `out` holds a set already.
    """
    if limit < 1:
        raise ValueError("--limit must be at least 1")
    coco.check_untaken(out)
    folder = out / "download"
    make_folder(folder)
    with one_at_a_time(folder, "downloads photographs", wait=False), _session() as session:
        remove_leftovers(folder / name)
        print(f"{cost(limit)} in {out}. What has arrived is kept: after a stop, the same goes on.", flush=True)
        arrived = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        _check_room(_disk_bytes(limit) - arrived, folder)
        chosen = _chosen(_annotations(session, name, folder))
        photographs = _photographs(session, name, chosen, limit, folder)
        _write(photographs, folder / name, out)
    print(f"{folder} is not needed any more: delete it, or keep it for another conversion.")


def _check_room(size: float, folder: Path) -> None:
    free = shutil.disk_usage(folder).free - LEFT_FREE
    if size > free:
        what = f"{size / 1e9:.2f} GB are still needed in {folder}, of its disk {max(free, 0) / 1e9:.2f} GB may be used"
        raise ValueError(f"{what}: make room, choose another --out or a smaller --limit")


def _session() -> requests.Session:
    """Connections over which a busy server is asked again, and a file's own bytes come."""
    tries = len(PAUSES)
    busy = Patience(tries, 0, 0, 0, tries, 0, None, (429, 500, 502, 503, 504), PAUSES[1], raise_on_status=False)
    session = requests.Session()
    for kind in ("http://", "https://"):
        session.mount(kind, HTTPAdapter(pool_maxsize=THREADS, max_retries=busy))
    session.headers["Accept-Encoding"] = "identity"
    return session


def _persist(fetch: Callable[[], None]) -> None:
    """Try until nothing breaks off, stalls or is not what was asked for; ValueError, in short, after the last try."""
    for pause in PAUSES:
        time.sleep(pause)
        try:
            return fetch()
        except requests.HTTPError as error:  # the server's last word
            raise ValueError(error) from None
        except (requests.RequestException, ValueError) as error:
            why = type(error).__name__ if isinstance(error, requests.RequestException) else str(error)
    raise ValueError(why)


def _receive(session: requests.Session, url: str, part: Path, most: float, title: str | None = None) -> None:
    """Add to a file what the server has beyond it; RequestException where that fails, ValueError beyond `most` bytes.

    A title shows how it goes.
    """
    have = part.stat().st_size if part.is_file() else 0
    wanted = {"Range": f"bytes={have}-"} if have else {}
    with session.get(url, headers=wanted, stream=True, timeout=TIMEOUT) as answer:
        if have and answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is left of it
        answer.raise_for_status()
        have *= answer.status_code == requests.codes.partial_content
        total = have + int(answer.headers.get("Content-Length", 0))
        bar = tqdm(None, title, total, unit="B", unit_scale=True, initial=have, disable=title is None)
        with open(part, "ab" if have else "wb") as file, bar:
            for block in answer.iter_content(2**16):
                bar.update(file.write(block))
                if file.tell() > most:
                    part.unlink()
                    raise ValueError(f"{url} has more than {most / 1e6:.0f} MB")


def _annotations(session: requests.Session, name: str, folder: Path) -> Path:
    """The JSON of a set, out of COCO's zip, which is fetched if the JSON is not there."""
    path, part = folder / f"instances_{name}.json", folder / "annotations.zip.part"
    if path.is_file():
        return path
    try:
        _persist(partial(_receive, session, ANNOTATIONS, part, 2 * ZIP_BYTES, "annotations"))
    except ValueError as error:
        what = f"COCO's annotations cannot be fetched from {urlsplit(ANNOTATIONS).hostname} ({error})"
        other = 'SOURCE = "synthetic", or photographs of your own by `python -m lib coco --images ...`'
        raise ValueError(f"{what}: run it again with a network (what arrived is kept), or take {other}") from None
    try:
        with ZipFile(part) as archive:
            member = archive.getinfo(f"annotations/{path.name}")
            _check_room(member.file_size, folder)
            with archive.open(member) as source, written_whole(path) as target, open(target, "wb") as file:
                shutil.copyfileobj(source, file)
    except (BadZipFile, KeyError, EOFError, zlib.error, RuntimeError):
        part.unlink()
        what = f"what came from {ANNOTATIONS} is not COCO's zip, or not whole, and is deleted"
        raise ValueError(f"{what}: run it again; is there a log-in page before the network?") from None
    part.unlink()
    return path


def _chosen(annotations: Path) -> Iterator[Photograph]:
    """Those with one or two objects of the classes, each of MIN_SIZE or more in the frame, and no other, in order."""
    for photo in coco_json.load_photographs(annotations, None, Report())[1]:
        if 1 <= len(photo.objects) <= MOST_OBJECTS and not photo.spoilt:
            if not coco.objects_in_frame(photo, MIN_SIZE)[1]:
                yield photo


def _photographs(
    session: requests.Session, name: str, chosen: Iterator[Photograph], limit: int, folder: Path
) -> list[Photograph]:
    """The first `limit` that are chosen, now in `folder/name`; others in place of the few that cannot be fetched."""
    print("read the annotations (of train2017: about a minute) and choose by them", flush=True)
    first = list(tqdm(islice(chosen, limit), "choose", limit, unit="photograph", leave=False))
    if not first:
        raise ValueError(f"{folder}: none of the photographs of {name} qualify")
    if len(first) < limit:
        print(f"only {len(first)} photographs of {name} qualify: all of them are taken", flush=True)
    rest, arrived, lost = chain(first, chosen), list[Photograph](), list[str]()
    fetch = partial(_photograph, session, coco.Pictures(folder / name))
    with tqdm(None, "download", len(first), unit="photograph") as bar:
        while wanted := list(islice(rest, len(first) - len(arrived))):
            with closing(coco.in_threads(fetch, wanted, THREADS)) as results:
                for photo, result in zip(wanted, results, strict=True):
                    try:
                        result.result()
                    except ValueError as error:
                        lost.append(f"{photo.name}: {error}")
                        _check_lost(lost, len(first))
                    else:
                        arrived.append(photo)
                        bar.update()
    for text in lost:
        print(f"left out: {text}", flush=True)
    return arrived


def _check_lost(lost: list[str], images: int) -> None:
    """ValueError where more than one in a hundred, or than one of fewer, cannot be fetched."""
    if len(lost) > max(1, images // 100):
        what = f"{len(lost)} photographs cannot be fetched: {listed(lost)}"
        raise ValueError(f"{what}. Run it again when the network is there: what arrived is kept")


def _photograph(session: requests.Session, pictures: coco.Pictures, photo: Photograph) -> None:
    """Fetch a photograph that is not there; ValueError where it cannot be had, or is no picture of its size."""
    with suppress(ValueError):
        return pictures.check(photo)
    _persist(partial(_fetch, session, pictures.folder / Path(photo.file_name).name, photo))


def _fetch(session: requests.Session, path: Path, photo: Photograph) -> None:
    with written_whole(path) as part:
        _receive(session, photo.url, part, MOST_PHOTO_BYTES)
        try:
            read_picture(part, photo.size)
        except ValueError:
            width, height = photo.size
            raise ValueError(f"{photo.url} is no whole picture of {width} x {height} pixels") from None


def _write(photographs: list[Photograph], folder: Path, out: Path) -> None:
    """Convert those of the folder to the four files."""
    report, convert = Report(), partial(coco.convert_image, coco.Pictures(folder), None, 0, False)
    with CourseWriter(out) as writer:
        coco.write_examples(writer, photographs, coco.in_threads(convert, photographs), None, report)
        if report.broken:
            raise ValueError(f"{listed(report.broken)}: delete them and run it again")
    print(f"Wrote {len(writer.labels)} images with {sum(map(len, writer.labels))} objects to {out}.")
