"""`segfast bench`: finds the benchmarks, passes arguments on, says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import segfast
from segfast.cli import bench
from tests.cli.conftest import Run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if segfast were installed in a folder without benchmarks, and the user were there."""
    package = tmp_path / "site-packages" / "segfast"
    package.mkdir(parents=True)
    monkeypatch.setattr(segfast, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda _: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    made: list[list[str]] = []

    def call(command: list[str]) -> int:
        made.append(command)
        return 5

    monkeypatch.setattr(subprocess, "call", call)
    return made


def test_operators_are_listed(run: Run, elsewhere: Path) -> None:
    folder = elsewhere / "benchmarks"
    folder.mkdir()
    for name in ("dense_crf", "report", "_check"):  # report is no operator
        (folder / f"{name}.py").write_text("")
    assert run("bench").out == "dense_crf\n"


@pytest.mark.parametrize("beside", [True, False])
def test_arguments_are_passed_on(
    run: Run, elsewhere: Path, calls: list[list[str]], beside: bool
) -> None:
    pytest.importorskip("pytest_benchmark")
    folder = elsewhere / "site-packages" / "benchmarks" if beside else elsewhere / "benchmarks"
    folder.mkdir()
    (folder / "dense_crf.py").write_text("")
    outcome = run("bench", "dense_crf", "-k", "lattice", "--benchmark-json", "a b.json")
    assert outcome.code == 5  # pytest's own
    script = str(folder / "dense_crf.py")
    arguments = ["-k", "lattice", "--benchmark-json", "a b.json"]
    assert calls == [[sys.executable, "-m", "pytest", script, *arguments]]


def test_nothing_to_run(run: Run, elsewhere: Path) -> None:
    outcome = run("bench", "dense_crf")
    assert outcome.code == 2
    assert "the benchmarks are not in this installation" in outcome.err


def test_unknown_operator(run: Run, elsewhere: Path, calls: list[list[str]]) -> None:
    (elsewhere / "benchmarks").mkdir()
    (elsewhere / "benchmarks" / "dense_crf.py").write_text("")
    outcome = run("bench", "convolution")
    assert (outcome.code, calls) == (2, [])
    assert "no benchmark named convolution; there are: dense_crf" in outcome.err


def test_missing_plugin(
    run: Run, elsewhere: Path, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "benchmarks").mkdir()
    (elsewhere / "benchmarks" / "dense_crf.py").write_text("")
    monkeypatch.setitem(sys.modules, "pytest_benchmark", None)
    outcome = run("bench", "dense_crf")
    assert (outcome.code, calls) == (2, [])
    assert "pytest-benchmark is not installed: pip install pytest-benchmark" in outcome.err
