"""Published keys of HRNets -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules, Substitution
from segfast.models.layouts.resnet import MMSEG_HEADS

BACKBONE: Substitution = (r"^(conv[12]|bn[12]|layer1|transition\d|stage\d)\.", r"backbone.\1.")

LAYOUTS = {
    "official": Rules(BACKBONE, (r"^last_layer\.", "classifier.")),
    "mmseg": Rules(
        *MMSEG_HEADS,
        (r"^decode_head\.convs\.0\.", "classifier."),
        (r"^decode_head\.conv_seg\.", "classifier.3."),
    ),
}

_BLOCK = r"^ocr_distri_head\.object_context_block\."
OCR_LAYOUTS = {
    "official": Rules(
        BACKBONE,
        (r"^aux_head\.", "aux_classifier."),
        (r"^conv3x3_ocr\.", "reduce."),
        # two convolutions, each with a norm that is the first of two modules
        *(
            (rf"{_BLOCK}f_{name}\.{theirs}\.", f"context.{name}.{ours}.")
            for name in ("pixel", "object")
            for theirs, ours in ((r"0", "0.0"), (r"1\.0", "0.1"), (r"2", "1.0"), (r"3\.0", "1.1"))
        ),
        (rf"{_BLOCK}f_(down|up)\.0\.", r"context.\1.0."),
        (rf"{_BLOCK}f_(down|up)\.1\.0\.", r"context.\1.1."),
        (r"^ocr_distri_head\.conv_bn_dropout\.0\.", "context.project.0."),
        (r"^ocr_distri_head\.conv_bn_dropout\.1\.0\.", "context.project.1."),
        (r"^cls_head\.", "classifier."),
    )
}
