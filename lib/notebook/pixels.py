"""A picture with boxes, masks and a legend, drawn as pixels at the size it is shown: what the browsers show.

    D  boxes or masks    h x w  the frame that boxes are in, or a grid stretched over it    H x W  the picture as given
    boxes are xyxy in pixels of the frame; what a canvas draws is in pixels of the picture shown, WIDTH a row

A kind of box has a colour and a line of its own, so that it is told from the others without colour too; colours are
those of `draw`. The legend holds what was drawn, and nothing else. `detail` 2 draws everything twice as fine.
"""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from lib.boxes import Size
from lib.notebook import overlay
from lib.notebook.draw import COLOURS, class_colour

WIDTH = 800  # pixels of a picture, as shown
TEXT = 13  # pixels of a line of text, as shown
LINES = {name: np.array([c == "#" for c in tile]) for name, tile in {  # along a line, which pixels are drawn
    "solid": "#", "double": "#", "dashed": "########....", "dotted": "###...", "dash-dotted": "########...###...",
}.items()}  # fmt: skip
STYLES = {  # of a kind of box: colour, line, its width
    "ground truth": (COLOURS["truth"], "dashed", 3),
    "positive": (COLOURS["positive"], "solid", 2),
    "negative": (COLOURS["negative"], "dotted", 2),
    "ignored": (COLOURS["ignored"], "double", 1),
    "across the boundary": ("#CC79A7", "dash-dotted", 2),
    "anchor": (COLOURS["positive"], "solid", 2),
    "proposal": (COLOURS["predicted"], "solid", 2),
    "suppressed by NMS": ("#FFFFFF", "dotted", 1),
}
AREAS = {"hit": ("#56B4E9", 0), "false": ("#D55E00", 1), "missed": ("#F0E442", 2)}  # of pixels: colour and hatching
_VIRIDIS = (matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
_DARK = (20, 20, 20)


@lru_cache(4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


class Canvas:
    """A picture (3, H, W) uint8 that fills `content` (height, width) of a frame, with a `margin` of frame pixels.

    `frame` is the content, or more than it: what lies outside of the content is dark.
    """

    def __init__(self, picture: Tensor, content: Size, frame: Size | None = None, margin: int = 0, detail: int = 1):
        self.frame, self.detail = frame or content, detail
        self.zoom = WIDTH * detail / (self.frame[1] + 2 * margin)
        self.corner, self.content = round(margin * self.zoom), self._shown(content)
        height = self._shown(self.frame)[0] + 2 * self.corner
        self.image = Image.new("RGB", (WIDTH * detail, height), "#404040")
        pixels = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        self.image.paste(pixels.resize(self.content[::-1], Image.Resampling.BILINEAR), (self.corner, self.corner))
        self.rings: list[tuple[np.ndarray, str, str, int]] = []
        self.captions: list[tuple[np.ndarray, str, str]] = []
        self.legend: dict[str, tuple] = {}  # words -> what its sample is drawn with
        self.captioned: list[overlay.Rectangle] = []

    def _shown(self, size: Size) -> Size:
        return max(1, round(size[0] * self.zoom)), max(1, round(size[1] * self.zoom))

    def boxes(self, boxes: Tensor, kind: str, captions: Sequence[str] = (), labels=None, names=(), line=None) -> None:
        """Boxes (D, 4) of a kind in STYLES; or of classes, each in the colour of its label (D,), named in `names`."""
        shown = (boxes * self.zoom + self.corner).round().int().numpy()
        colour, own_line, width = STYLES.get(kind, ("", "solid", 2))
        colours = [colour] * len(shown) if labels is None else [class_colour(int(n)) for n in labels]
        for box, colour in zip(shown, colours, strict=True):
            self.rings.append((box, colour, line or own_line, width * self.detail))
        words = [kind] * len(shown) if labels is None else [names[int(n)] for n in labels]
        self.legend |= {w: (c, line or own_line, width) for w, c in zip(words, colours, strict=True)}
        self.captions += [(b, c, text) for b, c, text in zip(shown, colours, captions, strict=False) if text]

    def masks(self, masks: np.ndarray, colours: Sequence[str], names: Sequence[str], opacity: float, dashed=False):
        """Masks (D, h, w) of 0 and 1 in the content, the first on top, tinted by `opacity` in 0 to 1, with an edge."""
        if not len(masks):
            return
        owner = np.where(masks.any(axis=0), masks.argmax(axis=0) + 1, 0)  # (h, w): 0, or whose the pixel is
        around = np.pad(owner, 1)
        sides = around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]
        edge = (owner > 0) & np.any([side != owner for side in sides], axis=0)
        if dashed:
            edge &= np.add.outer(*map(np.arange, edge.shape)) // 4 % 2 == 0
        strength = np.where(edge, 255, np.where(owner > 0, round(255 * opacity), 0)).astype(np.uint8)
        table = np.array([(0, 0, 0), *map(ImageColor.getrgb, colours)], np.uint8)
        self._blend(table[owner], strength)
        self.legend = {name: (colour, 0, None) for name, colour in zip(names, colours, strict=True)} | self.legend

    def areas(self, masks: dict[str, np.ndarray], opacity: float) -> None:
        """Masks (h, w) bool, by their name in AREAS, hatched in three ways."""
        for name, mask in masks.items():
            if mask.any():
                colour, hatching = AREAS[name]
                strength = self._stretched(mask.astype(np.uint8) * 255)
                strength = np.where(_hatched(strength.shape, hatching, self.detail), strength, strength // 4)
                self.image.paste(colour, (self.corner, self.corner), Image.fromarray((strength * opacity).astype("u1")))
                self.legend[f"{name} pixels"] = (colour, hatching, None)

    def heat(self, maps: Sequence[Tensor], words: str, opacity: float = 0.6) -> None:
        """Maps (h, w) in [0, 1], each stretched over the whole frame, the highest where there are several."""
        size, highest = self._shown(self.frame)[::-1], np.zeros(1, np.uint8)
        for values in maps:
            cells = Image.fromarray((values.clamp(0, 1) * 255).byte().numpy())
            highest = np.maximum(highest, np.asarray(cells.resize(size, Image.Resampling.NEAREST)))
        heat = Image.fromarray(_VIRIDIS[highest])
        self.image.paste(heat, (self.corner, self.corner), Image.new("L", size, round(255 * opacity)))
        self.legend[words] = ("viridis", None, None)

    def finished(self) -> Image.Image:
        """The picture with its boxes, with captions beside their boxes where no other is, and below it the legend."""
        pixels = np.array(self.image)
        for ring in reversed(self.rings):  # what came first is on top
            _outline(pixels, *ring, self.detail)
        image, font, self.captioned = Image.fromarray(pixels), _font(TEXT * self.detail), []
        canvas = ImageDraw.Draw(image)
        for (x1, y1, x2, y2), colour, text in self.captions:
            w, h = round(font.getlength(text)) + 4, round(1.35 * font.size)
            near = (x1, y1 - h), (x2 - w, y1 - h), (x1, y1), (x1, y2), (x2 - w, y2), (x1, y2 - h), (x2 - w, y1)
            if where := overlay.first_free(overlay.within(near, (w, h), image.size), self.captioned):
                self.captioned.append(where)
                overlay.write(canvas, where, text, colour, font)
        return self._with_legend(image) if self.legend else image

    def _with_legend(self, image: Image.Image) -> Image.Image:
        font, step = _font(TEXT * self.detail), 22 * self.detail
        places, x, y = [], 4 * self.detail, 0
        for words in self.legend:
            wide = 36 * self.detail + round(font.getlength(words)) + 16 * self.detail
            if x + wide > image.width and x > 4 * self.detail:
                x, y = 4 * self.detail, y + step
            places.append((x, y + image.height))
            x += wide
        whole = Image.new("RGB", (image.width, image.height + y + step), "white")
        whole.paste(image)
        pixels = np.array(whole)
        for (x, y), sample in zip(places, self.legend.values(), strict=True):
            _sample(
                pixels, np.array([x, y + step // 5, x + 30 * self.detail, y + step - step // 8]), sample, self.detail
            )
        whole = Image.fromarray(pixels)
        for (x, y), words in zip(places, self.legend, strict=True):
            ImageDraw.Draw(whole).text((x + 36 * self.detail, y + step // 6), words, fill="black", font=font)
        return whole

    def _stretched(self, grid: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(grid).resize(self.content[::-1], Image.Resampling.NEAREST))

    def _blend(self, colours: np.ndarray, strength: np.ndarray) -> None:
        """Colours (h, w, 3), strength (h, w), both uint8, over the content."""
        over, mask = (Image.fromarray(self._stretched(grid)) for grid in (colours, strength))
        self.image.paste(over, (self.corner, self.corner), mask)


def encoded(image: Image.Image) -> bytes:
    """As JPEG with colours at full resolution: a tenth of the time of PNG, a sixth of the bytes."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=90, subsampling=0)
        return file.getvalue()


def _outline(pixels: np.ndarray, box: np.ndarray, colour: str, line: str, width: int, detail: int) -> None:
    """A box (4,) of a line style, `width` pixels inwards from its edges, with a dark rim."""
    on, rgb = np.resize(LINES[line].repeat(detail), max(pixels.shape)), ImageColor.getrgb(colour)
    if line == "double":
        _ring(pixels, box, width, width, _DARK, on)
        _ring(pixels, box, 2 * width, width, rgb, on)
    else:
        _ring(pixels, box, -detail, width + 2 * detail, _DARK, on)
    _ring(pixels, box, 0, width, rgb, on)


def _ring(pixels: np.ndarray, box: np.ndarray, inset: int, width: int, rgb: tuple, on: np.ndarray) -> None:
    x1, y1, x2, y2 = (int(v) for v in box + np.array([1, 1, -1, -1]) * inset)
    left, top, right, bottom = (max(0, v) for v in (x1, y1, x2, y2))
    for start in (y1, y2 - width):
        band = pixels[max(0, start) : max(0, start + width), left:right]
        band[:, on[left : left + band.shape[1]]] = rgb
    for start in (x1, x2 - width):
        band = pixels[top:bottom, max(0, start) : max(0, start + width)]
        band[on[top : top + band.shape[0]]] = rgb


def _hatched(shape: Size, hatching: int, detail: int) -> np.ndarray:
    """Which pixels (h, w) of an area are strong: all, diagonal stripes, or dots."""
    y, x = (np.arange(n) // (2 * detail) for n in shape)
    if hatching == 1:
        return np.add.outer(y, x) % 4 < 2
    return np.logical_and.outer(y % 3 < 2, x % 3 < 2) if hatching else np.ones(shape, bool)


def _sample(pixels: np.ndarray, box: np.ndarray, sample: tuple, detail: int) -> None:
    """A legend's sample of a line, an area or a scale of colours."""
    colour, style, width = sample
    x1, y1, x2, y2 = box
    if width is not None:
        pixels[y1:y2, x1:x2] = 128
        _outline(pixels, box, colour, style, width * detail, detail)
    elif colour == "viridis":
        pixels[y1:y2, x1:x2] = _VIRIDIS[np.linspace(0, 255, x2 - x1).astype(int)]
    else:
        strong = _hatched((y2 - y1, x2 - x1), style, detail)[..., None]
        pixels[y1:y2, x1:x2] = np.where(strong, ImageColor.getrgb(colour), 128)
