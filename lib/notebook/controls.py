"""What all browsers share: an image picker, a picture with its words, a status line, saving.

The only module that knows ipywidgets, of which it uses what 7.7 (Colab's) and 8 have in common.

A browser is a column of widgets. It looks at an image once (the last few are kept) and draws it anew whenever a
control is let go. While the kernel is idle, in between the messages of the page, it looks at the next image: nothing
runs beside a cell, so no training is disturbed, and there is nothing to lock.
"""

import asyncio
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from time import perf_counter
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from lib.data.batches import Examples
from lib.notebook.figures import REPORT_DPI, save_figure
from lib.notebook.pixels import WIDTH, Canvas, encoded

KEPT = 8  # images whose results a browser keeps
IDLE, LONG = 0.4, 0.5  # seconds: without a message before the next image is looked at; images that take more are not
ALL = "all"
CAPTIONED = 20  # boxes of a kind that get a caption, at most
LEAST = 0.05  # score that a slider can ask for
IN_ORDER = "all images, in order"
KEYS = (
    "Keys: Tab leads from control to control; the arrow keys move a slider, and on “image” step through the images; "
    "the space bar presses a button or ticks a box; arrow up and down choose in a list."
)


def plural(count: int, word: str) -> str:
    """ "1 object", "1,204 objects"; of a word in -ss or -x its -es."""
    return f"{count:,} {word}" + ("" if count == 1 else "es" if word.endswith(("ss", "x")) else "s")


def slider(description: str, value: float, low: float, high: float, step: float, hint: str) -> widgets.Widget:
    """A wide slider that speaks when it is let go: each value costs a drawing and, in Colab, a picture's journey."""
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    control = kind(value, min=low, max=high, step=step, description=description, continuous_update=False)
    return _laid_out(control, "560px", hint)


def choice(description: str, options: Sequence, hint: str, width: str = "340px") -> widgets.Dropdown:
    return _laid_out(widgets.Dropdown(options=options, description=description), width, hint)


def tick(description: str, value: bool, hint: str) -> widgets.Checkbox:
    box = widgets.Checkbox(value=value, description=description, indent=False)
    _laid_out(box, "auto", hint).layout.margin = "2px 24px 2px 0"
    return box


def rows_to_pick(hint: str) -> widgets.Select:
    """A list of rows, one of which can be chosen; the first is for none."""
    return _laid_out(widgets.Select(options=[("nothing", ())], rows=6, description="highlight"), f"{WIDTH}px", hint)


def offer(control: Any, options: Sequence[tuple[str, Any]]) -> None:
    """Give a list other options; the value stays where it is among them, else the first is chosen."""
    if tuple(control.options) != tuple(options):
        before = control.value
        control.options = options
        control.value = before if before in [value for _, value in options] else options[0][1]


def button(description: str, hint: str, act: Callable[[], Any], width: str = "auto") -> widgets.Button:
    control = widgets.Button(description=description, tooltip=hint, layout={"width": width})
    control.on_click(lambda _: act())
    return control


def _laid_out(control: Any, width: str, hint: str) -> Any:
    control.layout.width, control.style.description_width = width, "170px"
    setattr(control, "tooltip" if control.has_trait("tooltip") else "description_tooltip", hint)  # ipywidgets 8 and 7.7
    return control


class Browser(widgets.VBox):
    """The last expression of a cell. A browser says what it sees in an image, and how it draws that.

    `look(index)` gives what is kept of an image, `draw(seen, detail)` a canvas and its description in words; `orders`
    name ways to go through the images, by how wrong each is: those above 0, the worst first.
    """

    def __init__(self, name: str, dataset: Examples, rows: Sequence[Sequence[widgets.Widget]], below=()):
        self.name, self._timer, self._drawing, self._took = name, None, False, 0.0
        self.position = slider("image", 0, 0, 1, 1, "which image, in the order chosen below")
        self.play = widgets.Play(interval=1500, max=1, description="play", layout={"width": "140px"})
        self.order = choice("go through", [IN_ORDER], "all images, or those in which something went wrong", "440px")
        self.picture = widgets.Image(format="jpeg", layout={"max_width": "100%", "width": f"{WIDTH}px"})
        self.words, self.status = widgets.HTML(), widgets.HTML()
        self.steps = [button(text, hint, lambda by=by: self.step(by), "90px") for text, hint, by in (
            ("◀ back", "the image before", -1), ("next ▶", "the image after", 1))]  # fmt: skip
        saved = button("Save figure", "write this picture to the folder of figures, as PDF and as PNG", self.save)
        self.buttons = widgets.HBox([*self.steps, self.play, saved])
        lines = [widgets.HBox(list(row), layout={"flex_flow": "row wrap"}) for row in rows]
        keys = widgets.HTML(f'<small style="color: #555">{KEYS}</small>')
        top = [self.position, self.buttons, self.order, *lines, self.status]
        super().__init__([*top, self.picture, self.words, *below, keys])
        self.controls = [control for row in rows for control in row]
        widgets.link((self.play, "value"), (self.position, "value"))
        self.order.observe(lambda _: self.go_through(), "value")
        for control in (self.position, *self.controls):
            control.observe(self.redraw, "value")
        self.show_set(dataset)

    def look(self, index: int) -> Any:
        """What is kept of an image."""
        raise NotImplementedError

    def draw(self, seen: Any, detail: int) -> tuple[Canvas, str]:
        """What is kept of an image -> it drawn as the controls say, and described in words."""
        raise NotImplementedError

    def recorded(self, seen: Any) -> Any:
        """The few numbers that `orders` need of an image; kept of each image that was asked for."""
        raise NotImplementedError

    def orders(self) -> Mapping[str, Callable[[int], float]]:
        """Names of orders -> how wrong an image is, given its index."""
        return {}

    def show_set(self, dataset: Examples) -> None:
        """Show this data set from its first image on; ValueError for one without images."""
        if not len(dataset):
            raise ValueError("this data set has no images: choose another split, or write the data again")
        self.dataset, self.see, self.record = dataset, lru_cache(KEPT)(self._look), cache(self._recorded)
        with self._held():
            self.order.options = [IN_ORDER, *self.orders()]
            self._list(IN_ORDER, list(range(len(dataset))))
        self.redraw()

    @property
    def index(self) -> int:
        """Of the image shown, in the data set."""
        return self.images[self.position.value]

    def go_through(self) -> None:
        """List the images in the order chosen; each is looked at for that, with a word on how far that is."""
        if self._drawing:
            return
        with self._told():
            with self._held():
                self._list_worst(self.order.value)
            self.redraw()

    def list_again(self, _=None) -> None:
        """List the images anew where the list rests on a number that has changed."""
        if self.listed != IN_ORDER:
            self.go_through()

    def _list_worst(self, order: str) -> None:
        worst, wrong, before = self.orders().get(order), {}, self.index
        self.order.value = self.listed  # until there is another list
        for index in range(len(self.dataset)):
            if worst and index % 10 == 0:
                self.say(f"looking at image {index + 1:,} of {len(self.dataset):,} …")
            wrong[index] = worst(index) if worst else 1
        images = sorted((n for n in wrong if wrong[n] > 0), key=lambda n: -wrong[n])
        if not images:
            raise ValueError(f"no image belongs to “{order}”: the list stays as it was")
        stays = before in images and order in (self.listed, IN_ORDER)  # an order chosen anew begins with the worst
        at = images.index(before) if stays else 0
        self.order.value = order
        self._list(order, images, at)

    def _list(self, order: str, images: list[int], at: int = 0) -> None:
        self.listed, self.images = order, images
        self.position.max = self.play.max = max(1, len(images) - 1)
        self.position.value = at

    def step(self, by: int) -> None:
        self.position.value = (self.position.value + by) % len(self.images)

    def redraw(self, _=None) -> None:
        """Draw the image with the controls as they are; an image not seen before is looked at first."""
        if self._drawing:
            return
        with self._told(), self._held():
            canvas, words = self.draw(self.see(self.index), 1)
            self.drawn = canvas.finished()
            self.picture.value, self.words.value = encoded(self.drawn), _spoken(self._where() + words)
            self.say("")
            self._look_ahead()

    def _where(self) -> str:
        listed = f", the {self.position.value + 1:,}. of {len(self.images):,} in “{self.listed}”" * (
            self.listed != IN_ORDER
        )
        return f"Image {self.index:,}{listed}: "

    def save(self) -> None:
        """Write the picture, twice as fine, to `figures/`, and say the names."""
        with self._told(), self._held():
            picture = self.draw(self.see(self.index), 2)[0].finished()
            figure = Figure(figsize=(picture.width / REPORT_DPI, picture.height / REPORT_DPI))
            axes = figure.add_axes((0, 0, 1, 1))
            axes.imshow(np.asarray(picture), interpolation="none")
            axes.axis("off")
            files = save_figure(figure, f"browser_{self.name}_{self.index}")
            self.say(f"saved {' and '.join(file.name for file in files)} in {files[0].parent}")

    def say(self, text: str) -> None:
        """Put a sentence into the status line."""
        self.status.value = _spoken(text) if text else ""

    @contextmanager
    def _told(self) -> Iterator[None]:
        """An error is told in the status line: a widget's callback has no other place to report to."""
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self.say(kind + (str(error) or "no more is known").splitlines()[0])

    @contextmanager
    def _held(self) -> Iterator[None]:
        """A control that changes meanwhile draws nothing."""
        before, self._drawing = self._drawing, True
        try:
            yield
        finally:
            self._drawing = before

    def _recorded(self, index: int) -> Any:
        return self.recorded(self.see(index))

    def _look(self, index: int) -> Any:
        start = perf_counter()
        seen = self.look(index)
        self._took = perf_counter() - start
        return seen

    def _look_ahead(self) -> None:
        with suppress(RuntimeError):  # no loop runs in a plain Python process
            if self._timer:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(IDLE, self.prefetch)

    def prefetch(self) -> None:
        """Look at the next image now, unless an image takes so long that a control would wait for it."""
        if self._took < LONG:
            with suppress(Exception):  # told when it is shown
                self.see(self.images[(self.position.value + 1) % len(self.images)])


def _spoken(text: str) -> str:
    """Text that a screen reader reads out when it changes."""
    return f'<div role="status" style="max-width: {WIDTH}px">{html.escape(text)}</div>'
