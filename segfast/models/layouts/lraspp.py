"""Published keys of LR-ASPP -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.mobilenet import V3

LAYOUTS = {"torchvision": Rules(*V3)}
