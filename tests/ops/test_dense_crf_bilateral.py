"""gaussian_filter as a bilateral filter: features of place, colour and patches, up to 20 of them.

The worked examples of docs/filtering.md run in test_documentation.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from segfast.kernels.dense_crf import reference
from segfast.ops import gaussian_filter
from segfast.testing import assert_as_good_as

H, W = 24, 32


def scene() -> tuple[Tensor, Tensor]:
    """Stripes and squares [2, H, W] without and with noise, float64."""
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    clean = torch.stack([torch.sin(x / 3), torch.sin(x / 4) * torch.sin(y / 4)]).double().sign()
    generator = torch.Generator().manual_seed(0)
    return clean, clean + 0.4 * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)


def features_of(noisy: Tensor, dims: int) -> Tensor:
    """Place, then as many of the pixel's neighbourhood [2 x 3 x 3] as there is room for: [F, N]."""
    patches = functional.unfold(functional.pad(noisy[None], (1, 1, 1, 1), mode="reflect"), 3)[0]
    middle = [4, 13, *(k for k in range(18) if k not in (4, 13))]  # the pixel itself first
    places = reference.position_features(noisy, 10.0)
    return torch.cat([places, patches[middle] / 1.2])[:dims]


@pytest.mark.parametrize("method", ["exact", "lattice"])
@pytest.mark.parametrize("dims", [2, 4, 11, 20])
def test_every_dimension_is_the_reference_s(dims: int, method: str) -> None:
    noisy = scene()[1]
    features, values = features_of(noisy, dims), noisy.flatten(1)
    assert features.shape == (dims, H * W)
    plain = reference.gaussian_filter if method == "exact" else reference.lattice_filter
    for dtype in (torch.float64, torch.float32):
        f, v = features.to(dtype), values.to(dtype)
        found = gaussian_filter(v[None], f[None], method, "after", tolerance=0.0)[0]
        # the same rounded features: which simplex a point lies in is no question of accuracy
        oracle = plain(v.double(), f.double(), "after")
        assert_as_good_as(found, oracle, plain(v, f, "after"), terms=H * W * (dims + 1))


def test_patches_denoise_better_than_pixels() -> None:
    """Non-local means in 20 dimensions, against a bilateral filter of the best of 4 bandwidths."""
    clean, noisy = scene()
    values = noisy.flatten(1)[None]

    def error(dims: int, bandwidth: float = 1.0) -> float:
        features = features_of(noisy, dims)
        features[2:] /= bandwidth
        found = gaussian_filter(values, features[None], normalization="after")
        return (found.view_as(clean) - clean).square().mean().item()

    pixels = min(error(4, bandwidth) for bandwidth in (0.25, 0.5, 0.75, 1.0))
    assert error(20) < 0.75 * pixels
    assert pixels < (noisy - clean).square().mean().item()


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_joint_bilateral_upsampling(method: str) -> None:
    """One value in 16 is known; the photograph says where it ends."""
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    near = (y - 11) ** 2 + (x - 17) ** 2 < 64
    depth = torch.where(near, 1.0, 3.0)
    known = torch.zeros(H, W)
    known[2::4, 2::4] = 1
    photo = torch.where(near, 190.0, 70.0).expand(1, H, W)
    features = reference.image_features(photo, 4.0, 20.0)[None]  # [1, 3, N]
    total, weight = gaussian_filter(
        torch.stack([depth * known, known]).flatten(1)[None], features, method
    )[0].unflatten(1, (H, W))
    coarse = functional.interpolate(depth[None, None, 2::4, 2::4], size=(H, W), mode="bilinear")
    assert (total / weight - depth).abs().max() < 0.01  # exp(-18) of the other side
    assert (coarse[0, 0] - depth).abs().max() > 0.5
