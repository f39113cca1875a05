"""`segfast demo`: the traced truth, the noisy job made from it, and what is told."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segfast.cli import demo, main
from segfast.cli.files import UserError
from tests.cli.conftest import Run

pytest.importorskip("skimage")

# --- truth --------------------------------------------------------------------------------------


def contains(polygon: list[list[float]], x: float, y: float) -> bool:
    """Even-odd rule for one point, one ray to the left."""
    odd = False
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (y0 > y) != (y1 > y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            odd = not odd
    return odd


@given(st.lists(st.tuples(st.integers(-3, 15), st.integers(-3, 12)), min_size=3, max_size=8))
def test_inside(corners: list[tuple[int, int]]) -> None:
    polygon = [[x + 0.25, y + 0.125] for x, y in corners]  # no vertex on a pixel's centre line
    expected = [[contains(polygon, x + 0.5, y + 0.5) for x in range(12)] for y in range(9)]
    np.testing.assert_array_equal(demo.inside(polygon, (9, 12)), expected)


def test_inside_a_rectangle() -> None:
    mask = demo.inside([[2, 1], [5, 1], [5, 3], [2, 3]], (4, 7))
    assert np.argwhere(mask).tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4)]


def test_scene_is_well_formed() -> None:
    scene = demo.load_scene()
    truth = demo.rasterize(scene)
    assert truth.shape == (400, 600)
    assert len(scene["colors"]) == len(scene["labels"]) == 5
    assert np.bincount(truth.ravel(), minlength=5).min() > 5000  # every label is there
    for region in scene["regions"]:
        corners = np.array(region["polygon"])
        assert corners.min() >= 0
        assert (corners <= [600, 400]).all()
        assert len(corners) >= 20


def test_polygons_follow_the_edges_of_the_photo() -> None:
    """Colour changes across the traced outline, and less across the same outline moved."""
    scene = demo.load_scene()
    photo, truth = demo.load_photo(scene).astype(float), demo.rasterize(scene)

    def contrast(labels: np.ndarray) -> float:
        steps = []
        for axis in (0, 1):
            color = np.abs(np.diff(photo, axis=axis)).sum(-1)
            steps.append(color[np.diff(labels, axis=axis) != 0])
        return float(np.concatenate(steps).mean())

    here = contrast(truth)
    for shift in ((3, 0), (-3, 0), (0, 3), (0, -3)):
        assert here > 1.5 * contrast(np.roll(truth, shift, axis=(0, 1)))


def test_coarsen() -> None:
    truth = demo.rasterize(demo.load_scene())
    coarse = demo.coarsen(truth, 5)
    np.testing.assert_array_equal(coarse, demo.coarsen(truth, 5))  # a fixed seed
    blocks = coarse.reshape(50, 8, 75, 8)
    assert (blocks == blocks[:, :1, :, :1]).all()
    majority = np.stack([(truth.reshape(50, 8, 75, 8) == k).sum((1, 3)) for k in range(5)])
    wrong = (blocks[:, 0, :, 0] != majority.argmax(0)).mean()
    assert abs(wrong - 0.25) < 4 * np.sqrt(0.25 * 0.75 / (50 * 75))  # four standard deviations
    ragged = demo.coarsen(truth[:397, :595], 5)
    assert ragged.shape == (397, 595)


def test_ious() -> None:
    labels, truth = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
    assert demo.ious(labels, truth, 3) == [1 / 2, 2 / 3, 0]


def test_race_takes_turns_and_stops_when_enough() -> None:
    calls: list[str] = []

    def work(name: str) -> Any:
        return lambda: calls.append(name) or len(calls)

    seconds, results = demo.race({"a": work("a"), "b": work("b")}, rounds=3)
    assert calls == ["a", "b"] * 3
    assert results == {"a": 5, "b": 6}
    assert seconds.keys() == {"a", "b"}
    assert min(seconds.values()) >= 0
    demo.race({"a": work("a")}, rounds=3, enough=0)
    assert len(calls) == 7


def test_on_one_thread() -> None:
    before = torch.get_num_threads()
    assert demo.on_one_thread(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == before


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("some where") / "demo-output"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(demo, "race", once)
        assert main(["demo", "--output", str(folder), "--json"]) == 0
    return folder, json.loads(out.getvalue())


def once(works: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    return dict.fromkeys(works, 0.25), {name: work() for name, work in works.items()}


def test_demo_refines(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = finished
    scene = demo.load_scene()
    truth = demo.rasterize(scene)
    maps = {name: np.array(Image.open(folder / f"{name}.png")) for name in ("coarse", "refined")}
    for name, when in (("coarse", "before"), ("refined", "after")):
        np.testing.assert_array_equal(np.array(Image.open(folder / "truth.png")), truth)
        assert facts[f"accuracy_{when}"] == (maps[name] == truth).mean()
        scores = demo.ious(maps[name], truth, 5)
        assert list(facts[f"iou_{when}"].values()) == scores
        assert facts[f"mean_iu_{when}"] == pytest.approx(np.mean(scores))
    assert facts["mean_iu_before"] == pytest.approx(0.474, abs=5e-4)  # the job is always the same
    # 0.767 here; the lattice's rounding may move single pixels elsewhere.
    assert facts["mean_iu_after"] == pytest.approx(0.767, abs=5e-3)
    assert all(facts["iou_after"][name] > facts["iou_before"][name] for name in scene["labels"])
    assert np.array(Image.open(folder / "photo.png")).tobytes() == demo.load_photo(scene).tobytes()
    assert Image.open(folder / "demo.png").size[0] > 4 * 600


def test_the_command_line_repeats_the_demo(
    run: Run, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = finished
    out = tmp_path / "mine.png"
    assert run("crf", folder / "photo.png", folder / "coarse.png", "-o", out).code == 0
    assert out.read_bytes() == (folder / "refined.png").read_bytes()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timed run each, on a photo a tenth as high."""
    monkeypatch.setattr(demo, "race", once)
    scene, photo = demo.load_scene(), demo.load_photo(demo.load_scene())
    monkeypatch.setattr(demo, "load_photo", lambda _: np.ascontiguousarray(photo[180:220]))
    truth = demo.rasterize(scene)
    monkeypatch.setattr(demo, "rasterize", lambda _: truth[180:220])


@pytest.mark.usefixtures("quick")
def test_readable_report(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pydensecrf.densecrf")
    outcome = run("demo", "--output", tmp_path / "out")
    assert outcome.code == 0
    for line in (
        "job      every 8 x 8 block gets its majority label, then 25% of the blocks a wrong one",
        "mean IU  0.",
        "time     0.250 s (median)",
        "peer     pydensecrf 0.250 s",
        "segfast is 1x as fast, 1x with one thread; same label on 9",
        "try      segfast crf",
    ):
        assert line in outcome.out


@pytest.mark.usefixtures("quick", "compiled_kernels")
def test_without_pydensecrf(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    outcome = run("demo", "--output", tmp_path / "out")
    assert "pydensecrf is not importable; the PyTorch reference on every 4th row" in outcome.out


@pytest.mark.usefixtures("quick")
def test_without_any_peer(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setattr(demo, "native", lambda: None)
    monkeypatch.setattr(demo, "why_not_native", lambda: "there is no compiler")
    outcome = run("demo", "--output", tmp_path / "out")
    assert "peer     none: the reference itself serves here: there is no compiler" in outcome.out
    assert "PyTorch reference" in outcome.out


def test_demo_refuses(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    outcome = run("demo", "--output", taken)
    assert outcome.code == 2
    assert "it is a file, expected a folder" in outcome.err
    scene = {**demo.load_scene(), "sha256": "0" * 64}
    with pytest.raises(UserError, match=r"is not the photo that was traced: expected 600 x 400"):
        demo.load_photo(scene)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    outcome = run("demo", "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "scikit-image is not installed: pip install scikit-image" in outcome.err
    assert not (tmp_path / "out").exists()
