"""From what the user has (label map, scribbles, probabilities, logits) to logits [L, H, W]."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segfast.cli.files import UserError, require_readable
from segfast.cli.images import (
    MAX_PIXELS,
    Array,
    LabelStyle,
    StoredMap,
    index_style,
    read_stored_map,
)

ARRAY_SUFFIXES = (".npy", ".npz")
UNKNOWN = -1  # index of a pixel that nobody labelled
MAX_VALUES = 256  # distinct values in a label map whose number of labels is not stated
MAX_PLANES = 64  # an array may hold this many times --max-pixels numbers
VOID = 255  # PASCAL VOC's and most data sets' "no label here"
SMALLEST_PROBABILITY = 1e-5  # its logarithm bounds the logits, as in pydensecrf's clip
Unknown = str | int | tuple[int, int, int]


@dataclass(frozen=True)
class Evidence:
    """What is known before the CRF.

    Attributes:
        logits: [L, H, W] float32.
        labels: [H, W] int64, the labelling before; UNKNOWN where there is none.
        style: how labels are written.
    """

    logits: Array
    labels: Array
    style: LabelStyle


def parse_unknown(text: str) -> Unknown:
    """``auto`` | ``none`` | ``255`` | ``0,0,0`` | ``#000000``."""
    if text in ("auto", "none"):
        return text
    try:
        if text.startswith("#") and len(text) == 7:
            return (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16))
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and 0 <= numbers[0] <= 65535:
        return numbers[0]
    if len(numbers) == 3 and all(0 <= n <= 255 for n in numbers):
        return (numbers[0], numbers[1], numbers[2])
    raise UserError(
        f"--unknown must be auto, none, a value (255), or a colour (0,0,0 or #000000); got {text}"
    )


# --- label maps ---------------------------------------------------------------------------------


def read_map(
    path: Path,
    *,
    unknown: Unknown = "auto",
    scribbles: bool = False,
    num_labels: int | None = None,
    key: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Array, LabelStyle]:
    """Indices [H, W] int64 (UNKNOWN where unlabelled) and the style to write the result in.

    The distinct values (or colours) that occur are the labels, in ascending order; ``num_labels``
    says instead that the values are 0..num_labels-1, whether they occur or not.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        stored = StoredMap(_integer_map(path, key, max_pixels), "L")
    else:
        stored = read_stored_map(path, max_pixels)
    unlabelled = _unlabelled(stored, unknown, scribbles, path)
    codes = stored.pixels.astype(np.int64)
    if codes.ndim == 3:
        if num_labels is not None:
            raise UserError(f"{path} is colour-coded: --num-labels is for maps of label numbers")
        codes = codes[..., 0] << 16 | codes[..., 1] << 8 | codes[..., 2]
    if unlabelled.all():
        raise UserError(f"{path} labels no pixel: every one is unknown (see --unknown)")
    present = np.unique(codes[~unlabelled])
    if num_labels is None:
        if len(present) > MAX_VALUES:
            kind = "colours" if stored.pixels.ndim == 3 else "values"
            raise UserError(
                f"{path} has {len(present)} distinct {kind}, too many for a label map (at most "
                f"{MAX_VALUES}; --num-labels lifts this for numbers). Is it a photo, a lossy copy, "
                f"or smoothed? IMAGE comes first, LABELS second"
            )
        values = present
    else:
        if present[-1] >= num_labels:
            raise UserError(
                f"{path} holds label {present[-1]}, out of range: --num-labels {num_labels} "
                f"expects 0 to {num_labels - 1} and the unknown label"
            )
        values = np.arange(num_labels)
    indices = np.where(unlabelled, UNKNOWN, np.searchsorted(values, codes))
    if len(values) == 1 and unlabelled.any():
        raise UserError(
            f"{path} holds one label only ({values[0]}) beside unknown pixels: nothing to choose "
            f"from. If the unknown value is a label too, pass --unknown none"
        )
    if stored.pixels.ndim == 3:
        values = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1)
    mode = "I;16" if stored.mode == "L" and values.max() > 255 else stored.mode
    return indices, LabelStyle(values, mode, stored.palette)


def _unlabelled(stored: StoredMap, unknown: Unknown, scribbles: bool, path: Path) -> Array:
    """[H, W] bool. ``auto``: 255 of numbers, no colour; with scribbles 0 and black.

    What is transparent has no label either. But a palette entry is a label whatever it looks like
    (VOC-style maps often hide their background for display): there it counts for scribbles only.
    """
    shape = stored.pixels.shape[:2]
    colored = stored.pixels.ndim == 3
    if unknown == "auto" and colored:
        unknown = (0, 0, 0) if scribbles else "none"
    elif unknown == "auto":
        unknown = 0 if scribbles else VOID
    if unknown == "none":
        found = np.zeros(shape, np.bool_)
    elif isinstance(unknown, tuple) != colored:
        expected = "a colour such as 0,0,0" if colored else "a value such as 255"
        raise UserError(f"{path} needs {expected} for --unknown, got {unknown}")
    else:
        same = stored.pixels == np.asarray(unknown)
        found = same.all(-1) if colored else same
    if stored.opaque is None or (stored.mode == "P" and not scribbles):
        return found
    return found | ~stored.opaque


def _integer_map(path: Path, key: str | None, max_pixels: int) -> Array:
    array = _read_array(path, key, max_pixels)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise UserError(
            f"{path} holds {array.dtype} of shape {array.shape}; expected an integer label map "
            f"[H, W], or say --input probs or --input logits"
        )
    if array.size and (array.min() < 0 or array.max() > 65535):
        raise UserError(
            f"{path} holds labels {array.min()} to {array.max()}, out of range: expected 0 to 65535"
        )
    return array.astype(np.int64)


def label_logits(indices: Array, count: int, confidence: float) -> Array:
    """log P with the given label at ``confidence``, the rest shared evenly; unknown: uniform.

    logit = log g at the label, log((1 - g) / (L - 1)) elsewhere   -> float32 [L, H, W]
    """
    if count == 1:
        return np.zeros((1, *indices.shape), np.float32)
    if not 1 / count < confidence < 1:
        raise UserError(
            f"--confidence must lie in (1/L, 1) = ({1 / count:.3g}, 1) with {count} labels, "
            f"got {confidence:g}"
        )
    other = math.log((1 - confidence) / (count - 1))
    return _place(indices, count, math.log(confidence), other)


def scribble_logits(indices: Array, count: int, penalty: float) -> Array:
    """-penalty for every label but the scribbled one; unlabelled pixels are free: 0."""
    return _place(indices, count, 0.0, -penalty, unknown=0.0)


def _place(
    indices: Array, count: int, own: float, other: float, unknown: float | None = None
) -> Array:
    logits = np.full((count, *indices.shape), other, np.float32)  # [L, H, W]
    known = indices != UNKNOWN
    rows, columns = np.nonzero(known)
    logits[indices[known], rows, columns] = own
    logits[:, ~known] = -math.log(count) if unknown is None else unknown
    return logits


# --- probabilities and logits -------------------------------------------------------------------


def read_planes(
    path: Path,
    kind: str,
    size: tuple[int, int],
    *,
    layout: str | None = None,
    key: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Evidence:
    """Evidence from a .npy/.npz array of ``kind`` "probs" or "logits", for an H x W photo."""
    array = _read_array(path, key, max_pixels)
    if array.dtype.kind != "f":
        raise UserError(f"{path} holds {array.dtype}, expected floating-point {kind}")
    planes = _labels_first(array, size, layout, path)  # [L, H, W]
    if array.dtype.itemsize not in (4, 8):  # half; long double
        planes = planes.astype(np.float32)
    if not np.isfinite(planes).all():
        bad = np.argwhere(~np.isfinite(planes))[0]
        raise UserError(
            f"{path} holds {planes[tuple(bad)]} at label {bad[0]}, x {bad[2]}, y {bad[1]}; "
            f"expected finite {kind}"
        )
    rounding = 1e-2 if array.dtype == np.float16 else 1e-3
    sums = planes.sum(0, dtype=np.float64)
    normalized = bool(planes.min() >= 0 and (np.abs(sums - 1) <= rounding).all())
    if kind == "logits":
        if normalized and len(planes) > 1:
            raise UserError(
                f"{path} looks like probabilities (none is negative and they sum to 1), "
                f"not logits: pass --input probs"
            )
        logits = planes
    else:
        if planes.min() < 0 or planes.max() > 1 + rounding:
            raise UserError(
                f"{path} holds values from {planes.min():.4g} to {planes.max():.4g}, expected "
                f"probabilities in [0, 1]; pass --input logits if they are scores"
            )
        if not normalized:
            y, x = np.unravel_index(int(np.abs(sums - 1).argmax()), sums.shape)
            raise UserError(
                f"{path}: probabilities must sum to 1 over labels, got {sums[y, x]:.4g} at "
                f"x {x}, y {y}"
            )
        logits = np.log(np.maximum(planes, SMALLEST_PROBABILITY))
    logits = np.ascontiguousarray(logits, np.float32)
    return Evidence(logits, planes.argmax(0), index_style(len(planes)))


def _labels_first(array: Array, size: tuple[int, int], layout: str | None, path: Path) -> Array:
    """[L, H, W] from [L, H, W] or [H, W, L] (a leading 1 is dropped), by shape or as told."""
    height, width = size
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    first = array.ndim == 3 and array.shape[1:] == size and layout != "HWL"
    last = array.ndim == 3 and array.shape[:2] == size and layout != "LHW"
    if first and last:
        raise UserError(
            f"{path} has shape {shape}, which is both [L, H, W] and [H, W, L] for a {width} x "
            f"{height} image: pass --layout LHW or --layout HWL"
        )
    if not (first or last) or array.size == 0:
        expected = {
            "LHW": f"[L, {height}, {width}]",
            "HWL": f"[{height}, {width}, L]",
        }
        wanted = expected[layout] if layout else " or ".join(expected.values())
        raise UserError(
            f"{path} has shape {shape}, expected {wanted} for an image {width} wide and "
            f"{height} high"
        )
    return array if first else array.transpose(2, 0, 1)


def _read_array(path: Path, key: str | None, max_pixels: int) -> Array:
    """One array of a .npy or .npz file: header first, so that no bomb is unpacked; no pickles."""
    require_readable(path)
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                _check_header(file, path, max_pixels)
                file.seek(0)
                return np.asarray(np.load(file, allow_pickle=False))
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            name = _chosen(names, key, path)
            with archive.open(f"{name}.npy") as file:
                _check_header(file, path, max_pixels)
            with archive.open(f"{name}.npy") as file:
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path} does not fit into memory") from None
    except Exception as error:  # numpy, zipfile and zlib each raise their own for damage
        raise UserError(
            f"{path} is damaged, truncated or not a {path.suffix} file: {error}"
        ) from None


def _chosen(names: list[str], key: str | None, path: Path) -> str:
    listed = ", ".join(names) or "none"
    if key is None and len(names) != 1:
        raise UserError(f"{path} holds {len(names)} arrays ({listed}): choose one with --key NAME")
    if key is not None and key not in names:
        raise UserError(f"{path} has no array named {key}; it holds {listed}")
    return names[0] if key is None else key


def _check_header(file: Any, path: Path, max_pixels: int) -> None:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:  # 3.0 is for field names that are not Latin-1: structured arrays only
        raise UserError(f"{path} is a .npy of version {version}; expected a plain array")
    shape, _, dtype = read(file)
    if dtype.hasobject or dtype.names:
        raise UserError(f"{path} holds Python objects or records, refused; expected plain numbers")
    if math.prod(shape) > MAX_PLANES * max_pixels:
        raise UserError(
            f"{path} claims {math.prod(shape)} numbers (shape {shape}), more than "
            f"{MAX_PLANES} x {max_pixels} allowed (--max-pixels raises the limit)"
        )
