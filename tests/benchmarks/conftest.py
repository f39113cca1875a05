"""Lets the tests import `benchmarks` from the checkout (installed it is `segfast.benchmarks`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

Bench = Callable[[str, str], tuple[list[dict[str, Any]], str, str]]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """From a benchmark to its report, as CI does: an operator's rows, the table, what was printed.

    Rows are chosen by a part of their names; they are gated and timed.
    """
    for module in ("pytest_benchmark", "matplotlib"):
        pytest.importorskip(module)
    from benchmarks import report

    def run(operator: str, rows: str) -> tuple[list[dict[str, Any]], str, str]:
        path = tmp_path / "result.json"
        command = [sys.executable, "-m", "segfast", "bench", operator, "-k", rows, "-q"]
        command += ["-p", "no:cacheprovider", f"--benchmark-json={path}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert report.main([str(path)]) == 0
        return report.load(path), path.with_suffix(".md").read_text(), done.stdout

    return run
