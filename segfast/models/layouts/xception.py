"""Published keys of aligned Xceptions -> `backbone.` and ours."""

from __future__ import annotations

import re

from segfast.models._keys import Substitution

PARTS = {"conv1.": "0.0.", "bn.": "0.bn.", "pointwise.": "0.1.", None: "1."}


def _convolution(m: re.Match[str]) -> str:
    """`rep` holds convolution, norm, ReLU three times; some blocks have a ReLU before."""
    return f"backbone.block{m[1]}.convs.{int(m[2]) // 3}.{PARTS[m[3]]}"


JFZHANG: tuple[Substitution, ...] = (
    (r"^backbone\.block(\d+)\.rep\.(\d)\.(conv1\.|bn\.|pointwise\.)?", _convolution),
    (r"^backbone\.(block\d+)\.skip\.", r"backbone.\1.skip.0."),
    (r"^backbone\.(block\d+)\.skipbn\.", r"backbone.\1.skip.1."),
    (r"^backbone\.conv([345])\.conv1\.", r"backbone.conv\1.0.0."),
    (r"^backbone\.conv([345])\.bn\.", r"backbone.conv\1.0.bn."),
    (r"^backbone\.conv([345])\.pointwise\.", r"backbone.conv\1.0.1."),
    (r"^backbone\.bn([345])\.", r"backbone.conv\1.1."),
    (r"^backbone\.conv([12])\.", lambda m: f"backbone.stem.{3 * int(m[1]) - 3}."),
    (r"^backbone\.bn([12])\.", lambda m: f"backbone.stem.{3 * int(m[1]) - 2}."),
)
