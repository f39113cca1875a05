"""The tables that tell the programs of a launch what to compute: pure functions of the geometry.

One row for each product of matrices: a rectangle of constant live taps, or a tap of the weight
gradient. A row holds numbers of positions and elements from which a program reckons all addresses,
so that nothing inside a rectangle needs a mask. Programs are numbered through all rows: tile by
tile, the pieces of a tile next to each other, rows with the longest pieces first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .geometry import Axis, Geometry, Span
from .triton_configurations import SUM_ROWS, Configuration, Cut, Product, cut

NEVER = 2**31 - 1  # the first program of a row that pads the table
# What every kernel reads: of the schedule, and where a tile is stored.
COMMON = (
    "first",  # program of this row
    "slot",  # its first tile among the partial sums
    "pieces",  # of each tile
    "m",
    "n",
    "area",  # rows of the product in one image
    "width",  # ... in one line of it
    "out",  # position that row 0 is stored at
    "channel",  # that column 0 is stored at
)
DENSE = (
    *COMMON,
    "input",  # position that the first live tap reads for row 0
    "taps",  # live ones
    "tap_columns",  # live columns of taps
    "row_rate",  # positions from a tap to the next, down and to the right
    "column_rate",
    "weight",  # the first live tap among all [O, taps]
    "weight_row",  # taps to the next row of taps, the next tap, the next output channel
    "weight_column",
    "weight_channel",
)
GRAD_WEIGHT = (
    *COMMON,
    "input",  # position that the tap reads for the first live output
    "output",  # the first live output
    "positions",  # live ones, of all images
    "live_area",  # ... of one image
    "live_width",  # ... of one line
)


class Work(NamedTuple):
    configuration: Configuration
    table: tuple[tuple[int, ...], ...]
    programs: int
    sums: tuple[tuple[int, ...], ...]  # the rows in pieces, for the kernel that sums
    sum_programs: int
    slots: int  # tiles of partial sums


class Branch(NamedTuple):
    """A convolution of stride 1 or more, as one of several of the same input."""

    geometry: Geometry
    channels: int  # of the output
    mirrored: bool  # the taps of the weight run backwards


def mirrored(geometry: Geometry) -> Geometry:
    """The convolution with mirrored taps that is the input gradient; of stride 1."""
    return Geometry(*map(_mirrored, geometry))


def _mirrored(axis: Axis) -> Axis:
    padding = (axis.taps - 1) * axis.dilation - axis.padding
    return axis._replace(input=axis.output, output=axis.input, padding=padding)


def cover(axis: Axis) -> list[Span]:
    """The spans of an axis, and between them those without live taps."""
    spans, end = [], 0
    for span in axis.spans():
        if span.outputs.start > end:
            spans.append(Span(range(end, span.outputs.start), range(0)))
        spans.append(span)
        end = span.outputs.stop
    if end < axis.output:
        spans.append(Span(range(end, axis.output), range(0)))
    return spans


def dense(branches: Sequence[Branch], batch: int, channels: int, dtype: str, programs: int) -> Work:
    """Of convolutions side by side: weights [O, taps, C] one after another."""
    products, facts = rectangles(branches, batch, channels)
    return scheduled(products, facts, cut("dense", dtype, tuple(products), programs))


def rectangles(
    branches: Sequence[Branch], batch: int, channels: int
) -> tuple[list[Product], list[tuple[int, ...]]]:
    """A product for each of them; what its row says from "area" on."""
    products, facts = [], []
    weight = channel = 0
    for branch in branches:
        for rows in cover(branch.geometry.rows):
            for columns in cover(branch.geometry.columns):
                taps = len(rows.taps) * len(columns.taps)
                m = batch * len(rows.outputs) * len(columns.outputs)
                products.append(Product(m, branch.channels, taps, channels))
                facts.append(_rectangle(branch, rows, columns, weight, channel))
        channel += branch.channels
        weight += branch.channels * _taps(branch.geometry)
    return products, facts


def _taps(geometry: Geometry) -> int:
    return geometry.rows.taps * geometry.columns.taps


def _rectangle(
    branch: Branch, rows: Span, columns: Span, weight: int, channel: int
) -> tuple[int, ...]:
    r, c = branch.geometry
    area, width = len(rows.outputs) * len(columns.outputs), len(columns.outputs)
    out = rows.outputs.start * c.output + columns.outputs.start
    if not (rows.taps and columns.taps):
        return (area, width, out, channel, 0, 0, 1, 0, 0, 0, 0, 0, 0)
    top, left = rows.taps.start, columns.taps.start
    input_row = r.first_input(top, rows.outputs.start)
    input_column = c.first_input(left, columns.outputs.start)
    tap = top * c.taps + left
    step = -1 if branch.mirrored else 1
    return (
        area,
        width,
        out,
        channel,
        input_row * c.input + input_column,
        len(rows.taps) * len(columns.taps),
        len(columns.taps),
        r.dilation * c.input,
        c.dilation,
        weight + (_taps(branch.geometry) - 1 - tap if branch.mirrored else tap),
        c.taps * step,
        step,
        _taps(branch.geometry),
    )


def grad_weight(
    geometry: Geometry, batch: int, channels: tuple[int, int], dtype: str, programs: int
) -> Work:
    """Of a weight [O, taps, C], channels = (O, C): every tap sums over its live outputs only."""
    (r, c), (o, _) = geometry, channels
    products, facts = [], []
    for i in range(r.taps):
        for j in range(c.taps):
            rows, columns = r.live(i), c.live(j)
            area = len(rows) * len(columns)
            products.append(Product(*channels, 1, batch * area))
            input_row, input_column = r.first_input(i, rows.start), c.first_input(j, columns.start)
            facts.append(
                (
                    o,
                    o,
                    i * c.taps + j,
                    0,
                    input_row * c.input + input_column if area else 0,
                    rows.start * c.output + columns.start if area else 0,
                    batch * area,
                    max(1, area),
                    max(1, len(columns)),
                )
            )
    return scheduled(products, facts, cut("grad_weight", dtype, tuple(products), programs))


def scheduled(products: Sequence[Product], facts: Sequence[tuple[int, ...]], plan: Cut) -> Work:
    c, pieces = plan

    def length(i: int) -> int:
        return -(-products[i].steps(c) // pieces[i])

    table, sums, first, slot, sum_first = [], [], 0, 0, 0
    for i in sorted(range(len(products)), key=length, reverse=True):
        tiles, split = products[i].tiles(c), pieces[i] > 1
        rest = (slot, pieces[i], products[i].m, products[i].n, *facts[i])
        if tiles:
            table.append((first, *rest))
        first += tiles * pieces[i]
        if tiles and split:
            sums.append((sum_first, *rest))
            sum_first += tiles * (c.block_m // SUM_ROWS)
            slot += tiles * pieces[i]
    return Work(c, tuple(table), first, tuple(sums), sum_first, slot)


def padded(table: Sequence[tuple[int, ...]], least: int = 16) -> list[tuple[int, ...]]:
    """With rows that no program belongs to, to a power of two and `least` of them."""
    rows = least
    while rows < len(table):
        rows *= 2
    columns = len(table[0])
    return [*table, *[(NEVER, *[0] * (columns - 1))] * (rows - len(table))]
