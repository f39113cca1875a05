"""Scores at the pixels that they are of, and the padding of images before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from segfast.models import create_model
from segfast.models._placement import reflected, spread


def interpolated(y: Tensor, stride: int, size: tuple[int, int], first: int) -> Tensor:
    """Linear between first + stride i on each axis, the nearest outside: by NumPy."""

    def along(values: np.ndarray, length: int) -> np.ndarray:
        return np.interp(np.arange(length), first + stride * np.arange(len(values)), values)

    rows = np.apply_along_axis(along, 2, y.numpy(), size[0])
    return torch.from_numpy(np.apply_along_axis(along, 3, rows, size[1]))


@pytest.mark.parametrize("size", [(1, 1), (9, 17), (13, 30), (45, 60)])
@pytest.mark.parametrize(("stride", "first"), [(8, 0), (8, 1), (2, 0), (1, 0)])
def test_spread_is_linear_between_the_pixels(
    size: tuple[int, int], stride: int, first: int
) -> None:
    torch.manual_seed(0)
    y = torch.randn(2, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    out = spread(y, stride, size, first)
    torch.testing.assert_close(out, interpolated(y.detach(), stride, size, first))
    out.sum().backward()
    torch.testing.assert_close(y.grad.sum().item(), float(out.numel()))  # weights sum to one


@pytest.mark.parametrize(
    ("name", "size", "scores", "first"),
    [
        ("deeplabv1_largefov", (321, 321), (41, 41), 0),
        ("deeplabv1_largefov", (45, 62), (7, 9), 0),
        ("deeplabv1", (306, 322), (39, 41), 1),
        ("deeplabv2_vgg16_aspp_l", (33, 50), (5, 8), 0),
        ("dilation7_kitti", (40, 61), (6, 9), 0),  # one score beyond the image on each axis
    ],
)
def test_scores_stay_at_their_pixels(
    name: str, size: tuple[int, int], scores: tuple[int, int], first: int
) -> None:
    with torch.device("meta"):
        model = create_model(name).eval()
        x = torch.empty(1, 3, *size)
        assert model.scores(model.prepared(x))["out"].shape[-2:] == scores
        assert model(x).shape[-2:] == size
    y = torch.randn(1, 2, *scores)
    out = model.at_input_size(y, size)
    assert out.shape == (1, 2, *size)
    inside = out[..., first::8, first::8]
    torch.testing.assert_close(inside, y[..., : inside.shape[-2], : inside.shape[-1]])


@pytest.mark.parametrize("length", [1, 2, 5, 200])
def test_reflection_is_numpys(length: int) -> None:
    x = torch.randn(2, length, 3)
    want = np.pad(x.numpy(), ((0, 0), (186, 194), (0, 0)), mode="reflect")
    assert torch.equal(reflected(x, 1, 186, 194), torch.from_numpy(want))


def test_the_upsampled_network_pads_both_sides_alike() -> None:
    with torch.device("meta"):
        model = create_model("dilation10_cityscapes").eval()
        x = torch.empty(1, 3, 20, 33)
        assert model.prepared(x).shape[-2:] == (20 + 372, 33 + 372)
        assert model.scores(model.prepared(x))["out"].shape == (1, 19, 24, 40)
        assert model(x).shape == (1, 19, 20, 33)


def test_refusals() -> None:
    with torch.device("meta"):
        with pytest.raises(ValueError, match="context must be one of basic, large; got str 'huge'"):
            create_model("dilation8_voc", context="huge")
        with pytest.raises(ValueError, match="field_of_view must be one of 128, 4x4, 7x7, large"):
            create_model("deeplabv1", field_of_view="small")
        with pytest.raises(ValueError, match="rates must be one of S, L; got str 'M'"):
            create_model("deeplabv2_vgg16_aspp_s", rates="M")
