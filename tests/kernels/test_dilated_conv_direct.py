"""The direct C++ kernels of dilated convolution, as raw operators: any geometry, layout and dtype.

Arguments lie between NaN in one block of memory, and fresh memory is NaN: what is read beside the
maps, or before it is written, shows.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import segfast.ops  # noqa: F401  (defines the operators)
from segfast.kernels.dilated_conv import reference
from segfast.kernels.dilated_conv.geometry import Axis, Geometry
from segfast.ops._dilated_conv_plan import Strides
from segfast.testing import assert_as_good_as, dtypes
from tests.kernels.pages import guarded

FORMATS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}
OPERATORS = ("", "_grad_input", "_grad_weight")

pytestmark = pytest.mark.usefixtures("compiled_kernels")


@pytest.fixture(params=FORMATS)
def layout(request: pytest.FixtureRequest) -> torch.memory_format:
    return FORMATS[request.param]


def raw(name: str) -> Any:
    return getattr(torch.ops.segfast, f"_dilated_conv_direct{name}")


class Case(NamedTuple):
    """The arguments of all three operators."""

    geometry: Geometry
    strides: Strides
    x: Tensor  # [N, G C, H, W]
    weight: Tensor  # [G O, C, kh, kw]
    bias: Tensor | None  # [G O]
    grad: Tensor  # [N, G O, Ho, Wo]

    def run(self) -> list[Tensor]:
        """y, grad_x, grad_w of the kernels."""
        rows, columns = self.geometry
        y = raw("")(self.x, self.weight, self.bias, rows.output, columns.output, *self.strides)
        size = rows.input, columns.input
        grad_x = raw("_grad_input")(self.grad, self.weight, *size, *self.strides)
        grad_w = raw("_grad_weight")(self.grad, self.x, rows.taps, columns.taps, *self.strides)
        return [y, grad_x, grad_w]

    def expected(self, dtype: torch.dtype) -> list[Tensor]:
        """The same by the reference, computed in `dtype`."""
        x, weight, grad = (t.to(dtype) for t in (self.x, self.weight, self.grad))
        bias = None if self.bias is None else self.bias.to(dtype)
        rest = self.geometry, self.strides.groups
        return [
            reference.conv(x, weight, bias, *rest),
            reference.grad_input(grad, weight, *rest),
            reference.grad_weight(grad, x, *rest),
        ]

    def terms(self) -> list[int]:
        """How many products an element of each result sums, at most."""
        rows, columns = self.geometry
        taps = rows.taps * columns.taps
        outputs = self.weight.shape[0] // self.strides.groups
        positions = self.x.shape[0] * rows.output * columns.output
        return [self.weight.shape[1] * taps, outputs * taps, max(1, positions)]


def make(
    rows: Axis,
    columns: Axis,
    *,
    batch: int = 1,
    groups: int = 3,
    channels: tuple[int, int] = (1, 1),
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def map_(count: int, height: int, width: int) -> Tensor:
        drawn = draw(batch, groups * count, height, width)
        return guarded(drawn.contiguous(memory_format=layout))

    ins, outs = channels
    axes = zip(rows, columns, strict=True)
    geometry = Geometry(rows, columns)
    strides = Strides(*itertools.chain(*list(axes)[3:]), groups)
    return Case(
        geometry,
        strides,
        map_(ins, rows.input, columns.input),
        guarded(draw(groups * outs, ins, rows.taps, columns.taps)),
        guarded(draw(groups * outs)) if bias else None,
        map_(outs, rows.output, columns.output),
    )


def random_axis(rng: random.Random) -> Axis:
    """Any sizes together: rates beyond the map, even kernels, outputs that nothing reaches."""
    size, output = (rng.choice([1, 2, 5, 8, 9, 16, 17, 33, 40, 70]) for _ in range(2))
    taps = rng.choice([1, 2, 3, 3, 3, 4, 5])
    stride = rng.choice([1, 1, 1, 2, 3, 5, 50])
    dilation = rng.choice([1, 1, 2, 3, 6, 12, 40, 100])
    same = dilation * (taps - 1) // 2
    padding = rng.choice([0, 1, same, same, dilation, 2 * same + 3])
    if rng.random() < 0.5:  # as a network has it
        output = max(1, (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1)
    return Axis(size, min(output, 90), taps, stride, padding, dilation)


@pytest.fixture
def drawn(
    dtype: torch.dtype, layout: torch.memory_format, request: pytest.FixtureRequest
) -> Iterator[tuple[int, Case]]:
    """Random cases with their seeds, every dtype's its own; three times as many with --all."""
    first = zlib.crc32(str(dtype).encode())
    seeds = range(first, first + (120 if request.config.getoption("--all") else 40))
    return ((seed, random_case(seed, dtype, layout)) for seed in seeds)


def random_case(seed: int, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    rng = random.Random(seed)
    depthwise = layout == torch.channels_last
    groups = [1, 2, 3, 7, 8, 16, 19, 37] + ([67, 260, 300] if depthwise else [])
    ins, outs = ([1, 1, 2, 3, 8], [1, 1, 2, 5, 11])
    return make(
        random_axis(rng),
        random_axis(rng),
        batch=rng.choice([0, 1, 1, 2, 3]),
        groups=rng.choice(groups),
        channels=(1, 1) if depthwise else (rng.choice(ins), rng.choice(outs)),
        bias=rng.random() < 0.5,
        dtype=dtype,
        layout=layout,
        seed=seed,
    )


def assert_right(case: Case) -> None:
    results = case.run()
    oracles = case.expected(torch.float64)
    dtype = case.x.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    baselines = [t.to(dtype) for t in case.expected(wide)]
    every = zip(OPERATORS, results, oracles, baselines, case.terms(), strict=True)
    for name, actual, oracle, baseline, terms in every:
        label = f"conv{name} {dtype} {case.geometry} {tuple(case.weight.shape)} {case.strides}"
        assert actual.dtype == dtype
        assert_as_good_as(actual, oracle, baseline, terms=terms, label=label)


@dtypes()
def test_any_geometry(
    instruction_set: str, drawn: Iterator[tuple[int, Case]], dtype: torch.dtype
) -> None:
    for _, case in drawn:
        assert_right(case)


@pytest.mark.parametrize("rate", [1, 2, 6, 12, 18, 24, 36, 70])
def test_sizes_of_networks(instruction_set: str, layout: torch.memory_format, rate: int) -> None:
    for size in (33, 65):
        axis = Axis(size, size, 3, 1, rate, rate)
        assert_right(make(axis, axis, batch=2, groups=20, layout=layout))


@dtypes()
@pytest.mark.parametrize("taps", [3, 5, 7])
def test_taps_that_read_the_same_pixels(
    instruction_set: str, taps: int, dtype: torch.dtype
) -> None:
    """Channels_last maps, wide enough for each pixel to be read once; rows in bands."""
    rows = Axis(12, 12, 3, 1, 1, 1)
    for stride, rate, groups in ((1, 1, 67), (1, 2, 40), (2, 2, 70), (2, 1, 33), (1, 4, 256)):
        padding = rate * (taps // 2)
        output = (42 + 2 * padding - rate * (taps - 1) - 1) // stride + 1
        columns = Axis(42, output, taps, stride, padding, rate)
        assert_right(make(rows, columns, groups=groups, dtype=dtype, layout=torch.channels_last))


# Planes that are turned into pixels: rows, columns, groups, batch.
TURNED = {
    "7 x 7": (Axis(7, 7, 7, 1, 3, 1), Axis(7, 7, 7, 1, 3, 1), 41, 2),
    "4 x 4": (Axis(4, 4, 3, 1, 1, 1), Axis(4, 4, 3, 1, 1, 1), 33, 1),
    "a line": (Axis(1, 1, 1, 1, 0, 1), Axis(70, 70, 5, 1, 4, 2), 16, 3),
    "high rate": (Axis(33, 33, 3, 1, 12, 12), Axis(33, 33, 3, 1, 12, 12), 41, 2),
    "rate beyond the map": (Axis(33, 33, 3, 1, 10**9, 10**9), Axis(20, 20, 3, 1, 99, 99), 32, 1),
    "stride": (Axis(41, 21, 5, 2, 2, 1), Axis(23, 8, 5, 3, 2, 1), 41, 2),
    "stride and rate": (Axis(30, 15, 3, 2, 3, 3), Axis(31, 16, 3, 2, 4, 4), 8, 2),
    "more padding than taps": (Axis(9, 21, 3, 1, 7, 1), Axis(6, 12, 3, 1, 4, 1), 31, 2),
    "bands": (Axis(90, 90, 5, 1, 2, 1), Axis(500, 500, 5, 1, 2, 1), 8, 1),
    "bands and a stride": (Axis(90, 45, 5, 2, 2, 1), Axis(500, 250, 5, 2, 2, 1), 9, 1),
    "tall": (Axis(900, 900, 3, 1, 4, 4), Axis(20, 20, 3, 1, 1, 1), 40, 1),
    "wide": (Axis(60, 60, 5, 1, 4, 2), Axis(300, 300, 5, 1, 2, 1), 10, 1),
    "many maps": (Axis(6, 6, 5, 1, 2, 1), Axis(7, 7, 5, 1, 2, 1), 17, 200),
}


@dtypes()
@pytest.mark.parametrize("name", TURNED)
def test_turned_planes(instruction_set: str, name: str, dtype: torch.dtype) -> None:
    rows, columns, groups, batch = TURNED[name]
    assert_right(make(rows, columns, groups=groups, batch=batch, dtype=dtype))


@pytest.mark.parametrize("groups", [64, 56, 12])
def test_every_bfloat16(instruction_set: str, layout: torch.memory_format, groups: int) -> None:
    """And sums of two, which round as PyTorch rounds: to nearest, ties to even, NaN to NaN."""
    bits = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))
    x = bits.to(torch.int16).view(torch.bfloat16).view(1, 64, 16, 64)[:, :groups]
    weight = torch.ones(groups, 1, 1, 2, dtype=torch.bfloat16)
    y = raw("")(x.contiguous(memory_format=layout), weight, None, 16, 64, 1, 1, 0, 0, 1, 1, groups)
    behind = torch.nn.functional.pad(x[..., 1:].float(), (0, 1))
    expected = (x.float() + behind).bfloat16()
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def test_many_positions(instruction_set: str, layout: torch.memory_format) -> None:
    """More than are summed before a partial sum of the weight's gradient is put aside."""
    case = make(
        Axis(300, 300, 3, 1, 4, 4), Axis(290, 290, 3, 1, 4, 4), groups=2, batch=2, layout=layout
    )
    assert_right(case)
    assert_right(make(Axis(1, 1, 1, 1, 0, 1), Axis(9000, 9000, 12, 1, 40, 7), layout=layout))


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(
    instruction_set: str, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    depthwise = layout == torch.channels_last
    cases = [
        make(
            Axis(33, 33, 3, 1, 12, 12),
            Axis(40, 20, 3, 2, 2, 2),
            batch=3,
            groups=280 if depthwise else 40,
            channels=(1, 1) if depthwise else (3, 2),
            dtype=dtype,
            layout=layout,
        ),
        make(
            Axis(150, 150, 3, 1, 2, 2), Axis(90, 90, 5, 1, 4, 2), batch=2, dtype=dtype,
            layout=layout,
        ),
        make(
            Axis(90, 90, 3, 1, 2, 2), Axis(60, 30, 5, 2, 2, 1), groups=70, batch=2, dtype=dtype,
            layout=layout,
        ),
    ]  # fmt: skip
    for case in cases:
        results = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(case.run())
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@dtypes()
def test_special_values_go_where_they_belong(
    instruction_set: str, drawn: Iterator[tuple[int, Case]], dtype: torch.dtype
) -> None:
    """In the maps and in the weight: nothing else is touched, not even 0 times infinity."""
    for seed, case in itertools.islice(drawn, 20):
        for k, t in enumerate((case.x, case.weight, case.grad)):
            if t.numel():
                at = [seed * 7919 % size for size in t.shape]
                t[tuple(at)] = (torch.inf, -torch.inf, torch.nan)[(seed + k) % 3]
        for actual, oracle in zip(case.run(), case.expected(torch.float64), strict=True):
            assert torch.equal(actual.isnan(), oracle.isnan()), case.geometry
            infinite = oracle.isinf()
            assert torch.equal(actual.isinf(), infinite), case.geometry
            assert torch.equal(actual[infinite].double(), oracle[infinite])


def test_empty_batch(instruction_set: str, layout: torch.memory_format) -> None:
    axis = Axis(9, 9, 3, 1, 2, 2)
    y, grad_x, grad_w = make(axis, axis, batch=0, layout=layout).run()
    assert y.shape == grad_x.shape == (0, 3, 9, 9)
    assert torch.equal(grad_w, torch.zeros(3, 1, 3, 3))


def test_memory_formats(layout: torch.memory_format) -> None:
    axis = Axis(9, 9, 3, 1, 2, 2)
    y, grad_x, grad_w = make(axis, axis, layout=layout).run()
    assert y.is_contiguous(memory_format=layout)
    assert grad_x.is_contiguous(memory_format=layout)
    assert grad_w.is_contiguous()


def test_refusals() -> None:
    """What Python checks before is refused here, too: nothing out of bounds, whatever comes."""
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3)
    strides = Strides(1, 1, 1, 1, 1, 1, 4)
    pixels = x.contiguous(memory_format=torch.channels_last)
    refusals = {
        "do not fit": ("", x[:, :3].contiguous(), weight, None, 8, 8, *strides),
        "groups=0 do not fit": ("", x, weight, None, 8, 8, *strides[:6], 0),
        "groups must be at least 1, got 0": ("_grad_weight", x, x, 3, 3, *strides[:6], 0),
        "stride and dilation must be at least 1": (
            "_grad_input", x, weight, 8, 8, 0, *strides[1:]),
        "maps must be at least 1x1": ("", x, weight, None, 0, 8, *strides),
        "bias must have 4 elements": ("", x, weight, torch.zeros(3), 8, 8, *strides),
        "weight must be like x": ("", x, weight.double(), None, 8, 8, *strides),
        "grad must be like x": ("_grad_weight", x.half(), x, 3, 3, *strides),
        "x must be float32, float64, float16 or bfloat16": (
            "", x.long(), weight.long(), None, 8, 8, *strides),
        "x must be four-dimensional": ("", x[0], weight, None, 8, 8, *strides),
        "without gaps": ("", x[..., ::2], weight, None, 8, 4, *strides),
        "in one memory format": ("_grad_weight", x, pixels, 3, 3, *strides),
        "channels_last needs one input and one output channel": (
            "", pixels, torch.randn(4, 2, 3, 3), None, 8, 8, *strides[:6], 2),
    }  # fmt: skip
    for message, (name, *arguments) in refusals.items():
        with pytest.raises(RuntimeError, match=message):
            raw(name)(*arguments)
