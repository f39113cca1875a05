"""Published keys of DeepLab v3+ -> ours: backbone, aspp, reduce, decoder, classifier."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from segfast.models._keys import Rules, Substitution
from segfast.models.layouts import aspp, mobilenet, resnet, xception

SMP = Rules(
    *resnet.SMP,
    (r"^decoder\.aspp\.0\.", "aspp."),
    (r"^decoder\.aspp\.1\.", "refine.0."),
    (r"^decoder\.aspp\.2\.", "refine.1."),
    (r"^decoder\.block1\.", "reduce."),
    (r"^decoder\.block2\.", "decoder.0."),
    (r"^segmentation_head\.0\.", "classifier."),
)


def jfzhang(rates: int, backbone: tuple[Substitution, ...] = (), drop: Iterable[str] = ()) -> Rules:
    """jfzhang95/pytorch-deeplab-xception on any backbone."""
    return Rules(
        *backbone,
        *aspp.jfzhang(rates),
        (r"^decoder\.conv1\.", "reduce.0."),
        (r"^decoder\.bn1\.", "reduce.1."),
        (r"^decoder\.last_conv\.([01])\.", r"decoder.0.\1."),
        (r"^decoder\.last_conv\.4\.", "decoder.1.0."),
        (r"^decoder\.last_conv\.5\.", "decoder.1.1."),
        (r"^decoder\.last_conv\.8\.", "classifier."),
        drop=drop,
    )


def deeplab_pytorch(rates: int) -> Rules:
    """kazuto1011/deeplab-pytorch, on a residual network."""
    return Rules(
        *resnet.DEEPLAB_PYTORCH,
        *aspp.deeplab_pytorch(rates),
        (r"^reduce\.conv\.", "reduce.0."),
        (r"^reduce\.bn\.", "reduce.1."),
        (r"^fc2\.conv([12])\.conv\.", lambda m: f"decoder.{int(m[1]) - 1}.0."),
        (r"^fc2\.conv([12])\.bn\.", lambda m: f"decoder.{int(m[1]) - 1}.1."),
        (r"^fc2\.conv3\.", "classifier."),
    )


def mmseg(rates: int) -> Rules:
    """OpenMMLab's, on a residual network."""
    return Rules(
        *aspp.mmseg(rates),
        (r"^decode_head\.c1_bottleneck\.", "reduce."),
        (r"^decode_head\.sep_bottleneck\.", "decoder."),
        (r"^decode_head\.conv_seg\.", "classifier."),
    )


@functools.cache
def layouts(backbone: str, rates: int) -> Mapping[str, Rules]:
    """On a backbone, with a pyramid of so many rates; the first is the default."""
    if backbone == "xception":
        return {"jfzhang": jfzhang(rates, xception.JFZHANG)}
    if backbone == "mobilenet_v2":
        twice = (mobilenet.JFZHANG_V2_TWICE,)
        return {"jfzhang": jfzhang(rates, mobilenet.JFZHANG_V2, twice), "smp": SMP}
    if backbone in ("resnet18", "resnet34"):
        return {"smp": SMP, "mmseg": mmseg(rates)}
    return {
        "jfzhang": jfzhang(rates),
        "deeplab-pytorch": deeplab_pytorch(rates),
        "mmseg": mmseg(rates),
        "smp": SMP,
    }
