"""Lets the tests import `benchmarks` from the checkout (installed it is `segfast.benchmarks`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segfast.cli import main as segfast

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

Bench = Callable[[str, str], tuple[list[dict[str, Any]], str, str]]


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Bench:
    """From a benchmark to its report, as CI does: an operator's rows, the table, what was printed.

    Rows are chosen by a part of their names; they are gated and timed, in a process of their own.
    """
    for module in ("pytest_benchmark", "matplotlib"):
        pytest.importorskip(module)
    from benchmarks import report

    def run(operator: str, rows: str) -> tuple[list[dict[str, Any]], str, str]:
        path = tmp_path / "result.json"
        options = ["-q", "-p", "no:cacheprovider", f"--benchmark-json={path}"]
        monkeypatch.chdir(ROOT)
        code = segfast(["bench", operator, "-k", rows, *options])
        said = capfd.readouterr()
        assert code == 0, said.out + said.err
        assert report.main([str(path)]) == 0
        return report.load(path), path.with_suffix(".md").read_text(), said.out

    return run
