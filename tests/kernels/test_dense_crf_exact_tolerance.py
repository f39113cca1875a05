"""The exact filter's promise, |y_i - sum_j K_ij v_j| <= tolerance max|v|, where it is hard to keep.

With values 1 nothing cancels: the error of a row is exactly the kernel mass that was left out.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference
from segfast.ops import gaussian_filter

TILE = 32  # kExactTile in kernels/dense_crf/exact.h


def mass(features: Tensor) -> Tensor:
    """n = K 1 in float64: [F, N] to [N]."""
    features = features.double()
    return reference.gaussian_filter(features.new_ones(1, features.shape[1]), features)[0]


def found_mass(features: Tensor, tolerance: float) -> Tensor:
    ones = features.new_ones(1, 1, features.shape[1])
    return gaussian_filter(ones, features[None], tolerance=tolerance)[0, 0]


def rounding(exact: Tensor) -> float:
    """Of a float64 row: N additions, and d^2 / 2 < 40 wherever K matters, at 2^-53 each."""
    return (len(exact) + 40) * exact.max().item() * 2.0**-53


def shells(distances: list[float]) -> tuple[Tensor, Tensor]:
    """A tile of equal pixels at 0 and one at each distance, on six half axes: [3, N], mass [N]."""
    centres = torch.zeros(3, 1 + len(distances), dtype=torch.float64)
    for k, distance in enumerate(distances):
        centres[k % 3, k + 1] = distance if k % 2 else -distance
    return centres.repeat_interleave(TILE, 1), (TILE * mass(centres)).repeat_interleave(TILE)


@pytest.mark.parametrize("tolerance", [1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("fill", [0.5, 0.99, 1.01, 3.0])
def test_equal_distances(instruction_set: str, tolerance: float, fill: float) -> None:
    """Boxes of no size, so that the bound is the truth: 40 tiles weigh fill * tolerance."""
    distance = math.sqrt(2 * math.log(40 * TILE / (fill * tolerance)))
    features, exact = shells([distance] * 40)
    missing = exact - found_mass(features, tolerance)
    assert missing.max() <= tolerance + rounding(exact)
    if fill > 1:  # all of them or none: they share a bin of the distance
        assert missing[:TILE].abs().max() <= rounding(exact)
    elif fill * math.exp(0.25) < 1:  # a bin counts as if at its near edge, 1/4 of d^2 / 2 away
        assert (missing[:TILE] - fill * tolerance).abs().max() <= rounding(exact)


@pytest.mark.parametrize("tolerance", [1e-9, 1e-6, 1e-3, 1.0])
def test_allowance_is_used_not_exceeded(instruction_set: str, tolerance: float) -> None:
    """Masses from far above the tolerance to far below, close together."""
    features, exact = shells([2 + 0.02 * k for k in range(400)])
    missing = exact - found_mass(features, tolerance)
    assert missing.max() <= tolerance + rounding(exact)
    # binned by 1/4 of d^2 / 2: what is charged is at most exp(1/4) too much, and one bin may stay
    assert missing[0] > 0.3 * tolerance


@pytest.mark.parametrize("seed", range(6))
def test_clusters_of_all_sizes(instruction_set: str, seed: int) -> None:
    """Clusters from dots to clouds, lone pixels, a heavy tail; tiles that straddle clusters."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for size in (1, 7, 31, 32, 33, 64, 100, 300):
        centre = 6 * torch.randn(4, 1, generator=generator)
        width = 10 ** (3 * torch.rand(1, generator=generator) - 2.5)
        parts.append(centre + width * torch.randn(4, size, generator=generator))
    tail = torch.randn(4, 50, generator=generator) * torch.rand(50, generator=generator).pow(-1.5)
    features = torch.cat([*parts, tail], 1).double()
    features = features[:, torch.randperm(features.shape[1], generator=generator)]
    exact = mass(features)
    for tolerance in (1e-9, 1e-5, 1e-2):
        missing = exact - found_mass(features, tolerance)
        assert missing.max() <= tolerance + rounding(exact)


def test_values_scale_the_bound(instruction_set: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 5 * torch.randn(3, 900, generator=generator, dtype=torch.float64)
    values = torch.randn(2, 900, generator=generator, dtype=torch.float64) * 1e6
    exact = reference.gaussian_filter(values, features)
    found = gaussian_filter(values[None], features[None], tolerance=1e-4)[0]
    largest = values.abs().max().item()
    assert (found - exact).abs().max() <= largest * (1e-4 + rounding(mass(features)))


def test_float32_keeps_the_bound(instruction_set: str) -> None:
    """Distances rounded to float32 must not let a tile slip past the bound."""
    features = shells([3 + 0.03 * k for k in range(100)])[0].float()
    tolerance = 0.05
    exact = mass(features)
    brute = reference.gaussian_filter(torch.ones(1, features.shape[1]), features)[0]
    found = found_mass(features, tolerance)
    assert (found - exact).abs().max() <= tolerance + 2 * (brute - exact).abs().max()
    assert exact[0] - found[0] > 0.3 * tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_tolerance_is_dense(instruction_set: str, dtype: torch.dtype) -> None:
    """A lone value, seen through a kernel of 1e-30: only the full sum finds it."""
    features = torch.zeros(2, 40 * TILE, dtype=dtype)
    features[0, TILE:] = torch.linspace(9, 11.5, 39 * TILE, dtype=dtype)
    values = torch.zeros(1, 40 * TILE, dtype=dtype)
    values[0, 0] = 1
    exact = reference.gaussian_filter(values.double(), features.double())
    found = gaussian_filter(values[None], features[None], tolerance=0.0)[0]
    assert exact.min() < 1e-28
    # relative: d^2 / 2 < 67 is rounded a handful of times
    assert ((found - exact).abs() <= 67 * 4 * torch.finfo(dtype).eps * exact).all()
    skipped = gaussian_filter(values[None], features[None], tolerance=1e-7)[0]
    assert (skipped[0, TILE:] == 0).any()


@pytest.mark.parametrize("radius", [0.0, 0.5, 1.7, 1.8, 3.0])  # product form: up to 1.75
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_product_form(instruction_set: str, radius: float, offset: float) -> None:
    """One tile holds values; every K_ij stays within the error that README.md proves."""
    generator = torch.Generator().manual_seed(0)
    ball = torch.randn(3, TILE, generator=generator)
    features = torch.zeros(3, 50 * TILE)
    features[:, :TILE] = radius * ball / ball.norm(dim=0).clamp(min=1e-3)
    features[0, TILE:] = radius + torch.linspace(0.1, 13.5, 49 * TILE)  # K down to 1e-40
    features += offset
    values = torch.zeros(1, 50 * TILE)
    values[0, :TILE] = 1
    exact = reference.gaussian_filter(values.double(), features.double())[0]
    found = gaussian_filter(values[None], features[None], tolerance=0.0)[0, 0].double()
    farthest = (features - offset).norm(dim=0).double() + radius  # also off any centre
    exponents = (3 * 3 + 7) * (farthest.square() + radius**2) * 2.0**-24
    # 16: the exponential, the sums; 1.7e-38: exp(-87), below which differences give 0
    assert ((found - exact).abs() <= exact * (exponents + 16 * 2.0**-24) + TILE * 1.7e-38).all()


@pytest.mark.parametrize("pixels", [127, 129, 257, 8161, 16385])  # groups of 4, 4, 4, 8, 16 tiles
def test_groups_of_tiles(instruction_set: str, pixels: int) -> None:
    """Every pair of groups, full or not, is seen once: rows picked from all over."""
    generator = torch.Generator().manual_seed(pixels)
    features = torch.randn(2, pixels, generator=generator, dtype=torch.float64)
    values = torch.rand(1, pixels, generator=generator, dtype=torch.float64)
    rows = torch.arange(0, pixels, max(1, pixels // 200))
    squared = (features[:, rows, None] - features[:, None, :]).square().sum(0)
    exact = values @ torch.exp(-squared / 2).T
    found = gaussian_filter(values[None], features[None], tolerance=1e-9)[0][:, rows]
    assert (found - exact).abs().max() <= 1e-9 + rounding(mass(features[:, rows]) * pixels)


@pytest.mark.parametrize("far", ["dense", "sparse"])
def test_either_tile_may_keep_a_pair(instruction_set: str, far: str) -> None:
    """Tiles that could drop few of the others, and tiles that could drop the few: same bound."""
    distances = [6.0] * 60 if far == "dense" else [6.0] + [0.01 * k for k in range(60)]
    features, exact = shells(distances)
    missing = exact - found_mass(features, 2e-5)
    assert missing.abs().max() <= 2e-5 + rounding(exact)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # float64 shows order in a sum
@pytest.mark.parametrize("pixels", [40, 1000, 8200])  # 1, 8 and 33 groups of tiles
def test_same_bits_for_any_number_of_threads(
    instruction_set: str, pixels: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 5, pixels, generator=generator, dtype=dtype)
    values = torch.randn(1, 6, pixels, generator=generator, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results += [gaussian_filter(values, features) for _ in range(2)]
    assert all(torch.equal(results[0], result) for result in results)
