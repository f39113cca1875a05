"""What each position takes from a state S [B, R, E + 1] float32, contiguous, and its gradient.

Queries read o_n = residual + gamma phi(q_n)^T S_v / phi(q_n) . (S_1 + eps). Keys take gradients
from that of the state: grad v_n = grad S_v^T phi(k_n), grad phi(k_n) = grad S_v v_n + grad S_1.
"""

import triton
import triton.language as tl

from .triton_features import (
    features,
    features_backward,
    load_tile,
    place,
    query_weights,
    rounded,
    store_tile,
)


@triton.jit
def read_kernel(
    q,
    state,
    gamma,  # [B] or None
    residual,  # [B, E, N] or None
    o,  # [B, E, N], contiguous
    D,
    E,
    N,
    R,
    q_batch,
    q_channel,
    residual_batch,
    residual_channel,
    gamma_stride,
    span,  # positions of a program
    splits,
    e_blocks,
    eps,
    KEYS: tl.constexpr,  # q are keys, the state a gradient
    FEATURES: tl.constexpr,
    INDEX: tl.constexpr,  # int32, or int64 where a map of one image has 2^31 elements
    DOT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A block of channels of o at the positions of a split; its part of S stays on the chip.

    KEYS: o_n = S_v^T phi(k_n), with S_v as a sum of two rounded numbers: the published gradient of
    v rounds once less than the attention.
    """
    PRECISION: tl.constexpr = "tf32x3" if DOT == "float32" else "tf32"
    e_block, split, b = place(e_blocks, splits)
    rows = tl.arange(0, BLOCK_R)
    columns = e_block * BLOCK_E + tl.arange(0, BLOCK_E)
    q += b * q_batch
    o += b * E * N
    state += b * R * (E + 1)
    q_rows = rows.to(INDEX) * q_channel
    o_rows = columns.to(INDEX) * N
    mask = (columns < E)[:, None] & (rows < R)[None, :]
    cells = tl.load(state + rows[None, :] * (E + 1) + columns[:, None], mask=mask, other=0.0)
    high = rounded(cells, DOT)
    low = rounded(cells - high, DOT).to(DOT_DTYPE)
    high = high.to(DOT_DTYPE)
    ones = tl.load(state + rows * (E + 1) + E, mask=rows < R, other=0.0)
    scale = 1.0
    if gamma is not None:
        scale = tl.load(gamma + b * gamma_stride)
    if residual is not None:
        residual += b * residual_batch
        residual_rows = columns.to(INDEX) * residual_channel

    begin = split * span
    for start in range(begin, tl.minimum(begin + span, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (rows < R)[:, None] & (n < N)[None, :]
        queries = load_tile(q, q_rows, rows, D, n, N).to(tl.float32)
        if KEYS:
            phi = rounded(features(queries, 0.0, rows, D, inside, FEATURES), DOT).to(DOT_DTYPE)
            values = tl.dot(high, phi, input_precision=PRECISION)
            if DOT != "float32":
                values = tl.dot(low, phi, values, input_precision=PRECISION)
        else:
            phi, inverse, _, _, _ = query_weights(
                queries, ones, rows, D, inside, eps, FEATURES, DOT
            )
            values = tl.dot(high, phi.to(DOT_DTYPE), input_precision=PRECISION)
            values *= inverse * scale
        if residual is not None:
            values += load_tile(residual, residual_rows, columns, E, n, N).to(tl.float32)
        store_tile(o, o_rows, columns, E, n, N, values)


@triton.jit
def read_backward_kernel(
    grad,  # of o, [B, E, N]
    q,
    state,
    gamma,  # [B] or None
    grad_q,  # [B, D, N], contiguous
    partial,  # [B, splits, R + 1] float32: gradients of S_1 (without gamma) and of gamma
    D,
    E,
    N,
    R,
    grad_batch,
    grad_channel,
    q_batch,
    q_channel,
    gamma_stride,
    span,
    splits,
    eps,
    KEYS: tl.constexpr,  # q are keys, the state a gradient
    FEATURES: tl.constexpr,
    INDEX: tl.constexpr,  # int32, or int64 where a map of one image has 2^31 elements
    DOT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """a = S_v grad o, w = phi / phi . (S_1 + eps), c = w . a = grad o . o (o without gamma):

        grad q = gamma (a - c (S_1 + eps)) / phi . (S_1 + eps) through phi
        grad S_1 = -gamma sum_n c_n w_n,  grad gamma = sum_n c_n

    (grad S_v = gamma sum_n w_n (grad o_n)^T is state_kernel's.) The difference nearly cancels where
    averages of values are alike: S_v is multiplied as a sum of two rounded numbers. grad S_1 takes
    the rounded w that grad S_v does, since the keys' gradient is a difference of the two.

    KEYS, with v for grad o and grad S for S: grad k = a + S_1 through phi, again a difference.
    """
    PRECISION: tl.constexpr = "tf32x3" if DOT == "float32" else "tf32"
    _, split, b = place(1, splits)
    rows = tl.arange(0, BLOCK_R)
    q += b * q_batch
    grad += b * grad_batch
    state += b * R * (E + 1)
    grad_q += b * D * N
    q_rows = rows.to(INDEX) * q_channel
    ones = tl.load(state + rows * (E + 1) + E, mask=rows < R, other=0.0)
    scale = 1.0
    if gamma is not None:
        scale = tl.load(gamma + b * gamma_stride)

    grad_ones = tl.zeros([BLOCK_R], tl.float32)
    grad_gamma = 0.0
    begin = split * span
    for first in range(begin, tl.minimum(begin + span, N), BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        inside = (rows < R)[:, None] & (n < N)[None, :]
        along = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
        for start in range(0, E, BLOCK_E):
            columns = start + tl.arange(0, BLOCK_E)
            mask = (rows < R)[:, None] & (columns < E)[None, :]
            cells = tl.load(
                state + rows[:, None] * (E + 1) + columns[None, :], mask=mask, other=0.0
            )
            high = rounded(cells, DOT)
            grad_rows = columns.to(INDEX) * grad_channel
            slopes = load_tile(grad, grad_rows, columns, E, n, N).to(DOT_DTYPE)
            along = tl.dot(high.to(DOT_DTYPE), slopes, along, input_precision=PRECISION)
            if DOT != "float32":
                low = rounded(cells - high, DOT).to(DOT_DTYPE)
                along = tl.dot(low, slopes, along, input_precision=PRECISION)
        queries = load_tile(q, q_rows, rows, D, n, N).to(tl.float32)
        if KEYS:
            grad_phi = along + ones[:, None]
            shift = 0.0
        else:
            phi, inverse, total, shift, has_slope = query_weights(
                queries, ones, rows, D, inside, eps, FEATURES, DOT
            )
            inverse = tl.where((n < N)[None, :], inverse, 0.0)
            weights = phi * inverse
            product = tl.where((n < N)[None, :], tl.sum(weights * along, 0)[None, :], 0.0)  # c
            through = tl.where(has_slope, product, 0.0)
            grad_phi = (along - through * total) * (inverse * scale)
            grad_ones -= tl.sum(rounded(weights, DOT) * through, 1)
            grad_gamma += tl.sum(product)
        grad_queries = features_backward(grad_phi, queries, shift, rows, D, FEATURES)
        store_tile(grad_q, rows.to(INDEX) * N, rows, D, n, N, grad_queries)

    if not KEYS:
        partial += (b * splits + split) * (R + 1)
        tl.store(partial + rows, grad_ones, mask=rows < R)
        tl.store(partial + R, grad_gamma)
