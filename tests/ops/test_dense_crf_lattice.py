"""The permutohedral lattice against one written down by definition, and against pydensecrf."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference
from segfast.ops import gaussian_filter, mean_field
from segfast.testing import assert_as_good_as

Problem = Callable[..., tuple[Tensor, Tensor]]
Oracle = Callable[..., Tensor]

ONE_ITERATION = 1e-5  # max |dQ| that the project promises after one iteration in float32


def belief(scores: Tensor) -> Tensor:
    return scores.double().softmax(1)


# ------------------------------------------------------------------------------ independent oracle


def matrix_lattice(features: Tensor) -> Tensor:
    """alpha S B_d ... B_0 S^T as one float64 matrix [N, N], from [d, N], one pixel at a time.

    Shares nothing with the reference: Helmert's basis as a matrix, vertices as whole tuples in a
    dictionary, barycentric weights by solving for them.
    """
    dims, pixels = features.shape
    period = dims + 1
    basis = torch.zeros(dims, period, dtype=torch.float64)
    for i in range(1, dims + 1):
        basis[i - 1, :i], basis[i - 1, i] = 1.0, -i
    basis = basis / basis.norm(dim=1, keepdim=True)
    elevated = (period * math.sqrt(2 / 3) * basis.T @ features.double()).T  # [N, d + 1]

    numbers: dict[tuple[int, ...], int] = {}
    splat: list[tuple[int, int, float]] = []
    for pixel, e in enumerate(elevated.tolist()):
        simplex = enclosing_simplex(e)
        system = torch.tensor([[*map(float, v), 1.0] for v in simplex], dtype=torch.float64).T
        weights = torch.linalg.lstsq(system, torch.tensor([*e, 1.0], dtype=torch.float64)[:, None])
        for vertex, weight in zip(simplex, weights.solution[:, 0].tolist(), strict=True):
            assert weight > -1e-9, "the simplex does not enclose the point"
            splat.append((pixel, numbers.setdefault(vertex, len(numbers)), weight))

    slice_matrix = torch.zeros(pixels, len(numbers), dtype=torch.float64)  # S
    for pixel, vertex_number, weight in splat:
        slice_matrix[pixel, vertex_number] = weight
    table = slice_matrix.T
    for axis in range(period):
        blur = torch.eye(len(numbers), dtype=torch.float64)
        for vertex, v in numbers.items():
            for sign in (1, -1):
                step = (c + sign * (1 - period * (i == axis)) for i, c in enumerate(vertex))
                if (other := numbers.get(tuple(step))) is not None:
                    blur[v, other] = 0.5
        table = blur @ table
    return slice_matrix @ table / (1 + 2.0**-dims)


def enclosing_simplex(e: list[float]) -> list[tuple[int, ...]]:
    """The d + 1 lattice points around `e`: one of each remainder modulo d + 1."""
    period = len(e)
    origin = [period * round(c / period) for c in e]  # of remainder 0, maybe off the hyperplane
    rounded_up = sorted(range(period), key=lambda i: e[i] - origin[i])  # the most first
    while sum(origin) != 0:
        axis = rounded_up.pop(0 if sum(origin) > 0 else -1)
        origin[axis] -= period if sum(origin) > 0 else -period
    rounded_up = sorted(range(period), key=lambda i: e[i] - origin[i])
    return [
        tuple(origin[i] + r - period * (i in rounded_up[:r]) for i in range(period))
        for r in range(period)
    ]


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_reference_is_the_lattice_by_definition(dims: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(dims)
    features = spread * torch.randn(dims, 60, dtype=torch.float64, generator=generator)
    values = torch.randn(3, 60, dtype=torch.float64, generator=generator)
    matrix = matrix_lattice(features)
    lattice = reference.Lattice(features)
    # Both are float64; 1e-11 leaves room for the weights solved for here.
    torch.testing.assert_close(lattice.filter(values), values @ matrix.T, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        lattice.filter(values, transpose=True), values @ matrix, rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
def test_kernels_are_the_lattice_by_definition(normalization: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 80, dtype=torch.float64, generator=generator)
    values = torch.randn(5, 80, dtype=torch.float64, generator=generator)
    matrix = matrix_lattice(features)
    expected = reference.normalized(lambda v: v @ matrix.T, values, normalization)(values)
    found = gaussian_filter(values[None], features[None], "lattice", normalization)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dims", "side"), [(1, 400), (2, 60), (3, 26)])
def test_mass_of_a_full_lattice(dims: int, side: int) -> None:
    """A dense grid leaves no vertex out: the kernel's mass is a known share of a Gaussian's."""

    def share(d: int) -> float:
        return 2 ** (d + 1) / (1 + 2.0**-d) * (0.75 / math.pi) ** (d / 2) / math.sqrt(d + 1)

    assert share(2) == pytest.approx(0.882, abs=5e-4)
    assert share(5) == pytest.approx(0.706, abs=5e-4)
    axis = torch.linspace(-4.5, 4.5, side, dtype=torch.float64)
    features = torch.stack(torch.meshgrid([axis] * dims, indexing="ij")).flatten(1)
    ones = torch.ones(1, features.shape[1], dtype=torch.float64)
    mass = reference.lattice_filter(ones, features)[0, features.abs().amax(0) < 0.5].mean()
    gaussian = (math.sqrt(2 * math.pi) / float(axis[1] - axis[0])) ** dims
    # 1 %: the middle pixels sample one lattice cell unevenly
    assert float(mass) == pytest.approx(share(dims) * gaussian, rel=0.01)


# ------------------------------------------------------------------------------ mean field


@pytest.mark.parametrize("noise", [20.0, 300.0])
@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
@pytest.mark.parametrize(
    "shape", [(21, 3, 47, 39, 1), (2, 1, 33, 52, 3), (5, 5, 29, 31, 1), (150, 3, 13, 17, 1)]
)
def test_one_iteration(
    problem: Problem, oracle: Oracle, shape: tuple[int, ...], normalization: str, noise: float
) -> None:
    """Uniform noise has more vertices than pixels (V > N)."""
    logits, image = problem(*shape, noise=noise)
    options: dict[str, Any] = {
        "spatial": "lattice", "iterations": 1, "normalization": normalization}  # fmt: skip
    scores = mean_field(logits, image, **options)
    truth = oracle(logits, image, **options)
    if normalization == "none":
        baseline = oracle(logits, image, torch.float32, **options)
        assert_as_good_as(scores, truth, baseline, terms=shape[2] * shape[3])
    else:
        assert (belief(scores) - belief(truth)).abs().max() <= ONE_ITERATION


def test_noise_has_more_vertices_than_pixels(problem: Problem) -> None:
    _, image = problem(2, 3, 47, 39, noise=300.0)
    features = reference.image_features(image[0].float(), 80.0, 13.0)
    assert reference.Lattice(features).num_vertices > 47 * 39


@pytest.mark.parametrize("sigma", [3.0, 0.4, 25.0, (1.2, 7.0)])
@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
@pytest.mark.parametrize("size", [(37, 53), (1, 64), (50, 1), (5, 3)])
def test_convolution(
    problem: Problem, size: tuple[int, int], normalization: str, sigma: float | tuple[float, float]
) -> None:
    """The spatial kernel alone: message = scores - logits, weight 1."""
    logits, image = problem(6, 3, *size)
    scores = mean_field(
        torch.zeros_like(logits) + logits.round(), image, spatial_weight=1.0, spatial_sigma=sigma,
        bilateral_weight=0.0, iterations=1, normalization=normalization,
    )[0]  # fmt: skip
    start = logits[0].round()
    filters = {
        dtype: reference.spatial_filter(
            start.to(dtype).softmax(0), reference.as_pair(sigma), normalization
        )
        for dtype in (torch.float32, torch.float64)
    }
    assert_as_good_as(
        scores, start + filters[torch.float64], start + filters[torch.float32],
        terms=size[0] + size[1],
    )  # fmt: skip


# ------------------------------------------------------------------------------ pydensecrf


@pytest.mark.parametrize("normalization", ["before", "after", "symmetric"])
@pytest.mark.parametrize("noise", [20.0, 300.0])
def test_agrees_with_pydensecrf(problem: Problem, normalization: str, noise: float) -> None:
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    kind = getattr(densecrf, f"NORMALIZE_{normalization.upper()}")
    logits, image = problem(21, 3, 61, 83, noise=noise)
    labels, height, width = logits.shape[1:]

    def peer(iterations: int) -> Tensor:
        crf = densecrf.DenseCRF2D(width, height, labels)
        crf.setUnaryEnergy((-logits[0]).flatten(1).contiguous().numpy())
        crf.addPairwiseGaussian(sxy=3, compat=3, normalization=kind)
        rgb = image[0].permute(1, 2, 0).contiguous().numpy()
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=rgb, compat=10, normalization=kind)
        beliefs = torch.from_numpy(np.array(crf.inference(iterations)))  # [L, N]
        return beliefs.reshape(1, labels, height, width)

    def ours(iterations: int) -> Tensor:
        options: dict[str, Any] = {"spatial": "lattice", "normalization": normalization}
        return mean_field(logits, image, iterations=iterations, **options).softmax(1)

    assert (ours(1) - peer(1)).abs().max() <= ONE_ITERATION
    assert (ours(10).argmax(1) == peer(10).argmax(1)).float().mean() >= 0.999


# ------------------------------------------------------------------------------ keys of any width


@pytest.mark.parametrize("dims", [1, 2, 5, 9, 14, 32])
@pytest.mark.parametrize("spread", [0.1, 1.0, 40.0])
def test_feature_dimensions(dims: int, spread: float) -> None:
    """14 dimensions never fit 64 bits; at spread 40 nor do 5 ranges of 12 bits and more."""
    generator = torch.Generator().manual_seed(dims)
    features = spread * torch.randn(1, dims, 200, dtype=torch.float64, generator=generator)
    values = torch.randn(1, 3, 200, dtype=torch.float64, generator=generator)
    expected = reference.lattice_filter(values[0], features[0], "after")
    found = gaussian_filter(values, features, "lattice", "after")[0]
    # float64 on both sides, d + 1 blurs of 1e-16 each
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_deviations_keep_pixels_apart(problem: Problem, dtype: torch.dtype) -> None:
    """pydensecrf corrupts memory here; with every pixel alone the message is the belief itself."""
    logits, image = problem(3, 3, 12, 17, noise=200.0)
    options: dict[str, Any] = {
        "bilateral_sigma": 1e-3, "color_sigma": 1e-3, "spatial_weight": 0.0,
        "bilateral_weight": 1.0, "normalization": "after", "iterations": 1,
    }  # fmt: skip
    scores = mean_field(logits.to(dtype), image, **options)
    expected = logits.to(dtype) + logits.to(dtype).softmax(1)
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)  # float32's own rounding


def test_positions_far_from_the_origin() -> None:
    """Two clusters 3e5 apart (a 30000-pixel image at sigma 0.1) do not see each other."""
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(1, 5, 40, dtype=torch.float64, generator=generator)
    values = torch.randn(1, 2, 80, dtype=torch.float64, generator=generator)
    both = torch.cat([near, near + 3e5], dim=2)
    together = gaussian_filter(values, both, "lattice", "after")
    alone = gaussian_filter(values[..., :40], near, "lattice", "after")
    torch.testing.assert_close(together[..., :40], alone, rtol=0, atol=1e-12)
