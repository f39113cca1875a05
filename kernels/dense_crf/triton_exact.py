"""Exact Gaussian filter for Triton: y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j over the seen tiles.

Pixels stand in k-d order. `reach_kernel` finds how far a row of tiles must see, `list_kernel` which
tiles that are, `filter_kernel` sums over them, `pack_kernel` and `unpack_kernel` lead to the order
and back. Nothing of size N x N is stored, nothing is decided on the host. README.md has the bound
and the precision of the product.

K and v are multiplied as sums of two float16, 22 bits in all: K = 2^-15 (high + low), and v by a
power of 2 that takes the largest of its channel to 2^15.
"""

import triton
import triton.language as tl

from .triton_configurations import NEAR_CENTRES as _NEAR_CENTRES
from .triton_configurations import PART as _PART
from .triton_configurations import ROW as _ROW
from .triton_configurations import TILE as _TILE
from .triton_configurations import UNROLLED as _UNROLLED

TILE = tl.constexpr(_TILE)
ROW = tl.constexpr(_ROW)
ROW_TILES = tl.constexpr(_ROW // _TILE)
K_BITS = tl.constexpr(15)  # K is scaled by 2^15 before it is rounded to float16
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

UNROLLED = tl.constexpr(_UNROLLED)

BINS = tl.constexpr(512)  # of half a squared distance, rounded down to a bin
PER_UNIT = tl.constexpr(4)
TRIED = tl.constexpr(32)  # bins at once
NEAR_CENTRES = tl.constexpr(_NEAR_CENTRES)
TO_PARTS = tl.constexpr(1.5 * 2**23 * _PART)  # a sum with it is rounded to a multiple of PART
# exp(-127.75) in float32, rounded up: what no weight of a tile falls below.
LEAST_WEIGHT = tl.constexpr(2e-38)


@triton.jit
def half_distances(boxes, row, tile, tiles, F):
    """Half the squared distances [BLOCK] from a row's box to tiles, rounded to be at most true."""
    total = tl.zeros_like(tile).to(tl.float32)
    for f in range(F):
        lower, upper = boxes + f * tiles, boxes + (F + f) * tiles
        own_lower, own_upper = tl.load(lower + row * ROW_TILES), tl.load(upper + row * ROW_TILES)
        for k in tl.static_range(1, ROW_TILES):
            own_lower = tl.minimum(own_lower, tl.load(lower + row * ROW_TILES + k))
            own_upper = tl.maximum(own_upper, tl.load(upper + row * ROW_TILES + k))
        above = tl.load(lower + tile, mask=tile < tiles, other=0.0) - own_upper
        below = own_lower - tl.load(upper + tile, mask=tile < tiles, other=0.0)
        gap = tl.maximum(tl.maximum(above, below), 0.0)
        total += gap * gap
    # Less than 1/2 by more than the F + 4 roundings of d^2 can make up.
    return total * (0.5 / (1 + (F + 8) * 1.1920929e-07))


@triton.jit
def pixels_of(tile, N):
    """How many pixels a tile holds, none beyond the last."""
    return tl.minimum(tl.maximum(N - tile * TILE, 0), TILE)


@triton.jit
def reach_kernel(
    boxes,  # [B, 2, F, tiles]: lower and upper corners
    reach,  # [B, rows]
    N,
    F,
    rows,
    tiles,
    tolerance,
    MOMENT: tl.constexpr,  # a tile weighs its mass times the distance, for gradients
    BLOCK: tl.constexpr,
):
    """Half the squared distance from which on a row may do without the tiles.

    The least multiple of 1 / PER_UNIT such that the mass of all tiles beyond is within tolerance:
    m exp(-d^2 / 2) bounds that of m pixels at distance d and more; with MOMENT m max(d, 1)
    exp(-d^2 / 2) bounds sum_j K_ij |f_i - f_j|.
    """
    row, b = tl.program_id(0) % rows, tl.program_id(0) // rows
    boxes += b.to(tl.int64) * (2 * F * tiles)
    # The least bin that fits lies in (base, base + step * TRIED]; beyond BINS nothing is dropped.
    base = tl.full([], 0, tl.int32)
    for coarse in range(2):
        step = tl.where(coarse == 0, BINS // TRIED, 1)
        tried = base + (tl.arange(0, TRIED) + 1) * step
        bounds = tried.to(tl.float32) / PER_UNIT
        dropped = tl.zeros([TRIED], tl.float32)
        for start in range(0, tiles, BLOCK):
            tile = start + tl.arange(0, BLOCK)
            half = half_distances(boxes, row, tile, tiles, F)
            weight = tl.maximum(tl.exp2(-LOG2_E * half), LEAST_WEIGHT)
            if MOMENT:
                weight *= tl.maximum(tl.sqrt(2 * half), 1.0)
            weight *= pixels_of(tile, N).to(tl.float32)
            dropped += tl.sum(tl.where(half[:, None] >= bounds[None, :], weight[:, None], 0.0), 0)
        # 1.001: exp2 and the sum of up to 2^13 blocks are rounded.
        fits = (dropped * 1.001 <= tolerance) | (tried >= BINS)
        base += tl.sum((~fits).to(tl.int32), 0) * step
    bound = (base + 1).to(tl.float32) / PER_UNIT
    tl.store(reach + tl.program_id(0), tl.where(base + 1 < BINS, bound, float("inf")))


@triton.jit
def list_kernel(
    boxes,  # [B, 2, F, tiles]
    reach,  # [B, rows]
    centres,  # [B, F, rows]: NaN where a row is too large for products
    lists,  # [B, here, tiles] int32: near ones from the front, others from the back
    counts,  # [B, here, 2]: of these
    N,
    F,
    rows,
    tiles,
    first,  # row
    here,  # rows
    BLOCK: tl.constexpr,
):
    """The tiles within a row's reach: near, where distances may be products, and not."""
    program = tl.program_id(0)
    row, b = first + program % here, program // here
    boxes += b.to(tl.int64) * (2 * F * tiles)
    centres += b.to(tl.int64) * (F * rows)
    lists += program.to(tl.int64) * tiles
    bound = tl.load(reach + b * rows + row)
    nears, others = 0, 0
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        beyond = half_distances(boxes, row, tile, tiles, F) >= bound
        kept = ~beyond & (pixels_of(tile, N) > 0)
        between = tl.zeros([BLOCK], tl.float32)
        for f in range(F):
            centre = centres + f * rows
            there = tl.load(centre + tile // ROW_TILES, mask=tile < tiles, other=0.0)
            step = there - tl.load(centre + row)
            between += step * step
        near = kept & (between <= NEAR_CENTRES * NEAR_CENTRES)
        one = near.to(tl.int32)
        tl.store(lists + nears + tl.cumsum(one, 0) - one, tile, mask=near)
        nears += tl.sum(one, 0)
        one = (kept & ~near).to(tl.int32)
        tl.store(lists + tiles - others - tl.cumsum(one, 0), tile, mask=kept & ~near)
        others += tl.sum(one, 0)
    tl.store(counts + 2 * program, nears)
    tl.store(counts + 2 * program + 1, others)


@triton.jit
def two_parts(x):
    """x = high + low, two float16 with 22 bits, where 2^-14 <= |x| < 2^16."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def channels_and_slots(channels, slots, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of this program, and its batch element, where programs count blocks of channels first."""
    blocks, pieces = tl.cdiv(channels, BLOCK_C), tl.cdiv(slots, BLOCK)
    program = tl.program_id(0)
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    slot = program // blocks % pieces * BLOCK + tl.arange(0, BLOCK)
    return c, slot, (program // blocks // pieces).to(tl.int64)


@triton.jit
def pack_kernel(
    values,  # [B, C, N] float32
    order,  # [B, N] int64: the pixel in each slot
    scale,  # [B, C]: powers of 2
    packed,  # [B, 2, slots, width] float16: high and low parts
    N,
    C,
    slots,
    width,
    values_batch,
    values_channel,
    values_pixel,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """What is not finite is left out: it is added to whole rows afterwards."""
    c, slot, b = channels_and_slots(width, slots, BLOCK, BLOCK_C)
    pixel = tl.load(order + b * N + slot, mask=slot < N, other=0)
    at = pixel[:, None] * values_pixel + (c.to(tl.int64) * values_channel)[None, :]
    mask = (slot < N)[:, None] & (c < C)[None, :]
    x = tl.load(values + b * values_batch + at, mask=mask, other=0.0)
    x = tl.where(tl.abs(x) < float("inf"), x, 0.0)
    x *= tl.load(scale + b * C + c, mask=c < C, other=0.0)[None, :]
    high, low = two_parts(x)
    packed += (2 * b * slots + slot[:, None]) * width + c[None, :]
    tl.store(packed, high, mask=(c < width)[None, :])
    tl.store(packed + slots.to(tl.int64) * width, low, mask=(c < width)[None, :])


@triton.jit
def squared_distances(features, slots, m, n, F: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """|f_i - f_j|^2 [M, N] as a sum of squared differences, which lose nothing."""
    total = tl.zeros([M, N], tl.float32)
    if F <= UNROLLED:
        for f in tl.static_range(F):
            total += squared_difference(features + f * slots, m, n)
    else:
        for f in tl.range(F, num_stages=1):
            total += squared_difference(features + f * slots, m, n)
    return total


@triton.jit
def squared_difference(axis, m, n):
    difference = tl.load(axis + m)[:, None] - tl.load(axis + n)[None, :]
    return difference * difference


@triton.jit
def place(splits, blocks, rows):
    """Block of channels, split, row (or part of one) and batch element of this program."""
    program = tl.program_id(0)
    block, split = program % blocks, program // blocks % splits
    row = program // blocks // splits
    return block, split, row % rows, (row // rows).to(tl.int64)


@triton.jit
def products(exponents, packed, n, c, width, low_part, INDEX: tl.constexpr):
    """2^exponents v [BLOCK_M, BLOCK_C] of one tile, for exponents [BLOCK_M, TILE].

    Matrix units may cut off where they add: hence only the products of one tile are added there,
    the small ones first, and these sums in float32 that rounds to nearest.
    """
    high, low = two_parts(tl.exp2(exponents))
    inside = (c < width)[None, :]
    at = n.to(INDEX)[:, None] * width + c[None, :]
    v_high = tl.load(packed + at, mask=inside, other=0.0)
    v_low = tl.load(packed + at + low_part, mask=inside, other=0.0)
    part = tl.dot(low, v_high)
    part = tl.dot(high, v_low, part)
    return tl.dot(high, v_high, part)


@triton.jit
def whole_and_rest(x):
    """x = a multiple of PART + what is left, both exact."""
    whole = (x + TO_PARTS) - TO_PARTS
    return whole, x - whole


@triton.jit
def power_of_small(x):
    """2^x, a roundoff off; |x| < 1/32."""
    y = x * LN_2
    return 1 + y * (1 + y * (0.5 + y * (1 / 6)))


@triton.jit
def filter_kernel(
    features,  # [B, F, slots] float32, in order
    centred,  # [B, slots, AXES]: sqrt(log2 e) (f - centre of its row), norm, zeros
    centres,  # [B, F, rows], times sqrt(log2 e)
    left,  # [B, slots, DEPTH] float16: a in parts, low, high, low
    right,  # [B, slots, DEPTH]: high, low, low
    packed,  # [B, 2, slots, width] float16
    lists,  # [B, here, tiles] int32
    counts,  # [B, here, 2]
    sums,  # [splits, B, slots, width] float32
    B,
    slots,
    width,
    rows,
    tiles,
    first,  # row
    here,  # rows
    splits,
    F: tl.constexpr,
    AXES: tl.constexpr,  # from F + 2 on
    DEPTH: tl.constexpr,  # from 3 F on; 0: no tile is near
    INDEX: tl.constexpr,  # int32, or int64 where one image's array has 2^31 elements
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A split's sum for a row of pixels and a block of channels, scaled as K and v are.

    For near tiles, d leading from the centre of j's row to that of i's, -|f_i - f_j|^2 / 2 is

        a_i . a_j + (-|a_j|^2 / 2 + a_j . d) + (-|a_i|^2 / 2 - a_i . d - |d|^2 / 2),

    times log2 e; the first product is one of matrices, of parts: the large ones, whose sum is
    exact, are added to the others. What is in brackets is exact but for small rests: that of j is
    added to the small products, that of i multiplies the sum. README.md proves how little is off.
    """
    blocks = tl.cdiv(width, BLOCK_C)
    block, split, place_row, b = place(splits, blocks, here)
    row = first + place_row
    m = row * ROW + tl.arange(0, BLOCK_M)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    features += b * F * slots
    centred += b * slots * AXES
    centres += b * F * rows
    right += b * slots * DEPTH
    packed += 2 * b * slots * width
    low_part = slots.to(INDEX) * width
    lists += (b * here + place_row) * tiles
    counts += 2 * (b * here + place_row)
    nears, others = tl.load(counts), tl.load(counts + 1)

    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    if DEPTH > 0:
        f = tl.arange(0, AXES)
        depth = tl.arange(0, DEPTH)
        of_parts = (b * slots + m[:, None]) * DEPTH + depth[None, :]
        small_parts = tl.load(left + of_parts)
        high_parts = tl.load(right - b * slots * DEPTH + of_parts)
        high_parts = tl.where((depth < F)[None, :], high_parts, 0.0).to(tl.float16)
        own = tl.load(centred + m.to(INDEX)[:, None] * AXES + f[None, :])
        own_whole, own_rest = whole_and_rest(own)
        own_centre = tl.load(centres + f * rows + row, mask=f < F, other=0.0)
        norm = (f >= F).to(tl.float32)  # takes its two columns
        for k in range(nears * split // splits, nears * (split + 1) // splits):
            tile = tl.load(lists + k)
            n = tile * TILE + tl.arange(0, TILE)
            centre = tl.load(centres + f * rows + tile // ROW_TILES, mask=f < F, other=0.0)
            d = own_centre - centre
            there = tl.load(centred + n.to(INDEX)[:, None] * AXES + f[None, :])
            whole, rest = whole_and_rest(there)
            of_n = tl.sum(whole * (norm + d)[None, :], 1)
            of_m = tl.sum(own_whole * (norm - d)[None, :], 1)
            of_m += K_BITS - 0.5 * tl.sum(d * d, 0)
            rest_n = tl.sum(rest * (norm + d)[None, :], 1)
            rest_m = tl.sum(own_rest * (norm - d)[None, :], 1)
            parts = tl.load(right + n.to(INDEX)[:, None] * DEPTH + depth[None, :])
            parts = tl.trans(parts)
            small = tl.broadcast_to(rest_n[None, :], [BLOCK_M, TILE])
            small = tl.dot(small_parts, parts, small)
            exponents = tl.dot(high_parts, parts, small) + (of_m[:, None] + of_n[None, :])
            found = products(exponents, packed, n, c, width, low_part, INDEX)
            total += found * power_of_small(rest_m)[:, None]

    for k in range(others * split // splits, others * (split + 1) // splits):
        n = tl.load(lists + (tiles - 1 - k)) * TILE + tl.arange(0, TILE)
        squared = squared_distances(features, slots, m, n, F, BLOCK_M, TILE)
        exponents = K_BITS - 0.5 * LOG2_E * squared
        total += products(exponents, packed, n, c, width, low_part, INDEX)

    sums += ((split * B + b) * slots + m[:, None]) * width + c[None, :]
    tl.store(sums, total, mask=(c < width)[None, :])


@triton.jit
def unpack_kernel(
    sums,  # [splits, B, slots, width]
    order,  # [B, N] int64
    scale,  # [B, C]: powers of 2
    special,  # [B, C]: 0, or the sum of what is not finite
    out,  # [B, C, N], contiguous
    N,
    C,
    slots,
    width,
    splits,
    split_stride,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y of the pixels in BLOCK slots: the splits' sums, first to last, unscaled."""
    c, slot, b = channels_and_slots(C, N, BLOCK, BLOCK_C)
    mask = (slot < N)[:, None] & (c < C)[None, :]
    sums += (b * slots + slot[:, None]) * width + c[None, :]
    total = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for _ in range(splits):
        total += tl.load(sums, mask=mask, other=0.0)
        sums += split_stride
    total *= tl.load(scale + b * C + c, mask=c < C, other=0.0)[None, :]
    total += tl.load(special + b * C + c, mask=c < C, other=0.0)[None, :]
    pixel = tl.load(order + b * N + slot, mask=slot < N, other=0)
    at = pixel[:, None] + (b * C + c)[None, :] * N
    tl.store(out + at, total, mask=mask)
