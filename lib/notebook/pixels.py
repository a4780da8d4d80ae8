"""A picture with boxes, masks and a legend, drawn as pixels at the size it is shown: what the browsers show.

    D  boxes or masks    h x w  the frame that boxes are in, or a grid stretched over it    H x W  the picture as given
    boxes are xyxy in pixels of the frame; what a canvas draws is in pixels of the picture shown, WIDTH a row

A kind of box has a colour and a line of its own, so that it is told from the others without colour too; colours are
those of `draw`. The legend holds what was drawn, and nothing else. `detail` 2 draws everything twice as fine.
"""

import io
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from lib.boxes import Size
from lib.notebook import overlay
from lib.notebook.draw import COLOURS, class_colour

WIDTH, TEXT = 800, 13  # pixels of a picture and of a line of text, as shown
CAPTIONED = 20  # boxes of one call that get a caption, at most
TILES = {"dashed": "########....", "dotted": "###...", "dash-dotted": "########...###..."}  # what is drawn of a line
STYLES = {  # of a kind of box: colour, line, its width
    "ground truth": (COLOURS["truth"], "dashed", 3),
    "positive": (COLOURS["positive"], "solid", 2),
    "negative": (COLOURS["negative"], "dotted", 2),
    "ignored": (COLOURS["ignored"], "double", 1),
    "across the boundary": ("#CC79A7", "dash-dotted", 2),
    "anchor": (COLOURS["positive"], "solid", 2),
    "proposal": (COLOURS["predicted"], "solid", 2),
    "detection": (COLOURS["predicted"], "solid", 2),  # or its class's colour
    "suppressed by NMS": ("#FFFFFF", "dotted", 1),
}
AREAS = {"hit": "#56B4E9", "false": "#D55E00", "missed": "#F0E442"}  # of pixels: plain, striped, chequered
_VIRIDIS = (matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
_FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
_font = lru_cache(4)(ImageFont.truetype)


class Canvas:
    """A picture (3, H, W) uint8 that fills `content` (height, width) of a frame, with a `margin` of frame pixels.

    `frame` is the content, or more than it: what lies outside of the content is dark.
    """

    def __init__(self, picture: Tensor, content: Size, frame: Size | None = None, margin: int = 0, detail: int = 1):
        self.frame, self.detail = frame or content, detail
        self.zoom = WIDTH * detail / (self.frame[1] + 2 * margin)
        self.corner, self.content = (round(margin * self.zoom),) * 2, self._shown(content)
        self.image = Image.new("RGB", (WIDTH * detail, self._shown(self.frame)[1] + 2 * self.corner[0]), "#606060")
        self.image.paste(
            Image.new("RGB", self._shown(self.frame), "#181818"), self.corner
        )  # seen where there is padding
        pixels = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        self.image.paste(pixels.resize(self.content, Image.Resampling.BILINEAR), self.corner)
        self.outlines: list[tuple[np.ndarray, str, str, int]] = []
        self.captions: list[tuple[np.ndarray, str, str]] = []
        self.captioned: list[overlay.Rectangle] = []  # where these went
        self.legend: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {}  # words -> what draws a sample

    def _shown(self, size: Size) -> tuple[int, int]:
        return round(size[1] * self.zoom), round(size[0] * self.zoom)  # as PIL has it: width, height

    def boxes(self, boxes: Tensor, kind: str, captions: Sequence[str] = (), labels=None, names=(), line="") -> None:
        """Boxes (D, 4) of a kind in STYLES, or, with labels (D,), in the colours of these classes, named in `names`."""
        shown = (boxes * self.zoom + self.corner[0]).round().int().numpy()
        colour, own_line, width = STYLES[kind]
        colours = [colour] * len(shown) if labels is None else [class_colour(n) for n in labels.tolist()]
        words = [kind] * len(shown) if labels is None else [names[n] for n in labels.tolist()]
        for box, colour, word in zip(shown, colours, words, strict=True):
            style = colour, line or own_line, width * self.detail
            self.outlines.append((box, *style))
            self.legend[word] = partial(_outline, style=style, detail=self.detail)
        self.captions += zip(shown, colours, captions[:CAPTIONED], strict=False)

    def masks(self, masks: np.ndarray, colours: Sequence[str], names: Sequence[str], opacity: float, dashed=False):
        """Masks (D, h, w) uint8 of 0 and 1 in the content, the first on top, tinted by `opacity` (0 to 1), edged."""
        if not len(masks):
            return
        owner = np.zeros(masks.shape[1:], np.int16)  # 0, or whose the pixel is, from 1
        for n, mask in reversed(list(enumerate(masks, start=1))):
            np.copyto(owner, n, where=mask.view(bool))
        around = np.pad(owner, 1)
        sides = around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]
        edge = (owner > 0) & np.any([side != owner for side in sides], axis=0)
        if dashed:
            edge &= np.add.outer(*map(np.arange, edge.shape)) // 4 % 2 == 0
        strength = np.where(edge, 255, np.where(owner > 0, round(255 * opacity), 0)).astype(np.uint8)
        table = np.array([(0, 0, 0), *map(ImageColor.getrgb, colours)], np.uint8)
        over, mask = (Image.fromarray(self._stretched(grid)) for grid in (table[owner], strength))
        self.image.paste(over, self.corner, mask)
        for name, colour in zip(names, colours, strict=True):
            self.legend.setdefault(name, partial(_area, colour=colour, kind="hit"))

    def areas(self, masks: dict[str, np.ndarray], opacity: float) -> None:
        """Masks (h, w) bool, by their name in AREAS, hatched in three ways."""
        for kind, mask in masks.items():
            if mask.any():
                shown = self._stretched(mask.astype(np.uint8)) * (opacity * 255)
                strength = np.where(_hatched(shown.shape, kind, self.detail), shown, shown / 4).astype(np.uint8)
                self.image.paste(AREAS[kind], self.corner, Image.fromarray(strength))
                self.legend[f"{kind} pixels"] = partial(_area, colour=AREAS[kind], kind=kind, detail=self.detail)

    def heat(self, maps: Sequence[Tensor], words: str) -> None:
        """Maps (h, w) in [0, 1], each stretched over the whole frame, the highest where there are several."""
        size, near = self._shown(self.frame), Image.Resampling.NEAREST
        grids = [np.asarray(Image.fromarray((m * 255).byte().numpy()).resize(size, near)) for m in maps]
        heat = Image.fromarray(_VIRIDIS[np.max(grids, axis=0)])
        self.image.paste(heat, self.corner, Image.new("L", size, 153))  # 60 % opaque
        self.legend[words] = _scale

    def finished(self) -> Image.Image:
        """The picture with its boxes, with captions beside their boxes where no other is, and below it the legend."""
        pixels = np.array(self.image)
        for box, *style in reversed(self.outlines):  # what came first is on top
            _outline(pixels, box, style, self.detail)
        image, font, self.captioned = Image.fromarray(pixels), _font(_FONT, TEXT * self.detail), []
        canvas = ImageDraw.Draw(image)
        for (x1, y1, x2, y2), colour, text in self.captions:
            w, h = round(font.getlength(text)) + 4, round(1.35 * font.size)
            near = (x1, y1 - h), (x2 - w, y1 - h), (x1, y1), (x1, y2), (x2 - w, y2), (x1, y2 - h), (x2 - w, y1)
            if where := overlay.first_free(overlay.within(near, (w, h), image.size), self.captioned):
                self.captioned.append(where)
                overlay.write(canvas, where, text, colour, font)
        return self._with_legend(image, font) if self.legend else image

    def _with_legend(self, image: Image.Image, font: ImageFont.FreeTypeFont) -> Image.Image:
        gap, places, x, y = 4 * self.detail, [], 4 * self.detail, image.height
        for words in self.legend:
            wide = 13 * gap + round(font.getlength(words))
            if x > gap and x + wide > image.width:
                x, y = gap, y + 6 * gap
            places.append((x, y + gap))
            x += wide
        whole = Image.new("RGB", (image.width, y + 6 * gap), "white")
        whole.paste(image)
        pixels = np.array(whole)
        for (x, y), sample in zip(places, self.legend.values(), strict=True):
            pixels[y : y + 4 * gap, x : x + 8 * gap] = 128
            sample(pixels, np.array([x, y, x + 8 * gap, y + 4 * gap]))
        whole = Image.fromarray(pixels)
        for (x, y), words in zip(places, self.legend, strict=True):
            ImageDraw.Draw(whole).text((x + 9 * gap, y), words, fill="black", font=font)
        return whole

    def _stretched(self, grid: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(grid).resize(self.content, Image.Resampling.NEAREST))


def encoded(image: Image.Image) -> bytes:
    """As JPEG with colours at full resolution: a tenth of the time of PNG, a sixth of the bytes."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=90, subsampling=0)
        return file.getvalue()


def _outline(pixels: np.ndarray, box: np.ndarray, style, detail: int) -> None:
    """A box (4,) of a colour, a line and a width in pixels, inwards from its edges, with a dark rim."""
    colour, line, width = style
    on = _drawn(line, max(pixels.shape) // detail + 1).repeat(detail)
    dark = "#141414"
    rings = [(-detail, width + 2 * detail, dark), (0, width, colour)]
    if line == "double":
        rings = [(width, width, dark), (2 * width, width, colour), (0, width, colour)]
    for inset, thick, hue in rings:
        x1, y1, x2, y2 = (int(v) for v in box + np.array([1, 1, -1, -1]) * inset)
        left, top, right, bottom = (max(0, v) for v in (x1, y1, x2, y2))
        rgb = ImageColor.getrgb(hue)
        for start in (y1, y2 - thick):
            band = pixels[max(0, start) : max(0, start + thick), left:right]
            band[:, on[left : left + band.shape[1]]] = rgb
        for start in (x1, x2 - thick):
            band = pixels[top:bottom, max(0, start) : max(0, start + thick)]
            band[on[top : top + band.shape[0]]] = rgb


@lru_cache
def _drawn(line: str, length: int) -> np.ndarray:
    """Which pixels (length,) along a line are drawn."""
    return np.resize(np.array(list(TILES.get(line, "#"))) == "#", length)


def _hatched(shape: Size, kind: str, detail: int) -> np.ndarray:
    """Which pixels (h, w) of a kind in AREAS are strong."""
    y, x = (np.arange(n) // (2 * detail) for n in shape)
    if kind == "false":
        return np.add.outer(y, x) % 4 < 2
    return np.logical_and.outer(y % 3 < 2, x % 3 < 2) if kind == "missed" else np.ones(shape, bool)


def _area(pixels: np.ndarray, box: np.ndarray, colour: str, kind: str, detail: int = 1) -> None:
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2][_hatched((y2 - y1, x2 - x1), kind, detail)] = ImageColor.getrgb(colour)


def _scale(pixels: np.ndarray, box: np.ndarray) -> None:
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = _VIRIDIS[np.linspace(0, 255, x2 - x1).astype(int)]
