"""LR-ASPP in mmseg's wiring, of which no output was recorded: its padding, its head, its cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models import create_model
from segfast.models.backbones._mobilenet import SamePad
from tests.models.golden import golden_model, published_state

NAME = "mmseg_mobilenet_v3_d8_lraspp_cityscapes"
MODEL = {"model_name": "lraspp_mobilenet_v3_large", "layout": "mmseg", "num_classes": 19}


@pytest.mark.parametrize(
    ("size", "extent", "stride", "before", "behind"),
    [
        (8, 3, 2, 0, 1),  # kernels at 0, 2, 4, 6
        (9, 3, 2, 1, 1),  # at -1, 1, 3, 5, 7
        (8, 5, 2, 1, 2),
        (9, 5, 2, 2, 2),
        (8, 9, 1, 4, 4),
        (7, 1, 2, 0, 0),
    ],
)
def test_same_padding(size: int, extent: int, stride: int, before: int, behind: int) -> None:
    x = torch.arange(1.0, size + 1).expand(1, 1, 4, size)
    expected = [0.0] * before + x[0, 0, 0].tolist() + [0.0] * behind
    assert SamePad(extent, stride)(x).amax((0, 1, 2)).tolist() == expected
    assert SamePad(extent, stride)(x.mT).amax((0, 1, 3)).tolist() == expected


def test_strided_convolutions_alone_are_padded_so() -> None:
    with torch.device("meta"):
        model = create_model("lraspp_mobilenet_v3_large", layout="mmseg")
    padded = [name for name, m in model.named_modules() if isinstance(m, SamePad)]
    assert padded == [f"backbone.features.{place}.pad" for place in ("0", "2.block.1", "4.block.1")]


def head(state: dict[str, Tensor], maps: list[Tensor]) -> Tensor:
    """The decode head by its published keys."""

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(
            x, state[f"decode_head.{name}.weight"], state.get(f"decode_head.{name}.bias")
        )

    def normalized(name: str, x: Tensor) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (
            state[f"decode_head.{name}.bn.{key}"][:, None, None] for key in names
        )
        y = (conv(f"{name}.conv", x) - mean) / (var + 1e-3).sqrt() * weight + bias
        return y.clamp(min=0)

    half, quarter, high = maps
    windows = high.unfold(2, 49, 16).unfold(3, 49, 20).mean((4, 5))
    gate = F.interpolate(
        conv("image_pool.1.conv", windows).sigmoid(),
        high.shape[2:],
        mode="bilinear",
        align_corners=True,
    )
    x = conv("conv_up_input", normalized("aspp_conv", high) * gate)
    for i, low in ((1, quarter), (0, half)):
        x = F.interpolate(x, low.shape[2:], mode="bilinear")
        x = normalized(f"conv_ups.conv_up{i}", torch.cat([x, conv(f"convs.conv{i}", low)], 1))
    return conv("conv_seg", x)


@torch.no_grad()
def test_head() -> None:
    """Four windows of 49 x 49 in a map of 66 x 71."""
    model = golden_model(published=NAME, **MODEL)
    sizes = ((16, 80, 90), (24, 70, 75), (960, 66, 71))
    maps = [torch.randn(1, *size, dtype=torch.float64) for size in sizes]
    y = model.get_submodule("classifier")(maps)
    # 1e-9: what a whole network may differ by from its published code in float64
    torch.testing.assert_close(y, head(published_state(NAME), maps), rtol=1e-9, atol=1e-9)


def test_macs() -> None:
    """17.2498 G in convolutions at 512 x 1024, as were counted in mmseg's network."""
    with torch.device("meta"):
        model = create_model("lraspp_mobilenet_v3_large", 19, layout="mmseg").eval()
    macs = 0

    def count(module: nn.Module, _: object, y: Tensor) -> None:
        nonlocal macs
        macs += y.numel() * module.get_parameter("weight")[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    y = model.scores(torch.empty(1, 3, 512, 1024, device="meta"))["out"]
    assert y.shape == (1, 19, 256, 512)
    assert round(macs / 1e9, 4) == 17.2498
