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
    if not shown:
        assert printed.err == ""
        return
    assert all(part in printed.err for part in ("refining", "1/2", "image"))
    assert "".join(printed.err.rsplit("\r", 2)[-2:]).strip() == ""  # wiped in the end
