"""Published keys of ABCNet -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules

LIRONUI = Rules(
    (r"^cp\.resnet\.", "backbone."),
    (r"\.conv\.weight$", ".0.weight"),
    (r"\.bn\.", ".1."),
)
LAYOUTS = {"lironui": LIRONUI, "geoseg": LIRONUI}
