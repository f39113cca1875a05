"""Max-pooling with packed indices and max-unpooling in plain PyTorch: the oracle, and what serves.

A window o = (ho, wo) of a pool with kernel k, stride s, padding p, dilation d has kh * kw
positions; the one at offset t = i * kw + j is

    p(o, t) = (ho * sh - ph + i * dh,  wo * sw - pw + j * dw)

    pool             y[o] = max_t x[p(o, t)],  t(o) = the first t that attains it
    pool backward    grad_x[q] = sum of grad_y[o] over the windows with p(o, t(o)) = q
    unpool           x[q] = y[o] of the last such window (row-major), 0 without one
    gather           y[o] = x[p(o, t(o))];  "winners": 0 unless o is the last such window

t(o) is kept in 2, 4 or 8 bits. Everything loops over the offsets: at one the positions of all
windows are a strided slice of the padded map, no two alike. Larger t at one position means an
earlier window, so a loop from the last to the first meets windows in row-major order.

All maps are [N, C, H, W] of any float dtype; results have the memory format of the first tensor.
An offset beyond the window, or a position outside the map, takes no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Size = Sequence[int]  # (vertical, horizontal)


class Windows(NamedTuple):
    """The windows of a pool: eight plain integers, as the raw operators take them."""

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    dilation_h: int
    dilation_w: int

    @classmethod
    def of(cls, kernel: Size, stride: Size, padding: Size, dilation: Size) -> Windows:
        return cls(*kernel, *stride, *padding, *dilation)

    @property
    def kernel(self) -> tuple[int, int]:
        return self.kernel_h, self.kernel_w

    @property
    def stride(self) -> tuple[int, int]:
        return self.stride_h, self.stride_w

    @property
    def padding(self) -> tuple[int, int]:
        return self.padding_h, self.padding_w

    @property
    def dilation(self) -> tuple[int, int]:
        return self.dilation_h, self.dilation_w

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Kernel, stride, padding, dilation: vertical, horizontal."""
        return self[0::2], self[1::2]

    def offsets(self, count: Size, last_first: bool = False) -> Iterator[tuple[int, Any]]:
        """Every offset with the slice of the padded map where `count` windows have it."""
        rows, columns = range(self.kernel[0]), range(self.kernel[1])
        order = [(i, j) for i in rows for j in columns]
        for i, j in reversed(order) if last_first else order:
            yield (
                i * self.kernel[1] + j,
                (
                    ...,
                    _every(i * self.dilation[0], self.stride[0], count[0]),
                    _every(j * self.dilation[1], self.stride[1], count[1]),
                ),
            )

    def pad(self, x: Tensor, count: Size, value: float) -> Tensor:
        """The map with `value` around it, wherever one of `count` windows looks."""
        (top, left), (height, width) = self.padding, x.shape[2:]
        below = max(0, self.reach(count)[0] - top - height)
        right = max(0, self.reach(count)[1] - left - width)
        return F.pad(x, (left, right, top, below), value=value)

    def blank(self, like: Tensor, count: Size, size: Size, dtype: torch.dtype) -> Tensor:
        """Zeros for a map of `size` and what `count` windows see around it."""
        shape = [
            max(r, p + n) for r, p, n in zip(self.reach(count), self.padding, size, strict=True)
        ]
        return like.new_zeros((*like.shape[:2], *shape), dtype=dtype)

    def crop(self, padded: Tensor, size: Size) -> Tensor:
        """The map of `size` inside the padded one."""
        top, left = self.padding
        return padded[..., top : top + size[0], left : left + size[1]]

    def reach(self, count: Size) -> list[int]:
        """Extent of `count` windows, (vertical, horizontal)."""
        return [
            (n - 1) * s + (k - 1) * d + 1 for n, (k, s, _, d) in zip(count, self.axes, strict=True)
        ]


def _every(start: int, step: int, count: int) -> slice:
    return slice(start, start + (count - 1) * step + 1, step)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last or contiguous, as PyTorch's own operators decide for their outputs."""
    return torch._prims_common.suggest_memory_format(x)


def _formatted(y: Tensor, like: Tensor) -> Tensor:
    """y, dense, in the memory format of `like`; the strides of a 1x1 map tell it, too."""
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=memory_format(like))
    return y if y.stride() == out.stride() else out.copy_(y)


# ------------------------------------------------------------------------------------- packing


def bits(kernel: Size) -> int:
    """Bits per offset: 2, 4 or 8."""
    positions = kernel[0] * kernel[1]
    return 2 if positions <= 4 else 4 if positions <= 16 else 8


def pack(offsets: Tensor, kernel: Size) -> Tensor:
    """Offsets [N, C, Ho, Wo] -> uint8 [N, C, Ho, ceil(Wo * bits / 8)], low bits first."""
    each = bits(kernel)
    per_byte = 8 // each
    whole = F.pad(offsets, (0, -offsets.shape[3] % per_byte)).unflatten(3, (-1, per_byte))
    shifts = torch.arange(0, 8, each, device=offsets.device)
    return (whole << shifts).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, kernel: Size, width: int) -> Tensor:
    """The inverse: offsets, int64 [N, C, Ho, width]."""
    each = bits(kernel)
    shifts = torch.arange(0, 8, each, device=packed.device)
    offsets = (packed.long()[..., None] >> shifts) & (2**each - 1)  # [N, C, Ho, bytes, 8 / bits]
    return offsets.flatten(3)[..., :width]


# --------------------------------------------------------------------------- packed operators


def max_pool2d(
    x: Tensor,  # [N, C, H, W]
    windows: Windows,
    output_size: Size,
) -> tuple[Tensor, Tensor]:
    """Values and packed offsets. The first maximum wins; a NaN wins against all before it."""
    y = x.new_full((*x.shape[:2], *output_size), -torch.inf)
    chosen = _first_inside(windows, output_size, x.device).expand(y.shape).clone()
    padded = windows.pad(x, output_size, -torch.inf)  # never larger than what is there
    for offset, seen in windows.offsets(output_size):
        value = padded[seen]
        better = (value > y) | value.isnan()
        y = torch.where(better, value, y)
        chosen.masked_fill_(better, offset)
    return _formatted(y, x), _formatted(pack(chosen, windows.kernel), x)


def _first_inside(windows: Windows, count: Size, device: torch.device) -> Tensor:
    """The first offset of each window not in the padding above or to the left [Ho, Wo]."""
    first = []
    for n, (_, s, p, d) in zip(count, windows.axes, strict=True):
        start = torch.arange(n, device=device) * s - p
        first.append((-start).clamp_min(0).add(d - 1).div(d, rounding_mode="floor"))
    return first[0][:, None] * windows.kernel_w + first[1]


def max_pool2d_values(
    x: Tensor,  # [N, C, H, W]
    windows: Windows,
    output_size: Size,
) -> Tensor:
    """The values alone, [N, C, Ho, Wo]."""
    return max_pool2d(x, windows, output_size)[0]


def max_pool2d_backward(
    grad_y: Tensor,  # [N, C, Ho, Wo]
    packed: Tensor,  # [N, C, Ho, bytes]
    windows: Windows,
    input_size: Size,
) -> Tensor:
    """Sums over the windows that chose a position, in row-major order, at least in float32."""
    count = grad_y.shape[2:]
    chosen = unpack(packed, windows.kernel, count[1])  # [N, C, Ho, Wo]
    wide = torch.float64 if grad_y.dtype == torch.float64 else torch.float32
    grad_x = windows.blank(grad_y, count, input_size, wide)
    for offset, seen in windows.offsets(count, last_first=True):
        grad_x[seen] += grad_y.masked_fill(chosen != offset, 0)
    return _formatted(windows.crop(grad_x, input_size).to(grad_y.dtype), grad_y)


def max_unpool2d(
    y: Tensor,  # [N, C, Ho, Wo]
    packed: Tensor,  # [N, C, Ho, bytes]
    windows: Windows,
    output_size: Size,
) -> Tensor:
    """Each value at the position its window names; the last window wins; zeros elsewhere."""
    count = y.shape[2:]
    chosen = unpack(packed, windows.kernel, count[1])  # [N, C, Ho, Wo]
    x = windows.blank(y, count, output_size, y.dtype)
    for offset, seen in windows.offsets(count, last_first=True):
        x[seen] = torch.where(chosen == offset, y, x[seen])
    return _formatted(windows.crop(x, output_size), y)


def max_gather2d(
    x: Tensor,  # [N, C, H, W]
    packed: Tensor,  # [N, C, Ho, bytes]
    windows: Windows,
    output_width: int,
    winners: bool,
) -> Tensor:
    """What each window names in x; with `winners` 0 where a later window names the same."""
    chosen = unpack(packed, windows.kernel, output_width)  # [N, C, Ho, Wo]
    count = chosen.shape[2:]
    padded = windows.pad(x, count, 0)
    y = x.new_zeros(chosen.shape)
    for offset, seen in windows.offsets(count):
        y = torch.where(chosen == offset, padded[seen], y)
    if winners:
        number = _numbers(chosen.shape, x.device)
        last = max_unpool2d(number, packed, windows, x.shape[2:])  # [N, C, H, W]
        y = y.masked_fill(max_gather2d(last, packed, windows, output_width, False) != number, 0)
    return _formatted(y, x)


def _numbers(shape: Size, device: torch.device) -> Tensor:
    """1, 2, 3 ... in row-major order for every channel."""
    n = torch.arange(1, shape[2] * shape[3] + 1, device=device)
    return n.view(1, 1, *shape[2:]).expand(shape).contiguous()  # [N, C, Ho, Wo]


# ------------------------------------------------------------- PyTorch's indices: row * W + column


def max_unpool2d_indices(
    y: Tensor,  # [N, C, Ho, Wo]
    indices: Tensor,  # [N, C, Ho, Wo]
    output_size: Size,
) -> Tensor:
    """y at flat positions; the last in row-major order wins; zeros elsewhere.

    Out of range: RuntimeError on the CPU; elsewhere ignored, as looking means waiting.
    """
    writer = _last_writer(indices, output_size)  # [N, C, H * W]
    values = F.pad(y.flatten(2), (1, 0))  # number 0: nobody
    x = values.gather(2, writer).unflatten(2, list(output_size))
    return _formatted(x, y)


def max_gather2d_indices(
    x: Tensor,  # [N, C, H, W]
    indices: Tensor,  # [N, C, Ho, Wo]
    winners: bool,
) -> Tensor:
    """x at flat positions; with `winners` 0 where a later element names the same position."""
    size = x.shape[2:]
    inside = _inside(indices, size)
    at = indices.where(inside, 0).flatten(2)
    taken = inside.flatten(2)
    if winners:
        number = _numbers(indices.shape, indices.device).flatten(2)
        taken = taken & (_last_writer(indices, size).gather(2, at) == number)
    y = x.flatten(2).gather(2, at).masked_fill(~taken, 0).unflatten(2, list(indices.shape[2:]))
    return _formatted(y, x)


def _inside(indices: Tensor, size: Size) -> Tensor:
    inside = (indices >= 0) & (indices < size[0] * size[1])
    if indices.device.type == "cpu" and not inside.all():
        worst = int(indices[~inside][0])
        raise RuntimeError(  # as PyTorch
            f"indices must lie in [0, {size[0] * size[1]}) of the {size[0]}x{size[1]} output, "
            f"got {worst}"
        )
    return inside


def _last_writer(indices: Tensor, size: Size) -> Tensor:
    """The number (from 1) of the last element that names each position, else 0 [N, C, H * W]."""
    inside = _inside(indices, size)
    number = _numbers(indices.shape, indices.device).where(inside, 0)
    writer = indices.new_zeros((*indices.shape[:2], size[0] * size[1]))
    return writer.scatter_reduce(
        2, indices.where(inside, 0).flatten(2), number.flatten(2), "amax", include_self=True
    )


def max_pack(
    indices: Tensor,  # [N, C, Ho, Wo]
    windows: Windows,
    input_size: Size,
) -> Tensor:
    """PyTorch's indices -> packed; RuntimeError when an index lies outside its window."""
    offset, known = torch.zeros_like(indices), torch.ones_like(indices, dtype=torch.bool)
    width = input_size[1]
    for axis, position in enumerate((indices // width, indices % width)):
        kernel, dilation = windows.kernel[axis], windows.dilation[axis]
        start = _starts(windows, indices.shape[2:], axis, indices.device)
        step = (position - start).div(dilation, rounding_mode="floor")
        known &= (position == start + step * dilation) & (step >= 0) & (step < kernel)
        offset = offset * kernel + step
    known &= (indices >= 0) & (indices < input_size[0] * width)
    if not known.all():
        n, c, ho, wo = (~known).nonzero()[0].tolist()
        raise RuntimeError(
            f"indices must lie in their window: {int(indices[n, c, ho, wo])} at {(n, c, ho, wo)} "
            f"is not in window ({ho}, {wo}) of a pool over {input_size[0]}x{width}"
        )
    return _formatted(pack(offset, windows.kernel), indices)


def max_unpack(
    packed: Tensor,  # [N, C, Ho, bytes]
    windows: Windows,
    input_size: Size,
    output_width: int,
) -> Tensor:
    """PyTorch's indices [N, C, Ho, Wo], contiguous."""
    offset = unpack(packed, windows.kernel, output_width)  # [N, C, Ho, Wo]
    row, column = (
        _starts(windows, offset.shape[2:], axis, offset.device) + step * windows.dilation[axis]
        for axis, step in enumerate((offset // windows.kernel_w, offset % windows.kernel_w))
    )
    return (row * input_size[1] + column).contiguous()


def _starts(windows: Windows, count: Size, axis: int, device: torch.device) -> Tensor:
    """Where windows start on an axis: [Ho, 1] or [Wo]."""
    start = torch.arange(count[axis], device=device) * windows.stride[axis] - windows.padding[axis]
    return start[:, None] if axis == 0 else start
