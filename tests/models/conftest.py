"""Networks of small images run on one thread."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def small_networks(one_thread: None) -> None:
    """Kernels at any number of threads are tested in tests/ops and tests/kernels."""
