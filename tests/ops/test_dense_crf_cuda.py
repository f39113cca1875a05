"""The dense CRF on a GPU: the CPU's lattice to rounding, the same bits on every run.

The kernels' own tests, which need no GPU: tests/kernels/test_dense_crf_cuda.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import segfast
from segfast.ops import _dense_crf_lattice_op as batch
from segfast.ops import dense_crf, gaussian_filter, mean_field
from segfast.ops._dense_crf_lattice_cuda import _kept_gaussian
from segfast.testing import assert_as_good_as
from tests.ops import gpu
from tests.ops.conftest import make_problem, reference_mean_field

pytestmark = gpu.marks(batch.available(), "the CUDA kernels were not built")

# No round numbers: pixels on faces of the lattice fall to either side, as rounding decides.
SIGMAS: dict[str, Any] = {
    "spatial_sigma": (2.3, 3.1), "bilateral_sigma": 23.7, "color_sigma": 17.3, "iterations": 3,
}  # fmt: skip


def check(logits: Tensor, image: Tensor, **options: Any) -> None:
    options = SIGMAS | options
    y = mean_field(logits.cuda(), image.cuda(), **options)
    assert y.is_cuda
    plain = reference_mean_field(logits, image, logits.dtype, **options)
    truth = reference_mean_field(logits, image, **options)
    terms = image[0, 0].numel() + logits.shape[1]
    assert_as_good_as(y.cpu(), truth, plain, terms=terms)


def test_the_kernels_serve() -> None:
    assert "mean_field.cu" in dense_crf.served_by()["cuda"]
    assert "mean_field.cu" in segfast.info()["served_by"]["dense_crf"]["cuda"]


@pytest.mark.parametrize("labels", [1, 2, 21, 45, 150])
def test_labels_sanitize(labels: int) -> None:
    check(*make_problem(labels, 3, 19, 31, batch=2))


@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
def test_options_sanitize(normalization: str) -> None:
    logits, image = make_problem(5, 3, 17, 23, batch=3)
    generator = torch.Generator().manual_seed(3)
    vector, matrix = (torch.rand(s, generator=generator) for s in ((5,), (5, 5)))
    for dtype in (torch.float32, torch.float64):
        problem = logits.to(dtype), image
        check(*problem, normalization=normalization)
        for spatial in ("conv", "lattice"):
            y = mean_field(
                *(x.cuda() for x in problem), spatial=spatial, normalization=normalization,
                spatial_weight=vector.cuda(), bilateral_weight=matrix.cuda(), **SIGMAS,
            )  # fmt: skip
            given = {"spatial_weight": vector, "bilateral_weight": matrix, "spatial": spatial}
            given |= SIGMAS | {"normalization": normalization}
            truth = reference_mean_field(*problem, **given)
            plain = reference_mean_field(*problem, dtype, **given)
            assert_as_good_as(y.cpu(), truth, plain, terms=17 * 23 + 5)


@pytest.mark.parametrize("d", [1, 2, 5, 14, 20, 32])
def test_filter_sanitize(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    values = torch.randn(2, 3, 700, generator=generator)
    features = (torch.randn(2, d, 700, generator=generator) * 0.3).cumsum(2)
    for scale in (1.0, 1e3):  # keys of one word and of several
        given = features * scale
        y = gaussian_filter(values.cuda(), given.cuda(), "lattice", "after").cpu()
        on_cpu = gaussian_filter(values, given, "lattice", "after")
        double = gaussian_filter(values.double(), given.double(), "lattice", "after")
        assert_as_good_as(y, double, on_cpu, terms=700)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (333, 5), (375, 500)], ids=str)
def test_sizes(size: tuple[int, int]) -> None:
    check(*make_problem(7, 3, *size))


def test_the_same_bits_on_every_run() -> None:
    """Twenty runs, alone and in a batch, on a stream of its own, deterministic or not."""
    logits, image = (x.cuda() for x in make_problem(21, 3, 101, 133, batch=3))
    image[1] = 99  # long lists
    first = mean_field(logits, image, **SIGMAS)
    torch.use_deterministic_algorithms(True)
    _kept_gaussian.cache_clear()  # which is made of operations that must be deterministic, too
    try:
        for _ in range(20):
            assert mean_field(logits, image, **SIGMAS).equal(first)
    finally:
        torch.use_deterministic_algorithms(False)
    for b in range(3):
        assert mean_field(logits[b], image[b], **SIGMAS).equal(first[b])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = mean_field(logits, image, **SIGMAS)
    stream.synchronize()
    assert other.equal(first)


def test_graph_capture() -> None:
    logits, image = (x.cuda() for x in make_problem(5, 3, 60, 80, batch=2))
    logits, image = logits.contiguous(), image.clone()
    options: dict[str, Any] = SIGMAS | {"capacity": 40_000}
    expected = mean_field(logits, image, **SIGMAS)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        mean_field(logits, image, **options)  # warms up
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = mean_field(logits, image, **options)
    graph.replay()
    assert result.equal(expected)
    image.copy_(image.flip(3))
    graph.replay()
    assert result.equal(mean_field(logits, image, **SIGMAS))
    image.random_(0, 256)  # noise has more vertices than there is room
    graph.replay()
    assert result.isnan().all()


def test_capture_without_capacity_is_refused() -> None:
    logits, image = (x.cuda() for x in make_problem(5, 3, 20, 30))
    mean_field(logits, image, **SIGMAS)
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(ValueError, match="capacity must be given while a CUDA graph"),
        torch.cuda.graph(graph),
    ):
        mean_field(logits, image, **SIGMAS)


def gradients(device: str, logits: Tensor, image: Tensor, *weights: Tensor) -> list[Tensor]:
    inputs = [x.to(device).requires_grad_() for x in (logits, *weights)]
    out = mean_field(
        inputs[0], image.to(device), spatial_weight=inputs[1], bilateral_weight=inputs[2],
        compatibility=inputs[3], **SIGMAS,
    )  # fmt: skip
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [g.cpu() for g in torch.autograd.grad(out, inputs, grad)]


def test_gradients_sanitize() -> None:
    """Those of the CPU, which are tested against float64: both in float64, to rounding."""
    logits, image = make_problem(4, 3, 13, 11, batch=2)
    generator = torch.Generator().manual_seed(2)
    matrices = [torch.rand(4, 4, generator=generator).double() for _ in range(3)]
    for dtype in (torch.float64, torch.float32):
        inputs = [x.to(dtype) for x in (logits, *matrices)]
        on_gpu = gradients("cuda", inputs[0], image, *inputs[1:])
        on_cpu = gradients("cpu", inputs[0], image, *inputs[1:])
        double = gradients("cpu", logits.double(), image, *matrices)
        for actual, plain, truth in zip(on_gpu, on_cpu, double, strict=True):
            # sums over pixels and iterations, whose terms are larger than they are
            assert_as_good_as(
                actual, truth, plain, terms=3 * 2 * 143, magnitude=100 * truth.abs().max()
            )
    values = torch.randn(2, 3, 90, dtype=torch.float64, generator=generator)
    features = torch.randn(2, 5, 90, dtype=torch.float64, generator=generator).cumsum(2)
    found = []
    for device in ("cuda", "cpu"):
        v = values.to(device).requires_grad_()
        y = gaussian_filter(v, features.to(device), "lattice", "after")
        found.append(torch.autograd.grad((y * values.to(device)).sum(), v)[0].cpu())
    assert_as_good_as(found[0], found[1], found[1], terms=90)


def test_errors_are_those_of_the_cpu() -> None:
    logits, image = make_problem(2, 3, 9, 9)
    for sigma, message in ((1e-6, "too far for torch.float32"), (1e-42, "must be larger")):
        with pytest.raises(ValueError, match=message):
            mean_field(logits.cuda(), image.cuda(), bilateral_sigma=sigma)
    image = image.float()
    image[0, 1, 2, 3] = torch.nan
    assert mean_field(logits.cuda(), image.cuda(), color_sigma=13.0).isnan().all()
    y = mean_field(logits.cuda(), image.cuda(), color_sigma=13.0, bilateral_weight=0.0)
    assert y.isfinite().all()
