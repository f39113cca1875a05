"""Layouts: every class knows its own, keys follow its options, and wirings are not exchanged."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.models import (
    _ENTRIES,
    FCN,
    DeepLabV3,
    DeepLabV3Plus,
    DilationNet,
    LateFusion,
    MANet,
    PSPNet,
    SegmentationModel,
    create_model,
    load_checkpoint,
    save_checkpoint,
)
from segfast.models.fcn import TRUNKS
from segfast.models.layouts import backbones
from tests.fingerprints import DATA, read
from tests.models.networks import GOLDEN, Golden
from tests.models.small_net import Net, assert_same, trained

CLASSES = {entry.build: entry for entry in _ENTRIES.values()}


def on_meta(build: Any, *args: Any, **options: Any) -> SegmentationModel:
    with torch.device("meta"):
        return build(*args, **options)


def one_of_each_class() -> Iterator[Any]:
    seen = set()
    for golden in GOLDEN:
        key = _ENTRIES[golden.model].build, golden.options.get("layout")
        if key not in seen:
            seen.add(key)
            yield pytest.param(golden, id=golden.published)


@pytest.mark.parametrize("golden", list(one_of_each_class()))
def test_a_network_of_a_class_takes_published_keys(golden: Golden) -> None:
    """As one that a name built does, and of the same layouts."""
    entry = _ENTRIES[golden.model]
    options = {"num_classes": entry.num_classes, **entry.options, **golden.options}
    model = on_meta(entry.build, **options)
    shapes = read("state_dicts", golden.published)
    load_checkpoint(model, {k: torch.empty(shape, device="meta") for k, shape in shapes.items()})
    named = on_meta(create_model, golden.model, **golden.options)
    assert (model.layout, model.layouts) == (named.layout, named.layouts)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("danet_resnet34", {"depth": 18}),
        ("deeplabv2_resnet101_msc", {"depth": 18}),
        ("deeplabv3_resnet18", {"layout": "smp"}),
        ("deeplabv3plus_resnet18", {}),
        ("fcn_resnet50", {"depth": 18}),
        ("fpn_resnet34", {"depth": 18}),
        ("hrnet_w18_small", {}),
        ("hrnet_w18_small_ocr", {}),
        ("pspnet_resnet34", {"depth": 18, "layout": "mmseg"}),
        ("refinenet_resnet50_light", {"depth": 18}),
    ],
)
def test_corners_of_all_resizes(
    name: str, options: Any, corners: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    interpolate = F.interpolate

    def recorded(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if options.get("mode") == "bilinear":
            seen.append(options["align_corners"])
        return interpolate(x, *arguments, **options)

    monkeypatch.setattr(F, "interpolate", recorded)
    model = on_meta(create_model, name, 2, align_corners=corners, **options).eval()
    model(torch.empty(1, 3, 65, 97, device="meta"))
    assert set(seen) == {corners}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_layouts_of_one_wiring_are_one_network(kind: type[SegmentationModel]) -> None:
    """And every layout has its wiring, where a class has several."""
    options = CLASSES[kind].options
    layouts = on_meta(kind, **options).layouts
    models = [on_meta(kind, **options, layout=layout) for layout in layouts]
    assert not models[0].wirings or set(layouts) <= set(models[0].wirings)
    for a, b in itertools.combinations(models, 2):
        assert a.wired_as(b.layout) == b.wired_as(a.layout)
        if a.wired_as(b.layout):
            assert repr(a) == repr(b)
            assert a.align_corners == b.align_corners


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_models_are_copied_and_pickled(kind: type[SegmentationModel]) -> None:
    """Whose rules hold functions that no file could: they stay with the class."""
    model = on_meta(kind, **CLASSES[kind].options)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (other.layout, other.layouts) == (model.layout, model.layouts)


# ------------------------------------------------------------------------ what sources say


def saved(model: SegmentationModel, path: Path, wrapped: bool = False) -> Path:
    state = torch.nn.ModuleDict({"net": model}).state_dict() if wrapped else model.state_dict()
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_says_its_layout(wrapped: bool, tmp_path: Path) -> None:
    """The same keys and shapes, with other rates and corners."""
    options: Any = {"num_classes": 2, "backbone": "resnet18", "aux": False}
    smp, torchvision = (DeepLabV3(**options, layout=layout) for layout in ("smp", "torchvision"))
    path = saved(smp, tmp_path / "net.pth", wrapped)
    load_checkpoint(DeepLabV3(**options, layout="smp"), path)
    before = copy.deepcopy(torchvision.state_dict())
    for source in (path, smp.state_dict()):
        with pytest.raises(ValueError, match="saved from a model wired as 'smp', this one is"):
            load_checkpoint(torchvision, source)
        assert all(torch.equal(x, before[key]) for key, x in torchvision.state_dict().items())
    load_checkpoint(torchvision, path, layout="segfast")
    load_checkpoint(torchvision, dict(smp.state_dict()))  # of which nothing is known
    assert torch.equal(torchvision.backbone.conv1.weight, smp.backbone.conv1.weight)


def test_the_outermost_network_says_it() -> None:
    inner = [MANet(2, depth=18, layout=layout) for layout in ("geoseg", "lironui")]
    model = LateFusion(inner)  # type: ignore[arg-type]
    assert model.layout == "segfast"
    load_checkpoint(model, model.state_dict())


@pytest.mark.parametrize("metadata", [5, {5: {"layout": "other"}}, {"": 5}, {"": {"layout": []}}])
def test_metadata_is_not_trusted(metadata: Any) -> None:
    state = trained().state_dict()
    state._metadata = metadata  # type: ignore[attr-defined]
    assert_same(load_checkpoint(Net(), state), trained())  # type: ignore[arg-type]


def test_equal_wirings_take_each_others_files(tmp_path: Path) -> None:
    lironui, geoseg = (MANet(2, depth=18, layout=layout) for layout in ("lironui", "geoseg"))
    save_checkpoint(geoseg, tmp_path / "net.safetensors")
    published = {
        key.replace("backbone.conv1", "firstconv")
        .replace("backbone.bn1", "firstbn")
        .replace("backbone.layer", "encoder"): x
        for key, x in geoseg.state_dict().items()
    }
    for source in (tmp_path / "net.safetensors", saved(geoseg, tmp_path / "net.pth")):
        load_checkpoint(lironui, source)
        assert torch.equal(lironui.backbone.conv1.weight, geoseg.backbone.conv1.weight)
    load_checkpoint(geoseg, published)  # keys of the other's code


# ----------------------------------------------------------------------- keys follow options


@pytest.mark.parametrize(
    ("kind", "options", "keys"),
    [
        (PSPNet, {"layout": "caffe", "bins": (2, 4)}, ["conv5_3_pool4_conv/bn.weight"]),
        (DeepLabV3, {"layout": "mmseg", "rates": (6, 12)}, ["decode_head.image_pool.1.bn.weight"]),
        (
            DeepLabV3,
            {"layout": "deeplab-pytorch", "rates": (3, 6, 9, 12)},
            ["aspp.stages.imagepool.conv.conv.weight", "aspp.stages.c4.conv.weight"],
        ),
        (DeepLabV3Plus, {"rates": (6, 12, 18, 24)}, ["aspp.global_avg_pool.1.weight"]),
        (
            DilationNet,
            {"dilations": (1, 2, 4)},
            ["ctx_conv1_2/0", "ctx_conv2_1/0", "ctx_fc1/1", "ctx_final/0"],
        ),
    ],
)
def test_keys_follow_options(kind: Any, options: Any, keys: list[str]) -> None:
    model = on_meta(kind, depth=50, **options) if kind is PSPNet else on_meta(kind, **options)
    rules = model.layouts[model.layout]
    ours = [rules.key(key) for key in keys]
    assert len({*ours} & model.state_dict().keys()) == len(keys), ours


def test_foreign_keys_are_no_error() -> None:
    """Rules meet keys of every other network where a checkpoint fits none; numbers may be any."""
    states = [read("state_dicts", path.stem) for path in (DATA / "state_dicts").glob("*.json")]
    forms = {re.sub(r"\d+", "#", key) for state in states for key in state}
    forms |= {f"{kind}#a_branch#a/#" for kind in ("res", "bn", "scale")}
    foreign = [form.replace("#", str(digit)) for form in forms for digit in (0, 2, 9)]
    variants: dict[Any, Any] = {
        FCN: TRUNKS,
        PSPNet: [(True, (1, 2, 3, 6))],
        DeepLabV3: [(backbone, 3) for backbone in DeepLabV3.backbones],
        DeepLabV3Plus: [(backbone, 3) for backbone in DeepLabV3Plus.backbones],
        DilationNet: [7],
    }
    tables = {
        id(rules): rules
        for kind in CLASSES
        for variant in variants.get(kind, [None])
        for rules in kind.layouts_of(variant).values()
    }
    for published in backbones.LAYOUTS.values():
        tables |= {id(each.rules): each.rules for each in published.values()}
    assert len(tables) > 70
    for rules in tables.values():
        for key in foreign:
            assert isinstance(rules.key(key), str | None)


def test_the_sign_of_a_matrix_follows_its_key() -> None:
    """Caffe's CRF-RNN subtracts what crfasrnn_pytorch adds; a network of either layout has ours."""
    model = on_meta(create_model, "crfrnn_fcn8s", layout="caffe")
    rules = model.layouts["caffe"]
    matrix = torch.eye(2)
    theirs: dict[str, Tensor] = rules.apply({"inference1/2": matrix})
    ours: dict[str, Tensor] = rules.apply({"crfrnn.compatibility_matrix": matrix})
    assert torch.equal(theirs["crfrnn.compatibility_matrix"], -matrix)
    assert torch.equal(ours["crfrnn.compatibility_matrix"], matrix)
