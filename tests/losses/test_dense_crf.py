"""losses.DenseCRFLoss: its formula, its gradients, what it leaves out, what it refuses."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import segfast
from segfast.kernels.dense_crf import reference
from segfast.losses import DenseCRFLoss, dense_crf_loss
from segfast.testing import assert_as_good_as

B, L, H, W = 2, 3, 9, 12
SIGMAS: dict[str, Any] = {"bilateral_sigma": (4.0, 6.0), "color_sigma": (20.0, 30.0, 40.0)}


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities float64, an image of a few tones, a region of interest."""
    generator = torch.Generator().manual_seed(0)
    tones = torch.randint(0, 256, (B, 3, 3, 4), generator=generator)
    image = tones.repeat_interleave(3, 2).repeat_interleave(3, 3)
    image = image + torch.randint(-9, 10, image.shape, generator=generator)
    region = torch.rand(B, H, W, generator=generator) > 0.3
    scores = torch.randn(B, L, H, W, generator=generator, dtype=torch.float64)
    return scores.softmax(1), image.clamp(0, 255).to(torch.uint8), region


def kernels(image: Tensor) -> Tensor:
    """K of `SIGMAS`, written out from its definition: [B, N, N] float64."""
    y, x = (p.flatten().double() for p in torch.meshgrid(
        torch.arange(H), torch.arange(W), indexing="ij"))  # fmt: skip
    place = ((y[:, None] - y) / 4) ** 2 + ((x[:, None] - x) / 6) ** 2  # [N, N]
    pixels = image.double().flatten(2) / torch.tensor([20.0, 30.0, 40.0])[:, None]  # [B, C, N]
    color = ((pixels[:, :, :, None] - pixels[:, :, None]) ** 2).sum(1)  # [B, N, N]
    return torch.exp(-(place + color) / 2)


def lattice_matrices(image: Tensor) -> Tensor:
    """What the lattice filters with, as matrices [B, N, N] float64: y = K v."""
    eye = torch.eye(H * W, dtype=torch.float64)
    return torch.stack([
        reference.Lattice(reference.image_features(one.double(), (4.0, 6.0), (20.0, 30.0, 40.0)))
        .filter(eye).T
        for one in image
    ])  # fmt: skip


MATRICES = {"exact": kernels, "lattice": lattice_matrices}


@pytest.mark.parametrize("method", MATRICES)
def test_value_and_gradient_are_the_formula_s(
    method: str, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    probabilities, image, region = inputs
    k = MATRICES[method](image)  # [B, N, N]

    def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        s = (probabilities * region[:, None]).flatten(2).to(dtype)  # [B, L, N]
        forward, backward = s @ k.mT.to(dtype), s @ k.to(dtype)
        gradient = -(forward + backward).reshape(B, L, H, W) * region[:, None] / B
        return -(s * forward).sum() / B, gradient

    for dtype in (torch.float64, torch.float32):
        p = probabilities.to(dtype, copy=True).requires_grad_()
        loss = dense_crf_loss(p, image, region, method=method, tolerance=0.0, **SIGMAS)
        loss.backward()
        assert p.grad is not None
        terms, values = H * W, zip((loss, p.grad), plain(torch.float64), plain(dtype), strict=True)
        for actual, oracle, baseline in values:
            # the lattice's own sums: 6 vertices for each of N pixels, twice
            assert_as_good_as(
                actual, oracle, baseline, terms=12 * terms, magnitude=oracle.abs().max().item()
            )


def test_the_exact_gradient_is_minus_two_k_s(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    probabilities, image, _ = inputs
    p = probabilities.clone().requires_grad_()
    dense_crf_loss(p, image, method="exact", tolerance=0.0, **SIGMAS).backward()
    expected = -2 * (probabilities.flatten(2) @ kernels(image)).reshape(p.shape) / B
    assert p.grad is not None
    assert_as_good_as(p.grad, expected, expected, terms=H * W)


@pytest.mark.parametrize("method", MATRICES)
def test_gradcheck(method: str, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    probabilities, image, region = (x[:, ..., :4, :5] for x in inputs)
    p = probabilities.clone().requires_grad_()
    r = region.double().requires_grad_()
    pixels = image.double().requires_grad_(method == "exact")
    assert torch.autograd.gradcheck(
        lambda *x: dense_crf_loss(*x, method=method, tolerance=0.0, **SIGMAS), (p, pixels, r)
    )


def test_units_are_pairs_of_pixels() -> None:
    """All alike and one label: -(pixels)^2 per image. Everything alone: minus the pixels."""
    certain = torch.zeros(4, L, H, W)
    certain[:, 0] = 1
    grey = torch.full((4, 3, H, W), 7, dtype=torch.uint8)
    alike = dense_crf_loss(certain, grey, method="exact", bilateral_sigma=1e5)
    assert alike.item() == pytest.approx(-((H * W) ** 2), rel=1e-6)  # exp(-1e-8): 2 roundings
    alone = dense_crf_loss(certain, grey, method="exact", bilateral_sigma=0.05)
    assert alone.item() == -H * W


def test_what_lies_outside_of_the_region_has_no_say(
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    probabilities, image, region = inputs
    outside = ~region[:, None]
    p = probabilities.clone().requires_grad_()
    loss = dense_crf_loss(p, image, region, **SIGMAS)
    loss.backward()
    assert p.grad is not None
    assert not p.grad[outside.expand_as(p)].any()
    assert p.grad[~outside.expand_as(p)].all()
    for value in (0.9, math.nan):
        other = dense_crf_loss(probabilities.where(~outside, value), image, region.int(), **SIGMAS)
        assert torch.equal(loss, other)
    assert not torch.equal(loss, dense_crf_loss(probabilities, image, **SIGMAS))


def test_smaller_maps(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """The loss of maps shrunk as the published code shrinks them, with a sigma in their pixels."""
    probabilities, image, region = inputs
    shrunk = functional.interpolate(probabilities, scale_factor=0.5, mode="bilinear")
    expected = dense_crf_loss(
        shrunk, image[:, :, :8:2, ::2], region[:, :8:2, ::2],  # 9 x 12 to 4 x 6
        bilateral_sigma=(2.0, 3.0), color_sigma=SIGMAS["color_sigma"],
    )  # fmt: skip
    assert torch.equal(
        dense_crf_loss(probabilities, image, region, scale_factor=0.5, **SIGMAS), expected
    )


def test_the_same_bits_for_any_number_of_threads(restored_threads: None) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(1, 180, 200, 3, generator=generator).sigmoid()  # 36,000 rows to sum
    image = torch.randint(0, 256, (1, 3, 200, 3), generator=generator, dtype=torch.uint8)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        p = scores.clone().requires_grad_()
        loss = dense_crf_loss(p, image)
        loss.backward()
        results.append((loss.detach(), p.grad))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert gradient is not None
        assert torch.equal(gradient, results[0][1])  # type: ignore[arg-type]


def test_the_module_is_the_function(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    probabilities, image, region = inputs
    options = {"scale_factor": 0.7, "method": "exact", "tolerance": 1e-3, **SIGMAS}
    criterion = DenseCRFLoss(2e-9, **options)
    expected = 2e-9 * dense_crf_loss(probabilities, image, region, **options)
    assert torch.equal(criterion(probabilities, image, region), expected)
    assert repr(criterion) == (
        "DenseCRFLoss(weight=2e-09, bilateral_sigma=(4.0, 6.0), color_sigma=(20.0, 30.0, 40.0), "
        "scale_factor=0.7, method='exact', tolerance=0.001)"
    )
    published = {"bilateral_sigma": 100, "color_sigma": 15}
    default = dense_crf_loss(probabilities, image, **published)  # type: ignore[arg-type]
    assert torch.equal(DenseCRFLoss()(probabilities, image), default)


def test_dtypes_and_empty_batches(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    probabilities, image, _ = inputs
    for dtype in (torch.float16, torch.bfloat16):
        p = probabilities.to(dtype)
        loss = dense_crf_loss(p, image)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, dense_crf_loss(p.float(), image))
    assert dense_crf_loss(probabilities, image).dtype == torch.float64
    assert torch.equal(
        dense_crf_loss(probabilities, image.long(), color_sigma=15),
        dense_crf_loss(probabilities, image),
    )
    assert math.isnan(dense_crf_loss(probabilities[:0], image[:0]).item())  # as mean() says


def test_compiles(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """In one graph, gradient too."""
    probabilities, image, region = inputs
    criterion = DenseCRFLoss(**SIGMAS)
    found = []
    for each in (criterion, torch.compile(criterion, backend="aot_eager", fullgraph=True)):
        p = probabilities.clone().requires_grad_()
        loss = each(p, image, region)
        found.append([loss, *torch.autograd.grad(loss, p)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_under_vmap_and_without_numbers(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Where values cannot be looked at."""
    probabilities, image, _ = inputs
    p, x = probabilities.detach()[:, None], image[:, None]
    each = torch.stack([dense_crf_loss(a, b) for a, b in zip(p, x, strict=True)])
    torch.testing.assert_close(torch.vmap(dense_crf_loss)(p, x), each)
    assert dense_crf_loss(p[0].to("meta"), x[0].to("meta")).shape == ()


def test_scribbles_spread(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Two strokes on two tones: with the loss the rest of the pixels follow."""
    truth = torch.zeros(1, 20, 30, dtype=torch.long)
    truth[:, 4:, 12:] = 1
    image = (60 + 120 * truth)[:, None].expand(1, 3, 20, 30).to(torch.uint8)
    labels = torch.full_like(truth, -1)
    labels[:, 15, 3:8], labels[:, 10, 18:25] = 0, 1

    def right(weight: float) -> float:
        scores = torch.zeros(1, 2, 20, 30, requires_grad=True)
        optimizer = torch.optim.SGD([scores], lr=200)
        criterion = DenseCRFLoss(weight, bilateral_sigma=10, method="exact")
        for _ in range(20):
            loss = functional.cross_entropy(scores, labels, ignore_index=-1)
            loss = loss + criterion(scores.softmax(1), image)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (scores[:, 1] > scores[:, 0]).long().eq(truth).float().mean().item()

    assert right(0.0) < 0.6  # a tie everywhere else
    assert right(1e-3) == 1


def test_exported() -> None:
    assert {"DenseCRFLoss", "dense_crf_loss"} <= set(segfast.losses.__all__)


# ------------------------------------------------------------------------------ refusals

P, IMAGE = torch.full((2, 3, 4, 5), 1 / 3), torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "labels": ((IMAGE, IMAGE), {}, TypeError, r"probabilities.*floating-point.*uint8"),
    "unbatched": ((P[0], IMAGE[0]), {}, ValueError, r"probabilities.*\[B, L, H, W\].*\(3, 4, 5\)"),
    "image size": ((P, IMAGE[:, :, 1:]), {}, ValueError, r"image.*\[2, C, 4, 5\].*\(2, 3, 3, 5\)"),
    "image batch": ((P, IMAGE[:1]), {}, ValueError, r"image.*\[2, C, 4, 5\].*\(1, 3, 4, 5\)"),
    "bool image": ((P, IMAGE.bool()), {}, TypeError, r"image must be uint8.*bool"),
    "no image": ((P, None), {}, TypeError, r"image must be a tensor.*None"),
    "region": ((P, IMAGE, P[:, 0, 1:]), {}, ValueError, r"region.*\[2, 4, 5\].*\(2, 3, 5\)"),
    "color": ((P, IMAGE.float()), {}, ValueError, r"color_sigma must be given for torch.float32"),
    "colors": ((P, IMAGE), {"color_sigma": (1, 2)}, ValueError, r"color_sigma.*3 of them"),
    "sigma": ((P, IMAGE), {"bilateral_sigma": 0}, ValueError, r"bilateral_sigma.*positive"),
    "scale": ((P, IMAGE), {"scale_factor": -1}, ValueError, r"scale_factor.*positive"),
    "no pixel left": ((P, IMAGE), {"scale_factor": 0.2}, ValueError, r"scale_factor.*pixel.*0\.2"),
    "method": ((P, IMAGE), {"method": "fast"}, ValueError, r"method.*lattice.*'fast'"),
    "tolerance": ((P, IMAGE), {"tolerance": -1.0}, ValueError, r"tolerance.*-1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    arguments, options, error, pattern = REFUSED[case]
    with pytest.raises(error, match=pattern):
        dense_crf_loss(*arguments, **options)


def test_refused_at_construction() -> None:
    for options, error, pattern in (
        ({"weight": -1}, ValueError, r"weight.*not negative.*-1"),
        ({"weight": "2e-9"}, TypeError, r"weight.*number"),
        ({"bilateral_sigma": (1, 2, 3)}, ValueError, r"bilateral_sigma.*2 of them"),
        ({"color_sigma": (13, -1, 13)}, ValueError, r"color_sigma.*positive"),
        ({"scale_factor": 0.0}, ValueError, r"scale_factor.*positive"),
        ({"method": "conv"}, ValueError, r"method.*'conv'"),
        ({"tolerance": "0"}, TypeError, r"tolerance.*number"),
    ):
        with pytest.raises(error, match=pattern):
            DenseCRFLoss(**options)  # type: ignore[arg-type]


def test_scores_passed_by_mistake_warn() -> None:
    with pytest.warns(UserWarning, match=r"outside of \[0, 1\].*softmax"):
        dense_crf_loss(torch.randn(2, 3, 4, 5), IMAGE)


def test_images_in_other_units_warn() -> None:
    probabilities, image = torch.full((2, 3, 4, 5), 0.25), torch.rand(2, 3, 4, 5)
    with pytest.warns(UserWarning, match=r"image spans 0\.\d+ and color_sigma is 15: colour"):
        dense_crf_loss(probabilities, image, color_sigma=15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dense_crf_loss(probabilities, image, color_sigma=0.06)
        dense_crf_loss(probabilities, torch.full_like(image, 7), color_sigma=15)


def test_the_lattice_has_no_gradient_for_the_image(
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    probabilities, image, _ = inputs
    pixels = image.double().requires_grad_()
    with pytest.raises(ValueError, match=r"^image must not require a gradient .*exact.*image\.det"):
        dense_crf_loss(probabilities, pixels, color_sigma=15)
    with torch.no_grad():
        dense_crf_loss(probabilities, pixels, color_sigma=15)
    dense_crf_loss(probabilities, pixels, color_sigma=15, method="auto").backward()
    assert pixels.grad is not None
    assert pixels.grad.any()
