"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from segfast import _native


@pytest.fixture(params=_native.instruction_sets() or ["none compiled"])
def instruction_set(request: pytest.FixtureRequest, compiled_kernels: None) -> Iterator[str]:
    """The test runs once with each that was compiled and runs here."""
    with _native.use_instruction_set(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _poisoned(poisoned_empty: None) -> None:
    """Fresh memory holds NaN, and a kernel that runs past the end of its scratch memory dies."""
