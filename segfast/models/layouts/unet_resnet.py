"""Published keys of U-Nets on ResNets -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.resnet import SMP

LAYOUTS = {
    "smp": Rules(
        *SMP,
        (
            r"^decoder\.blocks\.(\d)\.conv([12])\.",
            lambda m: f"blocks.{m[1]}.{int(m[2]) - 1}.",
        ),
        (r"^segmentation_head\.0\.", "classifier."),
    )
}
