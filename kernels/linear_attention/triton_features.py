"""phi and its derivative on tiles [BLOCK_R, BLOCK_N] of float32, for Triton.

A tile holds all features of BLOCK_N positions: R = D rows, for taylor D + 1, whose last is 1. Rows
and positions that pad the tile are zero in phi, so that they add nothing to any sum. `shift` is the
reference's: phi(q) e^{-shift} does not underflow; keys have 0.

No libdevice: the interpreter has none. PyTorch's exp and log1p are accurate to an ulp in relative
terms, where Triton's exp is off by |x| ulps: hence `exp` and `log1p_ratio`.
"""

import triton
import triton.language as tl

# Indices of reference.FEATURE_MAPS.
SOFTPLUS = tl.constexpr(0)
TAYLOR = tl.constexpr(1)
RELU = tl.constexpr(2)
ELU = tl.constexpr(3)

SMALLEST_NORM = tl.constexpr(1e-6)


@triton.jit
def exp(x):
    """e^x = 2^n e^r, n whole and |r| <= log(2) / 2; n log(2) is subtracted in two parts."""
    x = tl.where(x < -150, -150.0, x)  # -inf - -inf would be NaN
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693145751953125) - n * 1.42860682030941723e-6
    return tl.exp2(n) * tl.exp2(r * 1.4426950408889634)


@triton.jit
def log1p_ratio(y):
    """log(1 + y) / y for 0 <= y <= 1: 2 atanh(z) = log(1 + y) for z = y / (2 + y) <= 1/3."""
    inverse = 1 / (2 + y)
    z = y * inverse
    s = z * z
    series = 1 / 15 + s * (1 / 17)
    series = 1 / 13 + s * series
    series = 1 / 11 + s * series
    series = 1 / 9 + s * series
    series = 1 / 7 + s * series
    series = 1 / 5 + s * series
    series = 1 / 3 + s * series
    return 2 * inverse * (1 + s * series)


@triton.jit
def query_shift(q, inside, FEATURES: tl.constexpr):
    """m <= 0 [1, BLOCK_N], the largest of q over the channels, as in the reference."""
    largest = tl.max(tl.where(inside, q, float("-inf")), 0)
    shift = tl.where(largest > float("-inf"), tl.minimum(largest, 0.0), 0.0)
    if FEATURES != SOFTPLUS and FEATURES != ELU:
        shift = tl.zeros_like(shift)
    return shift[None, :]


@triton.jit
def inverse_norm(x):
    """1 / max(|x|, SMALLEST_NORM) [1, BLOCK_N]; whether |x| is below."""
    squares = tl.sum(x * x, 0)[None, :]
    short = squares < SMALLEST_NORM * SMALLEST_NORM
    inverse = tl.where(short, 1 / SMALLEST_NORM, tl.rsqrt(tl.where(short, 1.0, squares)))
    return inverse, short


@triton.jit
def features(x, shift, rows, D, inside, FEATURES: tl.constexpr):
    """phi(x) e^{-shift}; `inside` says which of the tile are features: rows < R and n < N."""
    if FEATURES == SOFTPLUS:
        small = exp(-tl.abs(x))
        ratio = log1p_ratio(small)
        phi = tl.where(x > 0, x + small * ratio, exp(tl.minimum(x, 0.0) - shift) * ratio)
    elif FEATURES == ELU:
        phi = tl.where(x < 0, exp(tl.minimum(x, 0.0) - shift), x + 1)
    elif FEATURES == RELU:
        phi = tl.where(x < 0, 0.0, x)  # NaN stays
    elif FEATURES == TAYLOR:
        inverse, _ = inverse_norm(x)
        phi = tl.where((rows == D)[:, None], 1.0, x * inverse)
    else:
        phi = x
    return tl.where(inside, phi, 0.0)


@triton.jit
def features_backward(grad, x, shift, rows, D, FEATURES: tl.constexpr):
    """Gradient of phi(x) e^{-shift} -> that of x; rows >= D are of no use."""
    if FEATURES == SOFTPLUS:
        grad *= exp(tl.minimum(x, 0.0) - shift) / (1 + exp(-tl.abs(x)))
    elif FEATURES == ELU:
        grad *= exp(tl.minimum(x, 0.0) - shift)
    elif FEATURES == RELU:
        grad = tl.where(x <= 0, 0.0, grad)  # NaN: of any slope
    elif FEATURES == TAYLOR:
        inverse, short = inverse_norm(x)
        unit = x * inverse  # 0 in row D, where x is padding
        along = tl.sum(grad * unit, 0)[None, :]
        grad = tl.where(short, 0.0, (grad - unit * along) * inverse)
    return grad


@triton.jit
def rounded(x, DOT: tl.constexpr):
    """x float32 rounded to what the matrix units multiply: bfloat16, tf32 or float32 itself."""
    if DOT == "bfloat16":
        x = x.to(tl.bfloat16).to(tl.float32)
    elif DOT == "tf32":  # to nearest: the units would cut off
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        x = tl.where(tl.abs(x) < float("inf"), nearest, x)  # the bits of NaN could overflow
    return x


@triton.jit
def place(e_blocks, splits):
    """Block of channels, split and batch element of this program."""
    program = tl.program_id(0)
    b = (program // e_blocks // splits).to(tl.int64)
    return program % e_blocks, program // e_blocks % splits, b


@triton.jit
def load_tile(x, offsets, channels, C, n, N):
    """x [C, N] at channels and positions [BLOCK_C, BLOCK_N], 0 outside; offsets of the channels."""
    mask = (channels < C)[:, None] & (n < N)[None, :]
    return tl.load(x + (offsets[:, None] + n[None, :]), mask=mask, other=0.0)


@triton.jit
def store_tile(x, offsets, channels, C, n, N, values):
    mask = (channels < C)[:, None] & (n < N)[None, :]
    tl.store(x + (offsets[:, None] + n[None, :]), values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def query_weights(q, ones, rows, D, inside, eps, FEATURES: tl.constexpr, DOT: tl.constexpr):
    """phi(q) e^{-shift} as it is multiplied; 1 / phi . (S_1 + eps), 1 / 0 being 0.

    ones = S_1 [BLOCK_R]. Also S_1 + eps [BLOCK_R, 1], shift [1, BLOCK_N], and whether the
    denominator depends on phi. It sums the rounded phi, so that the weights of S add up as without;
    beyond N it may sum 0 times infinity.
    """
    shift = query_shift(q, inside & (rows < D)[:, None], FEATURES)
    phi = rounded(features(q, shift, rows, D, inside, FEATURES), DOT)
    total = tl.where(rows < D, ones + eps, ones)[:, None]
    sums = tl.sum(phi * total, 0)[None, :]
    has_slope = sums != 0
    if FEATURES == TAYLOR:
        has_slope = ~(sums < eps)
        sums = tl.where(has_slope, sums, eps)
    inverse = tl.where(sums != 0, 1 / sums, 0.0)
    return phi, inverse, total, shift, has_slope
