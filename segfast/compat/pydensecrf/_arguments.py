"""Reads what callers pass; every refusal names the argument, what it must be, and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segfast.ops import _check

Float32 = npt.NDArray[np.float32]


def as_array(value: object, name: str, wanted: str, *, booleans: bool = False) -> npt.NDArray[Any]:
    """`value` (array, nested lists, tensor on any device) as a numpy array of real numbers.

    Raises TypeError for anything else: None, text, ragged lists, complex numbers, and booleans
    unless they are asked for.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged nested lists
        raise TypeError(f"{name} must be {wanted}, got {describe(value)}: {error}") from None
    if array.dtype.kind not in ("fiub" if booleans else "fiu"):
        raise TypeError(f"{name} must be {wanted}, of real numbers, got {describe(value)}")
    return array


def as_finite_float32(value: object, name: str, wanted: str) -> Float32:
    """A C-ordered float32 copy of `value`: the caller may change or free the original.

    Raises TypeError as `as_array`, and ValueError for values that are not finite in float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        array = as_array(value, name, wanted).astype(np.float32, order="C", copy=True)
    require_finite(array, name)
    return array


def require_finite(array: npt.NDArray[Any], name: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):  # one pass without a mask; a sum may also overflow, so:
            return
    bad = ~np.isfinite(array)
    if not bad.any():
        return
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    hint = ""
    if np.isinf(array[bad]).any() and name in ("u", "Q"):
        hint = (
            "; an energy is infinite where a probability was 0: clip it first, as "
            "unary_from_softmax(sm, clip=1e-5) does"
        )
    raise ValueError(
        f"{name} must be finite, got {int(bad.sum())} NaN or infinite "
        f"values, the first {array[where]} at index {where}{hint}"
    )


def as_count(value: Any, name: str, minimum: int) -> int:
    """A whole number >= `minimum`; 5.0 passes (pydensecrf truncates floats), 5.5 does not."""
    wanted = f"{name} must be a whole number >= {minimum}"
    try:
        number = int(value)
        whole = not isinstance(value, str | bytes) and number == value
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{wanted}, got {describe(value)}") from None
    if not whole or not minimum <= number < 2**31:
        raise ValueError(f"{wanted} and below 2^31, got {value!r}")
    return number


def as_real(value: Any, name: str, wanted: str) -> float:
    """A real number, NumPy's and PyTorch's too; its range is the caller's to check."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and np.prod(value.shape) == 1:
        value = value.item()
    if (number := _check.real(value)) is None:
        raise TypeError(f"{name} must be {wanted}, got {describe(value)}")
    return float(number)


def as_sigmas(
    value: object, name: str, count: int, each: str, one: bool = False
) -> tuple[float, ...]:
    """One standard deviation for all axes, or `count` of them; positive and finite.

    With `one`, a sequence of one serves for all too, as schan=(13,) does in pydensecrf.
    """
    wanted = f"{name} must be one number, or {count} ({each})"
    array = as_array(value, name, f"one number, or {count} ({each})")
    if array.ndim > 1 or (array.ndim == 1 and len(array) not in ((1, count) if one else (count,))):
        raise ValueError(f"{wanted}, got {describe(value)}")
    sigmas = tuple(float(sigma) for sigma in np.broadcast_to(array, (count,)))
    if not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
        raise ValueError(
            f"{name} is a standard deviation: it must be positive and finite, got {value!r}"
        )
    return sigmas


def divided(values: npt.NDArray[Any], sigmas: Sequence[float], names: Sequence[str]) -> Float32:
    """values [F, N] / sigmas [F] in float32: the features of a Gaussian kernel."""
    features = np.empty(values.shape, np.float32)
    for row, axis, sigma, name in zip(features, values, sigmas, names, strict=True):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            np.divide(axis.astype(np.float32, copy=False), np.float32(sigma), out=row)
        if not np.isfinite(row).all():
            raise ValueError(
                f"{name}={sigma!r} is too small (or the values it divides are too large): "
                f"features must be finite in float32"
            )
    return features


def describe(value: object) -> str:
    """What came, in a few words: shape and dtype of arrays, else the type and a short repr."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and shape != ():
        return f"shape {tuple(shape)}, dtype {dtype}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
