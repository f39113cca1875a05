"""Published keys of semantic FPNs -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.resnet import SMP

LAYOUTS = {
    "mmseg": Rules(
        (r"^neck\.lateral_convs\.(\d)\.conv\.", r"lateral.\1."),
        (r"^neck\.fpn_convs\.(\d)\.conv\.", r"smooth.\1."),
        # every other module of a level enlarges
        (
            r"^decode_head\.scale_heads\.(\d)\.(\d)\.",
            lambda m: f"heads.{m[1]}.convs.{int(m[2]) // 2}.",
        ),
        (r"\.conv\.", ".0."),
        (r"\.bn\.", ".1."),
        (r"^decode_head\.conv_seg\.", "classifier.1."),
    ),
    "smp": Rules(
        *SMP,
        (r"^decoder\.p5\.", "lateral.3."),
        (r"^decoder\.p([234])\.skip_conv\.", lambda m: f"lateral.{int(m[1]) - 2}."),
        (
            r"^decoder\.seg_blocks\.(\d)\.block\.(\d)\.block\.",
            lambda m: f"heads.{3 - int(m[1])}.convs.{m[2]}.",
        ),
        (r"^segmentation_head\.0\.", "classifier.1."),
    ),
}
