"""Max-pooling with packed indices, and max-unpooling.

    y[o] = max_t x[p(o, t)],   packed[o] = the first t that attains it                  (pool)
    x[q] = y[o] of the last window o, in row-major order, whose maximum was at q, else 0  (unpool)

A window o = (ho, wo) has kh * kw taps t = i * kw + j at p(o, t) = (ho * sh - ph + i * dh, wo * sw -
pw + j * dw). PyTorch keeps 64 bits per window and the whole input; here it is the tap alone: 2 bits
for up to 4 taps, 4 up to 16, 8 up to 256.

Zeiler, Taylor and Fergus, "Adaptive Deconvolutional Networks", ICCV 2011, section 3 (unpooling by
switches); Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015,
section 3.2; Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017, section 3 (2 bits per
window). Derivations: kernels/max_unpool/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segfast._native import native
from segfast.ops import _check
from segfast.ops._max_unpool_grad import MaxPool, MaxPoolValues, MaxUnpool, MaxUnpoolIndices, call
from segfast.ops._max_unpool_op import dense, packed_width

MAX_TAPS = 256
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAP = "[N, C, H, W] or [C, H, W]"

Pair = tuple[int, int]
IntOrPair = int | Sequence[int]


def max_pool2d(
    x: Tensor,  # [N, C, H, W] or [C, H, W]
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    r"""Max-pooling: `F.max_pool2d`, which keeps for its gradient 2 to 8 bits a window.

    .. math:: y_o = \max_t x_{p(o, t)}

    Args:
        x: [N, C, H, W] or [C, H, W], float32, float64, float16 or bfloat16, any strides. N may be
            0, the other sizes not.
        kernel_size: one number or (vertical, horizontal); at most 256 taps in all.
        stride: None means `kernel_size`.
        padding: at most half of `kernel_size`; what is padded is never chosen.
        dilation: distance of the taps.
        ceil_mode: also windows that begin inside and reach beyond the end.

    Returns:
        y [N, C, Ho, Wo] or [C, Ho, Wo] in the dtype and memory format of x, bit for bit
        PyTorch's: NaN if there is one in the window.

    Its gradient sums over the windows that chose a position, in row-major order.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it. Windows that
            hold nothing but padding (a dilation larger than the map) are refused.
        NotImplementedError: in forward-mode differentiation.

    Example:
        >>> import torch, segfast
        >>> segfast.ops.max_pool2d(torch.arange(16.0).view(1, 1, 4, 4), 2)
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])
    """
    maps, arguments = _pool(x, kernel_size, stride, padding, dilation, ceil_mode)
    if x.requires_grad:
        y = call(MaxPool, maps, *arguments)[0]
    else:
        y = call(MaxPoolValues, maps, *arguments)
    return y if x.dim() == 4 else y[0]


def max_pool2d_packed(
    x: Tensor,  # [N, C, H, W] or [C, H, W]
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Max-pooling that also tells where each maximum was, for :func:`max_unpool2d`.

    .. math:: y_o = \max_t x_{p(o, t)}, \quad t_o = \min \arg\max_t x_{p(o, t)}

    Arguments, gradient and errors are those of :func:`max_pool2d`.

    Returns:
        (y, packed). packed is uint8 [N, C, Ho, ceil(Wo * bits / 8)] ([C, ...] unbatched) in the
        memory format of y: tap t of window wo in byte wo * bits // 8, low bits first. The winner is
        PyTorch's: the first maximum in row-major order, or the last NaN. :func:`unpack_indices`
        turns it into PyTorch's indices.

    Example:
        >>> import torch, segfast
        >>> y, packed = segfast.ops.max_pool2d_packed(torch.randn(2, 3, 360, 480), 2)
        >>> y.shape, packed.shape, packed.dtype
        (torch.Size([2, 3, 180, 240]), torch.Size([2, 3, 180, 60]), torch.uint8)
    """
    maps, arguments = _pool(x, kernel_size, stride, padding, dilation, ceil_mode)
    y, packed = call(MaxPool, maps, *arguments)
    return (y, packed) if x.dim() == 4 else (y[0], packed[0])


def max_unpool2d(
    y: Tensor,  # [N, C, Ho, Wo] or [C, Ho, Wo]
    indices: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    output_size: Sequence[int] | None = None,
    *,
    dilation: IntOrPair = 1,
) -> Tensor:
    r"""Max-unpooling: every value goes back to where the maximum was, zeros elsewhere.

    .. math:: x_q = y_o \text{ for the last window } o \text{ with } p(o, t_o) = q, \text{ else } 0

    `torch.nn.functional.max_unpool2d`, and equal to it wherever no two windows name one position.
    Where they do, the last in row-major order wins on every device, and the gradient goes to
    winners only (PyTorch's goes to all, which is no derivative of what it computes).

    Args:
        y: [N, C, Ho, Wo] or [C, Ho, Wo], float32, float64, float16 or bfloat16, any strides.
        indices: packed (uint8) as :func:`max_pool2d_packed` gives them, or PyTorch's (int64, the
            shape of y): flat positions in a plane of the output.
        kernel_size, stride, padding, dilation: those of the pool. With int64 indices they only
            say which output sizes are possible.
        output_size: (H, W), or a whole shape of which the last two count; within a stride of the
            default (Ho - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + 1. Give the
            pool's input size: several sizes pool to one. Packed positions beyond it write nothing.

    Returns:
        x [N, C, H, W] or [C, H, W] in the dtype and memory format of y.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.
        RuntimeError: int64 indices out of range, on the CPU; on other devices they write nothing.
        NotImplementedError: in forward-mode differentiation.

    Example:
        >>> import torch, segfast
        >>> y, packed = segfast.ops.max_pool2d_packed(torch.arange(9.0).view(1, 3, 3), 2)
        >>> segfast.ops.max_unpool2d(y, packed, 2, output_size=(3, 3))
        tensor([[[0., 0., 0.],
                 [0., 4., 0.],
                 [0., 0., 0.]]])
    """
    _require_map("y", y)
    windows = _windows(kernel_size, stride, padding, dilation)
    size = _unpooled_size(y, output_size, windows)
    _check.require_tensor("indices", indices, "uint8 (packed) or int64 (PyTorch's)")
    if indices.dtype == torch.uint8:
        row = packed_width(y.shape[-1], windows.kernel)
        _require_shape("indices (packed)", indices, (*y.shape[:-1], row))
    elif indices.dtype == torch.int64:
        _require_shape("indices", indices, y.shape)
    else:
        raise TypeError(
            f"indices must be uint8 (packed) or int64 (PyTorch's), got {_check.describe(indices)}"
        )
    if indices.device != y.device:
        raise ValueError(f"indices must be on the device of y, {y.device}, got {indices.device}")
    maps, where = (y, indices) if y.dim() == 4 else (y[None], indices[None])
    maps = dense(maps)
    where = dense(where, maps)
    if indices.dtype == torch.uint8:
        x = call(MaxUnpool, maps, where, *windows, size)
    else:
        x = call(MaxUnpoolIndices, maps, where, size)
    return x if y.dim() == 4 else x[0]


def unpack_indices(
    packed: Tensor,  # [N, C, Ho, bytes] or [C, Ho, bytes]
    input_size: Sequence[int],
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    r"""Packed indices as PyTorch's: flat positions, bit for bit `F.max_pool2d`'s.

    .. math:: \text{index}_o = p(o, t_o) \cdot (W, 1)

    Args:
        packed: uint8, of :func:`max_pool2d_packed`.
        input_size: (H, W) of the pool's input, or its whole shape.
        kernel_size, stride, padding, dilation, ceil_mode: those of the pool.

    Returns:
        int64 [N, C, Ho, Wo] or [C, Ho, Wo], contiguous.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch, segfast
        >>> y, packed = segfast.ops.max_pool2d_packed(torch.arange(16.0).view(1, 4, 4), 2)
        >>> segfast.ops.unpack_indices(packed, (4, 4), 2)
        tensor([[[ 5,  7],
                 [13, 15]]])
    """
    windows, size, pooled = _pooled(input_size, kernel_size, stride, padding, dilation, ceil_mode)
    _require_integers("packed", packed, torch.uint8)
    row = packed_width(pooled[1], windows.kernel)
    _require_shape("packed", packed, (*packed.shape[:-2], pooled[0], row))
    maps = dense(packed if packed.dim() == 4 else packed[None])
    indices = torch.ops.segfast._max_unpack(maps, *windows, size, pooled[1])
    return indices if packed.dim() == 4 else indices[0]


def pack_indices(
    indices: Tensor,  # [N, C, Ho, Wo] or [C, Ho, Wo]
    input_size: Sequence[int],
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    r"""PyTorch's indices, packed: the inverse of :func:`unpack_indices`.

    .. math:: t_o = i \cdot k_w + j \quad \text{with} \quad p(o, t_o) \cdot (W, 1) = \text{index}_o

    Args:
        indices: int64, of `F.max_pool2d(..., return_indices=True)`.
        input_size: (H, W) of the pool's input, or its whole shape.
        kernel_size, stride, padding, dilation, ceil_mode: those of the pool.

    Returns:
        uint8 [N, C, Ho, ceil(Wo * bits / 8)] or [C, ...], in the memory format of `indices`.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.
        RuntimeError: an index that is no tap of its window.

    Example:
        >>> import torch, segfast
        >>> x = torch.randn(2, 3, 8, 8)
        >>> _, indices = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
        >>> packed = segfast.ops.pack_indices(indices, x.shape, 2)
        >>> torch.equal(packed, segfast.ops.max_pool2d_packed(x, 2)[1])
        True
    """
    windows, size, pooled = _pooled(input_size, kernel_size, stride, padding, dilation, ceil_mode)
    _require_integers("indices", indices, torch.int64)
    _require_shape("indices", indices, (*indices.shape[:-2], *pooled))
    maps = dense(indices if indices.dim() == 4 else indices[None])
    packed = torch.ops.segfast._max_pack(maps, *windows, size)
    return packed if indices.dim() == 4 else packed[0]


def served_by() -> dict[str, str]:
    """Which kernel serves the operator, per device."""
    module = native()
    reference = "PyTorch reference (kernels/max_unpool/reference.py)"
    cpu = reference if module is None else f"max_unpool_cpu.cpp ({module.instruction_set()})"
    return {"cpu": cpu, "cuda": f"on the GPU by {reference}"}


# --- checks -------------------------------------------------------------------------------------


class _Windows(NamedTuple):
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


def pair(name: str, value: IntOrPair, minimum: int) -> Pair:
    if isinstance(value, int) and not isinstance(value, bool):
        pair = (value, value)
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        pair = (value[0], value[1])
    else:
        raise TypeError(f"{name} must be an integer or two of them, got {_check.describe(value)}")
    _check.require_count(name, pair[0], minimum)
    _check.require_count(name, pair[1], minimum)
    return pair


def _windows(
    kernel_size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair, dilation: IntOrPair
) -> _Windows:
    kernel = pair("kernel_size", kernel_size, 1)
    windows = _Windows(
        kernel,
        kernel if stride is None else pair("stride", stride, 1),
        pair("padding", padding, 0),
        pair("dilation", dilation, 1),
    )
    if kernel[0] * kernel[1] > MAX_TAPS:
        raise ValueError(
            f"kernel_size must have at most {MAX_TAPS} taps (8 bits each), got "
            f"{kernel[0]}x{kernel[1]}; torch.nn.functional.max_pool2d takes more"
        )
    for k, p in zip(kernel, windows.padding, strict=True):
        if 2 * p > k:
            raise ValueError(f"padding must be at most half of kernel_size {kernel}, got {padding}")
    return windows


def _pooled(
    input_size: Sequence[int], kernel_size: IntOrPair, stride: IntOrPair | None,
    padding: IntOrPair, dilation: IntOrPair, ceil_mode: bool,
) -> tuple[_Windows, list[int], list[int]]:  # fmt: skip
    """The windows, (H, W) and (Ho, Wo) of a pool over maps of `input_size`."""
    windows = _windows(kernel_size, stride, padding, dilation)
    size = _last_two("input_size", input_size)
    pooled = []
    for n, k, s, p, d in zip(size, *windows, strict=True):
        room = n + 2 * p - d * (k - 1) - 1  # how far the first window can move
        count = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # the last window would begin beyond the map
        if n < 1 or count < 1:
            raise ValueError(
                f"input_size must hold a window of kernel_size {windows.kernel}, dilation "
                f"{windows.dilation}, padding {windows.padding}; got {tuple(size)}"
            )
        if d > n and p > 0:  # windows that begin in the padding: where is their first tap inside?
            starts = range(-p, min(0, (count - 1) * s - p + 1), s)
            if any(start % d >= n for start in starts):
                raise ValueError(
                    f"dilation must be smaller: with {windows.dilation} and padding "
                    f"{windows.padding} a window over {tuple(size)} holds nothing but padding"
                )
        pooled.append(count)
    return windows, size, pooled


def _pool(
    x: Tensor, kernel_size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair,
    dilation: IntOrPair, ceil_mode: bool,
) -> tuple[Tensor, tuple[Any, ...]]:  # fmt: skip
    """Checked arguments of the raw pools."""
    _require_map("x", x)
    windows, _, pooled = _pooled(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return dense(x if x.dim() == 4 else x[None]), (*windows, pooled)


def _unpooled_size(y: Tensor, output_size: Sequence[int] | None, windows: _Windows) -> list[int]:
    usual = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, k, s, p, d in zip(y.shape[-2:], *windows, strict=True)
    ]
    size = usual if output_size is None else _last_two("output_size", output_size)
    for n, middle, s in zip(size, usual, windows.stride, strict=True):
        if n < 1 or not middle - s < n < middle + s:
            low = tuple(max(1, u - t + 1) for u, t in zip(usual, windows.stride, strict=True))
            high = tuple(u + t - 1 for u, t in zip(usual, windows.stride, strict=True))
            raise ValueError(
                f"output_size must be between {low} and {high} for y of shape "
                f"{tuple(y.shape)}, kernel_size {windows.kernel}, stride {windows.stride}, padding "
                f"{windows.padding}, dilation {windows.dilation}; got {tuple(size)}"
            )
    return size


def _last_two(name: str, size: Sequence[int]) -> list[int]:
    """(H, W) of a sequence (H, W) or of a whole shape (C, H, W) or (N, C, H, W)."""
    if not isinstance(size, (tuple, list)) or not 2 <= len(size) <= 4:
        raise ValueError(f"{name} must be (H, W) or a whole shape, got {_check.describe(size)}")
    _check.require_count(name, size[-2])
    _check.require_count(name, size[-1])
    return [size[-2], size[-1]]


def _require_map(name: str, x: Tensor) -> None:
    _check.require_floating(name, x, MAP)
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {_check.describe(x)}"
        )
    _require_sizes(name, x, MAP)


def _require_integers(name: str, x: Tensor, dtype: torch.dtype) -> None:
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


def _require_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {_check.describe(x)}")
