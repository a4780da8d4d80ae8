"""What all six notebooks do: show the code that runs, follow one image, put a few images through the preprocessing.

    B  images    Hp x Wp  the network's input

Answers and exercises need nothing from here: they are plain cells.
"""

import inspect
from collections.abc import Sequence
from types import SimpleNamespace

from IPython.display import display
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from lib.config import Config
from lib.data.batches import collate, prepare
from lib.data.reader import CourseDataset
from lib.notebook import draw
from lib.preprocess import IMAGE_MEAN, IMAGE_STD

_PAGE = HtmlFormatter(noclasses=True, cssstyles="color: #222; padding: 0.5em 1em; overflow-x: auto")


def show(*pieces) -> None:
    """The source of functions, classes or modules as it stands in lib/, in a fixed-width font wherever it is read."""
    source = "\n\n".join(inspect.getsource(piece).rstrip() for piece in pieces)
    display({"text/plain": source, "text/html": highlight(source, PythonLexer(), _PAGE)}, raw=True)


def followed(dataset: CourseDataset) -> int:
    """The image that the notebooks follow from file to mask: the first that shows two classes, else two objects."""
    labels = [dataset.labels[n] for n in dataset.indices]
    return max(range(len(labels)), key=lambda i: (len(set(labels[i].tolist())) > 1, min(len(labels[i]), 2), -i))


def as_seen(dataset: CourseDataset, indices: Sequence[int], config: Config) -> SimpleNamespace:
    """These images as the network sees them (§2).

    `x` (B, 3, Hp, Wp) normalised and padded, `targets` with boxes in the network's frame, `content` (height, width) of
    what is no padding, and `pictures`, arrays (3, height, width) in [0, 1] of the content, to draw on.
    """
    images, targets = collate([dataset[i] for i in indices])
    x, targets, content = prepare(images, targets, config.image)
    pictures = [draw.denormalise(image, IMAGE_MEAN, IMAGE_STD)[:, : content[0], : content[1]] for image in x]
    return SimpleNamespace(x=x, targets=targets, content=content, pictures=pictures)
