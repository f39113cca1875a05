"""Published keys of FC-DenseNets -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules

LAYOUTS = {
    "tiramisu": Rules(
        (r"^firstconv\.", "first."),
        (r"^denseBlocks(Down|Up)\.(\d)\.layers\.", lambda m: f"{m[1].lower()}.{m[2]}."),
        (r"^bottleneck\.bottleneck\.layers\.", "bottom."),
        (r"^transDownBlocks\.", "shrink."),
        (r"^transUpBlocks\.(\d)\.convTrans\.", r"enlarge.\1."),
        (r"\.norm\.", ".0."),
        (r"\.conv\.", ".2."),
        (r"^finalConv\.", "classifier."),
    )
}
