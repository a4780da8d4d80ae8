"""coco --download, against a server on this machine that breaks off, stalls, is busy, and sends other things."""

import io
import json
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lib.__main__ import main
from lib.config import load_config
from lib.data import download as module
from lib.data import sources
from lib.data.reader import CourseDataset
from lib.data.sources import ensure_data
from lib.machine.files import one_at_a_time

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with numpy 2
ZIP = "/annotations/annotations_trainval2017.zip"
SIZE = (160, 120)  # of a photograph: the frame is 2.5 times as large
DOG = (20, 20, 80, 80)  # 150 x 150 pixels of the frame


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `faults` has, by path, what is done to its next answers."""

    daemon_threads = True

    def __init__(self):
        self.files, self.faults, self.asked, self.ranges = {}, {}, [], []
        self.stop_stalling = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments):
        pass

    def answer(self, status, content, length=None, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": length or len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.server.asked.append(self.path)
        faults = self.server.faults.get(self.path, [])
        fault = (faults.pop(0) if len(faults) > 1 else faults[0]) if faults else "none"
        content = self.server.files.get(self.path)
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.ranges.append(start)
        if fault == "stall":
            self.server.stop_stalling.wait(10)
        elif fault in ("404", "429", "503") or content is None:
            wait = {"Retry_After": 86400} if fault == "429" else {}
            self.answer(int(fault) if content else 404, b"no", **wait)
        elif fault == "no answer":
            self.connection.close()
        elif fault == "HTML":
            self.answer(200, b"<html>log in</html>")
        elif fault == "break off":
            self.answer(206 if start else 200, content[start : start + len(content) // 3], len(content) - start)
            self.close_connection = True
        elif fault == "cut":
            self.answer(200, content[: len(content) // 2])
        elif fault == "smaller":
            self.answer(200, photograph((80, 60)))
        elif start >= len(content):
            self.answer(416, b"")
        else:
            self.answer(206 if start else 200, content[start:])


def photograph(size=SIZE):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def instances(url, images):
    """COCO's JSON of images, each a list of objects: (category, corners), or "crowd"."""
    coco = {"images": [], "annotations": [], "categories": [{"id": 18, "name": "dog"}, {"id": 62, "name": "chair"}]}
    for n, objects in enumerate(images):
        name = f"{n:012}.jpg"
        size = {"width": SIZE[0], "height": SIZE[1]}
        coco["images"].append({"id": n, "file_name": name, **size, "coco_url": f"{url}/photographs/{name}"})
        for kind, corners in objects:
            ids = {"id": len(coco["annotations"]), "image_id": n, "category_id": 62 if kind == "chair" else 18}
            coco["annotations"].append({**ids, "iscrowd": int(kind == "crowd"), "segmentation": rectangle(*corners)})
    return coco


def put(server, images):
    """Have the server offer these images as COCO's val2017, and as its train2017."""
    file = io.BytesIO()
    coco = instances(server.url, images)
    with zipfile.ZipFile(file, "w") as archive:
        for name in module.SETS:
            archive.writestr(f"annotations/instances_{name}.json", json.dumps(coco))
    server.files = {ZIP: file.getvalue()} | {path(n): photograph() for n in range(len(images))}


def path(n):
    return f"/photographs/{n:012}.jpg"


@pytest.fixture
def server(monkeypatch):
    """A server with six photographs of a dog each; little patience."""
    server = Server()
    monkeypatch.setattr(module, "ANNOTATIONS", server.url + ZIP)
    monkeypatch.setattr(module, "PAUSES", (0, 0.01))
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.02)
    put(server, [[("dog", DOG)]] * 6)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop_stalling.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    """Run the command -> the data set."""

    def run(*options):
        main(["coco", "--download", "val2017", "--out", str(tmp_path / "out"), *options])
        return CourseDataset(tmp_path / "out")

    return run


@pytest.fixture
def failed(fetch, tmp_path):
    """Run the command, which must fail -> its sentence."""

    def run(*options):
        with pytest.raises(SystemExit) as error:
            fetch(*options)
        assert [file.name for file in (tmp_path / "out").glob("*")] in ([], ["download"])
        assert "\n" not in str(error.value)
        return str(error.value)

    return run


CHOICES = {  # a dog's box of 12 x 12 pixels has 30 x 30 in the frame, one of 14 x 14 has 35 x 35
    "one": ([("dog", DOG)], True),
    "two": ([("dog", DOG), ("dog", (100, 20, 114, 34))], True),
    "and another class": ([("dog", DOG), ("chair", (0, 0, 5, 5))], True),
    "none": ([("chair", DOG)], False),
    "three": ([("dog", DOG)] * 3, False),
    "a smaller one": ([("dog", DOG), ("dog", (100, 20, 112, 32))], False),
    "without an area": ([("dog", DOG), ("dog", (100, 20, 100, 90))], False),
    "a crowd": ([("dog", DOG), ("crowd", (100, 20, 140, 90))], False),
}


def test_what_is_chosen_is_known_before_it_is_fetched(server, fetch, capsys):
    put(server, [objects for objects, _ in CHOICES.values()])
    kept = [n for n, (_, chosen) in enumerate(CHOICES.values()) if chosen]
    dataset = fetch()
    assert sorted(server.asked) == sorted([ZIP, *map(path, kept)])
    assert [labels.tolist() for labels in dataset.labels] == [[3], [3, 3], [3]]
    assert dataset[1][1]["boxes"].tolist() == [[50, 50, 200, 200], [250, 50, 285, 85]]
    said = capsys.readouterr().out
    assert "at most 3265 of its photographs to download: about 0.8 GB, and 2.3 GB of disk" in said
    assert "only 3 photographs of val2017 qualify: all of them are taken" in said
    assert "Wrote 3 images with 4 objects" in said


def test_no_more_than_the_limit(server, fetch):
    assert len(fetch("--limit", "2")) == 2
    assert sorted(server.asked) == sorted([ZIP, path(0), path(1)])


MENDED = ("break off", "stall", "429", "503", "no answer", "HTML", "cut", "smaller")


@pytest.mark.parametrize("fault", MENDED)
def test_one_fault_is_mended_by_asking_again(server, fetch, monkeypatch, fault):
    monkeypatch.setattr(module, "TIMEOUT", (5, 0.5 if fault == "stall" else 5))
    server.faults = {path(1): [fault, "none"]}
    assert len(fetch("--limit", "3")) == 3
    assert server.asked.count(path(1)) == 2 and path(3) not in server.asked


LASTING = {
    "break off": r"ChunkedEncodingError",
    "stall": r"ConnectionError|ReadTimeout",
    "503": "503 Server Error",
    "404": "404 Client Error",
    "no answer": "ConnectionError",
    "HTML": "is no whole picture of 160 x 120 pixels",
    "cut": "is no whole picture of 160 x 120 pixels",
    "smaller": "is no whole picture of 160 x 120 pixels",
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_photograph_that_cannot_be_had_is_named_and_the_next_taken(server, fetch, failed, monkeypatch, capsys, fault):
    """One of four may be left out, two not; what arrived is not fetched again."""
    monkeypatch.setattr(module, "TIMEOUT", (5, 0.5 if fault == "stall" else 5))
    server.faults = {path(0): [fault], path(2): [fault]}
    images = [rf"image {n} \(0{{11}}{n}.jpg\): .*({LASTING[fault]})" for n in (0, 2)]
    assert re.search("2 photographs cannot be fetched: " + ".*; ".join(images), failed("--limit", "4"))
    server.faults = {path(2): [fault]}
    server.asked.clear()
    assert len(fetch("--limit", "4")) == 4
    assert {path(2), path(4)} <= {*server.asked} and not {path(1), path(5), ZIP} & {*server.asked}
    assert re.search(f"left out: {images[1]}", capsys.readouterr().out)


def test_a_server_may_ask_for_a_wait_but_not_for_a_day(server, fetch, monkeypatch):
    waits = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waits.append)
    server.faults = {path(0): ["429", "none"]}  # its Retry-After is a day
    monkeypatch.setattr(module, "LONGEST_WAIT", 60)
    fetch("--limit", "1")
    assert 60 in waits


def test_annotations_go_on_where_they_broke_off(server, fetch, failed):
    """Of a third, in blocks of 2^16 bytes, one is kept; after two tries a second start asks for what is missing."""
    file = io.BytesIO(server.files[ZIP])
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("annotations/captions_val2017.json", bytes(300_000))
    server.files[ZIP], server.faults = file.getvalue(), {ZIP: ["break off"]}
    assert "cannot be fetched from 127.0.0.1 (ChunkedEncodingError): run it again with a network" in failed()
    server.faults = {}
    assert len(fetch("--limit", "1")) == 1
    assert server.ranges == [0, 2**16, 2 * 2**16, 0]


def test_annotations_that_are_all_there_are_not_fetched_again(server, fetch, tmp_path):
    (tmp_path / "out" / "download").mkdir(parents=True)
    (tmp_path / "out" / "download" / "annotations.zip.part").write_bytes(server.files[ZIP])
    assert len(fetch("--limit", "1")) == 1


WRONG_ZIPS = {
    "HTML": b"<html>log in</html>",
    "cut off": None,
    "of something else": b"PK\5\6" + bytes(18),  # an empty zip
}


@pytest.mark.parametrize("wrong", WRONG_ZIPS)
def test_a_wrong_zip_is_deleted(server, fetch, failed, wrong):
    whole = server.files[ZIP]
    server.files[ZIP] = WRONG_ZIPS[wrong] or whole[: len(whole) // 2]
    assert "is not COCO's zip, or not whole, and is deleted: run it again" in failed()
    server.files[ZIP] = whole
    assert len(fetch("--limit", "1")) == 1


def test_a_damaged_zip_is_deleted(server, fetch, failed):
    whole = server.files[ZIP]
    server.files[ZIP] = whole.replace(b'"dog"', b'"cat"')  # its checksums are still those of the dogs
    assert "is deleted: run it again" in failed()
    server.files[ZIP] = whole
    assert len(fetch("--limit", "1")) == 1


def test_without_a_network(server, failed, monkeypatch):
    monkeypatch.setattr(module, "ANNOTATIONS", "http://127.0.0.1:9/annotations.zip")
    ways = 'SOURCE = "synthetic", or photographs of your own by `python -m lib coco --images ...`'
    assert re.search(rf"cannot be fetched from 127.0.0.1 \(ConnectionError\): .*{re.escape(ways)}", failed())


def test_the_disk_keeps_a_gigabyte(server, failed, monkeypatch):
    usage = SimpleNamespace(free=module.LEFT_FREE + 1.5e9)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    assert re.search(r"2\.26 GB are still needed in .*, of its disk 1\.50 GB may be used: make room", failed())
    assert not server.asked
    usage.free = module.LEFT_FREE + 0.5e9
    assert "0.50 GB may be used" in failed("--limit", "1")


def test_a_larger_file_than_any_photograph_is_refused(server, failed, monkeypatch):
    monkeypatch.setattr(module, "MOST_PHOTO_BYTES", len(photograph()) - 1)
    assert "has more than 0 MB" in failed()


def test_no_picture_lies_outside_of_the_folder(server, fetch, tmp_path):
    coco = instances(server.url, [[("dog", DOG)]])
    coco["images"][0]["file_name"] = "../../../outside.jpg"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("annotations/instances_val2017.json", json.dumps(coco))
    server.files[ZIP] = file.getvalue()
    assert len(fetch()) == 1
    assert [found.parent.name for found in tmp_path.rglob("outside.jpg")] == ["val2017"]


def test_nothing_is_done_over_a_set_nor_without_a_number(server, fetch, failed):
    assert "--limit must be at least 1" in failed("--limit", "0")
    fetch("--limit", "1")
    server.asked.clear()
    with pytest.raises(SystemExit, match="exists: choose another --out"):
        fetch("--limit", "1")
    assert not server.asked


@pytest.mark.parametrize(
    "options, says",
    [
        ("--download val2017 --max-objects 2", "with --download go --out and --limit, not --max-objects"),
        ("--images x", "the following arguments are required: --annotations, --out"),
    ],
)
def test_options_that_do_not_go_together(options, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["coco", *options.split()])
    assert says in capsys.readouterr().err


def test_a_second_process_does_not_wait(server, failed, tmp_path):
    with one_at_a_time(tmp_path / "out" / "download", "tests"):
        assert "another process downloads photographs in" in failed()


def test_the_notebooks_download_what_is_missing(server, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKRCNN_DATA", str(tmp_path))
    config = load_config("demo")
    assert sources.what_is_made("coco", config) == module.cost(3265)
    folder = ensure_data("coco", config)
    assert folder == tmp_path / "coco" and len(CourseDataset(folder)) == 6
    server.asked.clear()
    assert ensure_data("coco", config) == folder and not server.asked
    assert sources.what_is_made("coco", config) == "data/coco as it is"
