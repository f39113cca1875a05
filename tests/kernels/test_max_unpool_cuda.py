"""The CUDA kernels of max_unpool, run on the processor, against the reference: every bit."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import host_cuda
from segfast import _native
from segfast.kernels.max_unpool import reference
from segfast.kernels.max_unpool.reference import Windows
from segfast.ops._max_unpool_op import SCHEMAS

LAYOUTS = pytest.mark.parametrize("layout", ["planes", "channels_last"])
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # as dtype.h counts them
Pair = tuple[int, int]


class Geometry(NamedTuple):
    shape: tuple[int, int, int, int]  # of x
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @property
    def windows(self) -> Windows:
        return Windows.of(self.kernel, self.stride, self.padding, self.dilation)

    def output(self) -> list[int]:
        """(Ho, Wo), as PyTorch counts windows."""
        counts = []
        for n, (k, s, p, d) in zip(self.shape[2:], self.windows.axes, strict=True):
            room = n + 2 * p - d * (k - 1) - 1
            count = (room + (s - 1) * self.ceil_mode) // s + 1
            counts.append(count - (self.ceil_mode and (count - 1) * s >= n + p))
        return counts

    def y_shape(self) -> tuple[int, ...]:
        return (*self.shape[:2], *self.output())

    def packed_shape(self) -> tuple[int, ...]:
        each = reference.bits(self.kernel)
        return (*self.shape[:2], self.output()[0], (self.output()[1] * each + 7) // 8)

    def pooling(self, layout: str, dtype: torch.dtype, size: Sequence[int] = ()) -> bytes:
        """struct Pooling; `size`: of an x that is not the pool's."""
        size = size or self.shape[2:]
        axes = [
            number
            for n, out, windows in zip(size, self.output(), self.windows.axes, strict=True)
            for number in (n, out, *windows)
        ]
        head = self.shape[:2]
        return struct.pack("14q?3xi", *head, *axes, layout == "channels_last", DTYPES.index(dtype))


QUAD = ((2, 2), (2, 2))
GEOMETRIES = {
    "2x2 aligned": Geometry((1, 2, 6, 64), *QUAD),
    "2x2 channels": Geometry((2, 16, 4, 6), *QUAD),
    "2x2 odd": Geometry((2, 3, 5, 27), *QUAD),
    "2x2 half aligned": Geometry((1, 2, 3, 36), *QUAD),
    "2x2 narrow": Geometry((2, 8, 4, 3), *QUAD),
    "2x2 ceil": Geometry((1, 3, 5, 19), *QUAD, ceil_mode=True),
    "2x2 ceil channels": Geometry((1, 8, 5, 7), *QUAD, ceil_mode=True),
    "2x2 padded": Geometry((1, 4, 6, 8), *QUAD, padding=(1, 1)),
    "2x2 overlapping": Geometry((1, 3, 5, 9), (2, 2), (1, 1)),
    "3x3/2": Geometry((2, 5, 9, 11), (3, 3), (2, 2), (1, 1)),
    "3x3/2 channels": Geometry((1, 8, 7, 6), (3, 3), (2, 2), (1, 1)),
    "3x3/1": Geometry((1, 4, 6, 7), (3, 3), (1, 1), (1, 1)),
    "3x3/3 apart": Geometry((1, 2, 9, 14), (3, 3), (4, 3)),
    "dilated": Geometry((1, 8, 9, 12), (3, 2), (2, 1), (1, 1), (2, 3)),
    "dilated, ceil": Geometry((2, 3, 11, 13), (3, 4), (3, 2), (1, 2), (2, 1), True),
    "16x16": Geometry((1, 2, 35, 33), (16, 16), (9, 16), (8, 3)),
    "one row": Geometry((1, 8, 1, 37), (1, 3), (1, 2), (0, 1)),
    "one column": Geometry((1, 1, 23, 1), (4, 1), (3, 1), (2, 0)),
    "every third": Geometry((1, 3, 7, 8), (1, 1), (3, 3)),
    "nothing": Geometry((0, 3, 6, 8), *QUAD),
    "nothing overlapping": Geometry((0, 8, 6, 8), (3, 3), (2, 2)),
}
CASES = pytest.mark.parametrize("case", GEOMETRIES.values(), ids=GEOMETRIES)


def placed(values: Tensor, layout: str, shift: int = 0) -> Tensor:
    """The same values, dense in that layout, `shift` elements after the start of their memory."""
    if layout == "channels_last":
        strides = torch.empty(values.shape, memory_format=torch.channels_last).stride()
    else:
        strides = torch.empty(values.shape).stride()
    memory = torch.empty(values.numel() + shift, dtype=values.dtype)
    return memory.as_strided(values.shape, strides, shift).copy_(values)


def numbers(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Ties, NaN, infinities and both zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, tuple(shape), generator=generator).to(dtype) / 4
    kind = torch.randint(0, 14, tuple(shape), generator=generator)
    for number, value in enumerate((torch.nan, torch.inf, -torch.inf, -torch.inf, -0.0, -0.0)):
        x[kind == number] = value
    return x


def fractions(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Sums of them depend on their order."""
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.where(x > -1, -0.0)


def noise(shape: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, tuple(shape), generator=generator).to(torch.uint8)


class Out:
    """A tensor that a launcher has to write altogether, or that it changes from `start`."""

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        layout: str = "planes",
        shift: int = 0,
        start: int | None = None,
    ) -> None:
        self.tensor = placed(torch.zeros(tuple(shape), dtype=dtype), layout, shift)
        self.start = start

    def equals(self, expected: Tensor) -> bool:
        """In every bit, but that NaN are all alike."""
        a, b = self.tensor, expected
        if not torch.equal(a.isnan(), b.isnan()):
            return False
        a, b = a.nan_to_num(99, 1e30, -1e30), b.nan_to_num(99, 1e30, -1e30)
        return torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


def call(name: str, pooling: bytes, *arguments: Any) -> None:
    """In several orders, watched in every way, with the same result each time."""
    launch = host_cuda.operator("max_unpool")
    outs = [argument for argument in arguments if isinstance(argument, Out)]
    tensors = [argument.tensor if isinstance(argument, Out) else argument for argument in arguments]
    results = []
    for number, run in enumerate(host_cuda.RUNS):
        for out in outs:
            out.tensor.fill_(77 + number if out.start is None else out.start)
        assert launch(name, pooling, *tensors, run=run) == 0
        results.append([out.tensor.clone() for out in outs])
        assert all(out.equals(first) for out, first in zip(outs, results[0], strict=True)), run


# ------------------------------------------------------------------------------- packed offsets


@LAYOUTS
@CASES
def test_pool(case: Geometry, layout: str) -> None:
    for dtype in DTYPES:
        for shift in (0, 1):
            x = placed(numbers(case.shape, dtype), layout, shift)
            expected, offsets = reference.max_pool2d(x, case.windows, case.output())
            y = Out(case.y_shape(), dtype, layout, shift)
            packed = Out(case.packed_shape(), torch.uint8, layout, shift)
            call("pool", case.pooling(layout, dtype), x, y, packed)
            assert y.equals(expected)
            assert packed.equals(offsets)
        y = Out(case.y_shape(), dtype, layout)
        call("pool", case.pooling(layout, dtype), x, y, None)  # values alone
        assert y.equals(expected)


def sizes(case: Geometry) -> list[tuple[int, int]]:
    """Of the pool's input, and of outputs that end before and after the windows do."""
    height, width = case.shape[2:]
    return [(height, width), (max(1, height - 1), width + 1), (height + 1, max(1, width - 1))]


@LAYOUTS
@CASES
def test_unpool_and_backward(case: Geometry, layout: str) -> None:
    """Bytes of a pool, and bytes that are noise."""
    _, offsets = reference.max_pool2d(
        fractions(case.shape, torch.float32), case.windows, case.output()
    )
    for dtype in DTYPES:
        for shift, bytes_, size in zip((0, 1, 0), (offsets, *2 * [noise(offsets.shape)]),
                                       sizes(case), strict=True):  # fmt: skip
            y = placed(fractions(case.y_shape(), dtype), layout, shift)
            packed = placed(bytes_, layout, shift)
            for name, oracle in (
                ("unpool", reference.max_unpool2d),
                ("pool_backward", reference.max_pool2d_backward),
            ):
                x = Out((*case.shape[:2], *size), dtype, layout, shift)
                call(name, case.pooling(layout, dtype, size), y, packed, x)
                assert x.equals(oracle(y, packed, case.windows, size))


@LAYOUTS
@CASES
def test_gather(case: Geometry, layout: str) -> None:
    pooled = fractions(case.shape, torch.float32)
    _, offsets = reference.max_pool2d(pooled, case.windows, case.output())
    width = case.output()[1]
    for dtype in DTYPES:
        for shift, bytes_, size in zip((0, 1, 0), (offsets, *2 * [noise(offsets.shape)]),
                                       sizes(case), strict=True):  # fmt: skip
            x = placed(numbers((*case.shape[:2], *size), dtype), layout, shift)
            packed = placed(bytes_, layout, shift)
            for winners in (0, 1):
                y = Out(case.y_shape(), dtype, layout, shift)
                call("gather", case.pooling(layout, dtype, size), x, packed, y, winners)
                expected = reference.max_gather2d(x, packed, case.windows, width, bool(winners))
                assert y.equals(expected)


@CASES
def test_pack_and_unpack(case: Geometry) -> None:
    size = case.shape[2:]
    x = fractions(case.shape, torch.float32)
    _, offsets = reference.max_pool2d(x, case.windows, case.output())
    pooling = case.pooling("planes", torch.float32)
    for packed in (offsets, noise(offsets.shape)):
        indices = Out(case.y_shape(), torch.int64, "planes")
        call("unpack", pooling, packed, indices)
        expected = reference.max_unpack(packed, case.windows, size, case.output()[1])
        assert indices.equals(expected)

    indices = reference.max_unpack(offsets, case.windows, size, case.output()[1])
    for layout in ("planes", "channels_last"):
        pooling = case.pooling(layout, torch.float32)
        packed = Out(case.packed_shape(), torch.uint8, layout)
        outside = Out((1,), torch.int64, start=0)
        call("pack", pooling, placed(indices, layout), packed, outside)
        assert packed.equals(offsets)
        assert outside.tensor.item() == 0


def test_indices_outside_of_their_window_are_counted() -> None:
    case = Geometry((1, 2, 6, 8), (3, 2), (2, 2), (1, 0), (1, 2))
    offsets = reference.max_pool2d(
        fractions(case.shape, torch.float32), case.windows, case.output()
    )[1]
    right = reference.max_unpack(offsets, case.windows, (6, 8), case.output()[1])
    chosen = reference.unpack(offsets, case.kernel, case.output()[1])
    for at, wrong in (((0, 1, 2, 1), 0), ((0, 0, 0, 0), 47), ((0, 0, 1, 2), -1),
                      ((0, 1, 0, 2), 2**62), ((0, 0, 0, 1), -(2**63)), ((0, 0, 0, 1), 48),
                      ((0, 1, 1, 1), 8 + 3)):  # fmt: skip
        indices = right.clone()
        indices[at] = wrong
        outside = Out((1,), torch.int64, start=5)
        packed = Out(offsets.shape, torch.uint8)
        pooling = case.pooling("planes", torch.float32)
        call("pack", pooling, indices, packed, outside)
        assert outside.tensor.item() == 6
        offset = chosen.clone()
        offset[at] = 0  # in place of one outside of its window
        assert packed.equals(reference.pack(offset, case.kernel))
        uncounted = Out(offsets.shape, torch.uint8)
        call("pack", pooling, indices, uncounted, None)
        assert uncounted.equals(packed.tensor)


# ---------------------------------------------------------------------------- arbitrary indices


def last_writers(indices: Tensor, positions: int) -> Tensor:
    """The number of the last element of [N, C, Ho, Wo] that names each position; -1: none."""
    last = torch.full((*indices.shape[:2], positions), -1)
    for plane in torch.cartesian_prod(*map(torch.arange, indices.shape[:2])).tolist():
        for number, index in enumerate(indices[tuple(plane)].flatten().tolist()):
            if 0 <= index < positions:
                last[(*plane, index)] = number
    return last


@LAYOUTS
@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 16, 3, 3), (1, 1, 30, 20), (0, 2, 3, 3)], ids=str
)
@pytest.mark.parametrize("size", [(6, 7), (2, 3)], ids=str)
def test_arbitrary_indices(shape: Sequence[int], size: Pair, layout: str) -> None:
    """Twice the same position, positions outside: the last wins, nothing outside is touched."""
    case = Geometry((*shape[:2], *size), (1, 1), (1, 1))
    generator = torch.Generator().manual_seed(3)
    positions = size[0] * size[1]
    indices = torch.randint(-2, positions + 2, tuple(shape), generator=generator)
    indices[torch.rand(indices.shape, generator=generator) < 0.1] = 2**62
    indices[torch.rand(indices.shape, generator=generator) < 0.1] = -(2**63)
    last = last_writers(indices, positions)
    inside = (indices >= 0) & (indices < positions)
    where = indices.where(inside, 0).flatten(2)
    order = torch.arange(shape[2] * shape[3]).view(shape[2:])
    wins = inside & (last.gather(2, where).view_as(indices) == order)
    for dtype in DTYPES:
        y, x = numbers(shape, dtype), numbers((*shape[:2], *size), dtype)
        pooling = bytearray(case.pooling(layout, dtype))
        struct.pack_into("q", pooling, 16 + 8, shape[2])
        struct.pack_into("q", pooling, 16 + 48 + 8, shape[3])
        common = placed(indices, layout)
        winners = Out(((x.numel() * 4 + 15) // 16 * 16,), torch.uint8)

        found = Out(x.shape, dtype, layout)
        call("unpool_indices", pooling, placed(y, layout), common, found, winners)
        values = torch.cat([torch.zeros_like(y.flatten(2)[..., :1]), y.flatten(2)], 2)
        assert found.equals(values.gather(2, last + 1).view_as(x))

        for chosen, scratch in ((wins, winners), (inside, None)):
            found = Out(shape, dtype, layout)
            call("gather_indices", pooling, placed(x, layout), common, found, scratch)
            gathered = x.flatten(2).gather(2, where).view_as(y)
            assert found.equals(gathered.masked_fill(~chosen, 0))


# ------------------------------------------------------------------------------------- division


def test_divider() -> None:
    """Exact up to 2^31 by multiplication, beyond by division."""
    small = [1, 2, 3, 5, 6, 7, 9, 10, 641, 2**16 - 1, 2**16, 2**16 + 1, 2**30 + 1, 2**31 - 1]
    for divisor in (*small, 2**31, 2**31 + 1, 2**40):
        around = [k * divisor + r for k in (0, 1, 2, 3, 1000) for r in (-1, 0, 1)]
        ends = [2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**62]
        generator = torch.Generator().manual_seed(4)
        some = torch.randint(0, 2**31, (500,), generator=generator).tolist()
        n = torch.tensor([v for v in (*around, *ends, *some) if v >= 0])
        quotients = torch.empty_like(n)
        code = host_cuda.operator("max_unpool")("divide", n, len(n), divisor, quotients)
        assert code == 0
        assert torch.equal(quotients, n // divisor)


# -------------------------------------------------------------------------------------- binding


def test_every_operator_has_a_cuda_kernel_where_they_were_built() -> None:
    """Without a GPU, and with a PyTorch that knows none: the module loads, and they are there."""
    module = _native.native()
    if module is None or not module.build_info()["cuda_architectures"]:
        pytest.skip("segfast._C was built without CUDA")
    for name in SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"segfast::{name}", "CUDA"), name
