"""From label maps, scribbles and arrays to logits, and back to a file of the same kind."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segfast.cli.files import UserError, write_all
from segfast.cli.images import label_map_writer, read_photo, voc_colors
from segfast.cli.labels import (
    UNKNOWN,
    VOID,
    label_logits,
    parse_unknown,
    read_map,
    read_planes,
    scribble_logits,
)

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def round_trip(pixels: np.ndarray, palette: list[int] | None, **options: object) -> np.ndarray:
    """Writes a label map, reads it, writes what was read, and reads that with Pillow."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.png"), Path(folder, "target.png")
        image = Image.fromarray(pixels)
        if palette is not None:
            image.putpalette(palette)
        image.save(source)
        indices, style = read_map(source, **options)  # type: ignore[arg-type]
        assert indices.min() >= 0
        write_all({target: label_map_writer(indices, style)})
        with Image.open(target) as result:
            assert result.mode == image.mode or (image.mode, result.mode) == (
                "I;16",
                "I",
            )  # Pillow 10
            if palette is not None:
                assert result.getpalette()[: len(palette)] == palette
            return np.array(result)


@given(SHAPES, st.data())
def test_grey_palette_and_sixteen_bit_maps_come_back(
    shape: tuple[int, int], data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(["uint8", "uint16"]))
    top = np.iinfo(dtype).max
    count = shape[0] * shape[1]
    values = data.draw(st.lists(st.integers(0, top), min_size=count, max_size=count))
    pixels = np.array(values, dtype).reshape(shape)
    palette = None
    if dtype == "uint8" and data.draw(st.booleans()):
        palette = voc_colors(np.arange(256)).ravel().tolist()
    np.testing.assert_array_equal(round_trip(pixels, palette, unknown="none"), pixels)


@given(SHAPES, st.data())
def test_colours_come_back(shape: tuple[int, int], data: st.DataObject) -> None:
    color = st.tuples(*[st.integers(0, 255)] * 3)
    colors = np.array(data.draw(st.lists(color, min_size=1, max_size=4)), np.uint8)
    count = shape[0] * shape[1]
    picks = data.draw(st.lists(st.integers(0, len(colors) - 1), min_size=count, max_size=count))
    pixels = colors[np.array(picks).reshape(shape)]
    np.testing.assert_array_equal(round_trip(pixels, None), pixels)


@given(SHAPES, st.integers(2, 6), st.data())
def test_label_logits(shape: tuple[int, int], count: int, data: st.DataObject) -> None:
    size = shape[0] * shape[1]
    labels = data.draw(st.lists(st.integers(-1, count - 1), min_size=size, max_size=size))
    indices = np.array(labels).reshape(shape)
    confidence = data.draw(st.floats(1 / count + 0.01, 0.99))
    belief = np.exp(label_logits(indices, count, confidence).astype(np.float64))
    # Rounding: float32 logarithms (2^-24 relative, |log| < 7).
    np.testing.assert_allclose(belief.sum(0), 1, rtol=1e-6)
    for y, x in np.ndindex(shape):
        expected = np.full(count, 1 / count)
        if indices[y, x] != UNKNOWN:
            expected[:] = (1 - confidence) / (count - 1)
            expected[indices[y, x]] = confidence
        np.testing.assert_allclose(belief[:, y, x], expected, rtol=1e-6)


def test_label_logits_are_pydensecrfs_unary() -> None:
    utils = pytest.importorskip("pydensecrf.utils")
    labels = np.random.default_rng(0).integers(0, 4, (5, 7))  # its 0 is unsure
    energy = utils.unary_from_labels(labels, 3, gt_prob=0.7, zero_unsure=True)
    ours = label_logits(labels - 1, 3, 0.7).reshape(3, -1)
    np.testing.assert_array_equal(-energy, ours)


def test_scribble_logits() -> None:
    indices = np.array([[0, 1, UNKNOWN]])
    logits = scribble_logits(indices, 2, 5.0)
    np.testing.assert_array_equal(logits, [[[0, -5, 0]], [[-5, 0, 0]]])
    assert np.isneginf(scribble_logits(indices, 2, float("inf"))).sum() == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("auto", "auto"), ("none", "none"), ("0", 0), ("65535", 65535), ("0,0,0", (0, 0, 0)),
        ("#ff8000", (255, 128, 0)),
    ],
)  # fmt: skip
def test_parse_unknown(text: str, value: object) -> None:
    assert parse_unknown(text) == value


@pytest.mark.parametrize("text", ["", "-1", "65536", "1,2,3,4", "256,0,0", "#ff80", "#gg0000"])
def test_parse_unknown_refuses(text: str) -> None:
    with pytest.raises(UserError, match="--unknown must be"):
        parse_unknown(text)


@given(st.tuples(st.integers(2, 6), st.integers(1, 6), st.integers(1, 6)), st.booleans())
def test_layout_is_told_by_the_shape_or_refused(shape: tuple[int, int, int], last: bool) -> None:
    count, height, width = shape
    planes = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    stored = planes.transpose(1, 2, 0) if last else planes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.npy")
        np.save(path, stored)
        layout = "HWL" if last else "LHW"
        told = read_planes(path, "logits", (height, width), layout=layout)
        np.testing.assert_array_equal(told.logits, planes)
        if count == height == width:
            with pytest.raises(UserError, match="pass --layout"):
                read_planes(path, "logits", (height, width))
        else:
            guessed = read_planes(path, "logits", (height, width))
            np.testing.assert_array_equal(guessed.logits, planes)
        np.testing.assert_array_equal(told.labels, planes.argmax(0))


def test_probabilities_become_their_logarithm(tmp_path: Path) -> None:
    probabilities = np.array([0.25, 0.75, 0.0]).reshape(3, 1, 1)
    np.save(tmp_path / "p.npy", probabilities)
    evidence = read_planes(tmp_path / "p.npy", "probs", (1, 1))
    expected = np.log([0.25, 0.75, 1e-5]).astype(np.float32)
    np.testing.assert_array_equal(evidence.logits.ravel(), expected)


@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 2), (2, 2, 1), (1, 1, 2, 2)], ids=str)
def test_a_single_plane_is_the_foreground_s(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A sigmoid network's p, or its score: softmax([0, z]) = [1 - sigmoid(z), sigmoid(z)]."""
    p = np.array([[0.2, 0.9], [0.5, 1.0]])
    np.save(tmp_path / "p.npy", p.reshape(shape))
    evidence = read_planes(tmp_path / "p.npy", "probs", (2, 2))
    expected = np.log(np.maximum([1 - p, p], 1e-5))
    np.testing.assert_allclose(evidence.logits, expected, rtol=1e-6)
    assert evidence.labels.tolist() == [[0, 1], [0, 1]]
    np.save(tmp_path / "z.npy", p.reshape(shape) - 0.6)
    evidence = read_planes(tmp_path / "z.npy", "logits", (2, 2))
    np.testing.assert_allclose(evidence.logits, [0 * p, p - 0.6], rtol=1e-6)


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    """With the values, or colours, that stand for its labels."""
    planes = np.full((2, 1, 3), 0.5, np.float32)
    for values in ([7, 12], [300, 2], [[1, 2, 3], [255, 0, 0]]):
        np.savez(tmp_path / "saved.npz", probabilities=planes, values=np.array(values))
        evidence = read_planes(tmp_path / "saved.npz", "probs", (1, 3))
        np.testing.assert_array_equal(evidence.style.values, values)
        chosen = read_planes(tmp_path / "saved.npz", "probs", (1, 3), key="probabilities")
        np.testing.assert_array_equal(chosen.style.values, values)
    for wrong in ([7, 7], [-1, 2], [0, 65536], [1, 2, 3], [0.5, 2], [[1, 2, 256], [0, 0, 0]]):
        np.savez(tmp_path / "saved.npz", probabilities=planes, values=np.array(wrong))
        with pytest.raises(UserError, match="holds values"):
            read_planes(tmp_path / "saved.npz", "probs", (1, 3))


def test_a_saved_single_label_stays_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", probabilities=np.ones((1, 2, 3)), values=np.array([3]))
    evidence = read_planes(tmp_path / "one.npz", "probs", (2, 3))
    assert evidence.style.values.tolist() == [3]
    assert evidence.logits.shape == (1, 2, 3)


def test_a_foreground_of_probabilities_is_no_logit(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([[0.25, 1.0]]))
    with pytest.raises(UserError, match=r"looks like probabilities \(they lie in \[0, 1\]\)"):
        read_planes(tmp_path / "p.npy", "logits", (1, 2))


def test_half_precision_sums_to_1_roughly(tmp_path: Path) -> None:
    for dtype, good in ((np.float16, True), (np.float32, False)):
        np.save(tmp_path / "p.npy", np.array([0.5, 0.505], dtype).reshape(2, 1, 1))
        if good:
            read_planes(tmp_path / "p.npy", "probs", (1, 1))
        else:
            with pytest.raises(UserError, match=r"must sum to 1 over labels, got 1\.005"):
                read_planes(tmp_path / "p.npy", "probs", (1, 1))


def test_arrays_of_another_version_are_refused(tmp_path: Path) -> None:
    """3.0 is for the names of records."""
    with (tmp_path / "map.npy").open("wb") as file:
        np.lib.format.write_array(file, np.zeros((2, 2), int), version=(3, 0))
    with pytest.raises(UserError, match=r"\.npy of version \(3, 0\); expected a plain array"):
        read_map(tmp_path / "map.npy")


def test_certainty_is_warned_of(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.eye(2, dtype=np.float32)[:, None])
    with pytest.warns(UserWarning, match=r"p\.npy is certain of every pixel.*--confidence"):
        read_planes(tmp_path / "p.npy", "probs", (1, 2))


def test_nothing_is_unpacked_that_is_not_wanted(tmp_path: Path) -> None:
    """The photo's size and the kind of numbers are known before."""
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for descr, shape in (("<f8", (250_000_000,)), ("|S375000000", (4,))):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": descr, "fortran_order": False, "shape": shape}
            )
            archive.writestr(f"{descr[1]}.npy", header.getvalue())  # reading on would fail
    for key, message in (
        ("f", r"has shape \(250000000,\), expected"),
        ("S", r"holds \|S375000000"),
    ):
        with pytest.raises(UserError, match=message):
            read_planes(tmp_path / "bomb.npz", "probs", (20, 30), key=key)
        with pytest.raises(UserError, match=r"holds (float64 of shape|\|S)|claims 250000000"):
            read_map(tmp_path / "bomb.npz", key=key)


def test_a_mask_of_0_and_255_has_two_labels(tmp_path: Path) -> None:
    for suffix, pixels in ((".png", [[0, 255]]), (".npy", [[255, 0]])):
        path = tmp_path / f"mask{suffix}"
        array = np.array(pixels, np.uint8)
        np.save(path, array) if suffix == ".npy" else Image.fromarray(array).save(path)
        with pytest.warns(UserWarning, match="holds 0 and 255 alone: two labels"):
            indices, style = read_map(path)
        np.testing.assert_array_equal(style.values[indices], pixels)


def test_255_stays_void_in_maps_of_a_data_set(tmp_path: Path) -> None:
    """A crop with background and void alone; COCO-Stuff's ids; ids up to 254, when it is said."""
    path = tmp_path / "map.png"
    crop = np.array([[0, 255]], np.uint8)
    Image.fromarray(crop).save(path)
    assert read_map(path, num_labels=21)[0].tolist() == [[0, UNKNOWN]]
    image = Image.fromarray(crop)
    image.putpalette(list(range(256)) * 3)
    image.save(path)
    with pytest.raises(UserError, match="one label only"):
        read_map(path)
    assert read_map(path, num_labels=21)[0].tolist() == [[0, UNKNOWN]]
    for last, options in ((182, {}), (255, {"num_labels": 256}), (255, {"unknown": VOID})):
        ids = np.array([[*range(last), VOID]], np.uint8)
        Image.fromarray(ids).save(path)
        assert read_map(path, **options)[0].tolist() == [[*range(last), UNKNOWN]]  # type: ignore[arg-type]


@pytest.mark.parametrize("greys", [(0, 128, 255), (0, 64, 128, 255)])
def test_a_trimap_is_warned_of(tmp_path: Path, greys: tuple[int, ...]) -> None:
    Image.fromarray(np.array([greys], np.uint8)).save(tmp_path / "map.png")
    with pytest.warns(UserWarning, match="255 in .*map.png is taken for unknown; --unknown none"):
        indices, _ = read_map(tmp_path / "map.png")
    assert indices[0, -1] == UNKNOWN


@pytest.mark.parametrize("suffix", ["png", "pgm"])
def test_sixteen_bit_photo_keeps_its_precision(tmp_path: Path, suffix: str) -> None:
    grey = np.array([[0, 257, 258, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / f"grey.{suffix}")
    photo = read_photo(tmp_path / f"grey.{suffix}")
    assert photo.dtype == np.float32
    np.testing.assert_array_equal(photo, (grey / 257).astype(np.float32)[None])


def test_voc_colors() -> None:
    """The first colours as PASCAL VOC's development kit gives them."""
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert voc_colors(np.arange(5)).tolist() == expected
    assert voc_colors(np.array([20, 255])).tolist() == [[0, 64, 128], [224, 224, 192]]
