"""Published keys of DeepLab v3's pyramid -> segfast.nn.ASPP's, under `aspp.`

The branch of the image's mean has a name of its own; ours is numbered behind those of the rates.
"""

from __future__ import annotations

from segfast.models._keys import Substitution
from segfast.models.layouts.resnet import MMSEG_HEADS


def mmseg(rates: int) -> tuple[Substitution, ...]:
    """OpenMMLab's."""
    return (
        *MMSEG_HEADS,
        (r"\.depthwise_conv\.0\.", ".0.0."),
        (r"\.depthwise_conv\.1\.", ".0.bn."),
        (r"\.pointwise_conv\.0\.", ".0.1."),
        (r"\.pointwise_conv\.1\.", ".1."),
        (r"^decode_head\.aspp_modules\.", "aspp.convs."),
        (r"^decode_head\.image_pool\.1\.0\.", f"aspp.convs.{rates + 1}.1."),
        (r"^decode_head\.image_pool\.1\.1\.", f"aspp.convs.{rates + 1}.2."),
        (r"^decode_head\.bottleneck\.", "aspp.project."),
    )


def deeplab_pytorch(rates: int) -> tuple[Substitution, ...]:
    """kazuto1011's."""
    return (
        (r"^aspp\.stages\.c(\d)\.conv\.", r"aspp.convs.\1.0."),
        (r"^aspp\.stages\.c(\d)\.bn\.", r"aspp.convs.\1.1."),
        (r"^aspp\.stages\.imagepool\.conv\.conv\.", f"aspp.convs.{rates + 1}.1."),
        (r"^aspp\.stages\.imagepool\.conv\.bn\.", f"aspp.convs.{rates + 1}.2."),
        (r"^fc1\.conv\.", "aspp.project.0."),
        (r"^fc1\.bn\.", "aspp.project.1."),
    )


def jfzhang(rates: int) -> tuple[Substitution, ...]:
    """jfzhang95's."""
    return (
        (r"^aspp\.aspp(\d)\.atrous_conv\.", lambda m: f"aspp.convs.{int(m[1]) - 1}.0."),
        (r"^aspp\.aspp(\d)\.bn\.", lambda m: f"aspp.convs.{int(m[1]) - 1}.1."),
        (r"^aspp\.global_avg_pool\.", f"aspp.convs.{rates + 1}."),
        (r"^aspp\.conv1\.", "aspp.project.0."),
        (r"^aspp\.bn1\.", "aspp.project.1."),
    )
