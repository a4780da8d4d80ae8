"""Pictures of every kind through the one function of training and prediction."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lib.data.pictures import picture_sizes, read_picture
from lib.machine.errors import say_once

RAMP = np.arange(0, 65536, 257, dtype=np.uint16)[None].repeat(3, 0)  # 256 values: 0, 257, ..., 65535


MODES = "L.png P.png RGBA.png CMYK.jpg 1.png LA.png YCbCr.jpg RGB.webp RGB.gif RGB.bmp CMYK.tif"


@pytest.mark.parametrize("kind", MODES.split())
def test_every_mode_becomes_rgb(tmp_path, kind):
    mode, ending = kind.split(".")
    Image.new("RGB", (30, 20), (102, 102, 102)).convert(mode).save(path := tmp_path / f"a.{ending}")
    pixels = read_picture(path)
    assert pixels.shape == (3, 20, 30) and pixels.dtype == np.uint8
    assert mode == "1" or abs(pixels.astype(int) - 102).max() <= 3


def test_transparent_is_white(tmp_path):
    Image.new("RGBA", (4, 3), (0, 0, 0, 0)).save(tmp_path / "a.png")
    palette = Image.new("P", (4, 3), 5)
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "b.png", transparency=5)
    assert (read_picture(tmp_path / "a.png") == 255).all() and (read_picture(tmp_path / "b.png") == 255).all()


@pytest.mark.parametrize(
    "values, ending",
    [(RAMP, "png"), (RAMP, "tif"), (RAMP.astype(np.int32), "tif"), ((RAMP // 257).astype(np.int32), "tif")]
    + [(((RAMP // 257) / s).astype(np.float32), "tif") for s in (255, 1, 1 / 257)],
)
def test_grey_of_many_bits_is_scaled(tmp_path, values, ending):
    Image.fromarray(values).save(path := tmp_path / f"a.{ending}")
    assert (read_picture(path) == np.arange(256)).all()


@pytest.mark.parametrize("values", [RAMP * 1000.0, RAMP - 1000.0, np.full((2, 2), np.nan), RAMP.astype(int) * 300])
def test_grey_of_an_unknown_range_is_refused(tmp_path, values):
    Image.fromarray(values.astype(np.int32 if values.dtype == int else np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="a.tif is not a readable picture.*its values go from .*save it with 8 or 16"):
        read_picture(tmp_path / "a.tif")


def turned(path, orientation, width=30, height=20):
    """A picture whose left half, as it is stored, is white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def white_side(pixels):
    """Which side of a picture is white."""
    _, h, w = pixels.shape
    sides = {"left": pixels[..., : w // 2], "right": pixels[..., w // 2 :], "top": pixels[:, : h // 2]}
    sides["bottom"] = pixels[:, h // 2 :]
    (side,) = (name for name, part in sides.items() if (part == 255).all())
    return side


SIDES = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}  # by EXIF 2.32


@pytest.mark.parametrize("orientation, side", SIDES.items())
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_pictures_are_turned_upright(tmp_path, orientation, side, ending):
    path = turned(tmp_path / f"a.{ending}", orientation, 32, 16)
    if ending in ("jpg", "webp"):
        Image.open(path).save(path, quality=100, lossless=True, exif=Image.open(path).getexif())
    assert white_side(np.where(read_picture(path) > 127, 255, 0)) == side


def test_the_declared_size_says_whether_a_picture_is_turned(tmp_path, capfd):
    say_once.cache_clear()
    path = turned(tmp_path / "a.png", 6)
    assert picture_sizes(path) == [(20, 30), (30, 20)]
    assert white_side(read_picture(path, (20, 30))) == "top"
    assert white_side(read_picture(path, (30, 20))) == "left"
    with pytest.raises(ValueError, match="a.png.*it has 20 x 30 pixels, not 10 x 10"):
        read_picture(path, (10, 10))
    assert capfd.readouterr().err == ""
    for name in "bc":  # where size cannot tell, upright, and it is said
        assert white_side(read_picture(turned(tmp_path / f"{name}.png", 6, 20, 20), (20, 20))) == "top"
    assert capfd.readouterr().err.count("orientation") == 1


def png_of(width, height):
    """A PNG that declares a size and holds one row."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(min(width, 1000))))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("width, height", [(13_000, 13_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_is_refused_by_its_declared_size(tmp_path, width, height):
    (tmp_path / "a.png").write_bytes(png_of(width, height))
    for look in (read_picture, picture_sizes):
        with pytest.raises(ValueError, match="a.png has more than 100,000,000 pixels: shrink it"):
            look(tmp_path / "a.png")


def test_no_other_program_reads_a_picture(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript: here one that leaves a mark."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/owned\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ValueError, match="a.png is not a readable picture"):
        read_picture(tmp_path / "a.png")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "bmp", "webp"])
def test_half_a_picture_is_none(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(path := tmp_path / f"a.{ending}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"a.{ending} is not a readable picture"):
        read_picture(path)
