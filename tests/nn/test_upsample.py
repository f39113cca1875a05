"""The up-sampling modules: PyTorch's results, FCN's initialisation, one way to ask for a size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.nn import (
    BicubicUpsample2d,
    BilinearConvTranspose2d,
    BilinearUpsample2d,
    FixedUnpool2d,
    NearestUpsample2d,
)
from segfast.nn.upsample import bilinear_filter

MODULES: list[tuple[Any, dict[str, Any]]] = [
    (NearestUpsample2d, {"mode": "nearest"}),
    (BilinearUpsample2d, {"mode": "bilinear", "align_corners": False}),
    (BicubicUpsample2d, {"mode": "bicubic", "align_corners": False}),
]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("module", "options"), MODULES)
def test_interpolation_is_pytorch_s(x: Tensor, module: Any, options: dict[str, Any]) -> None:
    assert torch.equal(module()(x), F.interpolate(x, scale_factor=2, **options))
    assert torch.equal(module(3)(x), F.interpolate(x, size=(21, 15), **options))
    for size in ((13, 11), torch.Size([2, 8, 13, 11])):  # of another feature map
        assert torch.equal(module()(x, output_size=size), F.interpolate(x, (13, 11), **options))
    if "align_corners" in options:
        aligned = F.interpolate(x, (14, 10), **{**options, "align_corners": True})
        assert torch.equal(module(2, align_corners=True)(x), aligned)
        with pytest.raises(TypeError, match=r"^align_corners must be True or False, got None"):
            module(2, align_corners=None)


def test_modules_say_what_they_are() -> None:
    assert repr(NearestUpsample2d(4)) == "NearestUpsample2d(scale_factor=4)"
    assert repr(BilinearUpsample2d()) == "BilinearUpsample2d(scale_factor=2, align_corners=False)"


@pytest.mark.parametrize("module", [*(cls for cls, _ in MODULES), BilinearConvTranspose2d])
@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (0, ValueError, "^scale_factor must be at least 1, got 0"),
        (2.5, TypeError, "^scale_factor must be an integer, got float 2.5"),
    ],
)
def test_factors_are_checked(module: Any, scale: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        module(
            **{"in_channels": 3} if module is BilinearConvTranspose2d else {}, scale_factor=scale
        )


def test_every_way_up_gives_the_size_that_is_asked_for(x: Tensor) -> None:
    """A decoder may change one for another, odd sizes included."""
    ways = [cls() for cls, _ in MODULES] + [FixedUnpool2d(2), BilinearConvTranspose2d(3)]
    for way in ways:
        assert way(x).shape == (2, 3, 14, 10), way
        for size in ((15, 11), torch.Size([2, 3, 15, 11])):
            assert way(x, output_size=size).shape == (2, 3, 15, 11), way


# --------------------------------------------------------------------------- transposed convolution


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 8, 16])
def test_begins_as_bilinear_interpolation(x: Tensor, scale: int) -> None:
    """Inside the map; at its edge interpolation repeats the last pixel, convolution sees zeros."""
    up = BilinearConvTranspose2d(3, scale_factor=scale, dtype=torch.float64)
    y = up(x.double())
    assert y.shape == (2, 3, 7 * scale, 5 * scale)
    expected = F.interpolate(x.double(), scale_factor=scale, mode="bilinear")
    inside = (..., slice(scale, -scale), slice(scale, -scale))
    # On both sides 4 products with two weights; weights, products and sums are rounded.
    atol = 16 * torch.finfo(torch.float64).eps * x.abs().max().item()
    torch.testing.assert_close(y[inside], expected[inside], rtol=0, atol=atol)


def test_filter_is_fcn_s() -> None:
    """64 taps for the published model's stride of 32, and two small ones."""
    assert bilinear_filter(4).tolist() == [0.25, 0.75, 0.75, 0.25]
    assert bilinear_filter(3).tolist() == [0.5, 1.0, 0.5]
    factor, center = 32, 31.5  # surgery.py: (size + 1) // 2, factor - 0.5 for even sizes
    taps = 1 - (torch.arange(64).double() - center).abs() / factor
    assert torch.equal(bilinear_filter(64), taps)


def test_only_partners_are_connected() -> None:
    weight = BilinearConvTranspose2d(3, 5, 2).weight
    assert weight.shape == (3, 5, 4, 4)
    for i in range(3):
        for j in range(5):
            assert bool(weight[i, j].any()) == (i == j)
    weight = BilinearConvTranspose2d(6, groups=3).weight  # [6, 2, 4, 4]
    assert [[bool(w.any()) for w in row] for row in weight] == [[True, False], [False, True]] * 3
    assert BilinearConvTranspose2d(6, groups=6).weight.flatten(1).any(1).all()


def test_it_is_a_convolution_that_learns(x: Tensor) -> None:
    up = BilinearConvTranspose2d(3, scale_factor=2, bias=True)
    assert isinstance(up, nn.ConvTranspose2d)
    assert set(up.state_dict()) == {"weight", "bias"}
    assert up.bias is not None
    assert not up.bias.any()
    up(x).square().sum().backward()
    assert up.weight.grad is not None
    assert up.weight.grad.flatten(2).any(2).all()  # pairs that began as zero learn, too
    up.reset_parameters()
    assert torch.equal(up.weight, BilinearConvTranspose2d(3).weight)


def test_published_geometry(x: Tensor) -> None:
    """FCN-AlexNet's 63 taps by 32, no padding: what is cropped afterwards."""
    up = BilinearConvTranspose2d(3, scale_factor=32, kernel_size=63, padding=0)
    y = up(x)
    assert y.shape == (2, 3, 6 * 32 + 63, 4 * 32 + 63)
    assert torch.equal(y, F.conv_transpose2d(x, up.weight, stride=32))
    middle = y[..., 31:-31:32, 31:-31:32]  # over the given values: theirs
    torch.testing.assert_close(middle, x)
    with pytest.raises(ValueError, match="kernel_size must be at least 1"):
        BilinearConvTranspose2d(3, kernel_size=0)
    with pytest.raises(TypeError, match="padding must be an integer"):
        BilinearConvTranspose2d(3, padding=1.5)  # type: ignore[arg-type]
