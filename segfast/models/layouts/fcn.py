"""Published keys of FCNs -> ours: Caffe's layers, in backbone, classifier, head and heads."""

from __future__ import annotations

from segfast.models._keys import Rules, Substitution
from segfast.models.layouts.caffe import BLOBS, GOOGLENET

HEADS: tuple[Substitution, ...] = (
    (r"^(upscore|score)(\w*)_sem\.", r"\1\2."),  # SIFT Flow's two heads
    (r"^(upscore|score)(\w*)_geo\.", r"heads.geometric.\1\2."),
    (r"^(?=upscore|score)", "head."),
    (r"\.upscore(8|16|32)\.", ".upscore."),
)

LAYERS: tuple[Substitution, ...] = (
    *BLOBS,
    (r"^conv1_1_bgrd\.", "conv1_1."),  # NYUDv2's with depth
    (r"^(?=conv\d)", "backbone."),
    (r"^(?=fc[67]\.)", "classifier."),
    *HEADS,
)
CAFFE = Rules(
    *LAYERS,
    drop=(r"^scale_pool[34][./]",),  # constants, where all is trained at once
)
LAYOUTS = {"caffe": CAFFE, "wkentaro": CAFFE}
ALEXNET_LAYOUTS = {"caffe": CAFFE}
GOOGLENET_LAYOUTS = {"caffe": Rules(*BLOBS, *GOOGLENET, *HEADS)}
