"""Convolution along one axis of maps, for Triton: y_p = sum_t taps_|t| x_{p + t}, zeros outside.

The spatial kernel factors on the pixel grid: two of these. float32 throughout, in a fixed order.
"""

import triton
import triton.language as tl


@triton.jit
def convolve_kernel(
    x,  # [..., length, ...] float32, contiguous
    taps,  # [radius + 1]
    y,  # as x
    elements,  # of x
    length,  # of the axis
    stride,
    radius,
    INDEX: tl.constexpr,  # int32, or int64 from 2^31 elements on
    BLOCK: tl.constexpr,
):
    """BLOCK elements, whatever the axis; the outermost taps first, since they are the smallest."""
    at = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    position = at // stride % length
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(radius):
        t = radius - i
        ahead = (at < elements) & (position < length - t)
        behind = (at < elements) & (position >= t)
        pair = tl.load(x + at + t * stride, mask=ahead, other=0.0)
        pair += tl.load(x + at - t * stride, mask=behind, other=0.0)
        total += tl.load(taps + t) * pair
    total += tl.load(taps) * tl.load(x + at, mask=at < elements, other=0.0)
    tl.store(y + at, total, mask=at < elements)
