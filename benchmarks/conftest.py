"""Lets ``pytest benchmarks/<op>.py`` import its neighbours, sets threads, keeps results."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Sets PyTorch's threads for one test; skips what this machine cannot run."""
    wanted, before = int(request.param), torch.get_num_threads()
    if wanted > (os.cpu_count() or 1):
        pytest.skip(f"needs {wanted} cores, this machine has {os.cpu_count()}")
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest-benchmark's own wrapper
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    """Drops the benchmark that was interrupted before its first round had ended.

    pytest-benchmark trips over its empty statistics and would then write no JSON at all.
    """
    if (benchmarks := getattr(session.config, "_benchmarksession", None)) is not None:
        benchmarks.benchmarks[:] = [each for each in benchmarks.benchmarks if each.stats.data]
    return (yield)
