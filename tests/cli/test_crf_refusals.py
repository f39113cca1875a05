"""`segfast crf` refuses options, paths and folders; failures midway leave nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segfast.cli import crf, files, main
from tests.cli.conftest import SMALL, Scene

Refuse = Callable[..., str]


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--iterations", "-1"), "--iterations must be at least 0, got -1"),
        (("--iterations", "2.5"), "argument --iterations: invalid int value"),
        (("--spatial-sigma", "0"), "--spatial-sigma must be positive and finite"),
        (("--bilateral-sigma", "-3"), "--bilateral-sigma must be positive and finite"),
        (("--color-sigma", "nan"), "--color-sigma must be positive and finite"),
        (("--color-sigma", "0"), "--color-sigma must be positive and finite"),
        (("--spatial-weight", "inf"), "--spatial-weight must be finite"),
        (("--bilateral-weight", "nan"), "--bilateral-weight must be finite"),
        (("--tolerance", "-1"), "tolerance must be finite and not negative"),
        (("--method", "fast"), "argument --method: invalid choice"),
        (("--spatial", "fft"), "argument --spatial: invalid choice"),
        (("--normalization", "l2"), "argument --normalization: invalid choice"),
        (("--preset", "deeplab"), "argument --preset: invalid choice"),
        (("--input", "energies"), "argument --input: invalid choice"),
        (("--input", "probs"), "--input probs expects .npy or .npz"),
        (("--layout", "LHW"), "--layout is for --input probs"),
        (("--key", "labels"), "--key is for arrays in a .npz, got"),
        (("--confidence", "0"), "--confidence must lie in (1/L, 1)"),
        (("--confidence", "1"), "--confidence must lie in (1/L, 1)"),
        (("--confidence", "nan"), "--confidence must lie in (1/L, 1)"),
        (("--confidence", "0.4"), "must lie in (1/L, 1) = (0.5, 1) with 2 labels"),
        (("--scribble-penalty", "3"), "--scribble-penalty needs --scribbles"),
        (("--scribbles", "--scribble-penalty", "0"), "--scribble-penalty must be positive"),
        (("--scribbles", "--scribble-penalty", "nan"), "--scribble-penalty must be positive"),
        (("--scribbles", "--confidence", "0.9"), "with --scribbles use --scribble-penalty"),
        (("--unknown", "black"), "--unknown must be auto, none, a value (255), or a colour"),
        (("--unknown", "1,2"), "--unknown must be"),
        (("--unknown", "0,0,256"), "--unknown must be"),
        (("--unknown", "#12"), "--unknown must be"),
        (("--num-labels", "0"), "expected a whole number of at least 1, got 0"),
        (("--num-labels", "65537"), "--num-labels must be at most 65536, got 65537"),
        (("--max-pixels", "many"), "expected a whole number of at least 1, got many"),
        (("--max-pixels", "139"), "14 x 10 = 140 pixels, more than the 139 allowed"),
        (("--spatial-sig", "3"), "unrecognized arguments: --spatial-sig"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("--save-probs", "p.png"), "--save-probs must end in .npy or .npz"),
        (("--overlay", "o.jpg"), "--overlay must end in .png"),
        (("--steps", "s.npy"), "--steps must end in .png"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, tuple) else "",
)
def test_options(refuse: Refuse, scene: Scene, options: tuple[str, ...], message: str) -> None:
    before = scene.before()
    assert message in refuse("crf", scene.photo, scene.labels, "-o", scene.out, *options)
    assert scene.before() == before


def uniform(scene: Scene) -> Path:
    path = scene.folder / "net.npy"
    np.save(path, np.full((2, 10, 14), 0.5, np.float32))
    return path


@pytest.mark.parametrize(
    "option", [("--unknown", "3"), ("--num-labels", "2"), ("--confidence", "0.7"), ("--scribbles",)]
)
def test_label_map_options_with_arrays(refuse: Refuse, scene: Scene, option: tuple[str]) -> None:
    path = uniform(scene)
    error = refuse("crf", scene.photo, path, "-o", scene.out, "--input", "probs", *option)
    assert f"{option[0]} is for label maps, not for --input probs" in error


@pytest.mark.parametrize("missing", [(), ("-o", "out.png"), ("photo.png", "-o", "out.png")])
def test_arguments_are_required(refuse: Refuse, missing: tuple[str, ...]) -> None:
    assert "the following arguments are required" in refuse("crf", *missing)


# --- paths --------------------------------------------------------------------------------------


def test_inputs_must_exist(refuse: Refuse, scene: Scene) -> None:
    nowhere = scene.folder / "nowhere.png"
    assert "nowhere.png does not exist" in refuse("crf", nowhere, scene.labels, "-o", scene.out)
    assert "nowhere.png does not exist" in refuse("crf", scene.photo, nowhere, "-o", scene.out)
    error = refuse("crf", scene.photo, scene.folder, "-o", scene.out)
    assert "LABELS is a folder and IMAGE is a file" in error


def forbid(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Opening ``path``, or anything inside it, is not permitted (root would be: so by hand)."""
    usual = Path.open

    def guarded(self: Path, *args: Any, **kwargs: Any) -> Any:
        if path in (self, *self.parents):
            raise PermissionError(13, "Permission denied", str(self))
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)


def test_unreadable_file(refuse: Refuse, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, scene.photo)
    error = refuse("crf", scene.photo, scene.labels, "-o", scene.out)
    assert f"cannot read {scene.photo}: Permission denied" in error


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("out.jpg", "OUT must end in .png, .npy or .npz"),
        ("out", "OUT must end in .png, .npy or .npz"),
        ("nowhere/out.png", "nowhere does not exist"),
        ("photo.png/out.png", "photo.png does not exist"),
        ("photo.png", "photo.png is an input; --force"),
        ("labels.png", "labels.png is an input; --force"),
        (".", "labels.png is an input; --force"),
        (f"{'long' * 100}.png", "File name too long"),
        ("folder.png", "labels.png"),
    ],
)
def test_output_paths(refuse: Refuse, scene: Scene, out: str, message: str) -> None:
    if out == "folder.png":  # a folder: the result would be folder.png/labels.png, a folder too
        (scene.folder / "folder.png" / "labels.png").mkdir(parents=True)
    before = scene.before()
    assert message in refuse("crf", scene.photo, scene.labels, "-o", scene.folder / out)
    assert scene.before() == before


def test_output_that_is_an_input_under_another_name(refuse: Refuse, scene: Scene) -> None:
    link = scene.folder / "link.png"
    link.symlink_to(scene.labels)
    assert "is an input" in refuse("crf", scene.photo, scene.labels, "-o", link)
    assert "is an input" in refuse(
        "crf", scene.photo, scene.labels, "-o", scene.out, "--overlay", scene.photo
    )


def test_results_must_not_collide(refuse: Refuse, scene: Scene) -> None:
    error = refuse("crf", scene.photo, scene.labels, "-o", scene.out, "--steps", scene.out)
    assert "two results would be written to" in error


def test_output_folder_without_permission(
    refuse: Refuse, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = scene.folder / "locked"
    locked.mkdir()
    forbid(monkeypatch, locked)
    error = refuse("crf", scene.photo, scene.labels, "-o", locked / "out.png")
    assert f"cannot write {locked / 'out.png'}: Permission denied" in error


# --- nothing half-written -----------------------------------------------------------------------


def test_a_failing_write_leaves_what_was_there(
    refuse: Refuse, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the second of two results is written."""
    scene.out.write_text("the old result")
    before = scene.before()

    def full(path: Path, *_: Any) -> files.Writer:
        def write(file: Any) -> None:
            file.write(b"half of")
            raise OSError(28, "No space left on device")

        return write

    monkeypatch.setattr(crf, "array_writer", full)
    probs = scene.folder / "probs.npy"
    options = ("-o", scene.out, *SMALL, "--save-probs", probs)
    error = refuse("crf", scene.photo, scene.labels, *options)
    assert f"cannot write {probs}: No space left on device" in error
    assert scene.out.read_text() == "the old result"
    assert scene.before() == before


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "not enough memory for 2 labels on 14 x 10"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "not enough memory"),
        (ValueError("logits are odd"), 2, "logits are odd"),
    ],
)
def test_a_failing_computation_leaves_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    failure: BaseException, code: int, message: str,
) -> None:  # fmt: skip
    def fail(*_: Any, **__: Any) -> torch.Tensor:
        raise failure

    monkeypatch.setattr(crf, "mean_field", fail)
    before = scene.before()
    assert main(["crf", str(scene.photo), str(scene.labels), "-o", str(scene.out)]) == code
    assert message in capsys.readouterr().err
    assert scene.before() == before


def test_a_bug_is_not_hidden(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(crf, "mean_field", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["crf", str(scene.photo), str(scene.labels), "-o", str(scene.out)])


def test_too_many_maps_to_show(
    refuse: Refuse, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crf, "MAX_STEP_BYTES", 1 << 10)
    steps = scene.folder / "steps.png"
    error = refuse("crf", scene.photo, scene.labels, "-o", scene.out, "--steps", steps)
    assert "use fewer --iterations or a smaller image" in error


# --- folders ------------------------------------------------------------------------------------


@pytest.fixture
def pair(scene: Scene) -> tuple[Path, Path, Path]:
    images, labels = scene.folder / "images", scene.folder / "maps"
    images.mkdir()
    labels.mkdir()
    for name in "ab":
        Image.fromarray(scene.pixels).save(images / f"{name}.png")
        Image.fromarray(scene.noisy).save(labels / f"{name}.png")
    return images, labels, scene.folder / "results"


@pytest.mark.parametrize(
    ("option", "name"),
    [("-o", "OUT"), ("--overlay", "--overlay"), ("--save-probs", "--save-probs")],
)
@pytest.mark.parametrize("file", ["result.png", "result.npz"])
def test_a_file_name_for_a_folder_of_results(
    refuse: Refuse, scene: Scene, pair: tuple[Path, Path, Path], option: str, name: str, file: str
) -> None:
    images, labels, results = pair
    out = {"-o": results} | {option: scene.folder / file}
    arguments = [each for item in out.items() for each in item]
    assert f"{name} must be a folder" in refuse("crf", images, labels, *arguments)
    assert not (scene.folder / file).exists()


def test_folder_problems(refuse: Refuse, scene: Scene, pair: tuple[Path, Path, Path]) -> None:
    images, labels, results = pair
    base = ("crf", images, labels, "-o", results)
    assert "IMAGE is a folder and LABELS is a file" in refuse(
        "crf", images, scene.labels, "-o", results
    )
    (labels / "b.png").rename(labels / "c.png")
    error = refuse(*base)
    assert "maps has no partner for b.png" in error
    assert "images has no partner for c.png" in error
    (labels / "a.png").rename(labels / "d.png")
    assert "has a partner in" in refuse(*base, "--skip-missing")
    (images / "a.jpg").write_bytes(b"")
    assert "holds both a.jpg and a.png" in refuse(*base)
    (images / "a.jpg").unlink()
    empty = scene.folder / "empty"
    empty.mkdir()
    assert "no images in" in refuse("crf", empty, labels, "-o", results)
    assert "no label maps in" in refuse("crf", images, empty, "-o", results)
    assert not results.exists()


def test_one_bad_pair_stops_all(
    refuse: Refuse, scene: Scene, pair: tuple[Path, Path, Path]
) -> None:
    images, labels, results = pair
    Image.fromarray(scene.noisy.T).save(labels / "b.png")
    before = scene.before()
    assert "b.png is 10 x 14 but" in refuse("crf", images, labels, "-o", results)
    assert scene.before() == before


def test_folder_outputs(refuse: Refuse, scene: Scene, pair: tuple[Path, Path, Path]) -> None:
    images, labels, _ = pair
    assert "is an input; --force" in refuse("crf", images, labels, "-o", labels)
    error = refuse("crf", images, labels, "-o", scene.photo)
    assert "photo.png: it is a file, expected a folder" in error
    error = refuse("crf", images, labels, "-o", scene.folder / "no" / "where")
    assert "no does not exist" in error


# --- extras -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "package"), [("PIL", "Pillow"), ("tqdm", "tqdm")])
def test_missing_extra(
    refuse: Refuse, scene: Scene, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    for name in list(sys.modules):
        if name == module or name.startswith(f"{module}."):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    error = refuse("crf", scene.photo, scene.labels, "-o", scene.out)
    assert f"{package} is not installed: pip install {package} " in error
