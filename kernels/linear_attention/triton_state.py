"""S = sum_j phi(k_j) [v_j, 1]^T for Triton, and the same sum over queries, a gradient.

k [B, D, N], v [B, E, N] with positions next to each other; S [B, R, E + 1] float32, contiguous.

The sum over positions is split: `state_kernel` writes S of every split, `sum_splits_kernel` adds
them in order. Both operands of a product are tiles as they lie in memory, [channels, positions]:
v phi^T transposes phi, the smaller, and no large tile goes through registers.
"""

import triton
import triton.language as tl

from .triton_features import features, load_tile, place, query_weights, rounded


@triton.jit
def state_kernel(
    k,
    v,
    state,  # of the queries; None: k are keys
    partial,  # [B, splits, R, width] float32, width = E + 1 (E for queries)
    D,
    E,
    N,
    R,
    k_batch,
    k_channel,
    v_batch,
    v_channel,
    width,
    span,  # positions in a split
    splits,
    e_blocks,
    eps,
    FEATURES: tl.constexpr,
    INDEX: tl.constexpr,  # int32, or int64 where a map of one image has 2^31 elements
    DOT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A split's sum_n x_n [v_n, 1]^T: x = phi(k), or for queries x = phi(q) / phi(q) . (S_1 + eps).

    The latter with v = grad o is the gradient of S_v.
    """
    PRECISION: tl.constexpr = "tf32x3" if DOT == "float32" else "tf32"
    e_block, split, b = place(e_blocks, splits)
    rows = tl.arange(0, BLOCK_R)
    columns = e_block * BLOCK_E + tl.arange(0, BLOCK_E)
    k += b * k_batch
    v += b * v_batch
    k_rows = rows.to(INDEX) * k_channel
    v_rows = columns.to(INDEX) * v_channel
    if state is not None:
        state += b * R * (E + 1)
        ones = tl.load(state + rows * (E + 1) + E, mask=rows < R, other=0.0)

    sums = tl.zeros([BLOCK_E, BLOCK_R], tl.float32)
    sums_of_ones = tl.zeros([BLOCK_R], tl.float32)
    begin = split * span
    for start in range(begin, tl.minimum(begin + span, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (rows < R)[:, None] & (n < N)[None, :]
        x = load_tile(k, k_rows, rows, D, n, N).to(tl.float32)
        values = load_tile(v, v_rows, columns, E, n, N).to(DOT_DTYPE)
        if state is None:
            x = rounded(features(x, 0.0, rows, D, inside, FEATURES), DOT)
        else:
            phi, inverse, _, _, _ = query_weights(x, ones, rows, D, inside, eps, FEATURES, DOT)
            x = tl.where(inside, rounded(phi * inverse, DOT), 0.0)
        sums = tl.dot(values, tl.trans(x.to(DOT_DTYPE)), sums, input_precision=PRECISION)
        sums_of_ones += tl.sum(x, 1)

    partial += (b * splits + split) * R * width
    mask = (columns < E)[:, None] & (rows < R)[None, :]
    tl.store(partial + rows[None, :] * width + columns[:, None], sums, mask=mask)
    if state is None:  # noqa: SIM102, a constant and a number of the program
        if e_block == 0:
            tl.store(partial + rows * width + E, sums_of_ones, mask=rows < R)


@triton.jit
def sum_splits_kernel(
    partial,  # [B, splits, size]
    gamma,  # [B] or None
    out,  # [B, ...]: element i goes to row i // width, column i % width
    last,  # [B] or None: where the last element goes instead, without gamma
    size,
    splits,
    width,
    gamma_stride,
    out_batch,
    out_row,
    blocks,
    BLOCK: tl.constexpr,
):
    """out = gamma * sum over the splits, first to last."""
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    i = program % blocks * BLOCK + tl.arange(0, BLOCK)
    partial += b * splits * size
    sums = tl.zeros([BLOCK], tl.float32)
    for _ in range(splits):
        sums += tl.load(partial + i, mask=i < size, other=0.0)
        partial += size
    stored = i < size
    if last is not None:
        stored = i < size - 1
        tl.store(last + b + i * 0, sums, mask=i == size - 1)
    if gamma is not None:
        sums *= tl.load(gamma + b * gamma_stride)
    tl.store(out + b * out_batch + i // width * out_row + i % width, sums, mask=stored)
