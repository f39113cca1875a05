"""`segfast models`: names, and what is known of one."""

from __future__ import annotations

import json

import pytest

from segfast.models import list_models, model_info
from tests.cli.conftest import Run


def test_names(run: Run) -> None:
    assert run("models").out.split() == list_models()
    assert json.loads(run("models", "fcn_*", "--json").out) == ["fcn_resnet101", "fcn_resnet50"]


def test_one_model(run: Run) -> None:
    info = model_info("segnet_basic", size=(360, 480))
    facts = json.loads(run("models", "segnet_basic", "--size", "360x480", "--json").out)
    assert facts["size"] == [360, 480]
    assert facts["parameters"] == info.parameters == 1_416_587
    assert facts["macs"] == info.macs
    assert facts["receptive_field"] == 196
    assert facts["operators"] == ["max_unpool"]
    assert facts["preprocessing"] == {
        "channels": "BGR", "scale": 255.0, "mean": [0, 0, 0], "std": [1, 1, 1],
    }  # fmt: skip
    printed = run("models", "segnet_basic").out
    assert "512 x 512" in printed
    assert "BGR" in printed
    assert "1416587" in printed
    assert info.source in printed


def test_a_model_that_sees_all(run: Run) -> None:
    facts = json.loads(run("models", "manet_resnet50", "--json").out)
    assert facts["receptive_field"] is None
    assert facts["preprocessing"] is None
    printed = run("models", "manet_resnet50").out
    assert "the whole image" in printed
    assert "not published" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing*",), "no model is called 'nothing*' (none is near; `segfast models` lists all)"),
        (("segnett",), "no model is called 'segnett' (segnet, "),
        (("segnet", "--size", "0x3"), "expected HEIGHTxWIDTH, such as 512x1024; got '0x3'"),
        (("segnet", "--size", "512"), "got '512'"),
        (("segnet*", "--size", "64x64"), "--size is for all that is known of one model, not"),
        (("--size", "64x64"), "not for lists and tables"),
        (("unet", "--markdown", "--size", "64x64"), "not for lists and tables"),
        (("unet", "--markdown", "--json"), "--json: not allowed with argument --markdown"),
        (("deconvnet", "--size", "64x64"), "--size must be at least 193 x 193 for a DeconvNet"),
    ],
)
def test_refusals(run: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("models", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
