"""Classifiers' published weights in networks: every key in its place, whatever the image."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models import (
    LateFusion,
    SegNet,
    UNetResNet,
    create_backbone,
    create_model,
    list_models,
    load_backbone,
)
from tests.fingerprints import read
from tests.models.classifiers import (
    State,
    classifier,
    number,
    on_meta,
    published,
    shapes_of,
    tagged,
    tags,
)

# ---------------------------------------------------------------------------- every network


def vgg(batch_norm: bool) -> dict[str, str]:
    """Our key -> torchvision's, of VGG16's thirteen convolutions in order."""
    names = [f"conv{i}_{j}" for i, n in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, n + 1)]
    kinds = ("weight", "bias")
    theirs = [k for k in read("state_dicts", "torchvision_backbone_vgg16") if "features" in k]
    if batch_norm:
        kinds = (*kinds, *(f"bn.{k}" for k in NORM))
        theirs = [k for k in read("state_dicts", "torchvision_backbone_vgg16_bn") if "feat" in k]
    ours = [f"{name}{'_' if 'bn' in k else '.'}{k}" for name in names for k in kinds]
    return dict(zip(ours, theirs, strict=True))


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
VGG_FC = {f"fc{6 + i}.{k}": f"classifier.{3 * i}.{k}" for i in (0, 1) for k in ("weight", "bias")}


FAMILIES = {name.partition("_")[0]: name for name in list_models()}  # the last one of each


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.thorough] * (name not in FAMILIES.values()))
        for name in list_models()
    ],
)
def test_every_network_starts_from_a_classifier(name: str) -> None:
    """All of the backbone is filled, nothing else is; a network without one says so."""
    model = on_meta(name)
    places = {
        key.rpartition("backbone.")[0] + "backbone."
        for key, x in model.state_dict().items()
        if "backbone." in key
    }
    if not places:
        with pytest.raises(ValueError, match=r"must have one backbone, .* has none that was"):
            load_backbone(model, {"fc.weight": torch.zeros(2, 2)})
        return
    (place,) = places
    backbone = model.get_submodule(place.removesuffix("."))
    state, expected = tagged(shapes_of(backbone)), tags(model)
    load_backbone(model, {**state, "classifier.weight": torch.zeros(2, 2)}, layout="segfast")
    expected |= {f"{place}{key}": x.flatten()[0].item() for key, x in state.items()}
    assert tags(model) == expected


@pytest.mark.parametrize(
    ("name", "place", "source", "pairs"),
    [
        ("segnet", "backbone.", "vgg16", vgg(batch_norm=False)),
        ("segnet", "backbone.", "vgg16_bn", vgg(batch_norm=True)),
        ("deeplabv1_largefov", "backbone.", "vgg16", vgg(batch_norm=False)),
        ("deeplabv2_vgg16_aspp_l", "backbone.", "vgg16", vgg(batch_norm=False)),
        ("attention_to_scale_vgg16", "backbone.", "vgg16", vgg(batch_norm=False)),
        ("crfrnn_fcn8s", "fcn.backbone.", "vgg16", vgg(batch_norm=False)),
        ("fcn8s_vgg16", "backbone.", "vgg16", vgg(batch_norm=False)),
        ("deeplabv1_7x7", "backbone.", "vgg16", vgg(batch_norm=False)),
        ("dilation8_voc", "backbone.", "vgg16", vgg(batch_norm=False)),
        ("deconvnet", "backbone.", "vgg16", vgg(batch_norm=False)),
    ],
)
def test_vgg16(name: str, place: str, source: str, pairs: dict[str, str]) -> None:
    """Convolutions in their order; fc6 and fc7 where they have the same size."""
    model = on_meta(name)
    expected = tags(model)
    load_backbone(model, published(source))
    for ours, theirs in pairs.items():
        expected[f"{place}{ours}"] = number(theirs)
    top = {"fcn8s_vgg16": "classifier.", "deeplabv1_7x7": "classifier.", "deconvnet": "fc."}
    top |= {"crfrnn_fcn8s": "fcn.classifier.", "dilation8_voc": "fc."}
    for ours, theirs in VGG_FC.items() if name in top else ():
        expected[f"{top[name]}{ours}"] = number(theirs)
    assert tags(model) == expected


def test_fully_connected_layer_as_convolution() -> None:
    """W[o, c h w + i w + j] is W[o, c, i, j]; of Caffe's file, with two axes more, too."""
    row = torch.arange(512 * 49.0)
    shape = read("state_dicts", "torchvision_backbone_vgg16")
    state = {**tagged(shape), "classifier.0.weight": row.expand(4096, -1)}
    model = on_meta("fcn32s_vgg16")
    load_backbone(model, state)
    assert torch.equal(model.classifier.fc6.weight[7], row.reshape(512, 7, 7))
    caffe = {
        f"{ours.rpartition('.')[0]}/{int('bias' in ours)}": state[theirs]
        for ours, theirs in (vgg(batch_norm=False) | VGG_FC).items()
    }
    caffe |= tagged({"fc8/0": (1, 1, 1000, 4096), "fc8/1": (1, 1, 1, 1000)})
    caffe["fc6/0"] = row.expand(1, 1, 4096, -1)
    model = on_meta("dilation8_camvid")
    load_backbone(model, caffe)
    assert torch.equal(model.fc.fc6.weight[7], row.reshape(512, 7, 7))
    assert tags(model)["backbone.conv5_3.bias"] == number("features.28.bias")


def test_reduced_fully_connected_layers() -> None:
    """Caffe's VGG16 with an fc6 of 3 x 3 to 1024 is what LargeFOV and its pyramids start from."""
    convolutions = read("state_dicts", "torchvision_backbone_vgg16")
    state = {
        f"{ours.rpartition('.')[0]}/{int('bias' in ours)}": convolutions[theirs]
        for ours, theirs in vgg(batch_norm=False).items()
    }
    state |= {"fc6/0": (1024, 512, 3, 3), "fc6/1": (1024,), "fc7/0": (1024, 1024, 1, 1)}
    source = tagged(state | {"fc7/1": (1024,)})
    load_backbone(large := on_meta("deeplabv1_largefov"), source)
    load_backbone(pyramid := on_meta("deeplabv2_vgg16_aspp_s"), source)
    for top in (large.classifier, *pyramid.branches.values()):
        found = tags(top)
        assert found["fc6.weight"] == number("fc6/0")
        assert found["fc7.bias"] == number("fc7/1")
        assert found["fc8.weight"] is None


def test_caffes_classifiers() -> None:
    """CaffeNet in FCN-AlexNet, from a file; BVLC's GoogLeNet with its auxiliary classifiers."""
    model = on_meta("fcn32s_alexnet")
    net = classifier("caffenet").state_dict()
    linear = {6: 0, 7: 3, 8: 6}
    where = {f"conv{i}": f"backbone.conv{i}" for i in range(1, 6)}
    where |= {f"fc{i}": f"classifier.{j}" for i, j in linear.items()}
    state = tagged(
        {
            f"{caffe}/{blob}": net[f"{ours}.{kind}"].shape
            for caffe, ours in where.items()
            for blob, kind in enumerate(("weight", "bias"))
        }
    )
    load_backbone(model, state)
    found = tags(model)
    for caffe in where.keys() - {"fc8"}:
        place = "classifier" if "fc" in caffe else "backbone"
        assert found[f"{place}.{caffe}.weight"] == number(f"{caffe}/0")
        assert found[f"{place}.{caffe}.bias"] == number(f"{caffe}/1")
    model = on_meta("fcn32s_googlenet")
    load_backbone(model, {**published("bvlc_googlenet"), "loss1/conv/0": torch.zeros(1)})
    found = tags(model)
    assert found["backbone.inception4b.branch3.1.conv.bias"] == number("inception_4b/5x5/1")
    assert None not in [found[key] for key in found if key.startswith("backbone.")]
    with pytest.raises(ValueError, match=r"conv1\.weight has shape \(64, 3, 11, 11\), wanted \(96"):
        load_backbone(on_meta("fcn32s_alexnet"), published("alexnet"))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("deeplabv3plus_mobilenet_v2", "mobilenet_v2"),
        ("deeplabv3_mobilenet_v3_large", "mobilenet_v3_large"),
        ("lraspp_mobilenet_v3_large", "mobilenet_v3_large"),
    ],
)
def test_mobilenets(name: str, source: str) -> None:
    """torchvision's keys are ours; jfzhang's MobileNetV2 ends before the last convolution."""
    model = on_meta(name)
    load_backbone(model, published(source))
    found = {key: value for key, value in tags(model).items() if key.startswith("backbone.")}
    assert found == {key: number(key.removeprefix("backbone.")) for key in found}


def test_high_resolution_network() -> None:
    """As its authors publish it, behind "module."; what follows the maps is left out."""
    state = tagged(
        shapes_of(classifier("hrnet_w18"), lambda key: re.sub("^(backbone|join).", "", key))
    )
    model = on_meta("hrnet_w18_ocr")
    load_backbone(model, {"state_dict": {f"module.{key}": x for key, x in state.items()}})
    found = {key: value for key, value in tags(model).items() if key.startswith("backbone.")}
    assert found == {key: number(key.removeprefix("backbone.")) for key in found}
    assert any(key.startswith("incre_modules.3.0.conv1") for key in state)
    load_backbone(whole := classifier("hrnet_w18"), state)
    assert tags(whole)["join.final_layer.0.bias"] == number("final_layer.0.bias")


def test_aligned_xception() -> None:
    """Under the names that jfzhang95's code has in the backbone of its segmentation network."""
    whole = read("state_dicts", "jfzhang_deeplabv3plus_xception_os16")
    state = {k.removeprefix("backbone."): s for k, s in whole.items() if k.startswith("backbone.")}
    model = on_meta("deeplabv3plus_xception")
    load_backbone(model, tagged({**state, "fc.weight": (1000, 2048), "fc.bias": (1000,)}))
    found = tags(model)
    assert found["backbone.block20.convs.2.0.1.weight"] == number("block20.rep.7.pointwise.weight")
    assert found["backbone.conv5.1.running_var"] == number("bn5.running_var")
    assert None not in [found[key] for key in found if key.startswith("backbone.")]


# ---------------------------------------------------------------------- images of other channels


@pytest.fixture(scope="module")
def resnet18() -> State:
    torch.manual_seed(3)
    net = create_backbone("resnet18", classifier=True)
    state = {
        re.sub(r"^classifier\.", "fc.", key).removeprefix("backbone."): x
        for key, x in net.state_dict().items()
    }
    for key, x in state.items():
        if "running" in key:
            x.uniform_(-0.2, 0.2).add_(float("var" in key))
    return state


@pytest.fixture(scope="module")
def vgg16_bn() -> State:
    torch.manual_seed(4)
    features = read("state_dicts", "torchvision_backbone_vgg16_bn")
    scale = {key: 2 / max(1, torch.Size(s[1:]).numel()) for key, s in features.items()}
    return {
        key: torch.randn(s) * scale[key] ** 0.5 if len(s) == 4 else torch.rand(s) + 0.5
        for key, s in features.items()
        if "features" in key
    }


def deeplabv3(in_channels: int) -> nn.Module:
    return create_model("deeplabv3_resnet18", num_classes=2, in_channels=in_channels)


def unet(in_channels: int) -> nn.Module:
    return UNetResNet(2, in_channels, depth=18)


def segnet(in_channels: int) -> nn.Module:
    return SegNet(2, in_channels)


def features(model: Any, x: Tensor) -> Tensor:
    """What the encoder makes of an image."""
    model.eval()
    if isinstance(model, SegNet):
        for stage in model.stages():
            x = F.max_pool2d(stage(x), 2)
        return x
    return model.backbone(x)[-1]


@pytest.mark.parametrize(
    ("build", "source", "stem", "theirs"),
    [
        (deeplabv3, "resnet18", "conv1.weight", "conv1.weight"),
        (unet, "resnet18", "conv1.weight", "conv1.weight"),
        (segnet, "vgg16_bn", "conv1_1.weight", "features.0.weight"),
    ],
)
def test_images_of_other_channels(
    build: Callable[[int], Any],
    source: str,
    stem: str,
    theirs: str,
    request: pytest.FixtureRequest,
) -> None:
    """Grey images as RGB images of three equal channels; five channels by the documented rule."""
    state = {
        key: x.double() if x.is_floating_point() else x
        for key, x in request.getfixturevalue(source).items()
    }
    torch.manual_seed(5)
    with torch.device("meta"):  # the rest is not needed
        nets = [build(channels) for channels in (3, 1, 5)]
    rgb, grey, five = (load_backbone(net, state) for net in nets)
    weights = [model.backbone.state_dict() for model in (rgb, grey, five)]
    assert torch.equal(weights[0][stem], state[theirs])
    for c in range(5):
        torch.testing.assert_close(weights[2][stem][:, c], state[theirs][:, c % 3] * (3 / 5))
    for key in weights[0].keys() - {stem}:
        assert torch.equal(weights[1][key], weights[0][key]), key
        assert torch.equal(weights[2][key], weights[0][key]), key
    r, g, b = torch.rand(3, 1, 1, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = features(rgb, r.expand(-1, 3, -1, -1))
        assert expected.abs().amax() > 0.01
        torch.testing.assert_close(features(grey, r), expected)
        weighted = torch.cat([r * 6 / 5, g * 6 / 5, b * 3 / 5], 1)
        found = features(five, torch.cat([r, g, b, r, g], 1))
        torch.testing.assert_close(found, features(rgb, weighted))


def test_published_maps(resnet18: State) -> None:
    """The features of a segmentation network are the classifier's."""
    net = load_backbone(create_backbone("resnet18", classifier=True), resnet18).eval()
    model = load_backbone(create_model("maresunet_resnet18"), resnet18).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        y = model.backbone(x)[-1]
        scores = y.mean((2, 3)) @ resnet18["fc.weight"].mT + resnet18["fc.bias"]
        torch.testing.assert_close(net(x), scores)


# ------------------------------------------------------------------------- what a file may be


def test_old_files(resnet18: State) -> None:
    """Without counters of batches; DenseNet's with dots within its names."""
    old = {key: x for key, x in resnet18.items() if not key.endswith("tracked")}
    net = create_backbone("resnet18", classifier=True)
    net.backbone.bn1.num_batches_tracked.fill_(7)
    load_backbone(net, old)
    assert net.backbone.bn1.num_batches_tracked == 0
    assert torch.equal(net.classifier.weight, resnet18["fc.weight"])
    new = read("state_dicts", "torchvision_backbone_densenet121")
    dotted = {
        re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", key): shape
        for key, shape in new.items()
        if not key.endswith("tracked")
    }
    with torch.device("meta"):
        densenet = create_backbone("densenet121")
    load_backbone(densenet, tagged(dotted))
    key = "denseblock1.denselayer3.norm.2.bias"
    assert tags(densenet)["denseblock1.denselayer3.norm2.bias"] == number(f"features.{key}")


def test_classifier_takes_its_last_layers() -> None:
    state = published("googlenet")
    net = classifier("googlenet")
    load_backbone(net, state)
    found = tags(net)
    assert None not in found.values()
    assert found["aux.aux2.fc1.bias"] == number("aux2.fc1.bias")
    assert found["classifier.1.weight"] == number("fc.weight")
    message = r"6 keys do not fit layout 'torchvision': aux\.aux1\.fc2\.bias has shape \(1000,\)"
    message += r", .*classifier\.1\.weight has shape \(1000, 1024\), wanted \(7, 1024\)"
    with pytest.raises(ValueError, match=message):
        load_backbone(classifier("googlenet", num_classes=7), state)
    load_backbone(classifier("googlenet", num_classes=7).backbone, state)


def test_our_own_keys(tmp_path: Path) -> None:
    """Of a classifier, of its backbone; of a file."""
    torch.manual_seed(7)
    net = create_backbone("resnet18", classifier=True, num_classes=3)
    for state in (net.state_dict(), net.backbone.state_dict()):
        torch.save(state, tmp_path / "net.pth")
        model = load_backbone(create_model("abcnet_resnet18"), tmp_path / "net.pth")
        assert torch.equal(
            model.backbone.layer4[1].conv2.weight, net.backbone.layer4[1].conv2.weight
        )
    load_backbone(
        other := create_backbone("resnet18", classifier=True, num_classes=3), net.state_dict()
    )
    assert torch.equal(other.classifier.bias, net.classifier.bias)


def test_every_mismatch_is_named(resnet18: State) -> None:
    state = {**resnet18, "layer9.weight": torch.zeros(1), "bn1.bias": torch.zeros(3)}
    del state["layer1.0.conv1.weight"]
    expected = (
        r"3 keys do not fit layout 'torchvision': backbone\.bn1\.bias has shape \(3,\), wanted "
        r"\(64,\); missing backbone\.layer1\.0\.conv1\.weight; unexpected layer9\.weight"
    )
    model = create_model("deeplabv3_resnet18", num_classes=2)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=expected):
        load_backbone(model, state)
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    with pytest.warns(UserWarning, match=expected):
        load_backbone(model, state, strict=False)
    assert torch.equal(model.backbone.conv1.weight, resnet18["conv1.weight"])


def test_refusals(resnet18: State) -> None:
    model = create_model("deeplabv3_resnet18", num_classes=2)
    for other in (nn.ReLU(), 3):
        with pytest.raises(TypeError, match="model must be from create_model or create_backbone"):
            load_backbone(other, resnet18)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"layout must be one of auto, torchvision, mmseg, semseg"):
        load_backbone(model, resnet18, layout="keras")
    with pytest.raises(TypeError, match="strict must be True or False"):
        load_backbone(model, resnet18, strict=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source must be a path or a mapping"):
        load_backbone(model, 3)  # type: ignore[arg-type]
    both = LateFusion([on_meta("fcn32s_googlenet"), on_meta("fcn32s_googlenet", in_channels=1)])
    match = r"LateFusion has models\.0\.backbone, models\.1\.backbone: load each"
    with pytest.raises(ValueError, match=match):
        load_backbone(both, published("googlenet"))
    load_backbone(both.models[1], published("bvlc_googlenet"))
    assert both.models[1].backbone.conv1.conv.weight.shape == (64, 1, 7, 7)  # type: ignore[union-attr]
