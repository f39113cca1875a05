"""Published keys of DeepLab v3+ -> ours: backbone, aspp, reduce, decoder, classifier."""

from __future__ import annotations

from segfast.models._keys import Rules, Substitution
from segfast.models.layouts import aspp, mobilenet, resnet, xception

JFZHANG: tuple[Substitution, ...] = (
    *aspp.JFZHANG,
    (r"^decoder\.conv1\.", "reduce.0."),
    (r"^decoder\.bn1\.", "reduce.1."),
    (r"^decoder\.last_conv\.([01])\.", r"decoder.0.\1."),
    (r"^decoder\.last_conv\.4\.", "decoder.1.0."),
    (r"^decoder\.last_conv\.5\.", "decoder.1.1."),
    (r"^decoder\.last_conv\.8\.", "classifier."),
)

LAYOUTS = {
    "jfzhang": Rules(*JFZHANG),
    "deeplab-pytorch": Rules(
        *resnet.DEEPLAB_PYTORCH,
        *aspp.DEEPLAB_PYTORCH,
        (r"^reduce\.conv\.", "reduce.0."),
        (r"^reduce\.bn\.", "reduce.1."),
        (r"^fc2\.conv([12])\.conv\.", lambda m: f"decoder.{int(m[1]) - 1}.0."),
        (r"^fc2\.conv([12])\.bn\.", lambda m: f"decoder.{int(m[1]) - 1}.1."),
        (r"^fc2\.conv3\.", "classifier."),
    ),
    "mmseg": Rules(
        *resnet.MMSEG,
        *aspp.MMSEG,
        (r"^decode_head\.c1_bottleneck\.", "reduce."),
        (r"^decode_head\.sep_bottleneck\.", "decoder."),
        (r"^decode_head\.conv_seg\.", "classifier."),
    ),
    "smp": Rules(
        *resnet.SMP,
        (r"^decoder\.aspp\.0\.", "aspp."),
        (r"^decoder\.aspp\.1\.", "refine.0."),
        (r"^decoder\.aspp\.2\.", "refine.1."),
        (r"^decoder\.block1\.", "reduce."),
        (r"^decoder\.block2\.", "decoder.0."),
        (r"^segmentation_head\.0\.", "classifier."),
    ),
}
XCEPTION = {"jfzhang": Rules(*xception.JFZHANG, *JFZHANG)}
MOBILENET_V2 = {
    "jfzhang": Rules(*mobilenet.JFZHANG_V2, *JFZHANG, drop=(mobilenet.JFZHANG_V2_TWICE,)),
    "smp": LAYOUTS["smp"],
}
