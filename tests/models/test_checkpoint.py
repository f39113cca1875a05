"""Published weights: files and what wraps them, keys, shapes, and everything that is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segfast.models import _sources, load_checkpoint, save_checkpoint
from tests.models.small_net import Net, assert_same, published, refusals, trained


@pytest.fixture
def source() -> Net:
    return trained()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{key}": x for key, x in state.items()},
        lambda state: {"state_dict": {f"net.model.{key}": x for key, x in state.items()}},
        lambda state: {**state, "first.junk": torch.zeros(3)},
    ],
)
def test_wrappers_and_prefixes(source: Net, wrap: Any, tmp_path: Path) -> None:
    wrapped = wrap(published(source))
    model = Net()
    assert load_checkpoint(model, wrapped) is model
    assert_same(model, source)
    torch.save(wrapped, tmp_path / "net.pth")
    assert_same(load_checkpoint(Net(), tmp_path / "net.pth"), source)  # type: ignore[arg-type]


def test_own_file(source: Net, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(source, path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    model = Net()
    load_checkpoint(model, path)
    assert_same(model, source)
    other = Net(layout="other")
    with pytest.raises(ValueError, match=r"^source was saved from a model wired as 'published'"):
        load_checkpoint(other, path)
    assert_same(load_checkpoint(other, path, layout="segfast"), source)  # type: ignore[arg-type]
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "model.safetensors")
    load_checkpoint(Net(), str(tmp_path / "folder"))
    with pytest.raises(ValueError, match=r"path must end in \.safetensors, got"):
        save_checkpoint(source, tmp_path / "net.pth")
    with pytest.raises(TypeError, match="model must be a SegmentationModel"):
        save_checkpoint(nn.ReLU(), path)  # type: ignore[arg-type]


def test_meta_model_takes_the_tensors(source: Net) -> None:
    with torch.device("meta"):
        model = Net()
    state = published(source)
    load_checkpoint(model, state)
    assert model.stem.weight.data_ptr() == state["first.weight"].data_ptr()


def test_grey_images(source: Net) -> None:
    """One channel: as an RGB image of three equal channels."""
    model = Net(1)
    load_checkpoint(model, published(source))
    x = torch.rand(1, 1, 6, 7)
    expected = source.eval()(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model.eval()(x), expected)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_other_channels(source: Net, channels: int) -> None:
    model = Net(channels)
    load_checkpoint(model, published(source))
    for c in range(channels):
        expected = source.stem.weight[:, c % 3] * 3 / channels
        torch.testing.assert_close(model.stem.weight[:, c], expected)


def test_every_mismatch_is_named(source: Net) -> None:
    state = published(source)
    state["extra.weight"] = torch.zeros(1)
    state["last.weight"] = torch.zeros(5, 4, 2, 2)
    del state["norm.bias"]
    expected = (
        r"3 keys do not fit layout 'published': fc\.weight has shape \(5, 4, 2, 2\), wanted "
        r"\(2, 4, 2, 2\); missing norm\.bias; unexpected extra\.weight"
    )
    model = Net()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=expected):
        load_checkpoint(model, state)
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])
    with pytest.warns(UserWarning, match=expected):
        load_checkpoint(model, state, strict=False)
    assert torch.equal(model.stem.weight, source.stem.weight)


def test_axes_are_not_exchanged(source: Net) -> None:
    """As many numbers in another order of axes are another weight."""
    state = published(source)
    state["last.weight"] = state["last.weight"].reshape(4, 2, 2, 2)
    state["norm.weight"] = state["norm.weight"].reshape(2, 2)
    state["first.bias"] = state["first.weight"]
    with pytest.raises(ValueError, match="3 keys do not fit"):
        load_checkpoint(Net(), state)
    state = published(source)
    del state["norm.bias"]
    with pytest.raises(ValueError, match=r"^1 key does not fit layout 'published': missing norm"):
        load_checkpoint(Net(), state)


def test_another_wiring_is_refused(source: Net) -> None:
    state = published(source, stem="a", norm="b", fc="c")
    with pytest.raises(ValueError, match="has the keys of layout 'other', the model is wired as"):
        load_checkpoint(Net(), state)
    model = Net()
    load_checkpoint(model, state, layout="other")
    assert_same(model, source)
    with pytest.raises(ValueError, match="layout must be one of auto, segfast, published"):
        load_checkpoint(Net(), state, layout="mmseg")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model must be a SegmentationModel"):
        load_checkpoint(nn.ReLU(), {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source must be a path or a mapping"):
        load_checkpoint(Net(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source holds no tensors"):
        load_checkpoint(Net(), {"a": 1})
    with pytest.raises(ValueError, match=r"cannot read .*none\.pth: No such file"):
        load_checkpoint(Net(), tmp_path / "none.pth")
    for suffix in ("pth", "safetensors", "caffemodel"):
        path = tmp_path / f"bad.{suffix}"
        path.write_bytes(b"")
        with pytest.raises(ValueError, match="must have 1 to"):
            load_checkpoint(Net(), path)
        path.write_bytes(b"not a checkpoint" * 9)
        with pytest.raises(ValueError, match=f"bad.{suffix}"):
            load_checkpoint(Net(), path)


def test_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hook": Net}, path)
    with pytest.raises(ValueError, match=r"holds more than tensors, and is not read: .*Net$"):
        load_checkpoint(Net(), path)  # and PyTorch's advice, to read it all the same, is not given


def test_huge_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sources, "MOST_BYTES", 10)
    torch.save({}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="must have 1 to 10 bytes"):
        load_checkpoint(Net(), tmp_path / "net.pth")


# ------------------------------------------------------------------------------ .caffemodel


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(x: Tensor, legacy: bool) -> bytes:
    data = struct.pack(f"<{x.numel()}f", *x.flatten().tolist())
    if not legacy:
        return message(7, message(1, b"".join(map(varint, x.shape)))) + message(5, data)
    sizes = [1] * (4 - x.dim()) + list(x.shape)
    axes = b"".join(varint(i + 1 << 3) + varint(n) for i, n in enumerate(sizes))
    one_by_one = b"".join(varint(5 << 3 | 5) + data[i : i + 4] for i in range(0, len(data), 4))
    return axes + one_by_one


def caffemodel(layers: dict[str, list[Tensor]], legacy: bool) -> bytes:
    layer, name, blobs = (2, 4, 6) if legacy else (100, 1, 7)
    content = message(1, b"a net") + varint(9 << 3 | 0) + varint(300)
    for key, tensors in layers.items():
        parts = b"".join(message(blobs, blob(x, legacy)) for x in tensors)
        content += message(layer, message(name, key.encode()) + parts)
    return content


def layers_of(model: Net) -> dict[str, list[Tensor]]:
    return {
        "conv": [model.stem.weight, model.stem.bias],  # type: ignore[list-item]
        "bn": [model.norm.weight[None, :, None, None], model.norm.bias[None, :, None, None]],
        "fc": [model.fc.weight.flatten(1), model.fc.bias],  # type: ignore[list-item]
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_caffemodel(source: Net, legacy: bool, tmp_path: Path) -> None:
    """Fully connected layers, axes of one element, statistics that Caffe absorbed."""
    source.norm.running_mean.zero_()  # type: ignore[union-attr]
    source.norm.running_var.fill_(1)  # type: ignore[union-attr]
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(layers_of(source), legacy))
    model = Net()
    load_checkpoint(model, path, layout="caffe")
    assert_same(model, source)


def test_broken_caffemodels(source: Net, tmp_path: Path) -> None:
    """Cut anywhere, and with any byte changed: a ValueError or weights of some kind, no crash."""
    path = tmp_path / "net.caffemodel"
    whole = caffemodel({"fc": [source.fc.bias]}, legacy=False)  # type: ignore[list-item]
    broken = [whole[:cut] for cut in range(1, len(whole))]
    broken += [
        whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
        for at in range(len(whole))
        for flip in (1, 2, 0x10, 0x80, 0xFF)
    ]
    refused = refusals(broken, path)
    assert len(refused) > len(broken) // 2
    assert all(str(path) in message for message in refused)


def test_caffemodel_sizes_are_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(message(100, message(1, b"a") + varint(7 << 3 | 2) + varint(1 << 62)))
    with pytest.raises(ValueError, match=r"a field of \d+ bytes where 0 are left"):
        _sources.read(path)
    huge = message(7, message(1, varint(1 << 40) + varint(1 << 40))) + message(5, b"\0" * 8)
    path.write_bytes(message(100, message(1, b"a") + message(7, huge)))
    with pytest.raises(ValueError, match="holds 2 numbers"):
        _sources.read(path)


def test_layers_of_one_name(source: Net, tmp_path: Path) -> None:
    """With weights: whose are meant? Without (a data layer for each phase) they do not matter."""
    path = tmp_path / "net.caffemodel"
    data, net = caffemodel({"data": []}, legacy=True), caffemodel(layers_of(source), legacy=True)
    path.write_bytes(data + data + net)
    load_checkpoint(Net(), path, layout="caffe")
    path.write_bytes(net + net)
    with pytest.raises(ValueError, match=r"net\.caffemodel .*two layers are called 'conv'"):
        load_checkpoint(Net(), path, layout="caffe")
