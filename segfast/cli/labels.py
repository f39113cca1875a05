"""From what the user has (label map, scribbles, probabilities, logits) to logits [L, H, W]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segfast._warn import warn
from segfast.cli.arrays import ARRAY_SUFFIXES, SAVED, read_array, saved_values
from segfast.cli.files import UserError
from segfast.cli.images import MAX_PIXELS, Array, LabelStyle, index_style, value_style
from segfast.cli.stored_map import StoredMap, read_stored_map

UNKNOWN = -1  # index of a pixel that nobody labelled
MAX_PLANES = 64  # an array may hold this many times --max-pixels numbers
MAX_VALUES = 256  # distinct values in a label map whose number of labels is not stated
VOID = 255  # PASCAL VOC's and most data sets' "no label here"
SMALLEST_PROBABILITY = 1e-5  # its logarithm bounds the logits, as in pydensecrf's clip
# An edge between 0 and 255 that was smoothed has values that label maps hardly have (COCO-Stuff's
# end at 181); maps of few greys have no small ones.
SOFT_VALUES, SOFT_FROM, GREY_FROM = 8, 200, 32
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
    numbers = stored.pixels.ndim == 2 and stored.mode != "P" and num_labels is None
    if unknown == "auto" and numbers and not scribbles:
        unknown = _void_or_mask(stored.pixels, path)
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
    if stored.pixels.ndim == 3:
        values = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1)
    mode = "I;16" if stored.mode == "L" and values.max() > 255 else stored.mode
    style = LabelStyle(values, mode, stored.palette)
    if len(values) == 1 and unlabelled.any():
        remedy = "If the unknown value is a label too, pass --unknown none"
        if stored.opaque is not None and not stored.opaque.all():
            remedy = "What is transparent is unknown: give it a colour of its own"
        raise UserError(
            f"{path} holds one label only ({style.names()[0]}) beside unknown pixels: nothing to "
            f"choose from. {remedy}"
        )
    return indices, style


def _void_or_mask(pixels: Array, path: Path) -> Unknown:
    """What 255 means in a map of grey: no label, or the foreground. Smoothed masks are refused."""
    values = np.unique(pixels)
    if values[0] != 0 or values[-1] != VOID:
        return VOID
    between = values[1:-1]
    if len(between) > SOFT_VALUES and between[-1] >= SOFT_FROM:
        raise UserError(
            f"{path} looks like a mask with soft edges ({len(between)} values between 0 and 255): "
            f"threshold it, or save it / 255 as .npy for --input probs. If these are labels, say "
            f"with --unknown what 255 is (255 or none)"
        )
    if len(between) == 0:
        warn(f"{path} holds 0 and 255 alone: two labels; --unknown 255 if that is void")
        return "none"
    if between[0] >= GREY_FROM:
        warn(f"255 in {path} is taken for unknown; --unknown none if it is a label")
    return VOID


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
    def admit(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if len(shape) != 2 or dtype.kind not in "iub":
            raise UserError(
                f"{path} holds {dtype} of shape {shape}; expected an integer label map "
                f"[H, W], or say --input probs or --input logits"
            )

    array = read_array(path, key, max_pixels, admit)
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
    """Evidence from a .npy/.npz array of ``kind`` "probs" or "logits", for an H x W photo.

    A single plane is the foreground's: p, or its log-odds, against 1 - p.
    """

    def admit(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if dtype.kind != "f":
            raise UserError(f"{path} holds {dtype}, expected floating-point {kind}")
        index_style(_planes(shape, size, layout, path)[0])  # refuses too many

    array = read_array(path, key, MAX_PLANES * max_pixels, admit)
    count, last = _planes(array.shape, size, layout, path)
    planes = array.reshape(*size, count).transpose(2, 0, 1) if last else array.reshape(-1, *size)
    if array.dtype.itemsize not in (4, 8):  # half; long double
        planes = planes.astype(np.float32)
    _require_finite(planes, kind, path)
    values = saved_values(path, count) if key in (None, SAVED[0]) else None
    rounding = 1e-2 if array.dtype == np.float16 else 1e-3
    foreground = count == 1 and values is None
    if kind == "logits":
        logits = _scores(planes, foreground, rounding, path)  # [L, H, W]
    else:
        logits = _log_probabilities(planes, foreground, rounding, path)  # [L, H, W]
    style = index_style(len(logits)) if values is None else value_style(values)
    return Evidence(np.ascontiguousarray(logits, np.float32), logits.argmax(0), style)


def _require_finite(planes: Array, kind: str, path: Path) -> None:
    with np.errstate(over="ignore"):
        finite = np.isfinite(planes.astype(np.float32, copy=False))
    if not finite.all():
        bad = np.argwhere(~finite)[0]
        raise UserError(
            f"{path} holds {planes[tuple(bad)]} at label {bad[0]}, x {bad[2]}, y {bad[1]}; "
            f"expected {kind} that are finite in float32"
        )


def _scores(planes: Array, foreground: bool, rounding: float, path: Path) -> Array:
    """Logits [L, H, W] as they are; of the foreground, log p / (1 - p), those of 1 - p and p."""
    sums = planes.sum(0, dtype=np.float64)
    if planes.min() >= 0 and (
        planes.max() <= 1 if foreground else (np.abs(sums - 1) <= rounding).all()
    ):
        one = "they lie in [0, 1]" if foreground else "none is negative and they sum to 1"
        raise UserError(f"{path} looks like probabilities ({one}), not logits: pass --input probs")
    return np.concatenate([np.zeros_like(planes), planes]) if foreground else planes


def _log_probabilities(planes: Array, foreground: bool, rounding: float, path: Path) -> Array:
    """log P [L, H, W], bounded; of the foreground p, those of 1 - p and p."""
    if planes.min() < 0 or planes.max() > 1 + rounding:
        raise UserError(
            f"{path} holds values from {planes.min():.4g} to {planes.max():.4g}, expected "
            f"probabilities in [0, 1]; pass --input logits if they are scores"
        )
    if foreground:
        planes = np.concatenate([1 - np.minimum(planes, 1), planes])
    sums = planes.sum(0, dtype=np.float64)
    if (np.abs(sums - 1) > rounding).any():
        y, x = np.unravel_index(int(np.abs(sums - 1).argmax()), sums.shape)
        raise UserError(
            f"{path}: probabilities must sum to 1 over labels, got {sums[y, x]:.4g} at x {x}, y {y}"
        )
    if len(planes) > 1 and planes.max(0).min() > 1 - SMALLEST_PROBABILITY:
        warn(
            f"{path} is certain of every pixel, which little can change: give labels and "
            f"--confidence instead"
        )
    return np.asarray(np.log(np.maximum(planes, SMALLEST_PROBABILITY)))


def _planes(
    shape: tuple[int, ...], size: tuple[int, int], layout: str | None, path: Path
) -> tuple[int, bool]:
    """L of [L, H, W] or [H, W, L] (a leading 1 is dropped) or [H, W], and whether it comes last."""
    height, width = size
    three = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    three = (1, *shape) if shape == size else three
    first = len(three) == 3 and three[1:] == size and layout != "HWL"
    last = len(three) == 3 and three[:2] == size and layout != "LHW"
    if first and last:
        raise UserError(
            f"{path} has shape {shape}, which is both [L, H, W] and [H, W, L] for a {width} x "
            f"{height} image: pass --layout LHW or --layout HWL"
        )
    if not (first or last) or 0 in three:
        expected = {
            "LHW": f"[L, {height}, {width}]",
            "HWL": f"[{height}, {width}, L]",
        }
        wanted = expected[layout] if layout else " or ".join(expected.values())
        raise UserError(
            f"{path} has shape {shape}, expected {wanted} for an image {width} wide and "
            f"{height} high"
        )
    return three[2 if last else 0], last
