"""Geometries and maps for the tests of max-pooling and unpooling."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "strided", "transposed")


class Pool(NamedTuple):
    """The arguments of a pool after its input."""

    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    def pytorch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.max_pool2d(x, *self, return_indices=True)

    def unpooling(self) -> dict[str, Any]:
        """max_unpool2d's arguments; PyTorch's has no dilation."""
        names = ("kernel_size", "stride", "padding", "dilation")
        return {name: getattr(self, name) for name in names}

    def disjoint(self) -> bool:
        """No position belongs to two windows."""
        return all(s > d * (k - 1) for k, s, d in self._axes())

    def holds_something(self, size: tuple[int, int]) -> bool:
        """PyTorch takes it, and no window is all padding (whose index is beyond the plane)."""
        for n, (k, s, d), p in zip(size, self._axes(), _pair(self.padding), strict=True):
            room = n + 2 * p - d * (k - 1) - 1
            count = (room + (s - 1 if self.ceil_mode else 0)) // s + 1
            if self.ceil_mode and (count - 1) * s >= n + p:
                count -= 1
            windows = ([o * s - p + i * d for i in range(k)] for o in range(count))
            if count < 1 or not all(any(0 <= at < n for at in window) for window in windows):
                return False
        return True

    def _axes(self) -> list[tuple[int, int, int]]:
        kernel = _pair(self.kernel_size)
        stride = kernel if self.stride is None else _pair(self.stride)
        return list(zip(kernel, stride, _pair(self.dilation), strict=True))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":  # every other column of a wider map
        return x.repeat_interleave(2, -1)[..., ::2]
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x.contiguous()


def maps(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32, special: bool = False
) -> Tensor:
    """Few distinct values, so that ties are common; `special` adds NaN and infinities."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, shape, generator=generator).to(dtype)
    if special:
        kind = torch.randint(0, 12, shape, generator=generator)
        for number, value in enumerate((torch.nan, torch.inf, -torch.inf, -torch.inf, -0.0)):
            x[kind == number] = value
    return x


def distinct(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """No two values alike or near: winners do not change under gradcheck's steps."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.Size(shape).numel()
    return (torch.randperm(n, generator=generator).view(shape) - n / 2).to(dtype) / 8


def identical(a: Tensor, b: Tensor) -> bool:
    """Every element the same, signs of zeros too, NaN at the same places."""
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and bool(((a == b) & (a.signbit() == b.signbit()) | a.isnan()).all())
    )


@st.composite
def pools(draw: Any, most: int = 5, shape: int = 14) -> tuple[Pool, tuple[int, int, int, int]]:
    """A geometry that PyTorch takes, with the shape of a map for it."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel = pair(1, most)
    pool = Pool(
        kernel,
        draw(st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(1, 4)))),
        (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))),
        draw(st.one_of(st.just((1, 1)), st.tuples(st.integers(1, 3), st.integers(1, 3)))),
        draw(st.booleans()),
    )
    size = pair(1, shape)
    assume(pool.holds_something(size))
    return pool, (draw(st.integers(1, 2)), draw(st.integers(1, 5)), *size)
