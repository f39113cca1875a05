"""Published keys of RefineNets -> ours. Levels count from 1, the deepest, and so do units."""

from __future__ import annotations

import re

from segfast.models._keys import Rules

PARTS = {  # theirs, with the level's number -> ours
    r"p_ims1d2_outl(\d)_dimred": "reduce",
    r"adapt_stage(\d)_b\.0": "adapt",
    r"adapt_stage(\d)_b2_joint_varout_dimred": "join",
    r"mflow_conv_g(\d)_pool\.0": "pool.convs",
    r"mflow_conv_g(\d)_b\.0": "out",
    r"mflow_conv_g(\d)_b3_joint_varout_dimred": "onward",
}


def _counted(match: re.Match[str]) -> str:
    """2_conv, 2_conv_relu_varout_dimred, 2_outvar_dimred -> 1.0, 1.1, 1"""
    conv = {"_conv": ".0", "_conv_relu_varout_dimred": ".1", "_outvar_dimred": ""}[match[2]]
    return f".{int(match[1]) - 1}{conv}."


LAYOUTS = {
    "official": Rules(
        (r"^(conv1|bn1|layer\d)\.", r"backbone.\1."),
        *(
            (rf"^{theirs}\.", lambda m, ours=ours: f"levels.{int(m[1]) - 1}.{ours}.")
            for theirs, ours in PARTS.items()
        ),
        (r"\.(\d)(_conv_relu_varout_dimred|_conv|_outvar_dimred)\.", _counted),
        (r"^clf_conv\.", "classifier."),
    )
}
