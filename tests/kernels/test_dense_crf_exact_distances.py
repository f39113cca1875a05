"""Distances by matrix products: kernels/dense_crf/README.md's bound, in float64 and step by step.

`exponents` follows `filter_kernel`, with matrix units that cut off as much as they may.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segfast.kernels.dense_crf import triton_configurations as tiles
from segfast.ops._dense_crf_exact_order import centred_parts, in_order, kd_order
from tests.ops.dense_crf_exact_problems import ROOT, SHIFT, UNIT, diagonal_rows, exponent_bound

LEAST_EXPONENT = -126.0  # below, 2^E is subnormal, and nothing as two float16
LARGEST = math.sqrt(tiles.RADIUS_SQUARED)  # |a|


def aligned_sum(addends: Tensor) -> Tensor:
    """[..., K] -> [...]: cut off 24 bits from the leading one of the largest on, as is the sum."""
    top = addends.abs().amax(-1, keepdim=True).clamp(min=2.0**-100)
    step = torch.exp2(top.log2().floor() - 23)
    total = ((addends / step).trunc() * step).sum(-1)
    last = torch.exp2(total.abs().clamp(min=2.0**-100).log2().floor() - 23)
    return (total / last).trunc() * last


def plus_products(start: Tensor, products: Tensor) -> Tensor:
    """[M, N] and [M, N, K] -> [M, N], float64: what matrix units make of it, 16 at a time."""
    for some in products.split(16, dim=2):
        start = aligned_sum(torch.cat([start[..., None], some], 2))
    return start


def whole_and_rest(x: Tensor) -> tuple[Tensor, Tensor]:
    to_parts = 1.5 * 2**23 * tiles.PART
    whole = (x + to_parts) - to_parts
    return whole, x - whole


def power_of_small(x: Tensor) -> Tensor:
    y = x * math.log(2)
    return 1 + y * (1 + y * (0.5 + y * (1 / 6)))


def exponents(
    features: Tensor, rows: tuple[int, int], prepared: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Of 2, as computed and true, for pixels of two rows: [ROW, ROW] float64."""
    dims = features.shape[1]
    centres, centred, left, right = prepared
    i, j = (slice(r * tiles.ROW, (r + 1) * tiles.ROW) for r in rows)
    d = torch.zeros(centred.shape[2])
    d[:dims] = centres[0, :, rows[0]] - centres[0, :, rows[1]]
    norm = torch.zeros_like(d)
    norm[dims:] = 1
    difference = features[0, :, i, None].double() - features[0, :, None, j].double()
    truth = SHIFT - 0.5 * (ROOT * difference).square().sum(0)
    counts = truth > LEAST_EXPONENT
    whole, rest = whole_and_rest(centred[0, j])
    of_n, rest_n = (whole * (norm + d)).sum(1), (rest * (norm + d)).sum(1)
    whole, rest = whole_and_rest(centred[0, i])
    of_m, rest_m = (whole * (norm - d)).sum(1), (rest * (norm - d)).sum(1)
    of_m += SHIFT - 0.5 * (d * d).sum()
    terms = of_m[:, None] + of_n
    assert torch.equal(terms[counts].double(), (of_m.double()[:, None] + of_n)[counts])
    other = right[0, j].double()
    cross = left[0, i, None].double() * other
    small = plus_products(rest_n.double().expand(counts.shape), cross)
    assert ((small - rest_n - cross.sum(2)).abs() <= UNIT)[counts].all()
    products = right[0, i, None, :dims].double() * other[:, :dims]
    dot = plus_products(small, products)
    assert ((dot - small - products.sum(2)).abs() <= 8 * UNIT)[counts].all()
    assert (torch.stack([small, rest_m[:, None].expand_as(small)]).abs() < 2.0**-4)[:, counts].all()
    found = dot.float() + terms
    return found.double() + power_of_small(rest_m).double().log2()[:, None], truth


def spheres(dims: int, generator: torch.Generator) -> Tensor:
    """Rows at the largest radius, at the same place, touching, and far."""
    balls = torch.nn.functional.normalize(
        torch.randn(dims, 8 * tiles.ROW, generator=generator), dim=0
    )
    places = torch.tensor([0.0, 0.0, 2.0, 4.5, 9.0, 20.0, 40.0, 60.0]).repeat_interleave(tiles.ROW)
    balls = 2.33 * balls.clamp(-0.7, 0.7)
    balls[0] += places
    return balls


def axes_of_a_cube(dims: int, generator: torch.Generator) -> Tensor:
    """Pixels in few places that are far from one another, at the largest |a_k|."""
    signs = torch.randint(0, 2, (dims, 4 * tiles.ROW), generator=generator) * 2.0 - 1
    size = min(tiles.LARGEST_PART / ROOT, LARGEST / ROOT / math.sqrt(dims)) - 0.02
    return size * signs * (1 - 2.0**-12 * torch.rand(signs.shape, generator=generator))


def large_coordinates(dims: int, generator: torch.Generator) -> Tensor:
    """Half steps near (2047, 1023) with sigma 3: features up to 682, whose last bit is 6e-5."""
    corner = torch.tensor([2047.0, 1023.0])[:, None] - torch.arange(32.0) / 2
    y_x = torch.stack(torch.meshgrid(*corner, indexing="ij")).flatten(1) / 3
    return torch.cat([y_x, 2 * torch.rand(dims, 1024, generator=generator)])[:dims]


def tiny_sigma(dims: int, generator: torch.Generator) -> Tensor:
    """sigma 1e-3, and colours that differ by single units or not at all."""
    levels = torch.randint(0, 3, (dims, 6 * tiles.ROW), generator=generator)
    return 1e3 * (200 + 1e-3 * levels.float())


def badly_rounded(dims: int, generator: torch.Generator) -> Tensor:
    """Rows that are to stay as they are."""
    return diagonal_rows(dims, 4)


PLACES: list[Callable[[int, torch.Generator], Tensor]] = [
    spheres, axes_of_a_cube, large_coordinates, tiny_sigma, badly_rounded,
]  # fmt: skip


@pytest.mark.parametrize("dims", [1, 2, 5, 6])
@pytest.mark.parametrize("places", PLACES)
def test_bound_of_products(places: Callable[[int, torch.Generator], Tensor], dims: int) -> None:
    given = places(dims, torch.Generator().manual_seed(dims))[None]
    rows = places is badly_rounded
    tiled, _ = in_order(given, torch.arange(given.shape[2])[None] if rows else kd_order(given))
    prepared = centred_parts(tiled)
    centres = prepared[0][0]  # [F, rows]
    pairs = 0
    for a in range(centres.shape[1]):
        for b in range(centres.shape[1]):
            between = (centres[:, a] - centres[:, b]).norm()  # NaN where a row is too large
            if not between <= tiles.NEAR_CENTRES:
                continue
            pairs += 1
            found, truth = exponents(tiled, (a, b), prepared)
            distance = (2 * (SHIFT - truth)).clamp(min=0).sqrt()
            counts = truth > LEAST_EXPONENT
            assert ((found - truth).abs() <= exponent_bound(distance, dims))[counts].all()
            assert (found[~counts] < LEAST_EXPONENT + 1).all()
    assert pairs >= 4


@pytest.mark.parametrize("dims", [7, 20])
def test_many_features_are_differences(dims: int) -> None:
    centres, _, left, right = centred_parts(torch.zeros(1, dims, tiles.ROW))
    assert centres.isnan().all()
    assert left.shape[2] == right.shape[2] == 0


def test_rows_that_are_too_large() -> None:
    """|a|, one |a_k|, what float32 cannot hold beside a, NaN: each alone takes a row out."""
    rows = torch.zeros(7, 2, tiles.ROW)
    rows[1, :, 0] = 3.9 / ROOT  # |a| = sqrt(2) 1.95 < sqrt(7.95)
    rows[2, :, 0] = 4.1 / ROOT  # |a_k| = 2.05
    rows[3, 0, 0] = 4.1 / ROOT
    rows[4] = 2.0**18
    rows[5, 0, 5] = math.nan
    rows[6, 1, 5] = -math.inf
    centres = centred_parts(rows.movedim(0, 1).flatten(1)[None])[0][0]
    assert centres.isnan().any(0).tolist() == [False, False, True, True, True, True, True]


# README.md, "The belief": sum_j K~_ij |eps_ij| where n_j = n_i, from mean and rms of a bound of K's
# relative error.
CONSPIRING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "after": lambda mean, rms: rms,
    "symmetric": lambda mean, rms: rms + mean / 2,
    "before": lambda mean, rms: 2 * mean,
}


@pytest.mark.parametrize("normalization", CONSPIRING)
def test_the_error_of_a_belief(normalization: str) -> None:
    """|dQ| <= 1e-5 at w = 10, where pixels lie densely in 5 dimensions."""
    generator = torch.Generator().manual_seed(0)
    # K times an equal density: distances are those of a unit normal's.
    distance = ROOT * torch.randn(5, 100_000, generator=generator).norm(dim=0).double()
    errors = math.log(2) * exponent_bound(distance, 5)
    worst = CONSPIRING[normalization](errors.mean(), errors.square().mean().sqrt())
    assert 10 / 4 * worst <= 1e-5
