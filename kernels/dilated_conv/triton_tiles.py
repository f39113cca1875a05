"""What the programs of the dense Triton kernels share: finding their work, storing their tile.

A table [ROWS, COLUMNS] int32 (triton_work.py) has a row for each product of matrices. A tile of
sums [BLOCK_M, BLOCK_N] in float32 is stored as act(scale (sums + bias) + shift); where its k is cut
into pieces, each is kept in `partial` [slots, BLOCK_M, BLOCK_N], and sum_pieces_kernel stores.
"""

import triton
import triton.language as tl

from .triton_work import COMMON


def columns(table: tuple[str, ...], names: str) -> tuple[tl.constexpr, ...]:
    """Where a row of a table has the columns of these names, for kernels."""
    return tuple(tl.constexpr(table.index(name)) for name in names.split())


FIRST, SLOT, PIECES, M, N, AREA, WIDTH, OUT, CHANNEL = columns(
    COMMON,
    "first slot pieces m n area width out channel",
)  # fmt: skip


@triton.jit
def find_row(table, program, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The row whose programs hold this one."""
    firsts = tl.load(table + tl.arange(0, ROWS) * COLUMNS + FIRST)
    return table + (tl.sum((firsts <= program).to(tl.int32), 0) - 1) * COLUMNS


@triton.jit
def find_tile(
    table, program, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of a program: row; its number in it; rows, columns of the product; its piece, of how many."""
    row = find_row(table, program, ROWS, COLUMNS)
    item = program - tl.load(row + FIRST)
    pieces = tl.load(row + PIECES)
    tile, blocks = item // pieces, tl.cdiv(tl.load(row + N), BLOCK_N)
    m = tile // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    return row, item, m, n, item % pieces, pieces


@triton.jit
def stretch(steps, piece, pieces):
    """The steps of a sum that are a piece's: the first, and one behind the last."""
    length = tl.cdiv(steps, pieces)
    return piece * length, tl.minimum(steps, (piece + 1) * length)


@triton.jit
def position(m, area, width, image, row, column):
    """Of row m of a product: images, lines and their elements lie that far apart."""
    line = m % area
    return m // area * image + line // width * row + line % width * column


@triton.jit
def store(
    sums, row, m, n, bias, scale, shift, y, channels, filled, image, line, column, relu,
    ALIGNED: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """y [positions, channels] at rows m, columns n of a product; 0 in columns from `filled` on."""
    last, channel = tl.load(row + N), tl.load(row + CHANNEL)
    if ALIGNED:  # else every element would be stored alone
        last, channel = tl.multiple_of(last, 16), tl.multiple_of(channel, 16)
    inside = n < last
    n += channel
    if bias is not None:
        sums += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if scale is not None:
        sums *= tl.load(scale + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if shift is not None:
        sums += tl.load(shift + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if relu:
        sums = tl.where(sums < 0, 0.0, sums)  # NaN stays
    if filled is not None:  # an infinity times a weight of 0 that pads is NaN: it goes no further
        sums = tl.where((n < filled)[None, :], sums, 0.0)
    at = position(m, tl.load(row + AREA), tl.load(row + WIDTH), image, line, column)
    at = (at + tl.load(row + OUT)).to(INDEX) * channels
    mask = (m < tl.load(row + M))[:, None] & inside[None, :]
    tl.store(y + (at[:, None] + n[None, :]), sums.to(y.dtype.element_ty), mask=mask)


@triton.jit
def keep(partial, slot, sums, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    cells = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(partial + slot.to(tl.int64) * (BLOCK_M * BLOCK_N) + cells, sums)


@triton.jit(do_not_specialize=["image", "line"])
def sum_pieces_kernel(
    partial,  # [slots, BLOCK_M, BLOCK_N] float32
    table,  # [ROWS, COLUMNS] of the rows in pieces; "first" counts SUM_ROWS of a tile
    bias,  # [channels] each, or None
    scale,
    shift,
    y,  # [positions, channels]
    channels,
    filled,  # columns of y from here on are 0; None: there are none
    image,  # positions from an image to the next, a line, an element
    line,
    column,
    RELU: tl.constexpr,
    ALIGNED: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SUM_ROWS: tl.constexpr,
):
    """The sum of a tile's pieces, first to last."""
    program = tl.program_id(0)
    row = find_row(table, program, ROWS, COLUMNS)
    pieces = tl.load(row + PIECES)
    item = program - tl.load(row + FIRST)
    tile = item // (BLOCK_M // SUM_ROWS)
    rows = item % (BLOCK_M // SUM_ROWS) * SUM_ROWS + tl.arange(0, SUM_ROWS)
    cells = rows[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    partial += (tl.load(row + SLOT) + tile * pieces).to(tl.int64) * (BLOCK_M * BLOCK_N)
    sums = tl.zeros([SUM_ROWS, BLOCK_N], tl.float32)
    for _ in range(pieces):
        sums += tl.load(partial + cells)
        partial += BLOCK_M * BLOCK_N
    blocks = tl.cdiv(tl.load(row + N), BLOCK_N)
    m = tile // blocks * BLOCK_M + rows
    n = tile % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    store(
        sums, row, m, n, bias, scale, shift, y, channels, filled, image, line, column, RELU,
        ALIGNED, INDEX,
    )  # fmt: skip
