"""Tiles, pieces and tables of dilated convolution's Triton kernels: pure functions of sizes."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segfast.kernels.dilated_conv.geometry import Axis, Geometry
from segfast.kernels.dilated_conv.triton_configurations import (
    ALIGNMENT,
    DTYPES,
    SUM_ROWS,
    TABLE,
    Product,
    cut,
    fits,
    makespan,
    spans,
)
from segfast.kernels.dilated_conv.triton_work import (
    COMMON,
    DENSE,
    GRAD_WEIGHT,
    NEVER,
    Branch,
    Work,
    cover,
    dense,
    grad_weight,
    mirrored,
    padded,
)

H100 = 132  # multiprocessors


@st.composite
def axes(draw: st.DrawFn, *, strided: bool = True) -> Axis:
    """Any, with output and zeros behind the last position as they come."""
    return Axis(
        input=draw(st.integers(1, 9)),
        output=draw(st.integers(1, 9)),
        taps=draw(st.integers(1, 4)),
        stride=draw(st.integers(1, 3)) if strided else 1,
        padding=draw(st.integers(0, 12)),
        dilation=draw(st.integers(1, 11)),
    )


geometries = st.builds(Geometry, axes(), axes())
plain = st.builds(Geometry, axes(strided=False), axes(strided=False))


def test_every_kernel_has_tiles() -> None:
    assert set(TABLE) == {(kind, dtype) for kind in ("dense", "grad_weight") for dtype in DTYPES}
    for tiles in TABLE.values():
        for c in tiles:
            sizes = (c.block_m, c.block_n, c.block_k, c.num_warps)
            assert all(size & (size - 1) == 0 for size in sizes)
            assert min(sizes[:3]) >= 16  # what tl.dot multiplies
            assert c.block_m % SUM_ROWS == 0
        assert any(fits(c, (Product(1, ALIGNMENT + 1, 1, 1),)) for c in tiles)


@given(axes())
def test_every_output_is_covered_once(axis: Axis) -> None:
    covered = [(o, span.taps) for span in cover(axis) for o in span.outputs]
    assert [o for o, _ in covered] == list(range(axis.output))
    for o, taps in covered:
        assert list(taps) == [t for t in range(axis.taps) if o in axis.live(t)]


def entry(row: tuple[int, ...], columns: tuple[str, ...], name: str) -> int:
    return row[columns.index(name)]


class Pair(NamedTuple):
    """What a kernel reckons from a row: which input and which weight meet for an output."""

    output: int  # position of all images
    channel: int  # of the output, the first
    input: int
    tap: int  # among all [O, taps] of all branches, for output channel 0


def dense_pairs(work: Work, geometry: Geometry, batch: int) -> Counter[Pair]:
    """As dense_kernel walks through them."""
    rows, columns = geometry
    found: Counter[Pair] = Counter()
    for row in work.table:
        get = {name: entry(row, DENSE, name) for name in DENSE}
        assert get["m"] == batch * get["area"]
        for m in range(get["m"]):
            image, line = m // get["area"], m % get["area"]
            i, j = line // get["width"], line % get["width"]
            out = image * rows.output * columns.output + i * columns.output + j + get["out"]
            start = image * rows.input * columns.input
            start += i * rows.stride * columns.input + j * columns.stride + get["input"]
            if not get["taps"]:
                found[Pair(out, get["channel"], -1, -1)] += 1
            for tap in range(get["taps"]):
                a, b = tap // get["tap_columns"], tap % get["tap_columns"]
                read = start + a * get["row_rate"] + b * get["column_rate"]
                weight = get["weight"] + a * get["weight_row"] + b * get["weight_column"]
                found[Pair(out, get["channel"], read, weight)] += 1
    return found


def live_pairs(branches: list[Branch], batch: int) -> Counter[Pair]:
    """By the definition; -1 for an output without any."""
    found: Counter[Pair] = Counter()
    channel = first = 0
    for (rows, columns), channels, backwards in branches:
        taps = rows.taps * columns.taps
        for image in range(batch):
            for i in range(rows.output):
                for j in range(columns.output):
                    out = (image * rows.output + i) * columns.output + j
                    some = False
                    for a in range(rows.taps):
                        for b in range(columns.taps):
                            if i in rows.live(a) and j in columns.live(b):
                                some = True
                                line = image * rows.input + rows.first_input(a, i)
                                read = line * columns.input + columns.first_input(b, j)
                                tap = a * columns.taps + b
                                tap = taps - 1 - tap if backwards else tap
                                found[Pair(out, channel, read, first + tap)] += 1
                    if not some:
                        found[Pair(out, channel, -1, -1)] += 1
        channel += channels
        first += channels * taps
    return found


@settings(max_examples=40)
@given(geometry=geometries, batch=st.integers(1, 2))
def test_the_table_names_every_live_tap_once(geometry: Geometry, batch: int) -> None:
    branches = [Branch(geometry, 16, False)]
    work = dense(branches, batch, 32, "bfloat16", H100)
    assert dense_pairs(work, geometry, batch) == live_pairs(branches, batch)


@settings(max_examples=20)
@given(plain)
def test_branches_lie_side_by_side(geometry: Geometry) -> None:
    rows, columns = geometry
    other = Geometry(rows._replace(dilation=rows.dilation + 1), columns)
    branches = [Branch(geometry, 16, False), Branch(other, 5, False), Branch(other, 3, False)]
    work = dense(branches, 2, 32, "bfloat16", H100)
    assert dense_pairs(work, geometry, 2) == live_pairs(branches, 2)


@settings(max_examples=40)
@given(plain)
def test_mirrored_taps_are_the_input_gradient(geometry: Geometry) -> None:
    """(input, output, tap) of a convolution are (output, input, tap) of its transpose."""
    batch = 2
    forward = live_pairs([Branch(geometry, 1, False)], batch)
    back = mirrored(geometry)
    work = dense([Branch(back, 1, True)], batch, 32, "float32", H100)
    turned = {(p.input, p.output, p.tap) for p in dense_pairs(work, back, batch) if p.tap >= 0}
    assert turned == {(p.output, p.input, p.tap) for p in forward if p.tap >= 0}


@settings(max_examples=40)
@given(geometry=geometries, batch=st.integers(0, 2))
def test_the_weight_gradient_sums_over_live_positions(geometry: Geometry, batch: int) -> None:
    work = grad_weight(geometry, batch, (16, 32), "float16", H100)
    rows, columns = geometry
    found: Counter[tuple[int, int, int]] = Counter()
    for row in work.table:
        get = {name: entry(row, GRAD_WEIGHT, name) for name in GRAD_WEIGHT}
        for k in range(get["positions"]):
            image, line = k // get["live_area"], k % get["live_area"]
            i, j = line // get["live_width"], line % get["live_width"]
            of_grad = image * rows.output * columns.output + i * columns.output + j
            of_x = image * rows.input * columns.input
            of_x += i * rows.stride * columns.input + j * columns.stride
            found[get["out"], of_grad + get["output"], of_x + get["input"]] += 1
    assert len(work.table) == rows.taps * columns.taps  # those without a live output store zeros
    branches = [Branch(geometry, 1, False)]
    expected = {(p.tap, p.output, p.input) for p in live_pairs(branches, batch) if p.tap >= 0}
    assert found == Counter(expected)


products = st.lists(
    st.builds(
        Product, st.integers(1, 5000), st.integers(1, 600), st.integers(0, 9), st.integers(1, 3000)
    ),
    min_size=1,
    max_size=9,
)


@given(
    products=products, dtype=st.sampled_from(DTYPES), kind=st.sampled_from(("dense", "grad_weight"))
)
def test_pieces_are_not_empty_and_tiles_are_allowed(
    products: list[Product], dtype: str, kind: str
) -> None:
    chosen, pieces = cut(kind, dtype, tuple(products), H100)
    assert chosen in TABLE[kind, dtype]
    assert fits(chosen, tuple(products))
    for product, number in zip(products, pieces, strict=True):
        steps = product.steps(chosen)
        assert number >= 1
        assert (number - 1) * -(-steps // number) < max(1, steps)  # the last one has some


def aspp(side: int, batch: int, rates: tuple[int, ...]) -> Work:
    """2048 -> 256 channels at each rate."""
    branches = [
        Branch(Geometry.of((side, side), (side, side), (3, 3), (1, 1), (r, r), (r, r)), 256, False)
        for r in rates
    ]
    return dense(branches, batch, 2048, "bfloat16", H100)


def test_one_image_fills_a_gpu() -> None:
    work = aspp(33, 1, (6, 12, 18))
    assert work.programs >= H100
    assert work.slots
    tile = 4 * work.configuration.block_m * work.configuration.block_n
    assert work.slots * tile < 50e6  # stays in the cache


def test_many_images_need_no_pieces() -> None:
    work = aspp(65, 8, (6, 12, 18))
    assert not work.slots
    assert not work.sums
    assert work.programs >= 4 * H100


def test_programs_are_numbered_through() -> None:
    work = aspp(33, 1, (6, 12, 18))
    c, first, slot, sum_first = work.configuration, 0, 0, 0
    lengths = []
    sums = iter(work.sums)
    for row in work.table:
        pieces, m, n = (entry(row, DENSE, name) for name in ("pieces", "m", "n"))
        tiles = -(-m // c.block_m) * -(-n // c.block_n)
        assert entry(row, DENSE, "first") == first
        first += tiles * pieces
        steps = entry(row, DENSE, "taps") * (2048 // c.block_k)
        lengths.append(-(-steps // pieces))
        if pieces > 1:
            summed = next(sums)
            assert summed[0] == sum_first
            assert summed[1:] == row[1:]
            assert entry(row, DENSE, "slot") == slot
            slot += tiles * pieces
            sum_first += tiles * (c.block_m // SUM_ROWS)
    assert (first, slot, sum_first) == (work.programs, work.slots, work.sum_programs)
    assert next(sums, None) is None
    assert lengths == sorted(lengths, reverse=True)


def test_tables_are_padded() -> None:
    assert DENSE[: len(COMMON)] == GRAD_WEIGHT[: len(COMMON)] == COMMON
    table = padded([(0, 1, 2)] * 17)
    assert len(table) == 32
    assert table[17:] == [(NEVER, 0, 0)] * 15


def test_makespan() -> None:
    assert makespan([(1.0, 4)], 4) == 1
    assert makespan([(1.0, 5)], 4) == 2
    assert makespan([(1.0, 2), (3.0, 1)], 2) == 3
    many = makespan([(2.0, 1000)], 4)
    assert 500 <= many <= 502


@given(
    positions=st.integers(0, 1 << 24),
    block=st.sampled_from((8, 128)),
    programs=st.integers(1, 1 << 12),
)
def test_spans_cover_all_positions_once(positions: int, block: int, programs: int) -> None:
    span, splits = spans(positions, block, programs, 4 * H100)
    assert span % block == 0
    assert positions <= span * splits
    assert (splits - 1) * span < max(1, positions)
    assert splits <= max(1, 4 * H100 // programs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_output_channels_take_small_tiles(dtype: str) -> None:
    chosen, _ = cut("dense", dtype, (Product(100_000, 255, 9, 2048),), H100)
    assert chosen.block_m * chosen.block_n <= 64 * 64
    chosen, _ = cut("dense", dtype, (Product(100_000, 256, 9, 2048),), H100)
    assert chosen.block_m * chosen.block_n > 64 * 64
