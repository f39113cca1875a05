"""Jobs of `benchmarks.tune --tiles` by Triton's interpreter, in small: they run, and agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import _tiles

SMALL = {
    "ATTENTION": (("softplus", (2, 5, 33, 70)), ("taylor", (1, 8, 40, 130))),
    "CONVOLUTIONS": (
        ("dense", 1, 24, 16, 9, (2, 5)),
        ("grad_weight", 2, 24, 16, 9, (2,)),
        ("context", 1, 16, 16, 7, (1, 2)),
    ),
    "FILTERS": ((3, (9, 14)),),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for table, rows in SMALL.items():
        monkeypatch.setattr(_tiles, table, rows)


def once(job: Callable[[], Any]) -> float:
    job()
    return 1.0


def test_jobs_run_and_agree() -> None:
    """With two other tiles each, from both ends of the candidates."""
    entries = _tiles.entries("cpu")
    assert len(entries) == 12 + 3 + 1
    for entry in entries.values():
        labels = list(entry.candidates)
        few = {label: entry.candidates[label] for label in (labels[0], labels[-1])}
        found = _tiles.tune(_tiles.Entry(entry.name, few, entry.put, entry.job), once)
        told = {"too large for one launch"} if "context" in entry.name else set()
        assert found[labels[0]] == 1.0
        assert set(found.values()) <= {1.0} | told, found
