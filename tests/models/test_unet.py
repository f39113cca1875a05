"""U-Net without padding: sizes, overlap tiles, what the paper counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segfast.models import create_model
from segfast.models._placement import reflected
from segfast.models.unet import UNet, centred


def net(**options: object) -> UNet:
    torch.manual_seed(0)
    return UNet(2, 1, width=4, **options).eval()  # type: ignore[arg-type]


def test_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        model = create_model("unet", in_channels=1)
        assert model.scores(torch.empty(1, 1, 572, 572))["out"].shape == (1, 2, 388, 388)
        assert model.scores(torch.empty(1, 1, 188, 204))["out"].shape == (1, 2, 4, 20)


@pytest.mark.parametrize("size", [(187, 188), (188, 190), (172, 188)])
def test_sizes_that_do_not_fit_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="16 k - 4, at least 188, without padding"):
        net().scores(torch.zeros(1, 1, *size))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (33, 50)])
def test_any_size_by_mirrors(size: tuple[int, int]) -> None:
    """A call is `scores` of the image that numpy mirrors."""
    model, x = net(), torch.rand(1, 1, *size)
    wide = [(92, 92 + (-n - 188) % 16) for n in size]
    padded = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), *wide], mode="reflect"))
    expected = model.scores(padded)["out"][..., : size[0], : size[1]]
    assert torch.equal(model(x), expected)
    y, aux = model(x, return_aux=True)
    assert torch.equal(y, expected)
    assert aux == {}


def test_tiles_overlap_without_seams() -> None:
    """The paper's strategy: scores of a tile are those of the whole image there."""
    model, x = net().double(), torch.rand(1, 1, 236, 220, dtype=torch.float64)
    whole = model.scores(x)["out"]  # 52 x 36
    tile = model.scores(x[..., 16:204, 32:220])["out"]
    torch.testing.assert_close(tile, whole[..., 16:20, 32:36])


def test_reflected_repeats() -> None:
    x = torch.arange(3.0)[None, None, None]
    assert reflected(x, 3, 4, 5).flatten().tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert reflected(x[..., :1], 3, 2, 1).flatten().tolist() == [0, 0, 0, 0]


def test_centred() -> None:
    x = torch.arange(4.0)[None, None, None]
    assert centred(x, torch.Size((1, 2))).flatten().tolist() == [1, 2]
    assert centred(x, torch.Size((1, 3))).flatten().tolist() == [0, 1, 2]
    assert centred(x, torch.Size((1, 7))).flatten().tolist() == [0, 0, 1, 2, 3, 0, 0]


@pytest.mark.parametrize("layout", ["milesial", "milesial_bilinear", "mateuszbuda", "mmseg"])
def test_padded_layouts_keep_any_size(layout: str) -> None:
    out, aux = net(layout=layout)(torch.rand(2, 1, 37, 50), return_aux=True)
    assert out.shape == (2, 2, 37, 50)
    assert [y.shape for y in aux.values()] == [(2, 2, 37, 50)] * (layout == "mmseg")


def test_initial_weights() -> None:
    """N(0, 2 / fan_in), as the paper's section 3 asks for."""
    torch.manual_seed(0)
    conv = UNet().enc[3][0]  # type: ignore[index]
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    # The mean of 512 x 256 x 9 such numbers has a standard deviation of 2.7e-5.
    torch.testing.assert_close(conv.weight.mean(), torch.zeros(()), atol=1e-4, rtol=0)
