"""Published keys of DeepLab v1 and v2 on residual networks -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.resnet import DEEPLAB_PYTORCH

LAYOUTS = {
    "deeplab-pytorch": Rules(*DEEPLAB_PYTORCH, (r"^(aspp|fc)\.", "classifier.")),
}
