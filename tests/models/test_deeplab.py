"""DeepLab v2, v3 and v3+ beyond their golden files: scales, cascades, options, decoders."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models import create_model, load_checkpoint
from segfast.models.backbones.xception import Xception
from tests.fingerprints import filled_input

X = filled_input((1, 3, 65, 90))


def small(name: str, **options: Any) -> Any:
    """In float64, of three classes, with statistics that are not the initial ones."""
    torch.manual_seed(3)
    model = create_model(name, num_classes=3, **options).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model


# -------------------------------------------------------------------------------- version 2


@torch.no_grad()
def test_maximum_over_scales() -> None:
    options = {"depth": 18, "rates": (2, 4)}
    model = small("deeplabv2_resnet101", scales=(1, 0.75, 0.5), **options)
    single = small("deeplabv2_resnet101", **options)
    single.load_state_dict(model.state_dict())
    of_scales = [
        single.scores(F.interpolate(X, scale_factor=s, mode="bilinear"))["out"]
        for s in (1.0, 0.75, 0.5)
    ]
    resized = [F.interpolate(y, of_scales[0].shape[2:], mode="bilinear") for y in of_scales]
    expected = torch.maximum(resized[0], torch.maximum(resized[1], resized[2]))
    found = model.scores(X, aux=True)
    torch.testing.assert_close(found["out"], expected)
    assert list(found) == ["out", "scale_1", "scale_0.75", "scale_0.5"]
    for y, expected in zip(list(found.values())[1:], of_scales, strict=True):
        torch.testing.assert_close(y, expected)
    assert list(model.scores(X)) == list(single.scores(X, aux=True)) == ["out"]
    out, aux = model(X, return_aux=True)
    assert {y.shape for y in (out, *aux.values())} == {(1, 3, 65, 90)}


def test_keys_of_the_network_with_scales() -> None:
    """Published with `base.` in front of every key."""
    with torch.device("meta"):
        model = create_model("deeplabv2_resnet101", scales=(1, 0.75, 0.5))
    published = {
        "base.layer1.conv1.conv.weight": "backbone.conv1.weight",
        "base.layer2.block1.reduce.bn.bias": "backbone.layer1.0.bn1.bias",
        "base.layer4.block23.increase.conv.weight": "backbone.layer3.22.conv3.weight",
        "base.layer5.block1.shortcut.bn.running_var": "backbone.layer4.0.downsample.1.running_var",
        "base.aspp.c3.bias": "classifier.c3.bias",
    }
    rules = model.layouts["deeplab-pytorch"]
    assert {key: rules.key(key) for key in published} == published
    assert set(published.values()) <= set(model.state_dict())


# -------------------------------------------------------------------------------- version 3


@pytest.mark.parametrize("last", [4, 5, 6, 7])
def test_cascade_has_the_same_state_at_every_output_stride(last: int) -> None:
    """So that it can be trained at one and used at another; figure 3 of the paper."""
    keys = set()
    for output_stride in [8 * 2**i for i in range(last - 1)]:
        with torch.device("meta"):
            model = create_model(
                "deeplabv3_resnet18", cascade=last, output_stride=output_stride, aux=False
            )
            scores = model.scores(torch.empty(1, 3, 256, 512))["out"]
        assert scores.shape == (1, 21, 256 // output_stride, 512 // output_stride)
        keys.add(tuple((key, x.shape) for key, x in model.state_dict().items()))
    assert len(keys) == 1
    assert isinstance(model.classifier, nn.Conv2d)


def test_rates_of_the_cascade() -> None:
    """Blocks 4 to 7 at output stride 16 have rates 2, 4, 8, 16, times the unit rates."""
    with torch.device("meta"):
        model = create_model(
            "deeplabv3_resnet50", cascade=7, output_stride=16, multi_grid=(1, 2, 1)
        )
    found = [
        [block.conv2.dilation[0] for block in model.backbone.get_submodule(f"layer{i}")]
        for i in range(3, 8)
    ]
    assert found == [[1] * 6, [2, 4, 2], [4, 8, 4], [8, 16, 8], [16, 32, 16]]


@torch.no_grad()
def test_cascade_at_any_output_stride_computes_the_same() -> None:
    fine, coarse = (
        small("deeplabv3_resnet18", cascade=5, output_stride=s, aux=True) for s in (8, 64)
    )
    coarse.load_state_dict(fine.state_dict())
    (dense, _), (sparse, _) = fine.scores(X, True).values(), coarse.scores(X, True).values()
    assert sparse.shape[-2:] == (2, 2)
    torch.testing.assert_close(dense[..., ::8, ::8], sparse)


def rates(module: nn.Module) -> list[int]:
    """Of the branches of a pyramid."""
    return [
        conv[0].dilation[0] for conv in module.convs if type(conv[0]) is not nn.AdaptiveAvgPool2d
    ]  # type: ignore[union-attr, index, operator]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (12, 24, 36)),
        ({"output_stride": 16, "layout": "mmseg"}, (6, 12, 18)),
        ({"layout": "mmseg"}, (12, 24, 36)),
        ({"layout": "deeplab-pytorch"}, (6, 12, 18)),
        ({"output_stride": 16, "layout": "smp"}, (12, 24, 36)),
        ({"rates": (2, 3), "image_pooling": False}, (2, 3)),
    ],
    ids=str,
)
def test_pyramid(options: Any, expected: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = create_model("deeplabv3_resnet50", **options)
    pyramid = model.classifier[0]
    assert rates(pyramid) == [1, *expected]
    assert len(pyramid.convs) == len(expected) + (2 if options.get("image_pooling", True) else 1)
    grid = [block.conv2.dilation[0] for block in model.backbone.layer4]
    contracted = {8: [2, 4, 4], 16: [1, 2, 2]}[options.get("output_stride", 8)]
    full = {"deeplab-pytorch": [4, 8, 16], "smp": [2, 2, 2]}
    assert grid == full.get(options.get("layout"), contracted)


@torch.no_grad()
def test_final_resize() -> None:
    for layout, corners in (("torchvision", False), ("smp", True)):
        for option in (None, not corners):
            model = small("deeplabv3_resnet18", layout=layout, align_corners=option)
            used = corners if option is None else option
            y = model.scores(X)["out"]
            expected = F.interpolate(y, X.shape[2:], mode="bilinear", align_corners=used)
            torch.testing.assert_close(model(X), expected)


# ------------------------------------------------------------------------------- version 3+


def layer(p: dict[str, Tensor], x: Tensor, key: str, first: int = 0, rate: int = 1) -> Tensor:
    """relu(norm(conv x)); the convolution is child `first`, the norm the next."""
    weight = p[f"{key}.{first}.weight"]
    y = F.conv2d(x, weight, padding=rate * (weight.shape[-1] // 2), dilation=rate)
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(y, *(p[f"{key}.{first + 1}.{name}"] for name in names)).relu()


@torch.no_grad()
def test_decoder_layer_by_layer() -> None:
    """Pyramid and decoder of the layout that has no golden file, from their equations."""
    model = small("deeplabv3plus_resnet50", layout="deeplab-pytorch")
    p = dict(model.state_dict())
    low, *_, last = model.backbone(X)
    assert (low.shape[1:], last.shape[1:]) == ((256, 17, 23), (2048, 5, 6))
    parts = [layer(p, last, "aspp.convs.0")]
    parts += [layer(p, last, f"aspp.convs.{i}", rate=6 * i) for i in (1, 2, 3)]
    pooled = layer(p, last.mean((2, 3), keepdim=True), "aspp.convs.4", first=1)
    y = layer(p, torch.cat([*parts, pooled.expand_as(parts[0])], 1), "aspp.project")
    y = F.interpolate(y, low.shape[2:], mode="bilinear")
    y = layer(p, torch.cat([y, layer(p, low, "reduce")], 1), "decoder.0")
    y = F.conv2d(layer(p, y, "decoder.1"), p["classifier.weight"], p["classifier.bias"])
    torch.testing.assert_close(model.scores(X)["out"], y)
    torch.testing.assert_close(model(X), F.interpolate(y, X.shape[2:], mode="bilinear"))


@pytest.mark.parametrize(
    ("output_stride", "strides", "middle", "twentieth", "last"),
    [
        (8, [2, 2, 1, 1], 2, [2, 2, 1], 4),
        (16, [2, 2, 2, 1], 1, [1, 1, 1], 2),
        (32, [2, 2, 2, 2], 1, [1, 1, 1], 1),
    ],
)
def test_rates_of_xception(
    output_stride: int, strides: list[int], middle: int, twentieth: list[int], last: int
) -> None:
    with torch.device("meta"):
        net = Xception(4, output_stride)
        maps = net(torch.empty(1, 4, 64, 96))
    blocks: Any = [net.get_submodule(f"block{i}") for i in range(1, 21)]
    found = [[conv[0][0].dilation[0] for conv in block.convs] for block in blocks]
    assert found == [*[[1] * 3] * 3, *[[middle] * 3] * 16, twentieth]
    assert [blocks[i].convs[2][0][0].stride[0] for i in (0, 1, 2, 19)] == strides
    assert [net.get_submodule(f"conv{i}")[0][0].dilation[0] for i in (3, 4, 5)] == [last] * 3  # type: ignore[operator]
    high = (64 // output_stride, 96 // output_stride)
    assert [m.shape[1:] for m in (maps[0], maps[2])] == [(128, 16, 24), (2048, *high)]


# ------------------------------------------------------------------------------------ of all

FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("deeplabv2_resnet101", {"depth": 18, "scales": (1, 0.5)}),
    ("deeplabv3_mobilenet_v3_large", {}),
    ("deeplabv3_resnet18", {"layout": "mmseg"}),
    ("deeplabv3_resnet18", {"cascade": 5}),
    ("deeplabv3plus_mobilenet_v2", {}),
    ("deeplabv3plus_resnet18", {}),
    ("deeplabv3plus_resnet18", {"layout": "mmseg"}),
)


@pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
def test_odd_images_of_other_channels_and_training(name: str, options: Any) -> None:
    model = create_model(name, num_classes=2, in_channels=4, **options)
    x = torch.randn(2, 4, 65, 90)
    out, aux = model(x, return_aux=True)
    assert {y.shape for y in (out, *aux.values())} == {(2, 2, 65, 90)}
    sum(y.square().mean() for y in (out, *aux.values())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["deeplabv3_resnet18", "deeplabv3plus_resnet18"])
def test_one_image_in_training(name: str) -> None:
    x = torch.randn(1, 3, 65, 65)
    with pytest.raises(ValueError, match="N > 1 in training"):
        create_model(name)(x)
    assert create_model(name, num_classes=2, image_pooling=False)(x).shape == (1, 2, 65, 65)


V2, V3, MOBILE, PLUS = (
    "deeplabv2_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3plus_xception",
)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (V2, {"scales": ()}, TypeError, "scales must be numbers, got tuple ()"),
        (V2, {"scales": (1, 0)}, ValueError, "scales must be positive and finite"),
        (V2, {"rates": "M"}, ValueError, "rates must be one of S, L"),
        (V3, {"cascade": 8}, ValueError, "cascade must be None, 4, 5, 6 or 7, got 8"),
        (V3, {"output_stride": 64}, ValueError, "must be one of 8, 16, 32; got 64"),
        (V3, {"backbone": "vgg16"}, ValueError, "backbone must be one of"),
        (V3, {"backbone": "xception"}, ValueError, "backbone must be one of resnet18"),
        (V3, {"rates": ()}, ValueError, "rates must hold at least one integer, got tuple ()"),
        (V3, {"rates": 6}, TypeError, "rates must be a list of integers, got int 6"),
        (MOBILE, {"multi_grid": (1, 2, 4)}, ValueError, "need a residual network"),
        (MOBILE, {"cascade": 5}, ValueError, "need a residual network"),
        (PLUS, {"output_stride": 4}, ValueError, "must be 8, 16 or 32; got 4"),
        (PLUS, {"layout": "mmseg"}, ValueError, "layout must be one of jfzhang"),
        (PLUS, {"align_corners": 1}, TypeError, "align_corners must be True or False"),
    ],
)
def test_options_are_checked(name: str, options: Any, error: type[Exception], message: str) -> None:
    with torch.device("meta"), pytest.raises(error, match=re.escape(message)):
        create_model(name, **options)


def test_missing_keys_are_named() -> None:
    model = create_model("deeplabv3plus_mobilenet_v2")
    with pytest.raises(ValueError, match=r"missing reduce\.0\.weight"):
        load_checkpoint(model, {"decoder.bn1.weight": torch.ones(48)})
