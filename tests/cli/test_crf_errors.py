"""`segfast crf` refuses: exit code 2, one line that names what is wrong, nothing left on disk."""

from __future__ import annotations

import contextlib
import io
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segfast.cli import main
from tests.cli.conftest import SMALL, Scene

Refuse = Callable[..., str]


def arrays(scene: Scene, array: np.ndarray, name: str = "net.npy") -> Path:
    path = scene.folder / name
    (np.save if name.endswith(".npy") else np.savez)(path, array)
    return path


def halves(count: int = 2, dtype: str = "float32") -> np.ndarray:
    """[L, 10, 14] probabilities."""
    return np.full((count, 10, 14), 1 / count, dtype)


# --- broken files -------------------------------------------------------------------------------


def huge_png() -> bytes:
    """A valid header that promises 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    chunk = struct.pack(">I", len(header)) + body + struct.pack(">I", zlib.crc32(body))
    data = zlib.compress(b"\0" * 1000)
    idat = (
        struct.pack(">I", len(data))
        + b"IDAT"
        + data
        + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    )
    return b"\x89PNG\r\n\x1a\n" + chunk + idat


def animated_png() -> bytes:
    frames = [Image.new("L", (14, 10), grey) for grey in (0, 1)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    return file.getvalue()


def float_tiff() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((10, 14), np.float32)).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("which", ["photo", "labels"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (b"this is no picture", "is not a readable image (expected PNG"),
        ("half", "is damaged or truncated"),
        ("flipped", "is damaged or truncated"),
        (huge_png(), "60000 x 60000 = 3600000000 pixels, more than the 50000000 allowed"),
        (animated_png(), "holds 2 pictures, expected one"),
        (float_tiff(), "mode F"),
    ],
    ids=["empty", "text", "truncated", "flipped", "bomb", "animated", "float"],
)
def test_broken_pictures(
    refuse: Refuse, scene: Scene, which: str, content: bytes | str, message: str
) -> None:
    path: Path = getattr(scene, which)
    whole = path.read_bytes()
    if content == "half":
        content = whole[: len(whole) - 30]
    elif content == "flipped":
        at = whole.index(b"IDAT") + 8
        content = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
    path.write_bytes(content)
    before = scene.before()
    error = refuse("crf", scene.photo, scene.labels, "-o", scene.out)
    assert path.name in error
    assert message in error
    assert scene.before() == before


def pickled(file: io.BytesIO) -> None:
    np.save(file, np.array([{"not": "plain"}], dtype=object), allow_pickle=True)


def records(file: io.BytesIO) -> None:
    np.save(file, np.zeros((2, 10, 14), dtype=[("x", "f4")]))


def promises(shape: tuple[int, ...]) -> Callable[[io.BytesIO], None]:
    def write(file: io.BytesIO) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"\0" * 64)

    return write


BROKEN_ARRAYS: list[tuple[str, Callable[[io.BytesIO], Any], str]] = [
    ("empty", lambda file: None, "is empty (0 bytes)"),
    ("text", lambda file: file.write(b"no array here"), "is damaged, truncated or not a"),
    ("pickle", pickled, "expected plain numbers, no Python objects, records or text"),
    ("records", records, "expected plain numbers, no Python objects, records or text"),
    ("truncated", promises((2, 10, 14)), "is damaged, truncated or not a"),
    ("bomb", promises((2, 100000, 100000)), "claims 20000000000 numbers"),
]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("write", "message"), [case[1:] for case in BROKEN_ARRAYS], ids=[c[0] for c in BROKEN_ARRAYS]
)
def test_broken_arrays(
    refuse: Refuse, scene: Scene, suffix: str, write: Callable[[io.BytesIO], Any], message: str
) -> None:
    content = io.BytesIO()
    write(content)
    path = scene.folder / f"net{suffix}"
    if suffix == ".npy" or not content.getvalue():
        path.write_bytes(content.getvalue())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("scores.npy", content.getvalue())
    before = scene.before()
    error = refuse("crf", scene.photo, path, "-o", scene.out, "--input", "logits")
    assert path.name in error
    assert message in error
    assert scene.before() == before


@settings(max_examples=150)
@given(st.sampled_from(["png", "jpg", "npy", "npz"]), st.data())
def test_any_damage_is_a_message(kind: str, data: st.DataObject) -> None:
    """Bytes changed, cut off or added anywhere: a result or one line, never a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        labels, options = scene.labels, []
        if kind == "jpg":
            scene.photo = scene.folder / "photo.jpg"
            Image.fromarray(scene.pixels).save(scene.photo)
        elif kind != "png":
            labels = arrays(scene, np.log(with_value(0.9)), f"net.{kind}")
            options = ["--input", "logits"]
        victim = scene.photo if kind == "jpg" else labels
        content = bytearray(victim.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] = data.draw(st.integers(0, 255))
        end = data.draw(st.just(len(content)) | st.integers(0, len(content) + 3))
        victim.write_bytes(bytes(content[:end]).ljust(end, b"?"))
        before = scene.before()
        arguments = [
            str(x) for x in ("crf", scene.photo, labels, "-o", scene.out, *SMALL, *options)
        ]
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main(arguments)
        assert code in (0, 2)
        lines = errors.getvalue().splitlines()  # a warning may come before
        assert all(line.startswith("segfast: ") for line in lines)
        assert [line for line in lines if "error: " in line] == lines[-1:] * (code == 2)
        assert scene.before() == (before if code == 2 else before | {"out.png"})


# --- what the arrays hold -----------------------------------------------------------------------


def with_value(value: float) -> np.ndarray:
    planes = halves()
    planes[1, 4, 3] = value
    return planes


@pytest.mark.parametrize(
    ("kind", "planes", "message"),
    [
        ("probs", with_value(np.nan), "holds nan at label 1, x 3, y 4; expected probs that are "
         "finite in float32"),
        ("logits", with_value(np.inf), "holds inf at label 1, x 3, y 4; expected logits that are "),
        ("logits", with_value(1.0).astype(float) * 1e300, "holds 5e+299 at label 0, x 0, y 0"),
        ("logits", with_value(-np.inf), "holds -inf at label 1, x 3, y 4"),
        ("probs", with_value(0.9), "probabilities must sum to 1 over labels, got 1.4 at x 3, y 4"),
        ("probs", halves() / 2, "probabilities must sum to 1 over labels, got 0.5"),
        ("probs", with_value(-2.0), "expected probabilities in [0, 1]; pass --input logits"),
        ("probs", with_value(7.0), "values from 0.5 to 7, expected probabilities in [0, 1]"),
        ("logits", halves(), "looks like probabilities"),
        ("logits", halves(3, "float16"), "pass --input probs"),
        ("probs", halves().astype(np.uint8), "holds uint8, expected floating-point probs"),
        ("logits", halves().astype(complex), "holds complex128; expected plain numbers"),
        ("logits", halves()[:, :9], "shape (2, 9, 14), expected [L, 10, 14] or [10, 14, L] for an "
         "image 14 wide and 10 high"),
        ("logits", halves()[0, :9], "shape (9, 14), expected [L, 10, 14] or [10, 14, L]"),
        ("probs", halves()[0] + 1, "values from 1.5 to 1.5, expected probabilities in [0, 1]"),
        ("logits", np.zeros((65537, 10, 14), np.float16), "65537 labels are more than the 65536"),
        ("logits", halves()[:0], "shape (0, 10, 14)"),
        ("logits", halves()[None, None], "shape (1, 1, 2, 10, 14)"),
    ],
)  # fmt: skip
def test_array_contents(
    refuse: Refuse, scene: Scene, kind: str, planes: np.ndarray, message: str
) -> None:
    path = arrays(scene, planes)
    error = refuse("crf", scene.photo, path, "-o", scene.out, "--input", kind)
    assert "net.npy" in error or "labels are more" in error
    assert message in error
    assert not scene.out.exists()


def test_array_must_say_what_it_holds(refuse: Refuse, scene: Scene) -> None:
    for name in ("net.npy", "net.npz"):
        error = refuse("crf", scene.photo, arrays(scene, halves(), name), "-o", scene.out)
        assert "say --input probs or --input logits" in error


def test_ambiguous_layout(refuse: Refuse, scene: Scene) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(scene.photo)
    path = arrays(scene, np.zeros((5, 5, 5), np.float32))
    error = refuse("crf", scene.photo, path, "-o", scene.out, "--input", "logits")
    assert "both [L, H, W] and [H, W, L] for a 5 x 5 image: pass --layout" in error


def test_stated_layout_is_checked(refuse: Refuse, scene: Scene) -> None:
    path = arrays(scene, halves())
    options = ("--input", "logits", "--layout", "HWL")
    error = refuse("crf", scene.photo, path, "-o", scene.out, *options)
    assert "shape (2, 10, 14), expected [10, 14, L] for" in error


def test_key_of_an_archive(refuse: Refuse, scene: Scene) -> None:
    path = scene.folder / "net.npz"
    np.savez(path, scores=halves(), other=halves())
    base = ("crf", scene.photo, path, "-o", scene.out, "--input", "logits")
    assert "holds 2 arrays (scores, other): choose one with --key" in refuse(*base)
    assert "no array named x; it holds scores, other" in refuse(*base, "--key", "x")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((10, 14), -3), "labels -3 to -3, out of range: expected 0 to 65535"),
        (np.full((10, 14), 70000), "labels 70000 to 70000, out of range"),
        (np.zeros((10, 14)), "holds float64 of shape (10, 14); expected an integer label map"),
        (np.zeros((10, 14, 3), int), "holds int64 of shape (10, 14, 3)"),
    ],
)
def test_label_arrays(refuse: Refuse, scene: Scene, array: np.ndarray, message: str) -> None:
    assert message in refuse("crf", scene.photo, arrays(scene, array), "-o", scene.out)


# --- label maps ---------------------------------------------------------------------------------


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def mostly(value: int, other: int) -> np.ndarray:
    labels = np.full((10, 14), value, np.uint8)
    labels[:5] = other
    return labels


def cut_out() -> np.ndarray:
    """A red object on what is transparent."""
    pixels = np.zeros((10, 14, 4), np.uint8)
    pixels[:, 7:] = (255, 0, 0, 255)
    return pixels


def soft_edge() -> np.ndarray:
    return np.linspace(0, 255, 14).astype(np.uint8)[None].repeat(10, 0)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.zeros((14, 10), np.uint8), (), "is 10 x 14 but"),
        (mostly(0, 2), ("--num-labels", 2), "holds label 2, out of range: --num-labels 2 expects "
         "0 to 1"),
        (mostly(0, 255), ("--unknown", 255), "one label only (0) beside unknown pixels: nothing "
         "to choose from. If the unknown value is a label too, pass --unknown none"),
        (mostly(1, 255), (), "one label only (1) beside unknown pixels"),
        (cut_out(), (), "one label only (#ff0000) beside unknown pixels: nothing to choose from. "
         "What is transparent is unknown: give it a colour of its own"),
        (soft_edge(), (), "looks like a mask with soft edges (12 values between 0 and 255): "
         "threshold it, or save it / 255 as .npy for --input probs"),
        (mostly(255, 255), (), "labels no pixel"),
        (mostly(0, 0), ("--scribbles",), "labels no pixel"),
        (mostly(0, 1), ("--scribbles",), "one label only (1)"),
        (noise(10, 14, 3), (), "140 distinct colours"),
        (np.arange(140).reshape(10, 14).astype(np.uint16) * 300, (), "140 distinct values"),
        (mostly(0, 1), ("--confidence", 0.5), "must lie in (1/L, 1) = (0.5, 1) with 2 labels"),
        (mostly(0, 1), ("--unknown", "1,2,3"), "needs a value such as 255 for --unknown"),
        (noise(1, 14, 3).repeat(10, 0), ("--unknown", 3), "needs a colour such as 0,0,0"),
        (noise(1, 14, 3).repeat(10, 0), ("--num-labels", 3), "is colour-coded"),
    ],
)  # fmt: skip
def test_label_maps(
    refuse: Refuse, scene: Scene, monkeypatch: pytest.MonkeyPatch, labels: np.ndarray,
    options: tuple[Any, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("segfast.cli.labels.MAX_VALUES", 100)  # fits tiny maps
    Image.fromarray(labels).save(scene.labels)
    error = refuse("crf", scene.photo, scene.labels, "-o", scene.out, *options)
    assert "labels.png" in error or "--confidence" in error
    assert message in error
    assert not scene.out.exists()


def test_jpeg_is_no_label_map(refuse: Refuse, scene: Scene) -> None:
    path = scene.folder / "labels.jpg"
    Image.fromarray(scene.noisy).save(path)
    assert "is a JPEG" in refuse("crf", scene.photo, path, "-o", scene.out)
