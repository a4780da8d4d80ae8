"""A browser's output: the widget for a page that can show one, and beside it a picture for one that cannot."""

import base64
import io
import re

import nbformat
from nbclient import NotebookClient
from PIL import Image

from lib.machine.folders import root
from lib.notebook.execute import METADATA, WIDGET, _clean

CELL = f"""
import sys; sys.path.insert(0, {str(root())!r})
import torch
from lib.config import load_config
from lib.notebook.browser import AnchorBrowser
target = {{"boxes": torch.tensor([[20.0, 20, 120, 120]]), "labels": torch.tensor([1])}}
red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 300, 400)
AnchorBrowser([(red, target)], load_config("demo", ["image.height=60", "image.width=80"]))
"""


def test_one_output_has_the_widget_a_picture_and_a_sentence_and_the_committed_one_no_widget(tmp_path):
    cell = nbformat.v4.new_code_cell(CELL)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=METADATA)
    NotebookClient(notebook, kernel_name="python3", store_widget_state=True).execute()
    (output,) = notebook.cells[0].outputs
    assert output.data.keys() == {WIDGET, "image/jpeg", "text/plain"}
    states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    assert states[output.data[WIDGET]["model_id"]]["model_name"] == "VBoxModel"
    _clean(notebook, tmp_path)
    (output,) = notebook.cells[0].outputs
    picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/jpeg"])))
    middle = picture.getpixel((picture.width // 2, picture.height // 2))
    assert picture.format == "JPEG" and picture.width == 800 and middle[0] > 150 > 50 > max(middle[1:])
    assert set(output.data) == {"image/jpeg", "text/plain"} and re.match(
        r"Browser of anchors: \w", output.data["text/plain"]
    )
