"""`segfast crf`: every feature, on pictures of 14 x 10 pixels."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segfast
from segfast.cli.images import voc_colors
from segfast.cli.labels import label_logits
from segfast.nn.dense_crf import PRESETS
from tests.cli.conftest import SMALL, Outcome, Run, Scene


def refine(run: Run, scene: Scene, *options: object, labels: Path | None = None) -> Outcome:
    outcome = run("crf", scene.photo, labels or scene.labels, "-o", scene.out, *SMALL, *options)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return outcome


def one_hot(labels: np.ndarray, count: int, sure: float) -> np.ndarray:
    """[L, H, W] float64 probabilities."""
    hot = labels == np.arange(count)[:, None, None]
    return np.where(hot, sure, (1 - sure) / (count - 1))


# --- label maps ---------------------------------------------------------------------------------


def test_index_map_is_cleaned_and_equals_the_operator(run: Run, scene: Scene) -> None:
    outcome = refine(run, scene)
    assert not np.array_equal(scene.noisy, scene.truth)
    np.testing.assert_array_equal(scene.read(), scene.truth)
    scores = segfast.ops.mean_field(
        torch.from_numpy(label_logits(scene.noisy.astype(np.int64), 2, 0.7)),
        torch.from_numpy(scene.pixels).permute(2, 0, 1),
        spatial_sigma=1.0, bilateral_sigma=8.0, iterations=3,
    )  # fmt: skip
    np.testing.assert_array_equal(scene.read(), scores.argmax(0))
    assert "14 x 10, 2 labels; 3.6 % of labelled pixels changed" in outcome.out  # 5 of 140


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (3, 200), (7, 9)])
def test_result_keeps_the_values_of_the_map(
    run: Run, scene: Scene, values: tuple[int, int]
) -> None:
    pair = np.array(values, np.uint8)
    Image.fromarray(pair[scene.noisy]).save(scene.labels)
    refine(run, scene, "--unknown", "none")
    assert Image.open(scene.out).mode == "L"
    np.testing.assert_array_equal(scene.read(), pair[scene.truth])


def test_palette_is_kept(run: Run, scene: Scene) -> None:
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0, 7, 8, 9]
    image = Image.fromarray(2 * scene.noisy)
    image.putpalette(palette)
    image.save(scene.labels)
    refine(run, scene)
    result = Image.open(scene.out)
    assert result.mode == "P"
    assert result.getpalette()[:12] == palette
    np.testing.assert_array_equal(np.array(result), 2 * scene.truth)


def test_colour_coded_map(run: Run, scene: Scene) -> None:
    colors = np.array([[0, 0, 0], [128, 64, 255]], np.uint8)  # black is a label like another
    Image.fromarray(colors[scene.noisy]).save(scene.labels)
    refine(run, scene)
    assert Image.open(scene.out).mode == "RGB"
    np.testing.assert_array_equal(scene.read(), colors[scene.truth])


def test_one_bit_and_sixteen_bit_maps(run: Run, scene: Scene) -> None:
    Image.fromarray(scene.noisy.astype(bool)).save(scene.labels)
    refine(run, scene)
    assert Image.open(scene.out).mode == "1"
    np.testing.assert_array_equal(scene.read(), scene.truth.astype(bool))
    pair = np.array([300, 60000], np.uint16)
    Image.fromarray(pair[scene.noisy]).save(scene.labels)
    refine(run, scene)
    np.testing.assert_array_equal(scene.read(), pair[scene.truth])


@pytest.mark.parametrize("bits", [2, 4])
def test_low_bit_grey_png_keeps_its_numbers(run: Run, scene: Scene, bits: int) -> None:
    """Pillow stretches them to 0..255, where the largest would be mistaken for VOC's void."""
    top = 2**bits - 1
    image = Image.fromarray(top * scene.noisy)
    image.putpalette([0] * 3 * 2**bits)  # Pillow writes few bits for palettes only
    image.save(scene.labels, bits=bits)
    scene.labels.write_bytes(_as_grey(scene.labels.read_bytes(), bits))
    assert np.array(Image.open(scene.labels)).max() == 255
    refine(run, scene)
    np.testing.assert_array_equal(scene.read(), top * scene.truth)


def _as_grey(png: bytes, bits: int) -> bytes:
    """The same pixels with colour type 0 and without the palette."""
    chunks, at = [], 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += 12 + size
    kept = [(name, body) for name, body in chunks if name in (b"IHDR", b"IDAT", b"IEND")]
    kept[0] = (b"IHDR", kept[0][1][:8] + bytes([bits, 0]) + kept[0][1][10:])
    whole = png[:8]
    for name, body in kept:
        whole += struct.pack(">I", len(body)) + name + body
        whole += struct.pack(">I", zlib.crc32(name + body))
    return whole


def test_unknown_pixels_are_filled(run: Run, scene: Scene) -> None:
    holes = scene.noisy.copy()
    holes[3:6, 2:12] = 255
    Image.fromarray(holes).save(scene.labels)
    summary = json.loads(refine(run, scene, "--json").out)
    np.testing.assert_array_equal(scene.read(), scene.truth)
    file = summary["files"][0]
    assert file["unknown_pixels"] == 30
    assert file["label_values"] == [0, 1]
    changed = (scene.noisy != scene.truth)[holes != 255]
    assert file["changed_fraction"] == pytest.approx(changed.mean(), rel=1e-12)


@pytest.mark.parametrize("unknown", ["9,9,9", "#090909"])
def test_unknown_colour(run: Run, scene: Scene, unknown: str) -> None:
    colors = np.array([[0, 0, 0], [128, 64, 255], [9, 9, 9]], np.uint8)
    holes = scene.noisy.copy()
    holes[3:6, 2:12] = 2
    Image.fromarray(colors[holes]).save(scene.labels)
    refine(run, scene, "--unknown", unknown)
    np.testing.assert_array_equal(scene.read(), colors[scene.truth])


def test_transparent_pixels_are_unknown(run: Run, scene: Scene) -> None:
    colors = np.array([[0, 0, 0, 255], [128, 64, 255, 255], [1, 2, 3, 0]], np.uint8)
    holes = scene.noisy.copy()
    holes[3:6, 2:12] = 2
    Image.fromarray(colors[holes]).save(scene.labels)
    refine(run, scene)
    np.testing.assert_array_equal(scene.read(), colors[scene.truth, :3])


@pytest.mark.parametrize("transparency", [2, b"\xff\x80\x00"])
def test_transparent_palette_entry(run: Run, scene: Scene, transparency: int | bytes) -> None:
    """A label like another in a label map, empty among scribbles."""
    palette = [9, 9, 9, 0, 255, 0, 7, 7, 7, 0, 0, 255]
    image = Image.fromarray(np.array([1, 3], np.uint8)[scene.noisy])
    image.putpalette(palette)
    image.paste(2, (2, 3, 12, 6))
    image.save(scene.labels, transparency=transparency)
    assert json.loads(refine(run, scene, "--json").out)["files"][0]["label_values"] == [1, 2, 3]
    scribbles = ("--scribbles", "--scribble-penalty", "0.9", "--json")
    assert json.loads(refine(run, scene, *scribbles).out)["files"][0]["label_values"] == [1, 3]
    np.testing.assert_array_equal(scene.read(), np.array([1, 3])[scene.truth])


def test_num_labels_counts_absent_labels(run: Run, scene: Scene) -> None:
    """With L labels stated, a given label at 0.3 is above chance for L = 4 but not for L = 2."""
    refine(
        run,
        scene,
        "--num-labels",
        4,
        "--confidence",
        0.3,
        "--save-probs",
        scene.out.with_suffix(".npy"),
    )
    assert np.load(scene.out.with_suffix(".npy")).shape == (4, 10, 14)
    np.testing.assert_array_equal(scene.read(), scene.truth)


def test_one_label_everywhere_stays(run: Run, scene: Scene) -> None:
    Image.fromarray(np.full_like(scene.noisy, 5)).save(scene.labels)
    refine(run, scene)
    assert (scene.read() == 5).all()


# --- scribbles ----------------------------------------------------------------------------------


def strokes(scene: Scene) -> np.ndarray:
    """0 empty, 1 a stroke on the dark half, 2 one on the bright half and one slip into the dark."""
    scribbles = np.zeros_like(scene.noisy)
    scribbles[1:9, 2:4] = 1
    scribbles[1:9, 10:12] = 2
    scribbles[9, 1] = 2
    return scribbles


@pytest.mark.parametrize("penalty", ["0.5", "20", "inf"])
def test_scribbles_fill_the_picture(run: Run, scene: Scene, penalty: str) -> None:
    Image.fromarray(strokes(scene)).save(scene.labels)
    refine(run, scene, "--scribbles", "--scribble-penalty", penalty)
    expected = scene.truth + 1
    if penalty != "0.5":
        expected[9, 1] = 2  # the slip is only overruled when disregarding it is cheap
    np.testing.assert_array_equal(scene.read(), expected)


def test_scribbles_in_colour_on_black(run: Run, scene: Scene) -> None:
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    Image.fromarray(colors[strokes(scene)]).save(scene.labels)
    refine(run, scene, "--scribbles")
    expected = scene.truth + 1
    expected[9, 1] = 2
    np.testing.assert_array_equal(scene.read(), colors[expected])


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["probs", "logits"])
@pytest.mark.parametrize("layout", ["LHW", "HWL"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays(run: Run, scene: Scene, kind: str, layout: str, dtype: str) -> None:
    planes = one_hot(scene.noisy, 3, 0.7)
    planes = np.log(planes) if kind == "logits" else planes
    planes = planes if layout == "LHW" else planes.transpose(1, 2, 0)
    path = scene.folder / "net.npy"
    np.save(path, planes.astype(dtype))
    refine(run, scene, "--input", kind, labels=path)
    result = Image.open(scene.out)
    assert result.mode == "P"
    assert result.getpalette()[:9] == voc_colors(np.arange(3)).ravel().tolist()
    np.testing.assert_array_equal(np.array(result), scene.truth)


def test_npz_key_batch_axis_and_layout(run: Run, scene: Scene) -> None:
    path = scene.folder / "net.npz"
    planes = np.log(one_hot(scene.noisy, 2, 0.7))[None]
    np.savez(path, other=np.zeros(3), scores=planes)
    refine(run, scene, "--input", "logits", "--key", "scores", "--layout", "LHW", labels=path)
    np.testing.assert_array_equal(scene.read(), scene.truth)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_integer_array_is_a_label_map(run: Run, scene: Scene, suffix: str) -> None:
    path = scene.folder / f"map{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, 1000 * scene.noisy.astype(np.int32))
    refine(run, scene, labels=path)
    np.testing.assert_array_equal(scene.read(), 1000 * scene.truth.astype(np.int32))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_probabilities_out(run: Run, scene: Scene, suffix: str) -> None:
    out = scene.folder / f"probs{suffix}"
    assert run("crf", scene.photo, scene.labels, "-o", out, *SMALL).code == 0
    loaded = np.load(out, allow_pickle=False)
    probabilities = loaded if suffix == ".npy" else loaded["probabilities"]
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (2, 10, 14)
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-6)  # a softmax in float32
    np.testing.assert_array_equal(probabilities.argmax(0), scene.truth)
    if suffix == ".npz":
        np.testing.assert_array_equal(loaded["values"], [0, 1])


# --- photos -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", ".png"), ("RGB", ".jpg"), ("L", ".png"), ("L", ".jpg"), ("RGBA", ".png"),
        ("LA", ".png"), ("P", ".png"), ("CMYK", ".jpg"), ("I;16", ".png"), ("RGB", ".tif"),
    ],
)  # fmt: skip
def test_kinds_of_photo(run: Run, scene: Scene, mode: str, suffix: str) -> None:
    image = Image.fromarray(scene.pixels)
    if mode == "I;16":
        image = Image.fromarray(scene.pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    scene.photo = scene.folder / f"kind{suffix}"
    image.save(scene.photo, **({"quality": 95} if suffix == ".jpg" else {}))
    refine(run, scene)
    np.testing.assert_array_equal(scene.read(), scene.truth)


def test_exif_orientation_is_applied(run: Run, scene: Scene) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned = np.ascontiguousarray(np.rot90(scene.pixels))  # viewers undo this
    scene.photo = scene.folder / "turned.jpg"
    Image.fromarray(turned).save(scene.photo, quality=95, exif=exif)
    refine(run, scene)
    np.testing.assert_array_equal(scene.read(), scene.truth)


# --- model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets(run: Run, scene: Scene, name: str) -> None:
    arguments = ("crf", scene.photo, scene.labels, "-o", scene.out, "--json", "--preset", name)
    parameters = json.loads(run(*arguments).out)["parameters"]
    assert parameters["preset"] == name
    for key, value in PRESETS[name].parameters.items():
        assert parameters[key] == value


def test_options_override_the_preset(run: Run, scene: Scene) -> None:
    given = {
        "iterations": 2, "spatial_weight": 1.5, "spatial_sigma": 2.5, "bilateral_weight": 4.5,
        "bilateral_sigma": 7.5, "color_sigma": 9.5, "normalization": "before", "method": "exact",
        "spatial": "lattice", "tolerance": 1e-6,
    }  # fmt: skip
    options = [x for k, v in given.items() for x in (f"--{k.replace('_', '-')}", v)]
    arguments = ("crf", scene.photo, scene.labels, "-o", scene.out, "--preset", "crf-rnn", "--json")
    parameters = json.loads(run(*arguments, *options).out)["parameters"]
    assert {key: parameters[key] for key in given} == given


def test_model_reaches_the_operator(run: Run, scene: Scene) -> None:
    out = scene.folder / "probs.npy"
    options = (
        "--spatial-weight", 0.5, "--bilateral-weight", 0.7, "--color-sigma", 40, "--normalization",
        "after", "--method", "exact", "--spatial-sigma", 2, "--bilateral-sigma", 5,
        "--iterations", 1, "--confidence", 0.6,
    )  # fmt: skip
    assert run("crf", scene.photo, scene.labels, "-o", out, *options).code == 0
    belief = segfast.ops.mean_field(
        torch.from_numpy(label_logits(scene.noisy.astype(np.int64), 2, 0.6)),
        torch.from_numpy(scene.pixels).permute(2, 0, 1),
        spatial_weight=0.5, bilateral_weight=0.7, color_sigma=40.0, normalization="after",
        method="exact", spatial_sigma=2.0, bilateral_sigma=5.0, iterations=1,
        return_belief=True,
    )  # fmt: skip
    np.testing.assert_array_equal(np.load(out), belief)


def test_no_iterations_change_nothing(run: Run, scene: Scene) -> None:
    steps = scene.folder / "steps.png"
    refine(run, scene, "--iterations", 0, "--steps", steps)
    np.testing.assert_array_equal(scene.read(), scene.noisy)
    assert steps.exists()


# --- results ------------------------------------------------------------------------------------


def test_every_result_and_the_summary(run: Run, scene: Scene) -> None:
    paths = [scene.folder / name for name in ("probs.npz", "overlay.png", "steps.png")]
    more = ("--save-probs", paths[0], "--overlay", paths[1], "--steps", paths[2], "--json")
    summary = json.loads(refine(run, scene, *more).out)
    assert summary["command"] == "crf"
    assert summary["version"] == segfast.__version__
    assert summary["parameters"]["confidence"] == 0.7
    (file,) = summary["files"]
    assert file["outputs"] == [str(path) for path in (scene.out, *paths)]
    assert (file["width"], file["height"]) == (14, 10)
    assert summary["seconds"] == file["seconds"] > 0
    assert scene.read(paths[1]).shape == (10, 14, 3)
    assert all(path.exists() for path in paths)
    assert scene.before() == {"photo.png", "labels.png", "out.png"} | {p.name for p in paths}


def test_out_may_be_a_folder_and_replaces_what_is_there(run: Run, scene: Scene) -> None:
    folder = scene.folder / "results"
    folder.mkdir()
    (folder / "labels.png").write_text("old")
    assert run("crf", scene.photo, scene.labels, "-o", folder, *SMALL).code == 0
    np.testing.assert_array_equal(scene.read(folder / "labels.png"), scene.truth)
    assert [path.name for path in folder.iterdir()] == ["labels.png"]


def test_force_replaces_the_input(run: Run, scene: Scene) -> None:
    assert run("crf", scene.photo, scene.labels, "-o", scene.labels, *SMALL, "--force").code == 0
    np.testing.assert_array_equal(scene.read(scene.labels), scene.truth)


def test_a_link_stays_a_link(run: Run, scene: Scene) -> None:
    target = scene.folder / "target.png"
    scene.out.symlink_to(target)
    refine(run, scene)
    assert scene.out.is_symlink()
    np.testing.assert_array_equal(scene.read(target), scene.truth)


# --- folders ------------------------------------------------------------------------------------


def folders(scene: Scene, names: str = "ab") -> tuple[Path, Path, Path]:
    images, labels = scene.folder / "images", scene.folder / "maps"
    images.mkdir()
    labels.mkdir()
    for name in names:
        Image.fromarray(scene.pixels).save(images / f"{name}.jpg", quality=95)
        Image.fromarray(scene.noisy).save(labels / f"{name}.png")
    (images / "notes.txt").write_text("not a picture")
    (images / ".hidden.png").write_text("not a picture either")
    return images, labels, scene.folder / "results"


def test_folders_are_matched_by_stem(run: Run, scene: Scene) -> None:
    images, labels, results = folders(scene)
    overlays = scene.folder / "overlays"
    outcome = run("crf", images, labels, "-o", results, *SMALL, "--overlay", overlays, "--json")
    assert outcome.code == 0, outcome.err
    assert {path.name for path in results.iterdir()} == {"a.png", "b.png"}
    assert {path.name for path in overlays.iterdir()} == {"a.png", "b.png"}
    np.testing.assert_array_equal(scene.read(results / "b.png"), scene.truth)
    assert [Path(file["image"]).name for file in json.loads(outcome.out)["files"]] == [
        "a.jpg",
        "b.jpg",
    ]


def test_skip_missing(run: Run, scene: Scene) -> None:
    images, labels, results = folders(scene, "abc")
    (labels / "b.png").unlink()
    (images / "c.jpg").unlink()
    outcome = run("crf", images, labels, "-o", results, *SMALL, "--skip-missing", "--json")
    assert outcome.code == 0
    assert outcome.err == "segfast: no partner for b.jpg, c.png: passed over\n"
    assert json.loads(outcome.out)["skipped"] == ["b.jpg", "c.png"]
    assert [path.name for path in results.iterdir()] == ["a.png"]


def test_folder_of_arrays(run: Run, scene: Scene) -> None:
    images, _, results = folders(scene, "a")
    arrays = scene.folder / "arrays"
    arrays.mkdir()
    np.save(arrays / "a.npy", one_hot(scene.noisy, 2, 0.7).astype(np.float32))
    probs = scene.folder / "probs"
    options = ("--input", "probs", "--save-probs", probs)
    assert run("crf", images, arrays, "-o", results, *SMALL, *options).code == 0
    assert [path.name for path in probs.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(scene.read(results / "a.png"), scene.truth)
