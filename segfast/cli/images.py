"""Photos and label maps: read with limits, written in the form they came in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segfast.cli.files import UserError, Writer, require_extra, require_readable

Array = npt.NDArray[Any]

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
PHOTO_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")
MAP_SUFFIXES = (".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
MAX_PIXELS = 50_000_000
MAX_LABELS = 65536  # of 16 bits


@dataclass(frozen=True)
class LabelStyle:
    """How labels are written in a file, so that the result can be written the same way.

    Attributes:
        values: [L] grey values, palette indices, or [L, 3] colours; row l belongs to label l.
        mode: Pillow's mode of the file: "1", "L", "P", "I;16" or "RGB".
        palette: bytes R, G, B, R, ... of a "P" file.
    """

    values: Array
    mode: str
    palette: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return len(self.values)

    def names(self) -> list[Any]:
        """Values for people and JSON: numbers, or "#rrggbb"."""
        if self.values.ndim == 2:
            return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in self.values.tolist()]
        return list(self.values.tolist())

    def colors(self) -> Array:
        """[L, 3] uint8 for pictures: the file's own colours where it has them."""
        if self.values.ndim == 2:
            return self.values.astype(np.uint8)
        if self.palette and int(self.values.max()) * 3 + 2 < len(self.palette):
            return np.asarray(self.palette, np.uint8).reshape(-1, 3)[self.values]
        consecutive = int(self.values.max()) < self.count
        return voc_colors(self.values if consecutive else np.arange(self.count))


def voc_colors(labels: Array) -> Array:
    """[...] labels -> [..., 3] uint8: the colours of PASCAL VOC's label maps (0 is black)."""
    labels = np.asarray(labels, np.int64)
    colors = np.zeros((*labels.shape, 3), np.int64)
    for bit in range(8):  # the label's bits, three at a time, become the channels' high bits
        for channel in range(3):
            colors[..., channel] |= ((labels >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def index_style(count: int) -> LabelStyle:
    """Style of labels 0..count-1 that came as an array: a VOC palette, or 16 bits beyond 256."""
    if count > MAX_LABELS:
        raise UserError(f"{count} labels are more than the {MAX_LABELS} that files can number")
    return value_style(np.arange(count))


def value_style(values: Array) -> LabelStyle:
    """Style of given numbers [L] or colours [L, 3]."""
    if values.ndim == 2:
        return LabelStyle(values, "RGB")
    if values.max() > 255:
        return LabelStyle(values, "I;16")
    return LabelStyle(values, "P", tuple(voc_colors(np.arange(256)).ravel().tolist()))


# --- reading ------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: Path, formats: tuple[str, ...], max_pixels: int) -> Iterator[Any]:
    """The Pillow image, header read and size checked, pixels not yet decoded."""
    pillow = require_extra("PIL.Image", "Pillow")
    require_readable(path)
    limit, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None  # our own limit rules
    try:
        with path.open("rb") as file:  # given a path, Pillow maps pixels that it has yet to turn
            try:
                image = pillow.open(file, formats=formats)
                pictures = getattr(image, "n_frames", 1)  # goes through the file
                misread = _misread(image, file)
            except pillow.UnidentifiedImageError:
                raise UserError(
                    f"{path} is not a readable image (expected {', '.join(formats)})"
                ) from None
            except Exception as error:  # decoders raise whatever the damage makes them stumble over
                raise UserError(f"{path} is damaged: {error}") from None
            width, height = image.size
            if width * height > max_pixels:
                raise UserError(
                    f"{path} has {width} x {height} = {width * height} pixels, more than the "
                    f"{max_pixels} allowed (--max-pixels raises the limit)"
                )
            if pictures > 1 and image.format not in ("JPEG", "MPO"):
                raise UserError(f"{path} holds {pictures} pictures, expected one")
            if misread:
                raise UserError(f"{path} has {misread}, which cannot be read; save it as PNG")
            yield image
    finally:
        pillow.MAX_IMAGE_PIXELS = limit


def _misread(image: Any, file: Any) -> str | None:
    """What Pillow would take for something else, without a word."""
    if image.format == "BMP" and image.mode in ("1", "L"):  # by the palette, not by the bits
        at = file.tell()
        file.seek(14)
        head = file.read(16)
        file.seek(at)
        bits = int.from_bytes(head[10:12] if head[0] == 12 else head[14:16], "little")
        if bits != (1 if image.mode == "1" else 8):
            return f"{bits} bits per pixel and a palette of greys"
    planes = image.format == "TIFF" and image.tag_v2.get(284) == 2
    if planes and max(image.tag_v2.get(258, (8,))) > 8:
        return "16-bit channels in planes of their own"
    return None


def decode(image: Any, path: Path) -> Array:
    try:
        image.load()
        return np.array(image)
    except Exception as error:  # as above
        raise UserError(f"{path} is damaged or truncated: {error}") from None


# EXIF's orientation -> Pillow's name of what turns the picture upright.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def _upright(image: Any) -> Any:
    """As viewers show it. An EXIF block too damaged to say how turns nothing, as in viewers."""
    orientation = None
    with contextlib.suppress(Exception):  # as above
        orientation = TURNS.get(image.getexif().get(0x0112))
    if orientation is None:
        return image
    return image.transpose(require_extra("PIL.Image", "Pillow").Transpose[orientation])


def read_photo(path: Path, max_pixels: int = MAX_PIXELS) -> Array:
    """[C, H, W], C = 1 or 3: uint8, or float32 on the same 0..255 scale for 16-bit grey.

    Alpha is dropped; palettes, CMYK and YCbCr become RGB; 16-bit colour keeps its high bytes; an
    EXIF orientation is applied, so the picture is the one that viewers show.
    """
    with opened(path, PHOTO_FORMATS, max_pixels) as image:
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            raise UserError(
                f"{path} has 32-bit pixels (mode {image.mode}); expected 8 or 16 bits per channel"
            )
        sixteen_bit = image.mode.startswith("I")
        decode(image, path)
        upright = _upright(image)
        if not sixteen_bit:
            grey = upright.mode in ("1", "L", "LA", "La")
            upright = upright.convert("L" if grey else "RGB")
        pixels = decode(upright, path)
    if sixteen_bit:
        pixels = (pixels.astype(np.float64) / 257).astype(np.float32)  # 65535 -> 255
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(planes)


# --- writing ------------------------------------------------------------------------------------


def png_writer(pixels: Array) -> Writer:
    """Writes [H, W] or [H, W, 3] uint8 (or bool, uint16) as PNG."""
    pillow = require_extra("PIL.Image", "Pillow")
    return lambda file: pillow.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")


def label_map_writer(labels: Array, style: LabelStyle) -> Writer:
    """Writes [H, W] labels 0..L-1 as a PNG with the values, or the colours, of ``style``."""
    dtype: Any = {"1": np.bool_, "I;16": np.uint16}.get(style.mode, np.uint8)
    pixels = np.ascontiguousarray(style.values.astype(dtype)[labels])
    if style.mode != "P":
        return png_writer(pixels)
    image = require_extra("PIL.Image", "Pillow").fromarray(pixels)
    image.putpalette(list(style.palette), "RGB")
    return lambda file: image.save(file, format="PNG")


def array_writer(path: Path, probabilities: Array, style: LabelStyle) -> Writer:
    """Writes float32 [L, H, W] as .npy, or as .npz beside the label values (key "values")."""
    if path.suffix.lower() == ".npy":
        return lambda file: np.save(file, probabilities, allow_pickle=False)
    return lambda file: np.savez_compressed(file, probabilities=probabilities, values=style.values)
