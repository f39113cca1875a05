"""Depthwise dilated convolution for Triton: as fast as memory, in any layout.

    y[n, c, p]    = sum_t w[c, t] x[n, c, p s - b + t d] + bias_c
    grad_w[c, t]  = sum_{n, p} g[n, c, p] x[n, c, p s - b + t d]

The input gradient is the first with p and p s - b + t d exchanged, for any stride. Maps come with
their strides; what is contiguous is 1, which Triton makes a constant. Weights [taps, C].
"""

import triton
import triton.language as tl


@triton.jit
def source(p, tap, stride, padding, dilation, size, TRANSPOSED: tl.constexpr):
    """The element that a tap of element p reads; whether it is on the map."""
    if TRANSPOSED:
        at = p + padding - tap * dilation
        live = (at >= 0) & (at % stride == 0)
        at = at // stride
    else:
        at = p * stride - padding + tap * dilation
        live = at >= 0
    return at, live & (at < size)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "positions"])
def depthwise_kernel(
    x,  # [N, C, H, W] by its strides
    weight,  # [taps, C]
    bias,  # [C] or None
    y,  # [N, C, Ho, Wo] by its strides
    C,
    height,
    width,
    out_height,
    out_width,
    positions,  # of y, in all images
    x_image,
    x_channel,
    x_line,
    x_column,
    y_image,
    y_channel,
    y_line,
    y_column,
    tap_rows,
    tap_columns,
    sh,
    sw,
    ph,
    pw,
    dh,
    dw,
    TRANSPOSED: tl.constexpr,
    INDEX: tl.constexpr,  # int32, or int64 where a map has 2^31 elements
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Positions x channels of y."""
    blocks = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    if BLOCK_C == 1:  # planes one after another
        stretches = tl.cdiv(positions, BLOCK_P)
        block, stretch = program // stretches, program % stretches
    else:  # neighbours in memory one after another
        block, stretch = program % blocks, program // blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    p = stretch * BLOCK_P + tl.arange(0, BLOCK_P)
    area = out_height * out_width
    image, i, j = p // area, p % area // out_width, p % out_width
    inside = (p < positions)[:, None] & (c < C)[None, :]
    x_channels = c.to(INDEX)[None, :] * x_channel
    x_images = image.to(INDEX) * x_image

    sums = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for tap in range(tap_rows * tap_columns):
        row, row_live = source(i, tap // tap_columns, sh, ph, dh, height, TRANSPOSED)
        column, column_live = source(j, tap % tap_columns, sw, pw, dw, width, TRANSPOSED)
        at = x_images + row.to(INDEX) * x_line + column.to(INDEX) * x_column
        mask = inside & (row_live & column_live)[:, None]
        values = tl.load(x + (at[:, None] + x_channels), mask=mask, other=0.0).to(tl.float32)
        factors = tl.load(weight + tap * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        sums += tl.where(mask, values * factors, 0.0)  # no tap of infinity meets a zero beyond
    if bias is not None:
        sums += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    at = image.to(INDEX) * y_image + i.to(INDEX) * y_line + j.to(INDEX) * y_column
    at = at[:, None] + c.to(INDEX)[None, :] * y_channel
    tl.store(y + at, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "positions", "span"])
def depthwise_grad_weight_kernel(
    grad,  # [N, C, Ho, Wo] by its strides
    x,  # [N, C, H, W]
    partial,  # [splits, taps, C] float32
    C,
    height,
    width,
    out_height,
    out_width,
    positions,  # of grad, in all images
    grad_image,
    grad_channel,
    grad_line,
    grad_column,
    x_image,
    x_channel,
    x_line,
    x_column,
    taps,
    tap_columns,
    sh,
    sw,
    ph,
    pw,
    dh,
    dw,
    span,  # positions of a split
    blocks,  # of channels
    tap_blocks,
    INDEX: tl.constexpr,  # int32, or int64 where a map has 2^31 elements
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A block of taps and channels, summed over a split: grad is read once, x from the cache."""
    program = tl.program_id(0)
    split = program // (blocks * tap_blocks)
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = program // blocks % tap_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    area = out_height * out_width
    tap_row, tap_column = (tap // tap_columns)[:, None], (tap % tap_columns)[:, None]
    x_channels = c.to(INDEX)[None, None, :] * x_channel
    grad_channels = c.to(INDEX)[None, :] * grad_channel

    sums = tl.zeros([BLOCK_T, BLOCK_P, BLOCK_C], tl.float32)
    begin = split * span
    for start in range(begin, tl.minimum(begin + span, positions), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        image, i, j = p // area, p % area // out_width, p % out_width
        inside = (p < positions)[:, None] & (c < C)[None, :]
        at = image.to(INDEX) * grad_image + i.to(INDEX) * grad_line + j.to(INDEX) * grad_column
        slopes = tl.load(grad + (at[:, None] + grad_channels), mask=inside, other=0.0)
        row, row_live = source(i[None, :], tap_row, sh, ph, dh, height, False)
        column, column_live = source(j[None, :], tap_column, sw, pw, dw, width, False)
        live = row_live & column_live & (tap < taps)[:, None]
        mask = live[:, :, None] & inside[None, :, :]
        at = image.to(INDEX)[None, :] * x_image
        at += row.to(INDEX) * x_line + column.to(INDEX) * x_column
        values = tl.load(x + (at[:, :, None] + x_channels), mask=mask, other=0.0)
        products = values.to(tl.float32) * slopes.to(tl.float32)[None, :, :]
        sums += tl.where(mask, products, 0.0)  # no infinity of grad meets a zero beyond
    totals = tl.sum(sums, 1)
    at = (split * taps + tap)[:, None] * C + c[None, :]
    tl.store(partial + at, totals, mask=(tap < taps)[:, None] & (c < C)[None, :])


@triton.jit
def sum_splits_kernel(partial, out, size, splits, BLOCK: tl.constexpr):
    """out [size] = sum over partial [splits, size], first to last."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for _ in range(splits):
        sums += tl.load(partial + i, mask=i < size, other=0.0)
        partial += size
    tl.store(out + i, sums.to(out.dtype.element_ty), mask=i < size)
