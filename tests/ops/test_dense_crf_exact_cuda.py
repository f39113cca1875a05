"""The exact dense CRF on a GPU, judged by oracles that are computed on the CPU.

The kernels' own tests, which need no GPU: tests/kernels/test_triton.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference
from segfast.ops import gaussian_filter, mean_field
from segfast.ops._dense_crf_exact_cuda import launchers
from segfast.ops.dense_crf import served_by
from segfast.testing import assert_as_good_as
from tests.ops import dense_crf_exact_problems as problems
from tests.ops import gpu
from tests.ops.conftest import make_problem, reference_mean_field

pytestmark = gpu.TRITON
DEVICE = "cuda"


def exact(features: Tensor, values: Tensor, tolerance: float = 0.0) -> Tensor:
    return launchers().ExactFilter(features.to(DEVICE), tolerance)(values.to(DEVICE)).cpu()


def test_the_kernels_serve() -> None:
    assert "triton_exact.py" in served_by()["cuda"]


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("dims", [1, 2, 5, 6, 7, 14, 32])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 21, 1000), (1, 150, 4097)], ids=str)
def test_filter(shape: tuple[int, int, int], dims: int, spread: float) -> None:
    batch, channels, pixels = shape
    features, values = problems.points((batch, channels, dims, pixels), spread)
    problems.check_filter(exact(features, values), features, values)


@pytest.mark.parametrize("tolerance", [1e-7, 1e-3])
def test_bound(tolerance: float) -> None:
    features, values = problems.points((1, 4, 3, 20000), spread=6.0)
    truth = reference.gaussian_filter(values[0].double(), features[0].double())
    single = reference.gaussian_filter(values[0], features[0])
    error = (exact(features, values, tolerance)[0] - truth).abs().max()
    allowed = tolerance * values.abs().max() + 2 * (single - truth).abs().max()
    # the rounding floor of assert_as_good_as, for the mass that a row sums
    floor = 2 * 2.0**-24 * 20000**0.5 * truth[0].max()
    assert error <= allowed + floor


def test_twenty_times_the_same_bits() -> None:
    features, values = (x.to(DEVICE) for x in problems.points((2, 21, 5, 10000), spread=2.0))
    kernel = launchers().ExactFilter(features, 1e-7)
    first = kernel(values), kernel.feature_gradient(values, values)
    for _ in range(19):
        kernel = launchers().ExactFilter(features, 1e-7)
        assert torch.equal(kernel(values), first[0])
        assert torch.equal(kernel.feature_gradient(values, values), first[1])


@pytest.mark.parametrize("dims", [2, 5, 7, 32])
def test_feature_gradient(dims: int) -> None:
    features, values = problems.points((1, 21, dims, 1000), 0.7)
    grads = values.flip(1, 2).contiguous()
    kernel = launchers().ExactFilter(features.to(DEVICE), 0.0)
    found = kernel.feature_gradient(grads.to(DEVICE), values.to(DEVICE)).cpu()[0]
    given = grads[0], values[0], features[0]
    truth = problems.feature_gradient(*(x.double() for x in given))
    single = problems.feature_gradient(*given)
    sums = problems.feature_gradient(*(x.double().abs() for x in given))[-1]
    assert_as_good_as(found, truth, single, terms=1000, magnitude=sums)


@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
@pytest.mark.parametrize("labels", [1, 2, 21])
def test_mean_field(labels: int, normalization: str) -> None:
    logits, image = make_problem(labels, 3, 41, 53, batch=3)
    options: dict[str, Any] = {
        "method": "exact", "iterations": 1, "normalization": normalization, "color_sigma": 13.0,
    }  # fmt: skip
    found = mean_field(logits.to(DEVICE), image.to(DEVICE), tolerance=0.0, **options).cpu()
    truth = reference_mean_field(logits, image, **options)
    if normalization == "none":
        single = reference_mean_field(logits, image, torch.float32, **options)
        assert_as_good_as(found, truth, single, terms=41 * 53)
    else:
        assert (found.softmax(1) - truth.softmax(1)).abs().max() <= 1e-5


def test_gradients() -> None:
    logits, image = make_problem(4, 3, 17, 19, batch=2)

    def run(device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, pixels = logits.to(device, dtype), image.to(device, dtype)
        parameters = (torch.full((4, 4), 3.0), torch.tensor(10.0), torch.tensor([20.0] * 3))
        leaves = [t.to(t.device, dtype).requires_grad_() for t in (x, pixels)]
        leaves += [t.to(device, dtype).requires_grad_() for t in parameters]
        y = mean_field(
            leaves[0], leaves[1], spatial_weight=leaves[2], bilateral_weight=leaves[3],
            color_sigma=leaves[4], iterations=3, method="exact", tolerance=0.0,
        )  # fmt: skip
        return torch.autograd.grad(y.sin().sum(), leaves)

    results = run(DEVICE, torch.float32), run("cpu", torch.float64), run("cpu", torch.float32)
    for found, truth, single in zip(*results, strict=True):
        assert_as_good_as(found, truth, single, terms=2 * 4 * 17 * 19)


def test_graphs_are_recorded() -> None:
    features, values = (x.to(DEVICE) for x in problems.points((1, 21, 5, 3000)))
    launchers().ExactFilter(features, 1e-7)(values)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = launchers().ExactFilter(features, 1e-7)(values)
    with torch.no_grad():
        features.copy_(features + 0.1 * torch.randn_like(features))
    graph.replay()
    assert torch.equal(recorded, launchers().ExactFilter(features, 1e-7)(values))


def test_half_and_double() -> None:
    features, values = problems.points((1, 3, 3, 500))
    half = gaussian_filter(values.half().to(DEVICE), features.to(DEVICE))
    assert half.dtype == torch.float16
    double = gaussian_filter(values.double().to(DEVICE), features.double().to(DEVICE)).cpu()
    truth = reference.gaussian_filter(values[0].double(), features[0].double())
    torch.testing.assert_close(double[0], truth, rtol=1e-6, atol=1e-6)  # its tolerance is 1e-7


def test_sanitize_odd_sizes() -> None:
    """What compute-sanitizer watches: every kernel."""
    features, values = (x.to(DEVICE) for x in problems.points((2, 19, 3, 333), 0.5))
    features, values = features.requires_grad_(), values.requires_grad_()
    y = gaussian_filter(values, features, normalization="symmetric")
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), (values, features)))
