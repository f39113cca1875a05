"""Random calls of the dilated convolutions, for hypothesis: geometry, layouts, dtype, threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from segfast import _native
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops._dilated_conv_plan import Strides

Pair = tuple[int, int]

# How many geometries all tests together try. More, once: SEGFAST_GEOMETRIES=20000 pytest ...
GEOMETRIES = int(os.environ.get("SEGFAST_GEOMETRIES", "1000"))

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CHANNELS = {  # of a group: in, out; groups
    "dense": ((1, 2, 3, 8, 13, 17), (1, 2, 7, 8, 19), (1,)),
    "depthwise": ((1,), (1,), (1, 2, 3, 8, 19, 34)),
    "grouped": ((1, 2, 3, 8, 9), (1, 2, 5, 8), (2, 3, 5)),
}


@dataclass(frozen=True)
class Run:
    """How tensors lie in memory, and who computes."""

    dtype: torch.dtype
    layouts: tuple[str, str, str]  # of the input, the weight and the result's gradient
    threads: int
    instruction_set: str | None  # None: no kernel was compiled

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        isa = self.instruction_set
        forced = _native.use_instruction_set(isa) if isa else contextlib.nullcontext()
        try:
            with forced:
                yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class Call:
    """A convolution, or a transposed one: then `size` is of its result."""

    batch: int
    groups: int
    in_channels: int  # of a group
    out_channels: int  # of a group
    size: Pair
    outputs: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    named: str | None  # how the padding is asked for: None, "same" or "valid"
    bias: bool
    seed: int
    transposed: bool
    extra: Pair  # the output_padding of a transposed one

    @property
    def strides(self) -> Strides:
        return Strides(*self.stride, *self.padding, *self.dilation, self.groups)

    @property
    def geometry(self) -> Geometry:
        return self.strides.geometry(self.size, self.outputs, self.kernel)

    @property
    def positions(self) -> int:
        """What an element of the weight's gradient sums over."""
        return max(1, self.batch * self.outputs[0] * self.outputs[1])

    def tensors(self, run: Run) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, the weight, a bias and the gradient of y, as of a convolution."""
        generator = torch.Generator().manual_seed(self.seed)
        inputs, outputs = self.groups * self.in_channels, self.groups * self.out_channels
        shapes = (
            (self.batch, inputs, *self.size),
            (outputs, self.in_channels, *self.kernel),
            (self.batch, outputs, *self.outputs),
            (inputs if self.transposed else outputs,),
        )
        x, weight, grad, bias = (
            torch.randn(shape, generator=generator).to(run.dtype) for shape in shapes
        )
        maps = (laid_out(t, how) for t, how in zip((x, weight, grad), run.layouts, strict=True))
        x, weight, grad = maps
        return x, weight, bias, grad


LAYOUTS = ("contiguous", "channels_last", "strided", "transposed", "one stride", "channels_last")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same shape with other strides, beside NaN that must not be read."""
    if layout == "contiguous":
        return _between_nan(x)
    if layout == "channels_last":
        return _between_nan(x.contiguous(memory_format=torch.channels_last))
    if layout == "strided":  # every other column of a wider map
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x[:, :1].expand_as(x)  # all channels the same


def _between_nan(x: Tensor) -> Tensor:
    guard = 64
    block = torch.full((x.numel() + 2 * guard,), torch.nan, dtype=x.dtype)
    return block.as_strided(x.shape, x.stride(), guard).copy_(x)


# ------------------------------------------------------------------------------ strategies


def runs() -> st.SearchStrategy[Run]:
    layouts = st.sampled_from(LAYOUTS)
    return st.builds(
        Run,
        st.sampled_from(DTYPES),
        st.tuples(layouts, layouts, layouts),
        st.integers(1, 3),
        st.sampled_from(_native.instruction_sets() or [None]),
    )


@st.composite
def calls(draw: Any, *, largest: Pair = (14, 24), transposed: bool = False) -> Call:
    """Convolutions with at least one output: rates beyond the map, all of a map in the padding."""
    named = None if transposed else draw(st.sampled_from((None, None, "same", "valid")))
    ins, outs, groups = CHANNELS[draw(st.sampled_from(list(CHANNELS)))]
    axes = [draw(_axes(most, named, transposed)) for most in largest]
    size, outputs, kernel, stride, padding, dilation, extra = zip(*axes, strict=True)
    return Call(
        draw(st.integers(0, 3)),
        draw(st.sampled_from(groups)),
        draw(st.sampled_from(ins)),
        draw(st.sampled_from(outs)),
        size, outputs, kernel, stride, padding, dilation,
        named,
        draw(st.booleans()),
        draw(st.integers(0, 999)),
        transposed,
        extra,
    )  # fmt: skip


@st.composite
def _axes(draw: Any, most: int, named: str | None, transposed: bool) -> tuple[int, ...]:
    """size, outputs, taps, stride, padding, dilation, extra"""
    taps = draw(st.integers(1, 5)) if most > 1 else 1
    stride = 1 if named == "same" or most == 1 else draw(st.integers(1, 3))
    dilation = draw(st.one_of(st.integers(1, 3), st.integers(1, most + 3)))
    reach = dilation * (taps - 1)  # from the first tap to the last
    if transposed:
        outputs = draw(st.integers(1, most))
        extra = draw(st.integers(0, max(stride, dilation) - 1)) if most > 1 else 0
        whole = (outputs - 1) * stride + reach + extra + 1
        padding = draw(st.integers(0, min((whole - 1) // 2, most)))
        return whole - 2 * padding, outputs, taps, stride, padding, dilation, extra
    if named == "valid":
        size = reach + draw(st.integers(1, most))
        return size, (size - reach - 1) // stride + 1, taps, stride, 0, dilation, 0
    size = draw(st.integers(1, most))
    if named == "same":
        return size, size, taps, 1, reach // 2, dilation, 0
    least = max(0, (reach + 2 - size) // 2)  # for one output
    padding = least + draw(st.integers(0, 4)) if most > 1 else 0
    outputs = (size + 2 * padding - reach - 1) // stride + 1
    return size, outputs, taps, stride, padding, dilation, 0
