"""Published keys of U-Nets -> ours: enc.i from the top, up.i and dec.i from the bottom, head."""

from __future__ import annotations

from segfast.models._keys import Rules, Substitution
from segfast.models.layouts.resnet import MMSEG_HEADS

_MILESIAL = Rules(
    (r"^inc\.double_conv\.", "enc.0."),
    (r"^down(\d)\.maxpool_conv\.1\.double_conv\.", r"enc.\1."),
    (r"^up(\d)\.up\.", lambda m: f"up.{int(m[1]) - 1}.0."),
    (r"^up(\d)\.conv\.double_conv\.", lambda m: f"dec.{int(m[1]) - 1}."),
    (r"^outc\.conv\.", "head."),
)
_UP: Substitution = (r"^up\.(\d)\.(weight|bias)$", r"up.\1.0.\2")

LAYOUTS = {
    "paper": Rules(_UP),
    "released": Rules(_UP),
    "milesial": _MILESIAL,
    "milesial_bilinear": _MILESIAL,
    "mateuszbuda": Rules(
        (r"^encoder(\d)\.", lambda m: f"enc.{int(m[1]) - 1}."),
        (r"^bottleneck\.", "enc.4."),
        (r"^upconv(\d)\.", lambda m: f"up.{4 - int(m[1])}.0."),
        (r"^decoder(\d)\.", lambda m: f"dec.{4 - int(m[1])}."),
        (r"\.(?:enc\d|dec\d|bottleneck)conv(\d)\.", lambda m: f".{3 * int(m[1]) - 3}."),
        (r"\.(?:enc\d|dec\d|bottleneck)norm(\d)\.", lambda m: f".{3 * int(m[1]) - 2}."),
        (r"^conv\.", "head."),
    ),
    "mmseg": Rules(
        (
            r"^backbone\.encoder\.(\d)\.\d\.convs\.(\d)\.(conv|bn)\.",
            lambda m: f"enc.{m[1]}.{3 * int(m[2]) + (m[3] == 'bn')}.",
        ),
        (
            r"^backbone\.decoder\.(\d)\.conv_block\.convs\.(\d)\.(conv|bn)\.",
            lambda m: f"dec.{3 - int(m[1])}.{3 * int(m[2]) + (m[3] == 'bn')}.",
        ),
        (
            r"^backbone\.decoder\.(\d)\.upsample\.interp_upsample\.1\.(conv|bn)\.",
            lambda m: f"up.{3 - int(m[1])}.{1 + (m[2] == 'bn')}.",
        ),
        *MMSEG_HEADS,
        (r"^aux_classifier\.", "aux_head."),
        (r"^decode_head\.convs\.0\.", "head_conv."),
        (r"^decode_head\.conv_seg\.", "head."),
    ),
}
