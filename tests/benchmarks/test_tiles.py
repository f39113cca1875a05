"""Timing other tiles: what is put into the tables, taken out again, and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="pip install 'segfast[triton]'")

from benchmarks import _tiles, tune
from benchmarks._tiles import TABLE, Entry
from segfast.kernels.dense_crf import triton_configurations as crf
from segfast.kernels.dilated_conv import triton_configurations as conv
from segfast.kernels.linear_attention import triton_configurations as attention


def tables() -> Any:
    return dict(attention.TABLE), dict(conv.TABLE), dict(conv.CONTEXT), crf.FILTER


def chosen(name: str) -> Any:
    """What a launcher would take for an entry."""
    operator, kernel, *_ = name.replace(",", "").split()
    if operator == "linear_attention":
        rows = int(name.split(" rows")[0].split()[-1])
        return attention.choose(kernel, "bfloat16", rows, (9, 0))
    if operator == "dense_crf":
        return crf.choose(int(name.split()[2].split("x")[0]))
    if kernel == "context":
        return conv.CONTEXT["bfloat16"][0]
    return conv.cut(kernel, "bfloat16", (conv.Product(64, 64, 9, 512),), 132).configuration


@pytest.mark.parametrize("name", _tiles.entries("cpu"))
def test_an_entry_is_where_the_launcher_looks(name: str) -> None:
    entry, before = _tiles.entries("cpu")[name], tables()
    assert len(entry.candidates) >= 6
    labels = set()
    for label, tile in entry.candidates.items():
        with _tiles.using(entry, label):
            found = chosen(name)
        values = [getattr(found, field) for field in found.__dataclass_fields__]
        assert set(tile if isinstance(tile, tuple) else vars(tile).values()) <= set(values)
        labels.add(str(found))
    assert len(labels) == len(entry.candidates)
    assert tables() == before


def test_tables_are_as_before_when_a_job_fails() -> None:
    entry, before = next(iter(_tiles.entries("cpu").values())), tables()
    inside = []

    def job() -> None:
        with _tiles.using(entry, next(iter(entry.candidates))):
            inside.append(tables())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        job()
    assert inside[0] != before
    assert tables() == before


# ------------------------------------------------------------------------------------- the timing


class Machine:
    """Results and times by what is in the table."""

    def __init__(self) -> None:
        self.tile: Any = None
        self.results = {None: 1.0, "good": 1.001, "wrong": 1.5, "nan": float("nan")}
        self.times = {None: 2.0, "good": 1.0}

    def job(self) -> list[Tensor]:
        if self.tile == "large":
            raise RuntimeError("out of resources: shared memory\nmore")
        return [torch.ones(2), torch.full((3,), self.results[self.tile]), torch.ones(2)]

    def time(self, job: Callable[[], Any]) -> float:
        job()
        return self.times[self.tile]

    def put(self, tile: Any) -> None:
        self.tile = tile


def test_what_is_right_is_timed_and_the_rest_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine()
    labels = ("good", "wrong", "nan", "large")
    entry = Entry("filter", dict(zip(labels, labels, strict=True)), machine.put, machine.job)
    found = _tiles.tune(entry, machine.time)
    assert found == {
        TABLE: 2.0,
        "good": 1.0,
        "wrong": "0.5 off",
        "nan": "nan off",
        "large": "out of resources: shared memory",
    }
    assert machine.tile is None
    assert _tiles.line("filter", found) == "filter: 2 ms; good 0.500"
    assert _tiles.line("filter", {TABLE: None, "good": None}) == "filter: not timed"


def test_tune_needs_a_gpu_for_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as stop:
        tune.main(["--tiles"])
    assert stop.value.code == 2
    assert "--tiles needs a GPU" in capsys.readouterr().err
