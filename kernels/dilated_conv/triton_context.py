"""The dilated context module in one launch: a chain of convolutions with ReLU between, on chip.

    x_i = max(w_i *_{r_i} x_{i-1} + b_i, 0),    y = w_n *_{r_n} x_{n-1} + b_n

First every program lays out its share of x, [N, H, W, C], and of the weights, [O, taps, C], with
zeros up to whole steps of a sum (triton_context_work.py); then its share of the tiles of each
layer. Maps go to and fro between two halves of a buffer, which stays in the L2 cache.
"""

import triton
import triton.language as tl

from .triton_context_work import LAYER
from .triton_dense import DENSE_COLUMNS, multiply
from .triton_tiles import FIRST, columns, find_row, find_tile, position, store

(
    TILES, INPUTS, OUTPUTS, LIVE_INPUTS, LIVE_OUTPUTS, LAYER_TAPS, WEIGHTS, PACKED, PARAMETER,
    INPUT_STEP, TAP_STEP, BIAS
) = columns(
    LAYER,
    "tiles inputs outputs live_inputs live_outputs taps weights packed weight input_step "
    "tap_step bias",
)  # fmt: skip
LAYER_COLUMNS = tl.constexpr(len(LAYER))


@triton.jit
def meet(arrived, expected):
    """A barrier of all programs: until `expected` calls of it, by all and so far, were made.

    The counter is 0 at the launch and only rises. A program that has left may add to it for the
    next barrier, which keeps nobody here; none gets past that one before all have left this one.
    What was written before is seen behind: the threads of a program come together, one of them
    adds and releases (what it has seen of the others, too); who reads the last addition acquires
    from all, since each of them continues the releases before it, and its threads come together.
    """
    tl.debug_barrier()
    seen = tl.atomic_add(arrived, 1, sem="acq_rel") + 1
    while seen < expected:
        seen = tl.atomic_add(arrived, 0, sem="acquire")  # compiled to a load
    tl.debug_barrier()


@triton.jit
def lay_out_map(
    x, out, C, channels, elements, area, width, image, channel, line, column, program, programs,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """x [N, C, H, W] by its steps -> out [N, H, W, channels]."""
    for begin in range(program * BLOCK, elements, programs * BLOCK):
        e = begin + tl.arange(0, BLOCK)
        c = e % channels
        at = position(e // channels, area, width, image, line, column) + c * channel
        values = tl.load(x + at, mask=(e < elements) & (c < C), other=0.0)
        tl.store(out + e, values, mask=e < elements)


@triton.jit
def lay_out_weights(parameters, packed, layers, block, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A block of a layer's weights [O, C, taps] -> [outputs, taps, inputs], biases [outputs]."""
    row = find_row(layers, block, ROWS, LAYER_COLUMNS)
    e = (block - tl.load(row + FIRST)) * BLOCK + tl.arange(0, BLOCK)
    inputs, taps, weights = tl.load(row + INPUTS), tl.load(row + LAYER_TAPS), tl.load(row + WEIGHTS)
    live_inputs, live_outputs = tl.load(row + LIVE_INPUTS), tl.load(row + LIVE_OUTPUTS)
    c, t, o = e % inputs, e // inputs % taps, e // inputs // taps
    weight = tl.load(row + PARAMETER) + o * (live_inputs * taps)
    weight += c * tl.load(row + INPUT_STEP) + t * tl.load(row + TAP_STEP)
    bias = tl.load(row + BIAS)
    is_weight = e < weights
    live_weight = is_weight & (c < live_inputs) & (o < live_outputs)
    live_bias = (e >= weights) & (e - weights < live_outputs) & (bias >= 0)
    at = tl.where(is_weight, weight, bias + e - weights)
    values = tl.load(parameters + at, mask=live_weight | live_bias, other=0.0)
    end = weights + tl.load(row + OUTPUTS)
    tl.store(packed + tl.load(row + PACKED) + e, values, mask=e < end)


@triton.jit(do_not_specialize=["area", "width", "elements", "largest", "blocks", "layer_count"])
def context_kernel(
    x,  # [N, C, H, W]
    parameters,  # weight and bias of every layer, one after another
    y,  # [N, H, W, outputs of the last layer]
    maps,  # [2, largest]
    packed,  # weights [outputs, taps, inputs] and biases [outputs] of every layer
    arrived,  # [1], 0
    products,  # [layer_count, ROWS, DENSE_COLUMNS]
    layers,  # [LAYER_ROWS, LAYER_COLUMNS]
    C,
    area,  # positions of an image, of a line
    width,
    elements,  # of the first map
    largest,  # elements of a map
    x_image,  # elements from an image to the next
    x_channel,
    x_line,
    x_column,
    blocks,  # of weights
    layer_count,
    DOT_DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    LAYER_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All programs must be resident: launched cooperatively."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    lay_out_map(
        x, maps, C, tl.load(layers + INPUTS), elements, area, width,
        x_image, x_channel, x_line, x_column, program, programs, BLOCK,
    )  # fmt: skip
    for block in range(program, blocks, programs):
        lay_out_weights(parameters, packed, layers, block, LAYER_ROWS, BLOCK)
    for i in range(layer_count):
        meet(arrived, (i + 1) * programs)
        layer = layers + i * LAYER_COLUMNS
        inputs = tl.multiple_of(tl.load(layer + INPUTS), BLOCK_K)
        outputs = tl.multiple_of(tl.load(layer + OUTPUTS), BLOCK_K)
        weight = packed + tl.multiple_of(tl.load(layer + PACKED), BLOCK_K)
        bias = weight + tl.multiple_of(tl.load(layer + WEIGHTS), BLOCK_K)
        filled, tiles = tl.load(layer + LIVE_OUTPUTS), tl.load(layer + TILES)
        last = i + 1 == layer_count
        source = maps + tl.multiple_of(i % 2 * largest, BLOCK_K)
        out = maps + tl.multiple_of((i + 1) % 2 * largest, BLOCK_K)
        if last:
            out = y
        for tile in range(program, tiles, programs):
            row, _, m, n, _, _ = find_tile(
                products + i * (ROWS * DENSE_COLUMNS), tile, ROWS, DENSE_COLUMNS, BLOCK_M, BLOCK_N
            )
            sums = multiply(
                source, weight, row, m, n, 0, 1, inputs, area, width, 1,
                True, tl.int32, DOT_DTYPE, BLOCK_K,
            )  # fmt: skip
            store(
                sums, row, m, n, bias, None, None, out, outputs, filled, area, width, 1,
                not last, True, tl.int32,
            )  # fmt: skip
