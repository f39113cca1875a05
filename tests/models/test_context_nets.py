"""PSPNet, DANet and semantic FPN: their parts, ablations and edges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segfast.models import create_model, load_checkpoint
from segfast.models.danet import DANet
from segfast.models.pspnet import PSPNet, PyramidPooling
from tests.fingerprints import assert_reproduces, read


def test_pyramid_is_the_published_one() -> None:
    assert_reproduces(PyramidPooling(64), "mod_psp_PPM_64_16")


@pytest.mark.parametrize(("pool", "reduce"), [("average", False), ("max", True), ("max", False)])
def test_ablations_of_the_pyramid(pool: str, reduce: bool) -> None:
    """PSPNet's table 1, against the sum over regions written out."""
    torch.manual_seed(0)
    pyramid = PyramidPooling(4, (1, 2), pool, reduce).double().eval()
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    expected = [x]
    for bins, feature in zip((1, 2), pyramid.features, strict=True):
        regions = x.unflatten(3, (bins, -1)).unflatten(2, (bins, -1))  # [N, C, b, h, b, w]
        pooled = regions.mean((3, 5)) if pool == "average" else regions.amax((3, 5))
        if reduce:
            conv, norm, act = list(feature)[1:]  # type: ignore[arg-type]
            pooled = act(norm(torch.einsum("oc,nchw->nohw", conv.weight[..., 0, 0], pooled)))
        expected.append(F.interpolate(pooled, (6, 8), mode="bilinear", align_corners=True))
    torch.testing.assert_close(pyramid(x), torch.cat(expected, 1))
    assert pyramid.out_channels == 4 + (4 if reduce else 8)


def test_one_image_in_training_is_refused() -> None:
    model = PSPNet(2, depth=18)
    x = torch.randn(1, 3, 41, 57)
    with pytest.raises(ValueError, match=r"N > 1 in training, .* \(1, 3, 41, 57\).*model\.eval"):
        model(x)
    model.eval()(x)
    PSPNet(2, depth=18, bins=(2, 3)).train()(x)
    PSPNet(2, depth=18, reduce=False).train()(x)


def test_gamma_zero_leaves_the_branches_out() -> None:
    """As they start, DANet's attentions are the identity: two plain branches."""
    torch.manual_seed(0)
    model = DANet(3, depth=18).double().eval()
    x = torch.randn(1, 3, 40, 56, dtype=torch.float64)
    *_, features = model.backbone(x)
    plain = [b.conv_out(b.conv_in(features)) for b in model.branches.values()]  # type: ignore[operator]
    scores = model.scores(x, aux=True)
    torch.testing.assert_close(scores["out"], model.classifier(plain[0] + plain[1]))
    assert list(scores) == ["out", "position", "channel"]


@pytest.mark.parametrize("attention", ["position", "channel"])
def test_one_attention(attention: str) -> None:
    model = DANet(3, depth=18, attention=attention).eval()
    assert list(model.branches) == [attention]
    out, aux = model(torch.randn(1, 3, 33, 49), return_aux=True)
    assert out.shape == (1, 3, 33, 49)
    assert aux == {}


def test_scores_of_heads_follow_their_layout() -> None:
    model = DANet(3, depth=18, layout="mmseg").eval()
    _, aux = model(torch.randn(1, 3, 33, 49), return_aux=True)
    assert list(aux) == ["position", "channel", "aux"]


def test_caffe_pspnet_keys() -> None:
    """Every blob of the released network has its place, in its shape."""
    with torch.device("meta"):
        model = create_model("pspnet_resnet50", 150, layout="caffe", aux=False)
        shapes = read("state_dicts", "caffe_pspnet50_ADE20K_473")
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    load_checkpoint(model, state)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PSPNet(bins=()), "bins must hold at least one integer"),
        (lambda: PSPNet(pool="sum"), "pool must be one of average, max"),
        (lambda: PSPNet(layout="torchvision"), "layout must be one of semseg, mmseg, caffe"),
        (lambda: PyramidPooling(2, (1, 2, 3)), "bins must be at most 2"),
        (lambda: DANet(attention="none"), "attention must be one of both, position, channel"),
        (lambda: create_model("fpn_resnet50", pyramid_channels=0), "pyramid_channels must be"),
    ],
)
def test_refusals(build: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        build()  # type: ignore[operator]


def test_smp_fpn_starts_without_batch_norm() -> None:
    with torch.device("meta"):
        model = create_model("fpn_resnet50", layout="smp")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.heads.modules())  # type: ignore[union-attr]
