"""What all browsers share: an image picker, a picture with its words, a status line, saving.

The only module that knows ipywidgets, of which it uses what 7.7 (Colab's) and 8 have in common.

A browser is a column of widgets. It looks at an image once (the last few are kept) and draws it anew whenever a
control is let go. While the kernel is idle, in between the messages of the page, it looks at the next image: nothing
runs beside a cell, so no training is disturbed, and there is nothing to lock.
"""

import asyncio
import base64
import html
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache, wraps
from io import BytesIO
from time import perf_counter
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from lib.data.batches import Examples
from lib.notebook.figures import REPORT_DPI, save_figure
from lib.notebook.pixels import WIDTH, encoded

STILL_QUALITY = 65  # of a JPEG, of 100
KEPT = 8  # images whose results a browser keeps
IDLE, LONG = 0.4, 0.5  # seconds: idle before the next image is looked at; where that takes longer, it is not done again
ALL = "all", -1  # of a list of choices the one for none, and its value
LEAST = 0.05  # score that a slider can ask for
IN_ORDER = "all images, in order"
KEYS = (
    "Keys: Tab leads from control to control; the arrow keys move a slider, and on “image” step through the images; "
    "the space bar presses a button or ticks a box; arrow up and down choose in a list."
)


def plural(count: int, word: str) -> str:
    """Count and word: "1 box", "1,204 boxes", "2 objects"."""
    return f"{count:,} {word}" + ("" if count == 1 else "es" if word.endswith("x") else "s")


def control(kind: str, description: str, hint: str, width: str = "340px", **traits) -> Any:
    """A widget with room for its description; the hint is read out by screen readers."""
    made = getattr(widgets, kind)(description=description, **traits)
    made.layout.width, made.layout.max_width, made.style.description_width = width, "calc(100% - 4px)", "170px"
    made.set_trait("tooltip" if made.has_trait("tooltip") else "description_tooltip", hint)  # ipywidgets 8 or 7.7
    return made


def slider(description: str, value: float, low: float, high: float, hint: str, step: float = 0.05) -> Any:
    """A wide slider that speaks when it is let go: each value costs a drawing and, in Colab, a picture's journey.

    Fractions are a choice among exact values: with some ranges 7.7's slider of numbers ends a step before the highest.
    """
    made = {"value": value, "continuous_update": False}
    if isinstance(step, int):
        return control("IntSlider", description, hint, f"{WIDTH}px", min=low, max=high, step=step, **made)
    values = {value, *(round(low + n * step, 2) for n in range(round((high - low) / step) + 1))}
    options = [(f"{v:.2f}", v) for v in sorted(values)]
    chooser = control("SelectionSlider", description, hint, f"{WIDTH}px", options=options, **made)
    chooser.layout.margin = "2px"  # as every other widget's: ipywidgets 8 leaves it out here
    return chooser


def tick(description: str, value: bool, hint: str) -> Any:
    box = control("Checkbox", description, hint, "auto", value=value, indent=False)
    box.layout.margin = "2px 12px 2px 24px"  # apart from what stands beside it
    return box


def button(description: str, hint: str, act: Callable[[], Any]) -> widgets.Button:
    made = widgets.Button(description=description, tooltip=hint, layout={"width": "auto"})
    made.on_click(lambda _: act())
    return made


def offer(chooser: Any, options: Sequence[tuple[str, Any]]) -> None:
    """Give a list other options; the value stays where it is among them, else the first is chosen."""
    if chooser.options != tuple(options):
        before, chooser.options = chooser.value, options
        chooser.value = before if before in [value for _, value in options] else options[0][1]


def alone(act: Callable[[Any], None]) -> Callable[..., None]:
    """A callback during which no other runs, whatever controls it changes; the status line tells its error."""

    @wraps(act)
    def acting(browser, *_) -> None:
        if not browser.busy:
            browser.busy = True
            try:
                act(browser)
            except Exception as error:  # a widget's callback has no other place to report to
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                browser.say(kind + (str(error) or "no more is known").splitlines()[0])
            finally:
                browser.busy = False

    return acting


class Browser(widgets.VBox):
    """The last expression of a cell. A browser says what it sees in an image, and how it draws that.

    `look(index)` gives what is kept of an image, `draw(seen, detail)` a Canvas and its description in words,
    `recorded(seen)` the few numbers of it that `orders` need. These are names -> how wrong image `index` is: such an
    order lists the images above 0, the worst first.
    """

    look: Callable[[int], Any]
    draw: Callable[[Any, int], tuple]
    recorded: Callable[[Any], Any]
    orders: Callable[[], Mapping[str, Callable[[int], float]]]
    _timer: asyncio.TimerHandle | None = None  # of the look at the next image

    def __init__(self, name: str, dataset: Examples, rows: Sequence[Sequence[widgets.Widget]], below=(), buttons=()):
        self.name, self.busy, self._ahead = name, False, True
        self.position = slider("image", 0, 0, 1, "which image of those that are gone through", 1)
        self.play = widgets.Play(interval=1500, max=1, layout={"width": "auto"})
        hint = "all images, or those in which something went wrong"
        self.order = control("Dropdown", "go through", hint, "480px", options=[IN_ORDER])
        self.picture = widgets.Image(format="jpeg", layout={"max_width": "100%", "width": f"{WIDTH}px"})
        self.words, self.status, keys = widgets.HTML(), widgets.HTML(), widgets.HTML(_spoken(KEYS))
        steps = button("◀ back", "the image before", lambda: self.step(-1)), button("next ▶", "", lambda: self.step(1))
        saved = button("Save figure", "write this picture to the folder of figures, as PDF and as PNG", self.save)
        lines = [
            widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in ([*steps, self.play, *buttons, saved], *rows)
        ]
        shown = self.status, self.picture, self.words, *below, keys
        super().__init__([self.position, lines[0], self.order, *lines[1:], *shown])
        widgets.link((self.play, "value"), (self.position, "value"))
        self.order.observe(self.go_through, "value")
        for changed in (self.position, *(made for row in rows for made in row), *below):
            changed.observe(self.redraw, "value")
        self.show_set(dataset)

    def _ipython_display_(self) -> None:
        """The widget and, for pages that show none (GitHub), the picture as it is now and a sentence, in one output."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        words = f"Browser of {self.name}: a still picture; its controls appear where this notebook runs."
        with BytesIO() as file:  # it is kept in the notebook: a third of the bytes
            Image.open(BytesIO(self.picture.value)).save(file, "JPEG", quality=STILL_QUALITY)
            still = {"image/jpeg": base64.b64encode(file.getvalue()).decode(), "text/plain": words}
        display({"application/vnd.jupyter.widget-view+json": view} | still, raw=True)

    def show_set(self, dataset: Examples) -> None:
        """Show this data set from its first image on; ValueError for one without images."""
        if not len(dataset):
            raise ValueError("this data set has no images: choose another split, or write the data again")
        self.dataset, self.see = dataset, lru_cache(KEPT)(self.look)
        self.record = cache(lambda index: self.recorded(self.see(index)))
        self.busy = True
        self.order.options = [IN_ORDER, *self.orders()]
        self._list(IN_ORDER, list(range(len(dataset))), 0)
        self.busy = False
        self.redraw()

    @property
    def index(self) -> int:
        """Of the image shown, in the data set."""
        return self.images[min(self.position.value, len(self.images) - 1)]

    @alone
    def go_through(self) -> None:
        """List the images in the order chosen; each is looked at for that, with a word on how far that is."""
        order, before, wrong = self.order.value, self.index, {}
        worst = self.orders().get(order, lambda index: 1)
        self.order.value = self.listed  # until there is another list
        for index in range(len(self.dataset)):
            if index % 10 == 0:
                self.say(f"looking at image {index + 1:,} of {len(self.dataset):,} …")
            wrong[index] = worst(index)
        images = sorted((n for n in wrong if wrong[n] > 0), key=lambda n: -wrong[n])
        if not images:
            raise ValueError(f"no image belongs to “{order}”: the list stays as it was")
        stays = before in images and order in (self.listed, IN_ORDER)  # an order chosen anew begins with the worst
        self.order.value = order
        self._list(order, images, images.index(before) if stays else 0)
        self._draw()

    def list_again(self, _=None) -> None:
        """List the images anew where the list rests on a number that has changed."""
        if self.listed != IN_ORDER:
            self.go_through()

    def _list(self, order: str, images: list[int], at: int) -> None:
        self.listed, self.images = order, images
        self.position.max = self.play.max = max(1, len(images) - 1)  # a slider needs room
        self.position.value = at

    def step(self, by: int) -> None:
        self.position.value = (self.position.value + by) % len(self.images)

    @alone
    def redraw(self) -> None:
        """Draw the image with the controls as they are; an image not seen before is looked at first."""
        self._draw()

    def _draw(self) -> None:
        canvas, words = self.draw(self.see(self.index), 1)
        self.drawn = canvas.finished()
        place = f", the {self.position.value + 1:,}. of {len(self.images):,} in “{self.listed}”"
        place *= self.listed != IN_ORDER
        self.picture.value, self.words.value = encoded(self.drawn), _spoken(f"Image {self.index:,}{place}: {words}")
        self.say("")
        with suppress(RuntimeError):  # no loop runs in a plain Python process
            loop = asyncio.get_running_loop()
            if self._timer:
                self._timer.cancel()
            self._timer = loop.call_later(IDLE, self.prefetch) if self._ahead else None

    def prefetch(self) -> None:
        """Look at the next image now."""
        start = perf_counter()
        with suppress(Exception):  # told when it is shown
            self.see(self.images[(self.position.value + 1) % len(self.images)])
        self._ahead = perf_counter() - start < LONG  # else a control would wait for it too long

    @alone
    def save(self) -> None:
        """Write the picture, twice as fine, to the folder of figures, and say the names."""
        picture = self.draw(self.see(self.index), 2)[0].finished()
        figure = Figure(figsize=(picture.width / REPORT_DPI, picture.height / REPORT_DPI))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(np.asarray(picture), interpolation="none")
        axes.axis("off")
        pdf, png = save_figure(figure, f"browser_{self.name}_{self.index}")
        self.say(f"saved {pdf.name} and {png.name} in {pdf.parent}")

    def say(self, text: str) -> None:
        """Put a sentence into the status line."""
        self.status.value = _spoken(text) if text else ""


def _spoken(text: str) -> str:
    """Text that a screen reader reads out when it changes."""
    return f'<div role="status" style="max-width: {WIDTH}px; line-height: 1.4">{html.escape(text)}</div>'
