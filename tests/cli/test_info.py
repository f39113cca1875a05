"""`segfast info`: the facts of segfast.info(), readable and as JSON."""

from __future__ import annotations

import json
import sys

import pytest

import segfast
from segfast.cli.info import readable
from tests.cli.conftest import Run


def test_json_is_info(run: Run) -> None:
    assert json.loads(run("info", "--json").out) == json.loads(json.dumps(segfast.info()))


def test_readable_names_every_fact(run: Run) -> None:
    printed = run("info").out
    for name, value in segfast.info().items():
        assert name.replace("_", " ") in printed
        if isinstance(value, str):
            assert value in printed
    assert "dense crf" in printed


def test_kernels_need_triton(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    outcome = run("info", "--kernels")
    assert outcome.code == 2
    assert "triton is not installed: pip install triton" in outcome.err


def test_readable_layout() -> None:
    facts = {"a_b": 1, "longer": None, "many": ["x", "y"], "none": [], "in": {"deep": "z"}}
    assert readable(facts) == [
        "a b     1",
        "longer  none",
        "many    x, y",
        "none    none",
        "in",
        "  deep  z",
    ]
