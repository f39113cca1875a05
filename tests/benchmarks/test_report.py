"""The report: what it says about a good file, and how it refuses a bad one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report


def provider(name: str, ms: float, ratio: float, served_by: str, **more: Any) -> dict[str, Any]:
    spread = {"ms_q20": 0.9 * ms, "ms_q80": 1.1 * ms, "ratio_q20": 0.9 * ratio}
    rates = {"pixels_per_s": 187.5e6 / ms, "gb_per_s": 4.2, "gpairs_per_s": None}
    parts = {"setup_ms": 12.0, "iteration_ms": 7.5, "peak_mb": 33.0, "ratio_q80": 1.1 * ratio}
    row = {"name": name, "ms": ms, "ratio": ratio, "served_by": served_by}
    return row | spread | rates | parts | more


def fixture() -> dict[str, Any]:
    """What pytest-benchmark writes, reduced to what matters here."""
    row = {
        "operator": "dense_crf",
        "workload": "voc",
        "labels": 21,
        "height": 375,
        "width": 500,
        "iterations": 10,
        "threads": 2,
        "copy_gb_s": 42.0,
        "load_average": 0.4,
        "gates": [{"name": "a against b", "max_abs": 1e-7, "limit": 1e-5}],
        "absent": {"otherdensecrf": "not installed here (pip install otherdensecrf)"},
        "providers": [
            provider("segfast", 52.5, 1.0, "lattice_cpu.cpp (avx512)"),
            provider("pydensecrf", 400.0, 7.62, "pydensecrf2 1.1", peak_mb=None),
        ],
        "targets": [
            {"peer": "pydensecrf", "of": "time", "at_least": 6.0, "measured": 7.62, "met": True},
            {"peer": "pydensecrf", "of": "memory", "at_least": 2.0, "measured": 1.5, "met": False},
            {"peer": "absentee", "of": "time", "at_least": 2.0, "measured": None, "met": None},
        ],
        "cpu": "A Processor 9000",
        "cores": 2,
        "os": "Linux",
        "instruction_set": "avx512",
        "versions": {"segfast": "0.1.0", "torch": "2.13.0", "pydensecrf": None},
        "commit": "0123456789abcdef",
        "date": "2026-11-20T10:00:00+00:00",
    }
    return {"benchmarks": [{"name": "test_dense_crf[voc-2t]", "extra_info": row}]}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "dense_crf.json"
    path.write_text(json.dumps(fixture()))
    return path


@pytest.mark.parametrize(("kind", "signature"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_writes_table_and_plot(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, signature: bytes
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "a folder" / "deep"
    assert report.main([str(good), "-o", str(out), "--format", kind]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["dense_crf.md", f"dense_crf.{kind}"]
    plot = (out / f"dense_crf.{kind}").read_bytes()
    assert plot.startswith(signature)
    assert len(plot) > 5000
    text = (out / "dense_crf.md").read_text()
    assert f"](dense_crf.{kind})" in text
    assert text in capsys.readouterr().out


def test_a_row_in_a_line(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(good), "--brief"]) == 0
    assert [p.name for p in good.parent.iterdir()] == ["dense_crf.json"]
    assert capsys.readouterr().out == (
        "voc, 2t: 52.5 ms (lattice_cpu.cpp (avx512)), 10 % of copy, pydensecrf 7.62x, "
        "pydensecrf memory (promised 2.0)\n"
    )
    row = fixture()["benchmarks"][0]["extra_info"]
    row["providers"][0]["device_ms"] = 40.0
    row["targets"] = [
        {"peer": "pydensecrf", "of": "time", "at_least": 9.0, "measured": 7.62, "met": False},
        {"peer": "", "of": "copy", "at_least": 0.8, "measured": 0.1, "met": False},
        {"peer": "", "of": "ms", "at_least": 3.0, "measured": 52.5, "met": False},
    ]
    assert report.brief(row) == (
        "voc, 2t: 52.5 ms, 40 on the GPU (promised 3.0) (lattice_cpu.cpp (avx512)), "
        "10 % of copy (promised 0.8), pydensecrf 7.62x (promised 9.0)"
    )


def test_table_says_all_that_was_measured(good: Path) -> None:
    text = report.markdown(report.load(good), "title", None)
    ours, theirs = (line for line in text.splitlines() if line.startswith("|") and " ms" not in line
                    and "---" not in line)  # fmt: skip
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells == [
        "voc (500x375x21, 10 it.)",
        "2",
        "segfast",
        "lattice_cpu.cpp (avx512)",
        "52.5 (47.2-57.8)",
        "12 + 7.5",
        "3.57",
        "4.2 GB/s (10 % of copy)",
        "33",
        "1",
    ]
    cells = [cell.strip() for cell in theirs.strip("|").split("|")]
    assert cells[2:5] == ["pydensecrf", "pydensecrf2 1.1", "400 (360-440)"]
    assert cells[-2:] == ["-", "7.62 (6.86-8.38)"]  # memory that was not measured is a dash
    for fact in ("A Processor 9000", "avx512", "torch 2.13.0", "0123456789abcdef", "otherdensecrf"):
        assert fact in text
    assert "pydensecrf None" not in text


def test_promises_are_judged(good: Path) -> None:
    met, missed, unknown = report.promises(report.load(good)).splitlines()
    assert "7.62x ours" in met
    assert met.endswith("promised >= 6x: **met**")
    assert missed.endswith("promised >= 2x: **MISSED**")
    assert unknown.endswith("**not measured**")


def test_what_only_some_benchmarks_measure_is_left_out(good: Path) -> None:
    """No column of dashes; sizes, notes and promises as the benchmark words them."""
    content = fixture()
    row = content["benchmarks"][0]["extra_info"]
    for each in row["providers"]:
        each |= {"iteration_ms": None, "pixels_per_s": None}
    row |= {"size": "1x64x360x480", "notes": "A note of its own."}
    copy = {"peer": "", "of": "copy", "at_least": 0.6, "measured": 0.55, "met": False}
    row["targets"] = [copy]
    good.write_text(json.dumps(content))
    text = report.markdown(report.load(good), "title", None)
    assert "set-up" not in text
    assert "Mpixel/s" not in text
    assert "| peak MB |" in text
    assert "voc (1x64x360x480, 10 it.)" in text
    assert "A note of its own." in text
    assert "copy: 0.55 of the copy bandwidth, promised >= 0.6: **MISSED**" in text


def test_details_are_in_the_table_not_in_the_plot(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    rows = report.load(good)
    detail = {**rows[0], "workload": "level5", "detail": True}
    assert "level5" in report.table([*rows, detail])
    report.draw([*rows, detail], "title", tmp_path / "plot.png")
    (axes,) = pyplot.gcf().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["voc, 2 thr."]


def test_without_matplotlib_the_table_is_still_written(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.main([str(good)]) == 0
    assert "pip install matplotlib" in capsys.readouterr().err
    assert "![" not in (good.parent / "dense_crf.md").read_text()  # no link to a plot that is not


def without(*keys: str) -> str:
    content = fixture()
    target = content["benchmarks"][0]["extra_info"]
    for key in keys[:-1]:
        target = target[key] if key != "first" else target[0]
    del target[keys[-1]]
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"", "is empty"),
        (b"{broken", "is not JSON"),
        (b"\xff\xfe\x00", "is not text"),
        (b"[1, 2]", "no list named 'benchmarks'"),
        (b'{"benchmarks": 3}', "no list named 'benchmarks'"),
        (b'{"benchmarks": []}', "holds 0 benchmarks"),
        (b'{"benchmarks": [{"extra_info": {}}]}', "none with providers"),
        (without("threads").encode(), "lacks ['threads']"),
        (without("providers", "first", "ms").encode(), "lacks name, ms, served_by"),
    ],
)
def test_refuses_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    path, out = tmp_path / "file.json", tmp_path / "out"
    if content is not None:
        path.write_bytes(content)
    assert report.main([str(path), "-o", str(out)]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert str(path) in complaint
    assert not out.exists()


def test_says_when_it_cannot_write(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(good), "-o", str(good / "inside")]) == 2  # a file is no folder
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.03951, "0.0395"),
        (7.62, "7.62"),
        (99.96, "100"),
        (12345.6, "12346"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_from_the_benchmark_to_the_report(bench: Any) -> None:
    """The smallest real benchmark, its JSON, its table: the columns meet in the middle."""
    pytest.importorskip("skimage")
    (row,), text, printed = bench("dense_crf", "small-filter")
    assert "segfast-filter" in printed  # the row with its peers is printed as it is measured
    for name in ("segfast-filter", "torch-filter", "torch-filter-tuned"):
        assert f"| {name} " in text
    for key in ("ms", "pixels_per_s", "peak_mb", "ratio", "served_by", "versions", "cpu", "commit"):
        assert key in row
    assert row["ratio"].keys() == {"torch-filter", "torch-filter-tuned"}
    assert {gate["name"].split()[0] for gate in row["gates"]} == row["ratio"].keys() | {
        "segfast-filter"
    }
