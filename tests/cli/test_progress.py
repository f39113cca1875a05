"""The bar appears after a second, on a terminal, and goes away."""

from __future__ import annotations

import sys
import time

import pytest

from segfast.cli.progress import progress


@pytest.mark.parametrize(
    ("terminal", "seconds", "shown"), [(True, 1.6, True), (False, 1.2, False), (True, 0, False)]
)
def test_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool,
    seconds: float, shown: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress(2, "image") as advance:
        advance()
        time.sleep(seconds)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("refining" in printed.err and "1/2" in printed.err and "image" in printed.err) == shown
    last = printed.err.rsplit("\r", 2)[-2:]
    assert "".join(last).strip() == ""  # the line is wiped in the end
