"""Receptive fields by the rule, against gradients; classifiers as convolutions; shifts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segfast.models import convolutionalize, create_model, receptive_field, shift_and_stitch
from segfast.nn import DilatedConv2d, MaxPool2d, MaxUnpool2d


def measured(net: nn.Module, size: int) -> tuple[int, int]:
    """Rows and columns of the image with a gradient from the middle of the result; weights > 0."""
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    x = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    y = net.double()(x)
    y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
    seen = x.grad[0].abs().sum(0) > 0  # type: ignore[index]
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


class Branches(nn.Module):
    """Two ways to a sum, one of them longer."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, (5, 3), padding=(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.short(x)) + self.long(x)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)),
        nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 2, 3)),
        nn.Sequential(nn.AvgPool2d((2, 3)), DilatedConv2d(3, 4, 3, padding=4, dilation=4)),
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 4, 2, 1)),
        nn.Sequential(nn.AvgPool2d(4), nn.UpsamplingBilinear2d(scale_factor=4)),
        Branches(),
    ],
)
def test_field_is_what_gradients_reach(net: nn.Module) -> None:
    field = receptive_field(net, size=(96, 96))
    assert (field.rows.size, field.columns.size) == measured(net, 96)


@pytest.mark.parametrize("kind", [nn.MaxPool2d, MaxPool2d])
def test_pools(kind: Any) -> None:
    """Gradients reach only maxima; the rule is the same as for averages."""
    field = receptive_field(nn.Sequential(kind(3, 2), nn.Conv2d(3, 2, (3, 1)), kind(2)))
    assert field.rows == (3 + 2 * 2 + 1 * 2, 4)
    assert field.columns == (3 + 1 * 2, 4)


class Unpooled(nn.Module):
    def __init__(self, pool: nn.Module, unpool: nn.Module) -> None:
        super().__init__()
        self.pool, self.unpool, self.conv = pool, unpool, nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.unpool(*self.pool(x)))


@pytest.mark.parametrize(
    "net",
    [
        Unpooled(nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)),
        Unpooled(MaxPool2d(2, return_indices=True), MaxUnpool2d(2)),
    ],
)
def test_unpooling_halves_the_stride(net: nn.Module) -> None:
    assert receptive_field(net).rows == (2 + 2, 1)


@pytest.mark.parametrize(
    ("name", "size", "stride"),
    [
        ("segnet_basic", 196, 1),  # nets/segnet_basic_camvid: conv_classifier
        ("segnet", 392, 1),
        ("deeplabv1_largefov", 435, 8),
        ("deeplabv2_resnet101", 1411, 8),
        ("fcn_resnet50", 443, 8),  # 451 with the bilinear neighbour at stride 8
        ("lraspp_mobilenet_v3_large", math.inf, 8),
        ("manet_resnet50", math.inf, 1),
    ],
)
def test_published_networks(name: str, size: float, stride: float) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert receptive_field(model).rows == (size, stride)


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("fcn32s_vgg16", "head.score_fr", 404),  # the FCN paper's table 1
        ("fcn32s_alexnet", "head.score_fr", 355),
        ("fcn32s_googlenet", "head.score_fr", 907),
    ],
)
def test_fully_convolutional_classifiers(name: str, layer: str, size: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert receptive_field(model, layer).rows == (size, 32)


def test_pools_that_round_up() -> None:
    """45 rows are pooled to 23 and come back; the listing of SegNet-Basic says 196 all the same."""
    with torch.device("meta"):
        model = create_model("segnet_basic")
    assert receptive_field(model, size=(360, 480)).rows == (196, 1)


def test_field_of_a_layer() -> None:
    with torch.device("meta"):
        model = create_model("fcn_resnet50").train()
    assert receptive_field(model, "backbone.conv1").rows == (7, 2)
    assert receptive_field(model, "backbone.maxpool").rows == (11, 4)
    assert model.training
    assert model.backbone.layer1.training  # type: ignore[union-attr, operator]


def test_field_refusals() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(1, device=x.device)

    with pytest.raises(ValueError, match="the output does not depend on the image"):
        receptive_field(Constant())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        receptive_field(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer must be the name of a submodule, got str"):
        receptive_field(nn.ReLU(), "nothing")


# ------------------------------------------------------------------------- fully convolutional


@pytest.mark.parametrize("size", [None, (2, 3)])
def test_convolutionalize(size: tuple[int, int] | None) -> None:
    h, w = size or (3, 3)
    head = nn.Sequential(
        nn.Flatten(), nn.Linear(4 * h * w, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 5, bias=False)
    ).double()
    net = convolutionalize(head.eval(), 4, size)
    x = torch.randn(2, 4, h + 2, w + 1, dtype=torch.float64)
    y = net(x)
    assert y.shape == (2, 5, 3, 2)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(y[..., i, j], head(x[..., i : i + h, j : j + w]))
    assert list(net.state_dict()) == list(head.state_dict())
    with torch.no_grad():
        net[0].weight.zero_()  # type: ignore[operator]
    assert head[1].weight.abs().max() > 0  # type: ignore[operator]


def test_convolutionalize_refusals() -> None:
    head = nn.Sequential(nn.Linear(4 * 9, 6))
    with pytest.raises(ValueError, match=r"takes 36 values, not .* 4 x 2 x 2"):
        convolutionalize(head, 4, (2, 2))
    with pytest.raises(ValueError, match=r"takes 36 values, not .* 5 x 2 x 2"):
        convolutionalize(head, 5)
    with pytest.raises(TypeError, match=r"classifier must be a torch\.nn\.Sequential"):
        convolutionalize(head[0], 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="it has none"):
        convolutionalize(nn.Sequential(nn.ReLU()), 4)
    with pytest.raises(ValueError, match="1 comes later"):
        convolutionalize(nn.Sequential(nn.Linear(4, 4), nn.Flatten()), 4)


def strided(rate: int) -> nn.Sequential:
    """Strides 2 and 2, or (rate 2 and 4) none and dilation instead."""
    torch.manual_seed(0)
    s = 1 if rate else 2
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=s),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=s, dilation=2 if rate else 1),
        nn.Conv2d(4, 3, 3, dilation=4 if rate else 1),
    ).double()


@pytest.mark.parametrize("size", [(29, 34), (31, 31)])
def test_shift_and_stitch_is_dilation(size: tuple[int, int]) -> None:
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    torch.testing.assert_close(shift_and_stitch(strided(0), x, 4), strided(1)(x))


def test_shift_and_stitch_refusals() -> None:
    x = torch.randn(1, 2, 9, 9)
    with pytest.raises(ValueError, match="net must have stride 3: an image"):
        shift_and_stitch(nn.MaxPool2d(2), x, 3)
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\]"):
        shift_and_stitch(nn.MaxPool2d(2), x[0], 2)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        shift_and_stitch(nn.MaxPool2d(2), x, 0)
