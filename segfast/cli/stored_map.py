"""Label maps as they lie in picture files: the numbers that were stored, or a refusal."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segfast.cli.files import UserError
from segfast.cli.images import MAX_PIXELS, Array, decode, opened

MAP_FORMATS = ("PNG", "BMP", "PPM", "TIFF")


@dataclass(frozen=True)
class StoredMap:
    """A label map as it lies in the file.

    Attributes:
        pixels: [H, W] grey values or palette indices, or [H, W, 3] colours.
        mode, palette: as in :class:`segfast.cli.images.LabelStyle`.
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
    with opened(path, MAP_FORMATS, max_pixels) as image:
        mode = image.mode
        sixteen_bit = (mode == "I" and image.format == "PNG") or mode.startswith("I;16")
        if not sixteen_bit and mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise UserError(
                f"{path} has mode {mode}; expected a grey, palette, RGB or RGBA label map, as PNG"
            )
        largest = _largest(image, path)
        as_stored = image.format == "PPM" and image.tile and image.tile[0][0] == "ppm"
        if as_stored:  # not stretched, nor cut off at the largest
            image.tile = [("raw", *image.tile[0][1:3], (mode, 0, 1))]
        pixels = decode(image, path)
        palette = tuple(image.getpalette("RGB") or ()) if mode == "P" else ()
        transparent = image.info.get("transparency")
    if sixteen_bit:
        pixels, mode = pixels.astype(np.uint16), "I;16"
    elif as_stored and pixels.max() > largest:
        raise UserError(f"{path} holds {pixels.max()}, more than the {largest} that it promises")
    elif mode == "L" and largest != 255 and not as_stored:  # Pillow stretched it to 0..255
        pixels = ((pixels.astype(np.int64) * largest + 127) // 255).astype(np.uint8)
    opaque = _opaque(pixels, mode, transparent)
    if mode in ("LA", "RGBA"):
        pixels, mode = (pixels[..., 0], "L") if mode == "LA" else (pixels[..., :3], "RGB")
    return StoredMap(pixels, mode, palette, opaque)


def _largest(image: Any, path: Path) -> int:
    """The number that Pillow gives as 255, for grey of 8 bits and less.

    Refuses files of which Pillow gives other numbers than were stored, so that labels would merge
    or turn into others.
    """
    arguments: Any = None
    with contextlib.suppress(Exception):  # a file without pixels, which decoding refuses
        arguments = image.tile[0][3]
    arguments = arguments if isinstance(arguments, (tuple, list)) else (arguments,)
    kind, _, storage = str(arguments[0]).partition(";")  # as in "L;2", "RGB;16B", "L;IR"
    if image.info.get("compression") == "jpeg":
        raise UserError(
            f"{path} is compressed as JPEG, which blurs labels into each other; save it as PNG"
        )
    if kind == "RGBa":
        raise UserError(f"{path} has colours that were multiplied by alpha; save it as PNG")
    if image.format == "TIFF" and "I" in storage and kind in ("1", "L"):
        raise UserError(f"{path} stores white as 0 (photometric 0); save it as PNG")
    largest = 255
    if image.format == "PPM" and len(arguments) > 1 and isinstance(arguments[1], int):
        largest = arguments[1] or 255  # Netpbm's maxval, 0 where it is 255
    deep = "16" in storage and kind != "I" and image.format != "BMP"  # which has 5, 6 and 5 bits
    if deep or largest > 255:
        raise UserError(
            f"{path} has more than 8 bits per channel; expected 8, or 16 bits of grey, in a PNG"
        )
    return {"2": 3, "4": 15}.get(storage[:1], largest) if kind == "L" else largest


def _opaque(pixels: Array, mode: str, transparent: Any) -> Array | None:
    """[H, W] bool from an alpha channel, a palette's alphas, or the colour that means none."""
    if mode in ("LA", "RGBA"):
        return pixels[..., -1] > 0
    if isinstance(transparent, bytes):  # one per palette entry, opaque where the list ends
        return np.frombuffer(transparent.ljust(256, b"\xff"), np.uint8)[pixels] > 0
    if transparent is None:
        return None
    different = pixels != np.asarray(transparent)
    return different.any(-1) if pixels.ndim == 3 else different
