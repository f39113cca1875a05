"""Published keys of MANet -> ours."""

from __future__ import annotations

from segfast.models._keys import AS_IT_IS, Rules
from segfast.models.layouts.resnet import LIRONUI

LAYOUTS = {"lironui": Rules(*LIRONUI), "geoseg": AS_IT_IS}
