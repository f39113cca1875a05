"""Max-pooling with packed indices, and max-unpooling.

    y[o] = max_t x[p(o, t)],   packed[o] = the first t that attains it                  (pool)
    x[q] = y[o] of the last window o, in row-major order, whose maximum was at q, else 0  (unpool)

A window o = (ho, wo) has kh * kw positions; offset t = i * kw + j names p(o, t) = (ho * sh - ph +
i * dh, wo * sw - pw + j * dw). PyTorch keeps 64 bits per window and the whole input; here it is the
offset alone: 2 bits for up to 4 positions, 4 up to 16, 8 up to 256.

Zeiler, Taylor and Fergus, "Adaptive Deconvolutional Networks", ICCV 2011, section 3 (unpooling by
switches); Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015,
section 3.2; Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017, section 3 (2 bits per
window). Derivations: kernels/max_unpool/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segfast._native import native
from segfast.ops import _check
from segfast.ops._function import call, compiled, tracing
from segfast.ops._layout import gapless
from segfast.ops._max_unpool_geometry import (
    IntOrPair,
    pooled_size,
    require_integers,
    require_map,
    require_shape,
    unpooled_size,
)
from segfast.ops._max_unpool_grad import MaxPool, MaxPoolValues, MaxUnpool, MaxUnpoolIndices
from segfast.ops._max_unpool_op import packed_width


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
        kernel_size: one number or (vertical, horizontal); at most 256 positions in all.
        stride: None means `kernel_size`.
        padding: at most half of `kernel_size`; what is padded is never chosen.
        dilation: distance of neighbouring positions of a window.
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
        memory format of y: the offset of column wo in byte wo * bits // 8, low bits first. The
        winner is PyTorch's: the first maximum in row-major order, or the last NaN.
        :func:`unpack_indices` turns it into PyTorch's indices.

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
    require_map("y", y)
    windows, size = unpooled_size(y.shape, output_size, kernel_size, stride, padding, dilation)
    _check.require_tensor("indices", indices, "uint8 (packed) or int64 (PyTorch's)")
    if indices.dtype == torch.uint8:
        row = packed_width(y.shape[-1], windows.kernel)
        require_shape("indices (packed)", indices, (*y.shape[:-1], row))
    elif indices.dtype == torch.int64:
        require_shape("indices", indices, y.shape)
    else:
        raise TypeError(
            f"indices must be uint8 (packed) or int64 (PyTorch's), got {_check.describe(indices)}"
        )
    if indices.device != y.device:
        raise ValueError(f"indices must be on the device of y, {y.device}, got {indices.device}")
    maps, where = (y, indices) if y.dim() == 4 else (y[None], indices[None])
    maps = gapless(maps)
    where = gapless(where, maps)
    if indices.dtype == torch.uint8:
        x = call(MaxUnpool, maps, where, *windows, *size)
    else:
        x = call(MaxUnpoolIndices, maps, where, *size)
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
        int64 [N, C, Ho, Wo] or [C, Ho, Wo], contiguous. Bytes that no pool of these arguments
        writes give positions outside of the map.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch, segfast
        >>> y, packed = segfast.ops.max_pool2d_packed(torch.arange(16.0).view(1, 4, 4), 2)
        >>> segfast.ops.unpack_indices(packed, (4, 4), 2)
        tensor([[[ 5,  7],
                 [13, 15]]])
    """
    windows, size, pooled = pooled_size(
        input_size, kernel_size, stride, padding, dilation, ceil_mode
    )
    require_integers("packed", packed, torch.uint8)
    row = packed_width(pooled[1], windows.kernel)
    require_shape("packed", packed, (*packed.shape[:-2], pooled[0], row))
    maps = gapless(packed if packed.dim() == 4 else packed[None])
    _require_no_trace("unpack_indices")
    indices = torch.ops.segfast._max_unpack(maps, *windows, *size, pooled[1])
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
        RuntimeError: an index that is not in its window; while a CUDA graph is recorded, which
            cannot wait to look, such an index becomes offset 0 instead.

    Example:
        >>> import torch, segfast
        >>> x = torch.randn(2, 3, 8, 8)
        >>> _, indices = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
        >>> packed = segfast.ops.pack_indices(indices, x.shape, 2)
        >>> torch.equal(packed, segfast.ops.max_pool2d_packed(x, 2)[1])
        True
    """
    windows, size, pooled = pooled_size(
        input_size, kernel_size, stride, padding, dilation, ceil_mode
    )
    require_integers("indices", indices, torch.int64)
    require_shape("indices", indices, (*indices.shape[:-2], *pooled))
    maps = gapless(indices if indices.dim() == 4 else indices[None])
    _require_no_trace("pack_indices")
    packed = torch.ops.segfast._max_pack(maps, *windows, *size)
    return packed if indices.dim() == 4 else packed[0]


def served_by() -> dict[str, str]:
    """Which kernel serves the operator, per device."""
    module = native()
    reference = "PyTorch reference (kernels/max_unpool/reference.py)"
    cpu, cuda = reference, f"on the GPU by {reference}"
    if module is not None and compiled("_max_pool2d", "cpu"):  # not so in a build gone stale
        cpu = f"max_unpool_cpu.cpp ({module.instruction_set()})"
    if module is not None and compiled("_max_pool2d", "cuda"):
        cuda = f"max_unpool.cu (sm_{module.build_info()['cuda_architectures'].replace(';', ', ')})"
    return {"cpu": cpu, "cuda": cuda}


def _require_no_trace(name: str) -> None:
    if tracing():  # its graph would keep the sizes of the example
        raise NotImplementedError(
            f"{name} cannot be traced by torch.jit.trace; torch.compile and torch.export take it"
        )


def _pool(
    x: Tensor, kernel_size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair,
    dilation: IntOrPair, ceil_mode: bool,
) -> tuple[Tensor, tuple[Any, ...]]:  # fmt: skip
    """Checked arguments of the raw pools."""
    require_map("x", x)
    windows, _, pooled = pooled_size(
        x.shape[-2:], kernel_size, stride, padding, dilation, ceil_mode, "x"
    )
    return gapless(x if x.dim() == 4 else x[None]), (*windows, *pooled)
