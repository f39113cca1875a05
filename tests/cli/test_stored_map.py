"""Label maps in picture files: the numbers that were stored, or a refusal."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from segfast.cli.files import UserError
from segfast.cli.images import read_photo
from segfast.cli.stored_map import read_stored_map
from tests.cli.conftest import Run, Scene

Refuse = Callable[..., str]
LABELS = np.array([[0, 1, 2, 1], [2, 2, 1, 0]], np.uint8)  # [H, W]


def png(path: Path, pixels: np.ndarray, bits: int, color_type: int, trns: bytes = b"") -> None:
    """[H, W] or [H, W, C] as a PNG of 8 or 16 bits: Pillow does not write all kinds."""
    rows = pixels.astype(">u2" if bits == 16 else np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, color_type, 0, 0, 0)
    chunks = [
        (b"IHDR", head),
        *([(b"tRNS", trns)] if trns else []),
        (b"IDAT", data),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
            if body or kind == b"IEND"
        )
    )


def tiff(path: Path, body: bytes, tags: dict[int, tuple[int, ...]]) -> None:
    """Uncompressed pixels, then what does not fit into the directory, then that."""
    at, tables, entries = 8 + len(body), b"", b""
    for tag, values in sorted(tags.items()):
        longs = tag in (256, 257, 273, 278, 279)
        packed = struct.pack(f"<{len(values)}{'I' if longs else 'H'}", *values)
        if len(packed) > 4:
            tables, packed = tables + packed, struct.pack("<I", at + len(tables))
        entries += struct.pack("<HHI", tag, 4 if longs else 3, len(values)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", at + len(tables)) + body + tables + directory)


@pytest.mark.parametrize("largest", [2, 3, 15, 20, 254, 255])
@pytest.mark.parametrize("plain", [False, True])
def test_grey_of_any_largest_value(tmp_path: Path, largest: int, plain: bool) -> None:
    """Netpbm's maxval, by which Pillow stretches grey to 0..255."""
    values = np.arange(largest + 1, dtype=np.uint8)[None]
    head = f"P{2 if plain else 5} {values.size} 1 {largest}\n".encode()
    body = " ".join(map(str, values[0])).encode() if plain else values.tobytes()
    (tmp_path / "map.pgm").write_bytes(head + body)
    np.testing.assert_array_equal(read_stored_map(tmp_path / "map.pgm").pixels, values)


def test_colours_of_a_small_maxval_stay_distinct(tmp_path: Path) -> None:
    colors = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    (tmp_path / "map.ppm").write_bytes(b"P6 3 3 30\n" + colors.tobytes())
    assert len(np.unique(read_stored_map(tmp_path / "map.ppm").pixels.reshape(-1, 3), axis=0)) == 9


@pytest.mark.parametrize(("channels", "color_type"), [(3, 2), (2, 4), (4, 6)])
def test_deep_colours_would_merge(tmp_path: Path, channels: int, color_type: int) -> None:
    deep = np.stack([LABELS.astype(np.uint16) * 50] * channels, -1)
    png(tmp_path / "map.png", deep, 16, color_type)
    with pytest.raises(UserError, match=r"map\.png has more than 8 bits per channel"):
        read_stored_map(tmp_path / "map.png")


def test_deep_netpbm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.ppm").write_bytes(b"P6 4 2 500\n" + bytes(48))
    with pytest.raises(UserError, match="more than 8 bits per channel"):
        read_stored_map(tmp_path / "map.ppm")
    (tmp_path / "map.pgm").write_bytes(b"P5 4 2 500\n" + bytes(16))
    with pytest.raises(UserError, match="has mode I"):
        read_stored_map(tmp_path / "map.pgm")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_tiff(tmp_path: Path, bits: int) -> None:
    """Whatever Pillow would invert is refused, all else comes as stored."""
    path = tmp_path / "map.tif"
    labels = LABELS % 2 if bits == 1 else LABELS
    packed = {16: labels.astype("<u2"), 8: labels}.get(bits)
    if packed is None:
        each = np.unpackbits(labels[..., None], axis=-1)[..., 8 - bits :]  # [H, W, bits]
        packed = np.packbits(each.reshape(len(labels), -1), axis=1)
    body = packed.tobytes()
    for photometric in (0, 1):
        tiff(path, body, {
            256: (4,), 257: (2,), 258: (bits,), 259: (1,), 262: (photometric,), 273: (8,),
            277: (1,), 278: (2,), 279: (len(body),),
        })  # fmt: skip
        if photometric == 0 and bits < 16:
            with pytest.raises(UserError, match="stores white as 0"):
                read_stored_map(path)
        else:
            np.testing.assert_array_equal(read_stored_map(path).pixels, labels)


@pytest.mark.parametrize("kind", ["L", "P", "I;16", "RGB"])
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_turned_maps_are_stored_as_turned(tmp_path: Path, kind: str, suffix: str) -> None:
    """Pixels that Pillow maps into memory it would not turn, but take their size as turned."""
    pixels = np.arange(24, dtype=np.uint16 if kind == "I;16" else np.uint8).reshape(4, 6)
    image = Image.fromarray(np.stack([pixels] * 3, -1) if kind == "RGB" else pixels)
    if kind == "P":
        image.putpalette(list(range(256)) * 3)
    tags = Image.Exif()
    tags[0x112] = 6
    image.save(tmp_path / f"map.{suffix}", exif=tags)
    stored = read_stored_map(tmp_path / f"map.{suffix}").pixels
    turned = stored.shape[:2] != pixels.shape  # Pillow turns TIFF when it reads it
    np.testing.assert_array_equal(
        stored[..., 0] if kind == "RGB" else stored, np.rot90(pixels, -1) if turned else pixels
    )
    if kind == "L":
        photo = read_photo(tmp_path / f"map.{suffix}")
        np.testing.assert_array_equal(photo[0], np.rot90(pixels, -1))


def test_deep_planes_of_a_tiff_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "planes.tif"
    tiff(path, bytes(48), {
        256: (4,), 257: (2,), 258: (16, 16, 16), 259: (1,), 262: (2,), 273: (8, 24, 40), 277: (3,),
        278: (2,), 279: (16, 16, 16), 284: (2,),
    })  # fmt: skip
    for read in (read_photo, read_stored_map):
        with pytest.raises(UserError, match=r"planes\.tif has 16-bit channels in planes"):
            read(path)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_whose_palette_is_black_and_white(tmp_path: Path, bits: int) -> None:
    """Pillow takes it for one bit per pixel, whatever the file says."""
    path, rows = tmp_path / "map.bmp", {1: b"\x50", 4: b"\x01\x01", 8: b"\0\1\0\1"}[bits]
    body = (rows + bytes(-len(rows) % 4)) * 2
    head = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, bits, 0, len(body), 0, 0, 2, 0)
    palette = bytes(4) + b"\xff\xff\xff\0"
    at = 14 + len(head) + len(palette)
    path.write_bytes(b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + head + palette + body)
    if bits == 1:
        assert read_stored_map(path).pixels.astype(int).tolist() == [[0, 1, 0, 1]] * 2
    else:
        for read in (read_photo, read_stored_map):
            with pytest.raises(UserError, match=f"has {bits} bits per pixel and a palette"):
                read(path)


def test_bmp_of_16_bits_per_pixel(tmp_path: Path) -> None:
    """5 bits of red, green and blue."""
    path, body = tmp_path / "map.bmp", struct.pack("<4H", 0, 0x7C00, 0x03E0, 0x001F)
    head = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 16, 0, len(body), 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + head + body)
    assert read_stored_map(path).pixels.tolist() == [
        [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    ]


def test_netpbm_beyond_its_own_maxval(tmp_path: Path) -> None:
    (tmp_path / "map.pgm").write_bytes(b"P5 4 1 20\n" + bytes([0, 20, 21, 255]))
    with pytest.raises(UserError, match=r"map\.pgm holds 255, more than the 20 that it promises"):
        read_stored_map(tmp_path / "map.pgm")


def test_colours_multiplied_by_alpha_are_refused(tmp_path: Path) -> None:
    tiff(tmp_path / "map.tif", bytes([2, 2, 253, 128]) * 8, {
        256: (4,), 257: (2,), 258: (8, 8, 8, 8), 259: (1,), 262: (2,), 273: (8,), 277: (4,),
        278: (2,), 279: (32,), 284: (1,), 338: (1,),
    })  # fmt: skip
    with pytest.raises(UserError, match="multiplied by alpha"):
        read_stored_map(tmp_path / "map.tif")


def test_what_is_hardly_opaque_has_a_label(tmp_path: Path) -> None:
    pixels = np.full((1, 3, 4), 9, np.uint8)
    pixels[..., 3] = (0, 1, 255)
    Image.fromarray(pixels).save(tmp_path / "map.png")
    stored = read_stored_map(tmp_path / "map.png")
    assert stored.opaque is not None
    assert stored.opaque.tolist() == [[False, True, True]]


def test_blurred_tiff_is_refused(tmp_path: Path) -> None:
    Image.fromarray(LABELS.repeat(8, 0).repeat(8, 1)).save(tmp_path / "map.tif", compression="jpeg")
    with pytest.raises(UserError, match="compressed as JPEG"):
        read_stored_map(tmp_path / "map.tif")


def test_the_colour_that_means_transparent(tmp_path: Path) -> None:
    """PNG's tRNS of grey and RGB, as of palettes."""
    path = tmp_path / "map.png"
    png(path, LABELS, 8, 0, struct.pack(">H", 2))
    np.testing.assert_array_equal(read_stored_map(path).opaque, LABELS != 2)
    png(path, LABELS * 100, 16, 0, struct.pack(">H", 100))
    np.testing.assert_array_equal(read_stored_map(path).opaque, LABELS != 1)
    png(path, np.stack([LABELS * 9, LABELS, LABELS], -1), 8, 2, struct.pack(">HHH", 9, 1, 1))
    np.testing.assert_array_equal(read_stored_map(path).opaque, LABELS != 1)
    png(path, np.array([[0b00011011]]).repeat(1, 0), 8, 0)
    two_bits = bytearray(path.read_bytes())
    two_bits[16:25] = struct.pack(">IIB", 4, 1, 2)  # width 4 of 2 bits
    two_bits[29:33] = struct.pack(">I", zlib.crc32(two_bits[12:29]))
    trns = b"tRNS" + struct.pack(">H", 3)
    chunk = struct.pack(">I", 2) + trns + struct.pack(">I", zlib.crc32(trns))
    path.write_bytes(bytes(two_bits[:33]) + chunk + bytes(two_bits[33:]))
    stored = read_stored_map(path)
    assert stored.pixels.tolist() == [[0, 1, 2, 3]]
    assert stored.opaque is not None
    assert stored.opaque.tolist() == [[True, True, True, False]]


# --- damage beside the pixels -------------------------------------------------------------------


def exif(orientation: int, magic: int = 42) -> bytes:
    """Orientation, and an entry of zeros where text is expected."""
    entries = struct.pack(">HHI2sH", 0x112, 3, 1, struct.pack(">H", orientation), 0)
    entries += struct.pack(">HHII", 0x10E, 5, 1, 38) + struct.pack(">III", 0, 1, 2)
    return b"Exif\0\0MM" + struct.pack(">HI", magic, 8) + struct.pack(">H", 2) + entries


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_leaves_the_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    image.save(path, exif=exif(6))
    assert read_photo(path).shape == (3, 30, 20)  # what can be read is
    image.save(path, exif=exif(6, magic=127))
    assert read_photo(path).shape == (3, 20, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path: Path, orientation: int) -> None:
    """As Pillow turns them."""
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    tags = Image.Exif()
    tags[0x112] = orientation
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=tags)
    with Image.open(tmp_path / "photo.png") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_photo(tmp_path / "photo.png")[0], expected)


def test_a_damaged_second_directory_is_a_message(tmp_path: Path) -> None:
    path = tmp_path / "two.tif"
    Image.fromarray(LABELS).save(path)
    content = bytearray(path.read_bytes())
    first = struct.unpack("<I", content[4:8])[0]
    after = first + 2 + 12 * struct.unpack("<H", content[first : first + 2])[0]
    content[after : after + 4] = struct.pack("<I", len(content))
    content += struct.pack("<HHHII", 1, TiffImagePlugin.IMAGEWIDTH, 4, 1, 5) + bytes(4)
    path.write_bytes(bytes(content))
    for read in (read_photo, read_stored_map):
        with pytest.raises(UserError, match=r"two\.tif is damaged"):
            read(path)


# --- what is said of the result -----------------------------------------------------------------


def test_strokes_taken_for_labels_are_warned_of(run: Run, scene: Scene) -> None:
    strokes = np.zeros((10, 14), np.uint8)
    strokes[4, 3:6], strokes[7, 9:12] = 1, 2
    Image.fromarray(strokes).save(scene.labels)
    outcome = run("crf", scene.photo, scene.labels, "-o", scene.out)
    assert outcome.code == 0
    assert "only label 0 is left, which covered 95.7 % of it" in outcome.err
    assert "--scribbles" in outcome.err
    strokes[4:8] = 1  # covers much, so that it may have been meant
    Image.fromarray(strokes).save(scene.labels)
    assert run("crf", scene.photo, scene.labels, "-o", scene.out).err == ""
    strokes[:] = 0
    strokes[2:9, 8] = 1  # 5 %, which stay
    Image.fromarray(strokes).save(scene.labels)
    assert run("crf", scene.photo, scene.labels, "-o", scene.out, "--iterations", 0).err == ""


def test_names_that_the_terminal_cannot_show(
    run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = scene.photo.rename(scene.folder / "für \udcff.png")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run("crf", photo, scene.labels, "-o", scene.out).code == 0
    terminal.flush()
    assert rb"f\xfcr \udcff.png: 14 x 10" in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_what_overflows_is_no_result(refuse: Refuse, scene: Scene) -> None:
    weights = ("--spatial-weight", "3e38", "--bilateral-weight", "3e38")
    error = refuse("crf", scene.photo, scene.labels, "-o", scene.out, *weights)
    assert "the result is not finite: logits of 1.2, --spatial-weight 3e+38" in error
    assert not scene.out.exists()
