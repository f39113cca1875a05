"""Problems of the exact dense CRF on a GPU: tensors, oracles, and how results are judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference
from segfast.kernels.dense_crf.triton_configurations import PART, ROW
from segfast.testing import assert_as_good_as

ROOT = math.sqrt(math.log2(math.e))
UNIT = 2.0**-24
SHIFT = 15.0  # exponents of 2 are of 2^15 K


def points(
    shape: tuple[int, int, int, int], spread: float = 1.0, offset: float = 20.0
) -> tuple[Tensor, Tensor]:
    """(B, C, F, N) -> features [B, F, N] far from the origin, values [B, C, N], the first of ones.

    float32; as far off as positions and colours are, where |a|^2 + |b|^2 - 2 a b would cancel.
    """
    batch, channels, dims, pixels = shape
    generator = torch.Generator().manual_seed(sum(shape))
    features = offset + spread * torch.randn(batch, dims, pixels, generator=generator)
    values = torch.randn(batch, channels, pixels, generator=generator)
    values[:, 0] = 1
    return features, values


def clusters(
    places: Mapping[float, float], dims: int, pixels: int, channels: int
) -> tuple[Tensor, Tensor]:
    """Spheres of `pixels` each, {place along axis 0: radius}: features [1, F, N], values.

    Their caps are flat: a row by products has no |a_k| above triton_configurations.LARGEST_PART.
    """
    features, values = points((1, channels, dims, pixels * len(places)), offset=0.0)
    balls = []
    for (place, radius), ball in zip(places.items(), features[0].split(pixels, dim=1), strict=True):
        balls.append(20 + radius * torch.nn.functional.normalize(ball, dim=0).clamp(-0.7, 0.7))
        balls[-1][0] += place
    return torch.cat(balls, 1)[None], values


def diagonal_rows(dims: int, rows: int) -> Tensor:
    """Overlapping rows of the largest radius along the diagonal, [dims, rows ROW].

    Their a are rounded by almost half a step in every feature, up in one row and down in the next.
    """
    generator = torch.Generator().manual_seed(dims)
    balls = torch.randn(dims, rows * ROW, generator=generator)
    row = torch.arange(rows).repeat_interleave(ROW)
    spheres = 2.25 * torch.nn.functional.normalize(balls, dim=0).clamp(-0.7, 0.7)
    features = 4 + spheres + row * 2.2 / math.sqrt(dims)
    tried = features.view(torch.int32)[..., None] + torch.arange(-64, 65, dtype=torch.int32)
    steps = ROOT * tried.view(torch.float32).double() / (PART**2 / 4)  # [dims, N, tried]
    upwards = (steps.round() - steps) * (1 - 2 * (row % 2))[:, None]
    return tried.view(torch.float32).gather(2, upwards.argmax(2)[..., None])[..., 0]


def half_ulp(x: Tensor) -> Tensor:
    """Of the numbers up to x."""
    return UNIT * torch.exp2(x.log2().floor())


def exponent_bound(distance: Tensor, dims: int) -> Tensor:
    """kernels/dense_crf/README.md's for products; distances are sqrt(log2 e) |f_i - f_j|."""
    rounded = half_ulp((distance.square() / 2).clamp(min=SHIFT))
    return rounded + UNIT * (11 + 4 * math.sqrt(dims) * distance)


def check_filter(found: Tensor, features: Tensor, values: Tensor) -> None:
    """As good as a float32 brute force, against float64."""
    each = list(zip(values, features, strict=True))
    truth = [reference.gaussian_filter(v.double(), f.double()) for v, f in each]
    brute = [reference.gaussian_filter(v, f) for v, f in each]
    sums = [reference.gaussian_filter(v.double().abs(), f.double()) for v, f in each]
    for b in range(len(each)):
        for c in range(values.shape[1]):  # one channel's error must not hide in another's
            assert_as_good_as(
                found[b, c],
                truth[b][c],
                brute[b][c],
                terms=values.shape[2],
                magnitude=sums[b][c],
                label=f"image {b}, channel {c}",
            )


def feature_gradient(grads: Tensor, values: Tensor, features: Tensor) -> Tensor:
    """df and rho of kernels/dense_crf/triton_exact_grad.py for one image, all pairs at once."""
    differences = features[:, None, :] - features[:, :, None]  # f_j - f_i, [F, N, N]
    kernel = torch.exp(-0.5 * differences.square().sum(0))
    forth = kernel * (grads.T @ values)
    both = forth + kernel * (values.T @ grads)
    return torch.cat([(both * differences).sum(2), forth.sum(1)[None]])


def mean_field(
    logits: Tensor,  # [B, L, H, W]
    features: Tensor,  # [B, F, N]
    mixings: Sequence[Tensor],
    sigma: Tensor,  # (y, x)
    iterations: int,
    normalization: str,
) -> Tensor:  # [S, B, L, H, W], scores of all steps
    """The formula in the tensors' dtype, differentiable."""
    size = (logits.shape[2], logits.shape[3])
    images = []
    for unary, f in zip(logits.flatten(2), features, strict=True):
        gy, gx = (
            reference.gaussian_kernel(torch.arange(n, dtype=unary.dtype)[None] / s)
            for n, s in zip(size, sigma, strict=True)
        )

        def spatial(v: Tensor, gy: Tensor = gy, gx: Tensor = gx) -> Tensor:
            return (gy @ v.unflatten(1, size) @ gx.T).flatten(1)

        kernels = [
            reference.normalized(kernel, unary, normalization)
            for kernel in (spatial, reference.exact_kernel(f))
        ]
        scores, steps = unary, []
        for _ in range(iterations):
            belief = torch.softmax(scores, 0)
            messages = [
                reference._mix(mixing, kernel(belief))
                for mixing, kernel in zip(mixings, kernels, strict=True)
            ]
            scores = unary + messages[0] + messages[1]
            steps.append(scores)
        images.append(torch.stack(steps))
    return torch.stack(images, 1).unflatten(3, size)


def crf(
    batch: int, labels: int, size: tuple[int, int], weights: int
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Logits, features of a noisy image, mixings with that many dimensions, spatial sigma."""
    generator = torch.Generator().manual_seed(labels + weights)
    logits = 2 * torch.randn(batch, labels, *size, generator=generator)
    image = 255 * torch.rand(batch, 3, *size, generator=generator)
    features = torch.stack([reference.image_features(x, (6.0, 8.0), 60.0) for x in image])
    mixings = [scale * torch.rand([labels] * weights, generator=generator) for scale in (3.0, 10.0)]
    return logits, features, mixings, torch.tensor([1.5, 2.0])


def judge_gradients(
    found: Sequence[Any], oracle: Sequence[Tensor], baseline: Sequence[Tensor]
) -> None:
    names = ("logits", "features", "spatial mixing", "bilateral mixing", "spatial sigma")
    for name, x, truth, single in zip(names, found, oracle, baseline, strict=True):
        # Sums over pixels of products of numbers of the size of 1: that many terms.
        terms = 1000
        assert_as_good_as(x.float(), truth, single, terms=terms, label=name)
