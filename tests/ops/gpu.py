"""What the tests of GPU kernels are skipped by."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch


def marks(there: bool, otherwise: str) -> list[pytest.MarkDecorator]:
    """Of a module whose kernels are `there`, or else not for that reason."""
    gpu = torch.cuda.is_available()
    reason = otherwise if gpu else "no CUDA device"
    return [pytest.mark.cuda, pytest.mark.skipif(not (gpu and there), reason=reason)]


TRITON = marks(find_spec("triton") is not None, "triton is not installed")
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
