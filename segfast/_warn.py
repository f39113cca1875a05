"""Warnings that point at the line of the user's program that led to them."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# Frames between the user and what warns: modules, raw operators, decorators.
OURS = frozenset({"segfast", "torch", "contextlib"})


def warn(message: str) -> None:
    """A UserWarning from the innermost line that is not in one of these packages."""
    frame: FrameType = sys._getframe(1)
    level = 2  # of the caller
    while _package(frame) in OURS and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]
