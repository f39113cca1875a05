"""Receptive fields by the rule, against gradients; classifiers as convolutions; shifts."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segfast.models import (
    _ENTRIES,
    convolutionalize,
    create_model,
    receptive_field,
    shift_and_stitch,
)
from segfast.nn import DilatedConv2d, MaxPool2d, MaxUnpool2d
from tests.models.networks import layouts


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


class Rolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x.roll(3, 2), 2).values + torch.relu(x)


def test_operators_without_a_rule_are_named() -> None:
    with pytest.warns(UserWarning, match=r"^no rule is known for aten::cummax, aten::roll: taken"):
        assert receptive_field(nn.Sequential(nn.Conv2d(3, 4, 3), Rolled())).rows == (3, 1)


@pytest.mark.parametrize("others", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_no_rule_is_missing_for_our_networks(others: bool) -> None:
    """In the default layout of every class; in its others, where they are few, with --all."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in {entry.build: name for name, entry in reversed(_ENTRIES.items())}.values():
            known = layouts(name)
            for layout in (known[1:] if len(known) < 4 else ()) if others else known[:1]:
                with torch.device("meta"):
                    model = create_model(name, layout=layout)
                assert receptive_field(model, size=(225, 225)).rows.stride >= 1


@pytest.mark.parametrize(
    ("of", "rows", "columns"),
    [
        (lambda x: x.softmax(1), 3, 3),
        (lambda x: x.softmax(2), math.inf, 3),
        (lambda x: x.sum(3, keepdim=True), 3, math.inf),
        (lambda x: x.sum(), math.inf, math.inf),
        (lambda x: x.mean(), math.inf, math.inf),
        (lambda x: x.flatten(2).softmax(2), math.inf, math.inf),
        (lambda x: x.flatten(2).softmax(1), 3, 3),
        (lambda x: x.max(2).values, math.inf, 3),
        (lambda x: x.amax((2, 3)), math.inf, math.inf),
    ],
)
def test_reductions(of: Any, rows: float, columns: float) -> None:
    class Reduced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Any:
            return of(self.conv(x))

    field = receptive_field(Reduced())
    assert (field.rows.size, field.columns.size) == (rows, columns)


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


@pytest.mark.parametrize(
    "layer", [nn.Softmax(-1), nn.BatchNorm1d(6), nn.Sequential(nn.ReLU(), nn.Linear(6, 6))]
)
def test_convolutionalize_refuses_what_works_along_axes(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^classifier must .* its 1 has "):
        convolutionalize(nn.Sequential(nn.Linear(36, 6), layer), 4)


def test_convolutionalize_keeps_softmax_of_the_classes() -> None:
    head = nn.Sequential(nn.Linear(36, 6), nn.Softmax(1))
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(convolutionalize(head, 4)(x).flatten(1), head(x.flatten(1)))


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
    with pytest.raises(TypeError, match="net must be callable, got int 3"):
        shift_and_stitch(3, x, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the result of net must be a tensor"):
        shift_and_stitch(lambda x: (x,), x, 2)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("net", "size", "said"),
    [
        (strided(0), (9, 40), "Kernel size can't be greater"),
        (strided(0), (40, 3), ""),
        (nn.MaxPool2d(2), (9, 4), "too small"),
        (lambda x: x[..., 3:, :], (6, 9), "gives a torch.float64 tensor"),
    ],
)
def test_shift_and_stitch_of_too_small_images(net: Any, size: tuple[int, int], said: str) -> None:
    x = torch.zeros(1, 2, *size, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"^x must be .* first \d rows .* {size[1]}\).*{said}"):
        shift_and_stitch(net, x, 4)
