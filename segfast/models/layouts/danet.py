"""Published keys of DANets -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.resnet import MMSEG_HEADS

_MMSEG_ATTENTION = {
    "pam": "position",
    "cam": "channel",
}

LAYOUTS = {
    "official": Rules(
        (r"^pretrained\.", "backbone."),
        (r"^head\.conv5a\.", "branches.position.conv_in."),
        (r"^head\.conv5c\.", "branches.channel.conv_in."),
        (r"^head\.sa\.", "branches.position.attention."),
        (r"^head\.sc\.", "branches.channel.attention."),
        (r"^head\.conv51\.", "branches.position.conv_out."),
        (r"^head\.conv52\.", "branches.channel.conv_out."),
        (r"^head\.conv6\.", "branches.position.scores."),
        (r"^head\.conv7\.", "branches.channel.scores."),
        (r"^head\.conv8\.", "classifier."),
    ),
    "mmseg": Rules(
        *MMSEG_HEADS,
        *(
            rule
            for theirs, ours in _MMSEG_ATTENTION.items()
            for rule in (
                (rf"^decode_head\.{theirs}_in_conv\.", f"branches.{ours}.conv_in."),
                (rf"^decode_head\.{theirs}_out_conv\.", f"branches.{ours}.conv_out."),
                (rf"^decode_head\.{theirs}_conv_seg\.", f"branches.{ours}.scores.1."),
                (rf"^decode_head\.{theirs}\.", f"branches.{ours}.attention."),
            )
        ),
        (r"\.(query|key|value)_project\.", r".\1_conv."),
        (r"\.gamma\.scale$", ".gamma"),
        (r"^decode_head\.conv_seg\.", "classifier.1."),
    ),
}
