"""The command itself: codes, one-line errors, warnings, and the ways to start it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest

import segfast
from segfast.cli import main
from tests.cli.conftest import Run


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"segfast {segfast.__version__}\n"
    for arguments in (
        ("--help",),
        ("crf", "--help"),
        ("demo", "-h"),
        ("bench", "-h"),
        ("info", "-h"),
    ):
        outcome = run(*arguments)
        assert outcome.code == 0
        assert outcome.out.startswith("usage: segfast")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("segment",), "invalid choice: 'segment'"),
        (("info", "--loud"), "unrecognized arguments: --loud"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.startswith("segfast: error: ")
    assert outcome.err.count("\n") == 1


def test_warnings_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: Any) -> list[str]:
        warnings.warn("two\n  lines", stacklevel=1)
        return []

    monkeypatch.setattr("segfast.cli.info.readable", warn)
    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("info").err == "segfast: warning: two lines\n"
    assert warnings.showwarning is shown


def test_no_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> list[str]:
        raise MemoryError

    monkeypatch.setattr("segfast.cli.info.readable", exhausted)
    outcome = run("info")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "not enough memory" in outcome.err


def test_python_m_segfast_and_a_reader_that_leaves() -> None:
    """`segfast --help | head -1`: no traceback when the reader of stdout has gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "segfast", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, b"")


def test_main_takes_the_process_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["segfast", "--version"])
    assert main() == 0
    assert segfast.__version__ in capsys.readouterr().out
