"""Lets ``pytest benchmarks/<op>.py`` import its neighbours, and keeps results of a stopped run."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest-benchmark's own wrapper
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    """Drops the benchmark that was interrupted before its first round had ended.

    pytest-benchmark trips over its empty statistics and would then write no JSON at all.
    """
    if (benchmarks := getattr(session.config, "_benchmarksession", None)) is not None:
        benchmarks.benchmarks[:] = [each for each in benchmarks.benchmarks if each.stats.data]
    return (yield)
