"""Real Jupyters in a real browser: JupyterLab with ipywidgets 8, and classic Notebook with 7.7, which is Colab's pair.

The second pair lies in `.venv/classic` (`make test` puts it there, from requirements-classic.txt), beside the packages
of the environment and found before them by PYTHONPATH alone. A `Page` is a notebook as its reader sees it, and the same
for both: controls are found by the words beside them and moved by keyboard or mouse.
"""

import base64
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

from lib.machine.folders import root
from lib.notebook.execute import METADATA

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CLASSIC = root() / ".venv" / "classic"
SECONDS = 150  # to wait for what takes one on an idle machine
OPTIONS = ["--no-browser", "--allow-root"]
LAB = ["-m", "jupyterlab", "--IdentityProvider.token=", "--LabApp.news_url=None", "--ServerApp.root_dir=."]
NOTEBOOK = ["-m", "notebook", "--NotebookApp.token=", "--NotebookApp.notebook_dir=."]
PIXELS = """async image => {
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL("image/png").split(",")[1];
}"""


def missing(kind: str) -> list[str]:
    """What this machine lacks for the tests with `kind`, "lab" or "classic"."""
    names = ["playwright"] + ["jupyterlab"] * (kind == "lab")
    lacking = [name for name in names if find_spec(name) is None] + ["chromium"] * (CHROMIUM is None)
    return lacking + [f"{CLASSIC} (make test)"] * (kind == "classic" and not (CLASSIC / "notebook").is_dir())


@contextmanager
def served(kind: str, folder: Path) -> Iterator[str]:
    """A Jupyter that serves a folder, its own state in there too -> its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | folders | {"IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "1"}
    environment["MASKRCNN_FIGURES"] = str(folder / "figures")
    if kind == "classic":
        paths = {"PYTHONPATH": "", "JUPYTER_PATH": "share/jupyter", "JUPYTER_CONFIG_PATH": "etc/jupyter"}
        environment |= {name: str(CLASSIC / path) for name, path in paths.items()}
    command = [sys.executable, *(LAB if kind == "lab" else NOTEBOOK), *OPTIONS, f"--port={port}"]
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()  # its kernel ends with it
            server.wait()


def _wait_for(address: str, server: subprocess.Popen) -> None:
    for _ in range(2 * SECONDS):
        assert server.poll() is None, "Jupyter did not start"
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)


def write_notebook(path: Path, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)), metadata=METADATA)
    nbformat.write(notebook, path)


class Page:
    """A notebook that is open in a browser."""

    def __init__(self, kind: str, page, address: str, name: str):
        self.kind, self.page = kind, page
        page.set_default_timeout(SECONDS * 1000)
        page.goto(f"{address}/{'lab/tree' if kind == 'lab' else 'notebooks'}/{name}")
        # a cell that is run before its kernel is there is dropped
        (page.get_by_text("| Idle") if kind == "lab" else page.locator(".kernel_idle_icon")).wait_for()

    def run_all(self) -> None:
        """By the menu."""
        menu, entry = ("Run", "Run All Cells") if self.kind == "lab" else ("Cell", "Run All")
        self.page.locator(".lm-MenuBar-content, #menubar").get_by_text(menu, exact=True).click()
        self.page.locator(".lm-Menu-item, #cell_menu li").get_by_text(entry, exact=True).click()

    def pictures(self, number: int) -> "Pictures":
        """The browser of pictures that stands there as so many-th, from 0."""
        return Pictures(self.page.locator(".widget-vbox:has(> .widget-image)").nth(number))


class Pictures:
    """Controls above a picture and words on it; a control is found by the words beside it."""

    def __init__(self, box):
        self.box, self.picture = box, box.locator("img.widget-image")
        self.picture.wait_for()

    def control(self, words: str):
        return self.box.locator(f'xpath=.//label[normalize-space()="{words}"]/..')

    def press(self, slider: str, *keys: str) -> None:
        """Press these keys on a slider, one after another; the picture follows each."""
        for key in keys:
            self.redrawn(lambda key=key: self.control(slider).locator("[tabindex='0']").press(key))

    def readout(self, slider: str) -> str:
        return self.control(slider).locator(".widget-readout").inner_text()

    def tick(self, words: str) -> None:
        self.redrawn(self.control(words).locator("input").click)

    def choose(self, words: str, option: str) -> None:
        self.redrawn(lambda: self.control(words).locator("select").select_option(label=option))

    def click(self, words: str) -> None:
        self.redrawn(self.button(words).click)

    def button(self, words: str):
        return self.box.get_by_role("button", name=words, exact=True)

    def redrawn(self, act: Callable[[], object]) -> None:
        """Do something, and wait until there is another picture."""
        source = self.picture.get_attribute("src")
        act()
        self.picture.and_(self.box.locator(f"img:not([src='{source}'])")).wait_for()

    def says(self, words: str | re.Pattern) -> None:
        """Wait until a line beside the picture says this."""
        self.box.locator(".widget-html").filter(has_text=words).first.wait_for()

    def pixels(self) -> np.ndarray:
        """The picture (h, w, 3) in its own size, whatever the page shows it at."""
        data = base64.b64decode(self.picture.evaluate(PIXELS))
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
