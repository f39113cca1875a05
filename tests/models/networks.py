"""Every network that is compared with its published code: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Golden(NamedTuple):
    """What tests/data/ holds of a published network, and how ours is built.

    Attributes:
        published: the files' name.
        model: name for `create_model`.
        params: learned numbers of the published network.
        options: for `create_model`: what differs from the name's defaults.
        at_input_size: the published output is at the size of the input, else at its own stride.
    """

    published: str
    model: str
    params: int
    options: Mapping[str, Any] = {}
    at_input_size: bool = False


GOLDEN = (
    Golden("torchvision_fcn_resnet50", "fcn_resnet50", 35_322_218, at_input_size=True),
    Golden(
        "torchvision_lraspp_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large",
        3_221_538,
        at_input_size=True,
    ),
)
