"""FCN: where scores lie over the image, skips, heads, stages, fusion; the paper's table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models import FCN, LateFusion, create_model, load_checkpoint
from segfast.models.fcn import TRUNKS, SkipHead
from tests.fingerprints import fill, filled_input, read
from tests.models.golden import parameters
from tests.models.listings import Row, listing, run

STRIDES = (32, 16, 8)
LISTINGS = {  # of the trunk, and its rows from the image to the map that is scored
    "vgg16": "fcn_voc-fcn32s",
    "alexnet": "fcn_voc-fcn-alexnet",
    "googlenet": "bvlc_googlenet",
    "googlenet_without_pool": "bvlc_googlenet",
}


def on_meta(*args: Any, **options: Any) -> FCN:
    with torch.device("meta"):
        return FCN(*args, **options).eval()


def filled(**options: Any) -> FCN:
    """A small one whose scores are not zero."""
    model = FCN(3, backbone="googlenet", **options).double().eval()
    fill(model, {key: key for key in model.state_dict()})
    return model


# ------------------------------------------------------------------------- the paper's table


@pytest.mark.parametrize(
    ("backbone", "params", "field"),
    [
        ("alexnet", 56_954_261, 355),
        ("vgg16", 134_346_581, 404),
        ("googlenet", 5_995_077, 907),
        ("googlenet_without_pool", 5_995_077, 715),
    ],
)
def test_table_of_the_paper(backbone: str, params: int, field: int) -> None:
    """57M, 134M and 6M parameters below the interpolation; fields of view; stride 32."""
    model = on_meta(backbone=backbone)
    assert parameters(model) - parameters(model.head.upscore) == params
    [score] = [call for call in run(model, (1, 3, 300, 300)) if call.name == "head.score_fr"]
    assert (score.field, score.step) == (field, 32)


# ------------------------------------------------------------------------------------ offsets


def shift(rows: list[Row], padding: int) -> float:
    """Where the image's first pixel is in a map, in the map's pixels: Caffe's rule of coordinates.

    x_out = (x_in + p - (k - 1) / 2) / s along the layers.
    """
    place = 0.0
    for i, row in enumerate(rows):
        p = padding if i == 0 else row.geometry["p"]
        place = (place + p - (row.geometry["k"] - 1) / 2) / row.geometry["s"]
    return place


def chain(backbone: str, name: str = "") -> list[Row]:
    """Layers from the image to that one; inceptions keep positions."""
    rows, _ = listing(LISTINGS[backbone])
    rows = [r for r in rows if r.kind in ("Convolution", "Pooling") and "inception" not in r.name]
    if not name:
        ends = {"googlenet": "pool5/7x7_s1", "googlenet_without_pool": "pool4/3x3_s2"}
        name = ends.get(backbone, "score_fr")
    return rows[: 1 + [row.name for row in rows].index(name)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("backbone", TRUNKS)
def test_offsets_follow_from_the_layers(backbone: str, stride: int) -> None:
    """Crops are the distance of pixel 0 in what is added, and of the image in what comes out."""
    model = on_meta(backbone=backbone, stride=stride)
    first = next(m for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
    place = shift(chain(backbone), first.padding[0])
    pools = {"vgg16": ("pool4", "pool3"), "alexnet": ("pool2", "pool1")}
    names = pools.get(backbone, ("pool3/3x3_s2", "pool2/3x3_s2"))
    crops = []
    for name, up in zip(names, ("upscore2", "upscore_pool4"), strict=True):
        if hasattr(model.head, up):
            place = 2 * place + (getattr(model.head, up).kernel_size[0] - 1) / 2
            crops.append(shift(chain(backbone, name), first.padding[0]) - place)
    place = stride * place + (model.head.upscore.kernel_size[0] - 1) / 2
    assert [*crops, place] == list(TRUNKS[backbone].crops[stride])


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("backbone", TRUNKS)
def test_every_size_fits(backbone: str, stride: int) -> None:
    model = on_meta(2, 1, backbone=backbone, stride=stride)
    for height, width in ((1, 1), (1, 33), (23, 64), (65, 31), (96, 127), (500, 375)):
        x = torch.empty(1, 1, height, width, device="meta")
        assert model.scores(x)["out"].shape == (1, 2, height, width)


# --------------------------------------------------------------------------------- the equations


def bilinear(scale: int, channels: int, odd: int = 1) -> Tensor:
    """FCN's filter, from the formula of its code: [C, C, k, k] with the filter on the diagonal."""
    k = 2 * scale - odd
    f = (k + 1) // 2
    c = f - 1 if k % 2 else f - 0.5
    line = torch.tensor([1 - abs(i - c) / f for i in range(k)], dtype=torch.float64)
    return torch.eye(channels, dtype=torch.float64)[..., None, None] * torch.outer(line, line)


def test_eight_by_hand() -> None:
    """FCN-8s at once: the same maps, summed by equations; two heads."""
    torch.manual_seed(0)
    model = filled(stride=8, at_once=True, heads={"geometric": 2})
    x = filled_input((1, 3, 37, 50))
    out, aux = model(x, return_aux=True)
    _, pool3, pool4, _, _, last = model.backbone(x)
    top = F.avg_pool2d(last, 7, 1)
    for head, found in ((model.head, out), (model.heads["geometric"], aux["geometric"])):
        y = F.conv_transpose2d(head.score_fr(top), head.upscore2.weight, stride=2)
        skip = head.score_pool4(pool4 * 0.01)[..., 6:, 6:]
        y = y + skip[..., : y.shape[-2], : y.shape[-1]]
        y = F.conv_transpose2d(y, head.upscore_pool4.weight, stride=2)
        skip = head.score_pool3(pool3 * 0.0001)[..., 12:, 12:]
        y = y + skip[..., : y.shape[-2], : y.shape[-1]]
        y = F.conv_transpose2d(y, head.upscore.weight, stride=8)
        torch.testing.assert_close(found, y[..., 16:53, 16:66], rtol=1e-12, atol=1e-12)


def test_fresh_parameters() -> None:
    """Score layers are zero, interpolation is bilinear, on the diagonal of the classes."""
    head = FCN(4, backbone="googlenet", stride=16).head
    for conv in (head.score_fr, head.score_pool4):
        assert not conv.weight.any()
        assert not conv.bias.any()
    for up, scale in ((head.upscore2, 2), (head.upscore, 16)):
        assert torch.equal(up.weight, bilinear(scale, 4).float())
    even = SkipHead(TRUNKS["vgg16"], 32, False, False, 2)
    assert torch.equal(even.upscore.weight, bilinear(32, 2, odd=0).float())


def test_stages() -> None:
    """A finer network starts as the coarser one: with zero skips its scores are interpolated."""
    coarse = filled(stride=32)
    middle = FCN(3, backbone="googlenet", stride=16).double().eval().start_from(coarse)
    fine = FCN(3, backbone="googlenet", stride=8).double().eval().start_from(middle)
    x = filled_input((1, 3, 64, 49))
    top = F.avg_pool2d(coarse.backbone(x)[-1], 7, 1)
    y = F.conv_transpose2d(coarse.head.score_fr(top), bilinear(2, 3), stride=2)
    torch.testing.assert_close(
        middle(x), F.conv_transpose2d(y, bilinear(16, 3), stride=16)[..., 16:80, 16:65]
    )
    y = F.conv_transpose2d(y, bilinear(2, 3), stride=2)
    torch.testing.assert_close(
        fine(x), F.conv_transpose2d(y, bilinear(8, 3), stride=8)[..., 16:80, 16:65]
    )
    with pytest.raises(ValueError, match=r"head\.upscore2\.weight of shape \(3, 3, 3, 3\) has no"):
        coarse.start_from(middle)
    with pytest.raises(TypeError, match="coarser must be an FCN"):
        coarse.start_from(nn.Conv2d(1, 1, 1))  # type: ignore[arg-type]


def test_late_fusion() -> None:
    """Summed scores; each modality sees its own channels."""
    colour, depth = filled(), filled(in_channels=2)
    x = filled_input((1, 5, 40, 33))
    a, b = colour(x[:, :3]), depth(x[:, 3:])
    net = LateFusion([colour, depth])
    torch.testing.assert_close(net(x), a + b)
    net = load_checkpoint(
        LateFusion([filled(), filled(in_channels=2)], (0.5, 0.25)), net.state_dict()
    )
    out, parts = net(x, return_aux=True)
    torch.testing.assert_close(out, 0.5 * a + 0.25 * b)
    assert torch.equal(parts["model_0"], a)
    assert torch.equal(parts["model_1"], b)


def test_learning() -> None:
    """Every parameter gets a gradient, from a batch of one that is not square."""
    model = FCN(2, 4, backbone="googlenet", stride=8, heads={"geometric": 3}).train()
    fill(model, {key: key for key in model.state_dict()})
    out, aux = model(torch.randn(1, 4, 33, 47), return_aux=True)
    (out.square().sum() + aux["geometric"].square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


# ---------------------------------------------------------------------------------------- keys


def meta_state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("name", ["fcn8s_vgg16", "fcn8s_vgg16_atonce"])
def test_keys_of_caffe_blobs(name: str) -> None:
    """LAYER/0 and LAYER/1, the constants of what is trained at once left away."""
    shapes = {
        key.replace(".weight", "/0").replace(".bias", "/1"): shape
        for key, shape in read("state_dicts", "caffe_fcn8s").items()
    }
    shapes |= {"scale_pool4/0": [512], "scale_pool3/0": [256]}
    with torch.device("meta"):
        model = create_model(name)
    for layout in ("caffe", "wkentaro"):
        load_checkpoint(model, meta_state(shapes), layout)


def test_keys_of_two_heads() -> None:
    """SIFT Flow's: score_fr_sem, score_fr_geo and so on."""
    shapes: dict[str, list[int]] = {}
    for key, shape in read("state_dicts", "caffe_fcn8s").items():
        layer, kind = key.split(".")
        for suffix, classes in (("_sem", 33), ("_geo", 3)):
            scores = "score" in layer
            shapes[f"{layer}{suffix if scores else ''}.{kind}"] = (
                [classes if n == 21 else n for n in shape] if scores else shape
            )
    load_checkpoint(on_entry(num_classes=33, heads={"geometric": 3}), meta_state(shapes))


def on_entry(**options: Any) -> FCN:
    with torch.device("meta"):
        model = create_model("fcn8s_vgg16", **options)
    assert isinstance(model, FCN)
    return model


def test_keys_of_early_fusion_and_googlenet() -> None:
    shapes = read("state_dicts", "caffe_fcn8s")
    shapes["conv1_1_bgrd.weight"] = [64, 4, 3, 3]
    shapes["conv1_1_bgrd.bias"] = shapes.pop("conv1_1.bias")
    del shapes["conv1_1.weight"]
    load_checkpoint(on_entry(in_channels=4), meta_state(shapes))
    with torch.device("meta"):
        model = create_model("fcn32s_googlenet")
    layers = [row.name for row in listing("bvlc_googlenet")[0] if row.kind == "Convolution"]
    ours = {model.layouts["caffe"].key(f"{layer}/0") for layer in [*layers, "score_fr", "upscore"]}
    assert ours == {key for key in model.state_dict() if key.endswith("weight")}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backbone": "resnet50"}, ValueError, "backbone must be one of vgg16, alexnet"),
        ({"stride": 4}, ValueError, "stride must be 32, 16 or 8, got int 4"),
        ({"at_once": 1}, TypeError, "at_once must be True or False"),
        ({"upscore2_bias": None}, TypeError, "upscore2_bias must be True or False"),
        ({"heads": 3}, TypeError, "heads must be name -> classes, got int 3"),
        ({"heads": {"out": 3}}, ValueError, "heads must have names other than 'out'"),
        ({"heads": {"a": 0}}, ValueError, r"heads\['a'\] must be at least 1"),
        ({"layout": "torchvision"}, ValueError, "layout must be one of caffe; got"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FCN(**{"backbone": "googlenet", **options})


def test_refusals_of_late_fusion() -> None:
    two, three = (FCN(n, backbone="googlenet") for n in (2, 3))
    with pytest.raises(TypeError, match="models must be a list of networks"):
        LateFusion([])
    with pytest.raises(TypeError, match="models must be SegmentationModels, got Identity"):
        LateFusion([two, nn.Identity()])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"same num_classes, got \[2, 3\]"):
        LateFusion([two, three])
    with pytest.raises(ValueError, match="weights must be 2, one per model; got 1"):
        LateFusion([two, two], [1.0])
