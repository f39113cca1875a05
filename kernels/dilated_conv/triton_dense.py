"""Dense dilated convolution for Triton: products of matrices over rectangles of live taps.

    y[p, o] = act(scale_o (sum_{t live, c} w[o, t, c] x[p s - b + t d, c] + bias_o) + shift_o)

x [N, H, W, C] and y [N, Ho, Wo, O] contiguous, weights [O, taps, C], with zeros up to a multiple
of 16 channels where they are read (vectors of 16 bytes). Within a rectangle every tap
of the table's row is live for every position: rows beyond the last one repeat it and are not
stored, so that only a tail of channels is masked. One launch computes all rectangles of all
branches, each with its taps; the input gradient at stride 1 is the same with mirrored taps.

    grad_w[o, t, c] = sum_{p live for t} g[p, o] x[p s - b + t d, c]

is one product for each tap, over its live positions.
"""

import triton
import triton.language as tl

from .triton_tiles import (
    AREA,
    SLOT,
    WIDTH,
    M,
    N,
    columns,
    find_tile,
    keep,
    position,
    store,
    stretch,
)
from .triton_work import DENSE, GRAD_WEIGHT

(
    INPUT, TAPS, TAP_COLUMNS, ROW_RATE, COLUMN_RATE, WEIGHT, WEIGHT_ROW, WEIGHT_COLUMN,
    WEIGHT_CHANNEL
) = columns(
    DENSE,
    "input taps tap_columns row_rate column_rate weight weight_row weight_column weight_channel",
)  # fmt: skip
DENSE_COLUMNS = tl.constexpr(len(DENSE))

TAP_INPUT, TAP_OUTPUT, POSITIONS, LIVE_AREA, LIVE_WIDTH = columns(
    GRAD_WEIGHT,
    "input output positions live_area live_width",
)  # fmt: skip
GRAD_WEIGHT_COLUMNS = tl.constexpr(len(GRAD_WEIGHT))


@triton.jit
def multiply(
    x, weight, row, m, n, piece, pieces, C, in_image, in_line, in_column,
    WHOLE: tl.constexpr, INDEX: tl.constexpr, DOT_DTYPE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows m, columns n of a product: a piece of its sum over taps and channels."""
    last_m, last_n = tl.load(row + M) - 1, tl.load(row + N) - 1
    area, width = tl.load(row + AREA), tl.load(row + WIDTH)
    first = position(tl.minimum(m, last_m), area, width, in_image, in_line, in_column)
    c = tl.arange(0, BLOCK_K)
    x_tile = (first + tl.load(row + INPUT)).to(INDEX)[:, None] * C + c[None, :]
    w_taps = tl.load(row + WEIGHT) + tl.minimum(n, last_n) * tl.load(row + WEIGHT_CHANNEL)
    w_tile = w_taps[:, None] * C + c[None, :]
    tap_columns = tl.load(row + TAP_COLUMNS)
    x_line, x_column = tl.load(row + ROW_RATE).to(INDEX), tl.load(row + COLUMN_RATE).to(INDEX)
    w_line, w_column = tl.load(row + WEIGHT_ROW), tl.load(row + WEIGHT_COLUMN)
    k_blocks = tl.cdiv(C, BLOCK_K)

    sums = tl.zeros([m.shape[0], n.shape[0]], tl.float32)
    begin, end = stretch(tl.load(row + TAPS) * k_blocks, piece, pieces)
    for step in range(begin, end):
        tap, at = step // k_blocks, step % k_blocks * BLOCK_K
        i, j = tap // tap_columns, tap % tap_columns
        x_step = x + ((i * x_line + j * x_column) * C + at)
        w_step = weight + ((i * w_line + j * w_column) * C + at)
        if WHOLE:
            a, b = tl.load(x_step + x_tile), tl.load(w_step + w_tile)
        else:
            inside = (at + c < C)[None, :]
            a = tl.load(x_step + x_tile, mask=inside, other=0.0)
            b = tl.load(w_step + w_tile, mask=inside, other=0.0)
        a, b = a.to(DOT_DTYPE), b.to(DOT_DTYPE)
        sums = tl.dot(a, tl.trans(b), sums, input_precision="tf32x3")  # of float32 only
    return sums


@triton.jit(do_not_specialize=["in_image", "in_line", "out_image", "out_line"])
def dense_kernel(
    x,  # [N, H, W, C]
    weight,  # [O, taps, C] of every branch, one after another
    bias,  # [channels] each, or None
    scale,
    shift,
    y,  # [N, Ho, Wo, channels]
    partial,  # [slots, BLOCK_M, BLOCK_N] float32; None: nothing is in pieces
    table,  # [ROWS, DENSE_COLUMNS]
    C,
    channels,  # of y
    filled,  # channels of y from here on are 0; None: there are none
    in_image,  # positions of x from an image to the next; an output line, an output column
    in_line,
    in_column,
    out_image,
    out_line,
    RELU: tl.constexpr,
    WHOLE: tl.constexpr,  # BLOCK_K divides C
    ALIGNED: tl.constexpr,  # 16 divides the output channels of every branch
    INDEX: tl.constexpr,  # int32, or int64 where a map has 2^31 elements
    DOT_DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of positions x output channels, or a piece of its sum over taps and channels."""
    row, item, m, n, piece, pieces = find_tile(
        table, tl.program_id(0), ROWS, DENSE_COLUMNS, BLOCK_M, BLOCK_N
    )
    sums = multiply(
        x, weight, row, m, n, piece, pieces, C, in_image, in_line, in_column,
        WHOLE, INDEX, DOT_DTYPE, BLOCK_K,
    )  # fmt: skip
    if pieces == 1:
        store(
            sums, row, m, n, bias, scale, shift, y, channels, filled, out_image, out_line, 1,
            RELU, ALIGNED, INDEX,
        )  # fmt: skip
    elif partial is not None:
        keep(partial, tl.load(row + SLOT) + item, sums, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["in_image", "in_line", "out_image", "out_line"])
def grad_weight_kernel(
    grad,  # [N, Ho, Wo, O]
    x,  # [N, H, W, C]
    out,  # [O, taps, C]
    partial,  # [slots, BLOCK_M, BLOCK_N] float32; None: nothing is in pieces
    table,  # [ROWS, GRAD_WEIGHT_COLUMNS]
    O,  # noqa: E741
    C,
    taps,
    in_image,  # positions of x from an image to the next; an output line, an output column
    in_line,
    in_column,
    out_image,  # positions of grad
    out_line,
    INDEX: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of output channels x channels for one tap, or a piece of its sum over positions."""
    row, item, m, n, piece, pieces = find_tile(
        table, tl.program_id(0), ROWS, GRAD_WEIGHT_COLUMNS, BLOCK_M, BLOCK_N
    )
    x_first, grad_first = tl.load(row + TAP_INPUT), tl.load(row + TAP_OUTPUT)
    area, width = tl.load(row + LIVE_AREA), tl.load(row + LIVE_WIDTH)
    positions = tl.load(row + POSITIONS)

    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    begin, end = stretch(tl.cdiv(positions, BLOCK_K), piece, pieces)
    for step in range(begin, end):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        live = (k < positions)[:, None]
        of_grad = (grad_first + position(k, area, width, out_image, out_line, 1)).to(INDEX)
        of_x = (x_first + position(k, area, width, in_image, in_line, in_column)).to(INDEX)
        a = tl.load(
            grad + of_grad[:, None] * O + m[None, :], mask=live & (m < O)[None, :], other=0.0
        )
        b = tl.load(x + of_x[:, None] * C + n[None, :], mask=live & (n < C)[None, :], other=0.0)
        a, b = a.to(DOT_DTYPE), b.to(DOT_DTYPE)
        sums = tl.dot(tl.trans(a), b, sums, input_precision="tf32x3")  # of float32 only

    if pieces == 1:
        store(sums, row, m, n, None, None, None, out, C, None, 0, 0, taps, False, True, tl.int32)
    elif partial is not None:
        keep(partial, tl.load(row + SLOT) + item, sums, BLOCK_M, BLOCK_N)
