"""Published keys of DeepLab v3's pyramid -> segfast.nn.ASPP's, under `aspp.`"""

from __future__ import annotations

from segfast.models._keys import Substitution
from segfast.models.layouts.resnet import MMSEG_HEADS

MMSEG: tuple[Substitution, ...] = (
    *MMSEG_HEADS,
    (r"\.depthwise_conv\.0\.", ".0.0."),
    (r"\.depthwise_conv\.1\.", ".0.bn."),
    (r"\.pointwise_conv\.0\.", ".0.1."),
    (r"\.pointwise_conv\.1\.", ".1."),
    (r"^decode_head\.aspp_modules\.", "aspp.convs."),
    (r"^decode_head\.image_pool\.1\.0\.", "aspp.convs.4.1."),
    (r"^decode_head\.image_pool\.1\.1\.", "aspp.convs.4.2."),
    (r"^decode_head\.bottleneck\.", "aspp.project."),
)
DEEPLAB_PYTORCH: tuple[Substitution, ...] = (
    (r"^aspp\.stages\.c(\d)\.conv\.", r"aspp.convs.\1.0."),
    (r"^aspp\.stages\.c(\d)\.bn\.", r"aspp.convs.\1.1."),
    (r"^aspp\.stages\.imagepool\.conv\.conv\.", "aspp.convs.4.1."),
    (r"^aspp\.stages\.imagepool\.conv\.bn\.", "aspp.convs.4.2."),
    (r"^fc1\.conv\.", "aspp.project.0."),
    (r"^fc1\.bn\.", "aspp.project.1."),
)
JFZHANG: tuple[Substitution, ...] = (
    (r"^aspp\.aspp(\d)\.atrous_conv\.", lambda m: f"aspp.convs.{int(m[1]) - 1}.0."),
    (r"^aspp\.aspp(\d)\.bn\.", lambda m: f"aspp.convs.{int(m[1]) - 1}.1."),
    (r"^aspp\.global_avg_pool\.", "aspp.convs.4."),
    (r"^aspp\.conv1\.", "aspp.project.0."),
    (r"^aspp\.bn1\.", "aspp.project.1."),
)
