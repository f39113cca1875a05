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
MAP_FORMATS = ("PNG", "BMP", "PPM", "TIFF")
MAX_PIXELS = 50_000_000


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
    if count <= 256:
        palette = tuple(int(v) for v in voc_colors(np.arange(256)).ravel())
        return LabelStyle(np.arange(count), "P", palette)
    if count <= 65536:
        return LabelStyle(np.arange(count), "I;16")
    raise UserError(f"{count} labels do not fit a PNG label map; save .npz probabilities instead")


# --- reading ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path, formats: tuple[str, ...], max_pixels: int) -> Iterator[Any]:
    """The Pillow image, header read and size checked, pixels not yet decoded."""
    pillow = require_extra("PIL.Image", "Pillow")
    require_readable(path)
    limit, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None  # our own limit rules
    try:
        try:
            image = pillow.open(path, formats=formats)
        except pillow.UnidentifiedImageError:
            raise UserError(
                f"{path} is not a readable image (expected {', '.join(formats)})"
            ) from None
        except Exception as error:  # decoders raise whatever the damage makes them stumble over
            raise UserError(f"{path} is damaged: {error}") from None
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise UserError(
                    f"{path} has {width} x {height} = {width * height} pixels, more than the "
                    f"{max_pixels} allowed (--max-pixels raises the limit)"
                )
            if getattr(image, "n_frames", 1) > 1 and image.format not in ("JPEG", "MPO"):
                raise UserError(f"{path} holds {image.n_frames} pictures, expected one")
            yield image
    finally:
        pillow.MAX_IMAGE_PIXELS = limit


def _decode(image: Any, path: Path) -> Array:
    try:
        image.load()
        return np.array(image)
    except Exception as error:  # as above
        raise UserError(f"{path} is damaged or truncated: {error}") from None


def read_photo(path: Path, max_pixels: int = MAX_PIXELS) -> Array:
    """[C, H, W], C = 1 or 3: uint8, or float32 on the same 0..255 scale for 16-bit grey.

    Alpha is dropped; palettes, CMYK and YCbCr become RGB; 16-bit colour keeps its high bytes; an
    EXIF orientation is applied, so the picture is the one that viewers show.
    """
    with _opened(path, PHOTO_FORMATS, max_pixels) as image:
        if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
            raise UserError(
                f"{path} has 32-bit pixels (mode {image.mode}); expected 8 or 16 bits per channel"
            )
        sixteen_bit = image.mode.startswith("I")
        _decode(image, path)
        upright = require_extra("PIL.ImageOps", "Pillow").exif_transpose(image)
        if not sixteen_bit:
            grey = upright.mode in ("1", "L", "LA", "La")
            upright = upright.convert("L" if grey else "RGB")
        pixels = _decode(upright, path)
    if sixteen_bit:
        pixels = (pixels.astype(np.float64) / 257).astype(np.float32)  # 65535 -> 255
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(planes)


def _stored_bits(image: Any) -> int:
    """Bits per sample of a grey PNG, whose 2- and 4-bit values Pillow stretches to 0..255."""
    with contextlib.suppress(Exception):
        raw = image.tile[0][3]
        raw = raw if isinstance(raw, str) else raw[0]
        if raw in ("L;2", "L;4"):
            return int(raw[-1])
    return 8


@dataclass(frozen=True)
class StoredMap:
    """A label map as it lies in the file.

    Attributes:
        pixels: [H, W] grey values or palette indices, or [H, W, 3] colours.
        mode, palette: as in :class:`LabelStyle`.
        opaque: [H, W] bool where the file has transparency, else None.
    """

    pixels: Array
    mode: str
    palette: tuple[int, ...] = ()
    opaque: Array | None = None


def read_stored_map(path: Path, max_pixels: int = MAX_PIXELS) -> StoredMap:
    """Reads a label map; what its values mean is decided by :mod:`segfast.cli.labels`."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise UserError(
            f"{path} is a JPEG, which blurs labels into each other; save the label map as PNG"
        )
    with _opened(path, MAP_FORMATS, max_pixels) as image:
        mode, bits = image.mode, _stored_bits(image)
        if (mode == "I" and image.format == "PNG") or mode.startswith("I;16"):
            return StoredMap(_decode(image, path).astype(np.uint16), "I;16")
        if mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise UserError(
                f"{path} has mode {mode}; expected grey, palette, RGB or RGBA label map"
            )
        pixels = _decode(image, path)
        palette = tuple(image.getpalette("RGB") or ()) if mode == "P" else ()
        alpha = image.info.get("transparency") if mode == "P" else None
    opaque = pixels[..., -1] > 0 if mode in ("LA", "RGBA") else None
    if isinstance(alpha, bytes):  # one per palette entry, opaque where the list ends
        opaque = np.frombuffer(alpha.ljust(256, b"\xff"), np.uint8)[pixels] > 0
    elif alpha is not None:
        opaque = pixels != alpha
    if mode == "LA":
        pixels, mode = pixels[..., 0], "L"
    elif mode == "RGBA":
        pixels, mode = pixels[..., :3], "RGB"
    elif mode == "L" and bits < 8:
        pixels = pixels // (255 // (2**bits - 1))
    return StoredMap(pixels, mode, palette, opaque)


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
