"""Arguments of max_unpool's functions: what is accepted, and the sizes that follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segfast.kernels.max_unpool.reference import Windows
from segfast.ops import _check
from segfast.ops._check import IntOrPair, Pair, pair
from segfast.ops._function import remembered

MAX_POSITIONS = 256
MAP = "[N, C, H, W] or [C, H, W]"


def windows_of(
    kernel_size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair, dilation: IntOrPair
) -> Windows:
    kernel = pair("kernel_size", kernel_size, 1)
    windows = Windows.of(
        kernel,
        kernel if stride is None else pair("stride", stride, 1),
        pair("padding", padding, 0),
        pair("dilation", dilation, 1),
    )
    if kernel[0] * kernel[1] > MAX_POSITIONS:
        raise ValueError(
            f"kernel_size must have at most {MAX_POSITIONS} positions (8 bits for each), got "
            f"{kernel[0]}x{kernel[1]}; torch.nn.functional.max_pool2d takes more"
        )
    for k, p in zip(kernel, windows.padding, strict=True):
        if 2 * p > k:
            raise ValueError(f"padding must be at most half of kernel_size {kernel}, got {padding}")
    return windows


@remembered
def pooled_size(
    input_size: Sequence[int], kernel_size: IntOrPair, stride: IntOrPair | None,
    padding: IntOrPair, dilation: IntOrPair, ceil_mode: bool, name: str = "input_size",
) -> tuple[Windows, Pair, Pair]:  # fmt: skip
    """The windows, (H, W) and (Ho, Wo) of a pool over maps of `input_size`, called `name`."""
    windows = windows_of(kernel_size, stride, padding, dilation)
    _check.require_bool("ceil_mode", ceil_mode)
    size = _last_two(name, input_size)
    pooled = []
    for n, (k, s, p, d) in zip(size, windows.axes, strict=True):
        room = n + 2 * p - d * (k - 1) - 1  # how far the first window can move
        count = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # the last window would begin beyond the map
        if n < 1 or count < 1:
            raise ValueError(
                f"{name} must hold a window of kernel_size {windows.kernel}, dilation "
                f"{windows.dilation}, padding {windows.padding}; got {tuple(size)}"
            )
        if d > n and p > 0:  # windows that begin in the padding: is one of their positions inside?
            starts = range(-p, min(0, (count - 1) * s - p + 1), s)
            if any(start % d >= n for start in starts):
                raise ValueError(
                    f"dilation must be smaller: with {windows.dilation} and padding "
                    f"{windows.padding} a window over {tuple(size)} holds nothing but padding"
                )
        pooled.append(count)
    return windows, size, (pooled[0], pooled[1])


@remembered
def unpooled_size(
    shape: Sequence[int], output_size: Sequence[int] | None, kernel_size: IntOrPair,
    stride: IntOrPair | None, padding: IntOrPair, dilation: IntOrPair,
) -> tuple[Windows, Pair]:  # fmt: skip
    """The windows, and (H, W) of an unpooling of y of a `shape`."""
    windows = windows_of(kernel_size, stride, padding, dilation)
    usual = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, (k, s, p, d) in zip(shape[-2:], windows.axes, strict=True)
    ]
    size = (usual[0], usual[1]) if output_size is None else _last_two("output_size", output_size)
    for n, middle, s in zip(size, usual, windows.stride, strict=True):
        if n < 1 or not middle - s < n < middle + s:
            low = tuple(max(1, u - t + 1) for u, t in zip(usual, windows.stride, strict=True))
            high = tuple(u + t - 1 for u, t in zip(usual, windows.stride, strict=True))
            raise ValueError(
                f"output_size must be between {low} and {high} for y of shape "
                f"{tuple(shape)}, kernel_size {windows.kernel}, stride {windows.stride}, padding "
                f"{windows.padding}, dilation {windows.dilation}; got {tuple(size)}"
            )
    return windows, size


def _last_two(name: str, size: Sequence[int]) -> Pair:
    """(H, W) of a sequence (H, W) or of a whole shape (C, H, W) or (N, C, H, W)."""
    if not isinstance(size, (tuple, list)) or not 2 <= len(size) <= 4:
        raise ValueError(f"{name} must be (H, W) or a whole shape, got {_check.describe(size)}")
    return _check.require_count(name, size[-2]), _check.require_count(name, size[-1])


def require_map(name: str, x: Tensor) -> None:
    _check.require_floating(name, x, MAP)
    _check.require_dtype(name, x)
    _require_sizes(name, x, MAP)


def require_integers(name: str, x: Tensor, dtype: torch.dtype) -> None:
    _check.require_tensor(name, x, f"of {dtype}")
    if x.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {_check.describe(x)}")
    _require_sizes(name, x, MAP)


def _require_sizes(name: str, x: Tensor, contract: str) -> None:
    shape = x.shape
    if len(shape) not in (3, 4) or shape[-1] < 1 or shape[-2] < 1 or shape[-3] < 1:
        raise ValueError(
            f"{name} must have shape {contract}, C, H and W at least 1; got {_check.describe(x)}"
        )


def require_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {_check.describe(x)}")
