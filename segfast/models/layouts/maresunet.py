"""Published keys of MAResU-Net -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.resnet import LIRONUI

LAYOUTS = {"lironui": Rules(*LIRONUI)}
