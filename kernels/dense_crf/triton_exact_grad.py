"""The exact filter's gradient of features, for Triton: streamed over the tiles that a row sees.

    df_i  = sum_j K_ij (g_i . v_j + v_i . g_j) (f_j - f_i)
    rho_i = sum_j K_ij g_i . v_j                            for what K scales through n = K 1

for y = K v and g = dL/dy. The products over channels are three of tf32, an error near 2^-22; the
differences of features are taken axis by axis, since sum K f_j - f_i sum K would cancel.
"""

import triton
import triton.language as tl

from .triton_exact import LOG2_E, ROW, TILE, UNROLLED, place, squared_distances


@triton.jit
def feature_gradient_kernel(
    features,  # [B, F, slots] float32, in order
    grads,  # [B, slots, width] float32: g, with zeros in slots beyond the last pixel
    values,  # [B, slots, width]: v, with zeros
    lists,  # [B, here, tiles] int32
    counts,  # [B, here, 2]
    sums,  # [splits, B, slots, AXES]: df and rho
    B,
    slots,
    width,
    tiles,
    first,  # row
    here,  # rows
    splits,
    F: tl.constexpr,
    AXES: tl.constexpr,  # from F + 1 on
    INDEX: tl.constexpr,  # int32, or int64 where one image's array has 2^31 elements
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A split's sum for BLOCK_M pixels of a row."""
    block, split, place_row, b = place(splits, ROW // BLOCK_M, here)
    m = (first + place_row) * ROW + block * BLOCK_M + tl.arange(0, BLOCK_M)
    features += b * F * slots
    grads += b * slots * width
    values += b * slots * width
    lists += (b * here + place_row) * tiles
    counts += 2 * (b * here + place_row)
    nears = tl.load(counts)
    seen = nears + tl.load(counts + 1)
    columns = tl.arange(0, AXES)[None, :]
    channels = tl.arange(0, BLOCK_C)
    of_m = m.to(INDEX)[:, None] * width

    total = tl.zeros([BLOCK_M, AXES], tl.float32)
    for k in range(seen * split // splits, seen * (split + 1) // splits):
        n = tl.load(lists + tl.where(k < nears, k, tiles - 1 - (k - nears))) * TILE
        n += tl.arange(0, TILE)
        of_n = n.to(INDEX)[:, None] * width
        forth = tl.zeros([BLOCK_M, TILE], tl.float32)
        back = tl.zeros([BLOCK_M, TILE], tl.float32)
        for start in range(0, width, BLOCK_C):
            c = (start + channels)[None, :]
            g_m, v_m = tl.load(grads + of_m + c), tl.load(values + of_m + c)
            g_n, v_n = tl.load(grads + of_n + c), tl.load(values + of_n + c)
            forth = tl.dot(g_m, tl.trans(v_n), forth, input_precision="tf32x3")
            back = tl.dot(v_m, tl.trans(g_n), back, input_precision="tf32x3")
        squared = squared_distances(features, slots, m, n, F, BLOCK_M, TILE)
        kernel = tl.exp2(-0.5 * LOG2_E * squared)
        forth *= kernel
        both = forth + kernel * back
        total += tl.where(columns == F, tl.sum(forth, 1)[:, None], 0.0)
        if F <= UNROLLED:
            for f in tl.static_range(F):
                moved = pull(both, features + f * slots, m, n)
                total += tl.where(columns == f, moved[:, None], 0.0)
        else:
            for f in tl.range(F, num_stages=1):
                moved = pull(both, features + f * slots, m, n)
                total += tl.where(columns == f, moved[:, None], 0.0)

    at = (split * B + b) * slots + m[:, None]
    tl.store(sums + at * AXES + columns, total)


@triton.jit
def pull(weights, axis, m, n):
    """sum_j w_ij (f_j - f_i) [M] of one feature."""
    return tl.sum(weights * (tl.load(axis + n)[None, :] - tl.load(axis + m)[:, None]), 1)
