"""The exact dense CRF's launchers by Triton's interpreter, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import triton.language as tl
from torch import Tensor

from segfast.kernels.dense_crf import reference, triton_configurations
from segfast.ops import _dense_crf_exact_cuda as cuda
from segfast.ops import _dense_crf_exact_grad as backward
from segfast.ops import _dense_crf_exact_triton as launchers
from segfast.ops._dense_crf_exact_triton import ExactFilter
from segfast.ops._dense_crf_options import Options
from segfast.ops._dense_crf_terms import in_out_scales, scaled
from segfast.testing import assert_as_good_as
from tests.ops import dense_crf_exact_problems as problems

ROW = triton_configurations.ROW


def counts(kernel: ExactFilter) -> list[int]:
    """Of near tiles and of others that rows see, all rows together."""
    (lists,) = kernel.lists()
    return lists.counts.sum((0, 1)).tolist()


# B, C, F, N, spread: products of distances where it is small, differences else.
SHAPES = (
    (1, 3, 1, 150, 0.3),
    (2, 18, 3, 150, 0.3),
    (1, 3, 5, 150, 3.0),
    (1, 2, 6, 150, 0.3),
    (1, 2, 7, 130, 0.3),
)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 2, 32, 130, 0.3)], ids=str)
def test_dimensions(shape: tuple[int, int, int, int, float]) -> None:
    *sizes, spread = shape
    features, values = problems.points(tuple(sizes), spread)
    kernel = ExactFilter(features, 0.0)
    problems.check_filter(kernel(values), features, values)
    near, others = counts(kernel)
    by_products = shape[2] <= triton_configurations.PRODUCT_DIMS and spread < 1
    assert (near > 0, others > 0) == (by_products, not by_products)


@pytest.mark.parametrize(("pixels", "channels"), [(1, 1), (64, 16), (65, 17), (63, 150)])
def test_sizes(pixels: int, channels: int) -> None:
    features, values = problems.points((1, channels, 2, pixels))
    problems.check_filter(ExactFilter(features, 0.0)(values), features, values)


@pytest.mark.parametrize(("dims", "radius"), [(2, 0.0), (5, 2.2)])
def test_products_as_far_as_they_go(dims: int, radius: float) -> None:
    """Rows up to the largest radius, where the product about a centre loses most."""
    places = {0.0: radius, 2 * radius + 0.1: radius, 15.0: 6.0}
    features, values = problems.clusters(places, dims, ROW, 4)
    kernel = ExactFilter(features, 0.0)
    near, others = counts(kernel)
    assert min(near, others) > 0
    problems.check_filter(kernel(values), features, values)


def test_every_pair_and_the_worst_belief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each K_ij within README.md's bound, and |dQ| <= 1e-5 at w = 10 whatever a row believes."""
    features = problems.diagonal_rows(5, 2)[None]
    pixels = features.shape[2]
    monkeypatch.setattr(launchers, "kd_order", lambda f: torch.arange(pixels)[None])
    kernel = ExactFilter(features, 0.0)
    assert counts(kernel) == [8, 0]
    one_hot = torch.eye(ROW, pixels)
    found = kernel(one_hot[None])[0].double().T  # K_ij, [pixels, ROW]
    exact = reference.exact_kernel(features[0].double())
    truth = exact(one_hot.double()).T
    # Where pixels stand after rounding: what moved them, and what arithmetic does from there on.
    placed = kernel.centred[0, :, :5].T + kernel.centres[0].repeat_interleave(ROW, 1).double()
    rounded = reference.exact_kernel(placed * math.sqrt(math.log(2)))(one_hot.double()).T
    distance = problems.ROOT * (-2 * truth.log()).clamp(min=0).sqrt()
    moved = math.log(2) * 4 * math.sqrt(5) * problems.UNIT * distance
    assert ((rounded - truth).abs() <= moved * truth).all()
    assert ((rounded - truth).abs() >= 0.9 * moved * truth).any()  # it is as bad as it can be
    # The interpreter rounds to nearest: a_i . a_j 4 u, the exponent 8 u, all else 0.25 u. Then
    # K's two parts, 4 u and 2^-40 2^R; 2^x, its factor 2^R, the product, the sum: 1.2 u each.
    allowed = (math.log(2) * 12.25 + 4 + 4.8) * problems.UNIT
    assert ((found - rounded).abs() <= allowed * truth + 1.03 * 2.0**-40).all()
    norms = kernel(torch.ones(1, 1, pixels))[0].double(), exact(torch.ones(1, pixels).double())
    for normalization in ("before", "after", "symmetric"):
        messages = []  # K~_ij
        for pairs, norm in zip((found, truth), norms, strict=True):
            before, after = in_out_scales(norm, normalization)
            columns = scaled(pairs, None if before is None else before[:, :ROW])
            messages.append(scaled(columns.T, after).T)
        # Labels whose beliefs differ by 1 at every pixel, with the sign that errors have.
        conspiring = (messages[0] - messages[1]).abs().sum(1)
        assert 10 / 4 * conspiring.max() <= 1e-5, normalization


@pytest.mark.parametrize(
    ("dims", "offset", "step"),
    [(5, 682.0, 2.0**-14), (5, 2e5, 1.0), (20, 100.0, 2.0**-17)],
    ids=["sigma 3", "sigma 1e-3", "20 dimensions"],
)
def test_large_coordinates(dims: int, offset: float, step: float) -> None:
    """Features whose last bit is large, as tiny sigmas make them: a few equal or next to others."""
    generator = torch.Generator().manual_seed(dims)
    levels = torch.randint(0, 3, (1, dims, 150), generator=generator)
    features = offset + step * levels * torch.tensor([1.0, 1e4]).repeat_interleave(75)
    values = torch.randn(1, 3, 150, generator=generator)
    problems.check_filter(ExactFilter(features, 0.0)(values), features, values)


def shells(distances: list[float]) -> tuple[Tensor, Tensor]:
    """A row of equal pixels at 0, one at each distance on six half axes: [1, 3, N], mass [N]."""
    centres = torch.zeros(3, 1 + len(distances), dtype=torch.float64)
    for k, distance in enumerate(distances):
        centres[k % 3, k + 1] = distance if k % 2 else -distance
    mass = ROW * reference.exact_kernel(centres)(torch.ones(1, centres.shape[1]).double())[0]
    return centres.repeat_interleave(ROW, 1)[None].float(), mass.repeat_interleave(ROW)


def found_mass(features: Tensor, tolerance: float) -> Tensor:
    return ExactFilter(features, tolerance)(torch.ones(1, 1, features.shape[2]))[0, 0].double()


@pytest.mark.parametrize("fill", [0.5, 0.99, 1.01])
def test_bound_at_equal_distances(fill: float) -> None:
    """Boxes of no size, so that the bound is the truth: 4 rows weigh fill * tolerance."""
    tolerance = 0.05
    distance = math.sqrt(2 * math.log(4 * ROW / (fill * tolerance)))
    features, exact = shells([distance] * 4)
    missing = exact - found_mass(features, tolerance)
    rounding = 1e-6 * exact.max()  # float32: exponents below 16 are rounded a few times
    assert missing.max() <= tolerance + rounding
    if fill > 1:  # all of them or none: they share a bin of the distance
        assert missing[:ROW].abs().max() <= rounding
    elif fill * math.exp(0.25) < 1:  # a bin counts as if at its near edge, 1/4 of d^2 / 2 away
        assert (missing[:ROW] - fill * tolerance).abs().max() <= rounding


def test_allowance_is_used_not_exceeded() -> None:
    """Masses from far above the tolerance to far below."""
    features, exact = shells([3 + 0.25 * k for k in range(8)])
    missing = exact - found_mass(features, 0.2)
    assert missing.max() <= 0.2 + 1e-6 * exact.max()
    # what is charged is at most exp(1/4) too much, and the last row, e times the next, may stay
    assert missing[0] > 0.2 / math.exp(1.6)


def test_bound_of_clouds() -> None:
    features, values = problems.points((1, 2, 2, 500), spread=10.0)
    kernel = ExactFilter(features, 1e-3)
    exact = reference.gaussian_filter(values[0].double(), features[0].double())
    single = reference.gaussian_filter(values[0], features[0])
    rounding = 2 * (single - exact).abs().max()
    error = (kernel(values)[0] - exact).abs().max()
    assert error <= 1e-3 * values.abs().max() + rounding
    assert sum(counts(kernel)) < sum(counts(ExactFilter(features, 0.0))) == 4 * 8


def test_zero_tolerance_sees_all() -> None:
    """Also tiles whose mass underflows float32."""
    features, _ = shells([20.0])
    assert sum(counts(ExactFilter(features, 0.0))) == 8
    assert sum(counts(ExactFilter(features, 1e-30))) == 4


def test_the_same_bits() -> None:
    """Run after run; rows listed in several rounds; an image in a batch or alone; int64 offsets."""
    features, values = problems.points((2, 3, 3, 150), spread=2.0)
    first = ExactFilter(features, 1e-7)(values)
    kernel = ExactFilter(features, 1e-7)
    assert torch.equal(kernel(values), first)
    assert torch.equal(kernel(values), first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_configurations, "LIST_BYTES", 1)
        patch.setattr(launchers, "index_type", lambda *maps: tl.int64)
        kernel = ExactFilter(features, 1e-7)
        assert len(list(kernel.lists())) == 2
        assert torch.equal(kernel(values), first)
    assert torch.equal(ExactFilter(features[1:], 1e-7)(values[1:]), first[1:])


def test_without_splits() -> None:
    features, values = problems.points((1, 3, 3, 520), spread=0.6)
    assert triton_configurations.splits(5, 10) > 1  # as it is elsewhere
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_configurations, "PROGRAMS", 1)
        problems.check_filter(ExactFilter(features, 0.0)(values), features, values)


def test_strides() -> None:
    features, values = problems.points((2, 4, 1, 65))
    expected = ExactFilter(features, 0.0)(values)
    strided = values.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    spread = values.repeat_interleave(3, 2)[..., ::3]
    for v in (strided, spread):
        assert torch.equal(ExactFilter(features, 0.0)(v), expected)


@pytest.mark.parametrize("scale", [1e-30, 1e38])
def test_scales(scale: float) -> None:
    """Values of any size; channels have scales of their own."""
    features, values = problems.points((1, 3, 2, 100), spread=20.0)
    values = values.clamp(-1, 1) * torch.tensor([1.0, scale, 0.0])[:, None]
    found = ExactFilter(features, 0.0)(values)
    problems.check_filter(found, features, values)
    assert (found[0, 2] == 0).all()


@pytest.mark.parametrize(("spread", "special"), [(0.3, math.nan), (30.0, -math.inf)])
def test_special_values(spread: float, special: float) -> None:
    """K > 0: they reach every row of their channel, and no other."""
    features, values = problems.points((1, 3, 3, 100), spread)
    values[0, 1, 17] = special
    found = ExactFilter(features, 1e-7)(values)[0]
    assert found[1].isnan().all() if special != special else (found[1] == special).all()
    assert found[[0, 2]].isfinite().all()
    values[0, 1, 3] = -special
    assert ExactFilter(features, 1e-7)(values)[0, 1].isnan().all()


@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_special_features(special: float) -> None:
    features, values = problems.points((1, 2, 3, 150), spread=10.0)
    features[0, 1, 5] = special
    found = ExactFilter(features, 1e-7)(values)[0]
    expected = reference.gaussian_filter(values[0].double(), features[0].double())
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize(
    ("shape", "spread"),
    [((2, 1, 1, 65), 1.0), ((1, 21, 5, 130), 0.4), ((1, 40, 7, 60), 1.0)],
    ids=str,
)
def test_feature_gradient(shape: tuple[int, int, int, int], spread: float) -> None:
    features, values = problems.points(shape, spread)
    grads = values.flip(1, 2).contiguous()
    found = ExactFilter(features, 1e-9).feature_gradient(grads, values)
    for y, g, v, f in zip(found, grads, values, features, strict=True):
        truth = problems.feature_gradient(g.double(), v.double(), f.double())
        single = problems.feature_gradient(g, v, f)
        sums = problems.feature_gradient(g.double().abs(), v.double().abs(), f.double())[-1]
        assert_as_good_as(y, truth, single, terms=shape[3], magnitude=sums)


def test_feature_gradient_keeps_its_bound() -> None:
    """A row at a distance where its mass alone would be dropped, but not mass times distance."""
    tolerance = 0.05
    distance = math.sqrt(2 * math.log(ROW / (0.5 * tolerance)))
    features, _ = shells([distance])
    ones = torch.ones(1, 1, 2 * ROW)
    kernel = ExactFilter(features, tolerance)
    assert sum(counts(kernel)) == 4
    found = kernel.feature_gradient(ones, ones)[0]
    truth = problems.feature_gradient(*(x[0].double() for x in (ones, ones, features)))
    assert (found[:3] - truth[:3]).abs().max() <= 2 * tolerance  # g_i . v_j + v_i . g_j = 2
    assert truth[:3].abs().max() > 2 * tolerance  # so that dropping it would show


WEIGHTS = (0, 1, 2, 0)


@pytest.mark.parametrize(
    ("weights", "normalization"), list(zip(WEIGHTS, reference.NORMALIZATIONS, strict=True))
)
def test_mean_field(weights: int, normalization: str) -> None:
    """DESIGN's promise: |dQ| <= 1e-5 after one iteration; un-normalised as a brute force."""
    logits, features, mixings, sigma = problems.crf(2, 4, (7, 11), weights)
    options = Options(1, normalization, "exact", tolerance=0.0)
    found = cuda.mean_field(cuda.Call(logits, features, mixings, sigma.tolist(), options))
    double = [m.double() for m in mixings]
    truth = problems.mean_field(
        logits.double(), features.double(), double, sigma.double(), 1, normalization
    )
    if normalization == "none":
        single = problems.mean_field(logits, features, mixings, sigma, 1, normalization)
        assert_as_good_as(found, truth, single, terms=4 * 77)
    else:
        assert (found.softmax(2) - truth.softmax(2)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("weights", "normalization"), list(zip(WEIGHTS, reference.NORMALIZATIONS, strict=True))
)
def test_mean_field_gradients(weights: int, normalization: str) -> None:
    given = problems.crf(1 + weights % 2, 3, (6, 7), weights)
    logits, features, mixings, sigma = given
    keep = weights == 0
    steps = 2 if keep else 1
    grad = torch.randn(steps, *logits.shape, generator=torch.Generator().manual_seed(3))
    options = Options(2, normalization, "exact", tolerance=0.0, keep_steps=keep)
    call = cuda.Call(logits, features, mixings, sigma.tolist(), options)
    found = backward.mean_field(grad, call)
    expected = []
    for dtype in (torch.float64, torch.float32):
        leaves = [x.to(dtype).requires_grad_() for x in (logits, features, *mixings, sigma)]
        y = problems.mean_field(leaves[0], leaves[1], leaves[2:4], leaves[4], 2, normalization)
        y = y if keep else y[-1:]
        expected.append(torch.autograd.grad(y, leaves, grad.to(dtype)))
    results = (found.logits, found.features, *found.mixings, found.spatial_sigma)
    problems.judge_gradients(results, *expected)


def test_belief_gradient_and_absent_terms() -> None:
    logits, features, mixings, sigma = problems.crf(1, 3, (5, 6), 0)
    options = Options(1, "symmetric", "exact", tolerance=0.0, softmax=True)
    grad = torch.randn(1, *logits.shape, generator=torch.Generator().manual_seed(3))
    spatial = [mixings[0], torch.tensor(0.0)]
    call = cuda.Call(logits, features, spatial, sigma.tolist(), options, present=(True, False))
    found = backward.mean_field(grad, call)
    assert found.features is None
    truth, single = (
        torch.autograd.grad(
            problems.mean_field(
                x, features.to(x.dtype), [m.to(x.dtype) for m in spatial], sigma, 1, "symmetric"
            ).softmax(2),
            x,
            grad.to(x.dtype),
        )[0]
        for x in (logits.double().requires_grad_(), logits.clone().requires_grad_())
    )
    assert_as_good_as(found.logits, truth, single, terms=30, magnitude=grad.abs())


def test_gaussian_filter() -> None:
    normalization = "symmetric"
    features, values = problems.points((2, 3, 2, 100))
    grad = torch.randn(values.shape, generator=torch.Generator().manual_seed(3))
    y = cuda.gaussian_filter(values.half(), features, normalization, 0.0)
    assert y.dtype == torch.float16
    back, moved = backward.gaussian_filter(grad, values, features, normalization, 0.0)
    expected = []
    for dtype in (torch.float64, torch.float32):
        v, f = (x.to(dtype).requires_grad_() for x in (values, features))
        out = [reference.gaussian_filter(a, b, normalization) for a, b in zip(v, f, strict=True)]
        expected.append(torch.autograd.grad(torch.stack(out), (v, f), grad.to(dtype)))
    for x, truth, single in zip((back, moved), *expected, strict=True):
        assert x is not None
        assert_as_good_as(x, truth, single, terms=100)


def test_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the raw operators give for CUDA tensors is as good as the CPU's."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 3, 6, 7, generator=generator)
    image = (255 * torch.rand(2, 2, 6, 7, generator=generator)).round()
    mixings = [torch.rand(3, 3, generator=generator), torch.tensor(2.0)]
    sigmas = [torch.tensor(s).double() for s in ([1.5, 2.0], [4.0, 5.0], [60.0, 80.0])]
    options = (2, "after", "exact", "conv", 0.0, True, False, None)
    grad = torch.randn(2, 2, 3, 6, 7, generator=generator)

    def run(dtype: torch.dtype) -> list[Tensor]:
        tensors = [x.to(dtype) for x in (logits, image, *mixings)] + sigmas
        ops = torch.ops.segfast
        y = ops.mean_field(*tensors, *options)
        grads = ops._mean_field_backward(grad.to(dtype), *tensors, *options, [True] * 7)
        found = [y, *grads]
        values, features = tensors[0].flatten(2), tensors[1].flatten(2) / 50
        choice = ("exact", "before", 0.0, None)
        found.append(ops.gaussian_filter(values, features, *choice))
        return found + list(
            ops._gaussian_filter_backward(values, values, features, *choice, [True, True])
        )

    truth, single = run(torch.float64), run(torch.float32)
    monkeypatch.setattr(cuda, "serves", lambda x, method: method == "exact")
    found = run(torch.float32)
    assert not any(torch.equal(x, y) for x, y in zip(found[:3], single[:3], strict=True))
    for k, (x, oracle, baseline) in enumerate(zip(found, truth, single, strict=True)):
        # Gradients of parameters sum over 2 steps, 2 images, 3 labels and 42 pixels.
        assert_as_good_as(x.float(), oracle, baseline.float(), terms=504, label=f"result {k}")
    tensors = [logits, image, *mixings, *sigmas]
    none = torch.ops.segfast._mean_field_backward(grad[:1], *tensors, 0, *options[1:5], False,
                                                  *options[6:], [True] * 7)  # fmt: skip
    assert [x.shape for x in none] == [x.shape for x in tensors]
    assert torch.equal(none[0], grad[0])
    assert not any(x.count_nonzero() for x in none[1:])
