"""Sources that are broken, hostile, or hold other things than weights: refused, nothing changed."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segfast.models import _sources, load_checkpoint, save_checkpoint
from tests.models.small_net import Net, assert_same, published, refusals, trained


def assert_refused(model: Net, source: Any, message: str) -> None:
    """With a ValueError; the model is as it was."""
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, source)
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key]), key


def altered(key: str, change: Callable[[Tensor], Any]) -> dict[str, Any]:
    state: dict[str, Any] = published(trained())
    return {**state, key: change(state[key])}


def expanded(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


# ------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Tensor.int, r"stem\.weight has dtype torch\.int32, wanted float32"),
        (Tensor.bool, r"stem\.weight has dtype torch\.bool"),
        (lambda x: x.to(torch.complex64), r"has dtype torch\.complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), r"has dtype torch\.float8_e4m3fn"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "has dtype torch.qint8"),
        (Tensor.to_sparse, r"stem\.weight is a sparse_coo torch\.float32 tensor .*a strided one"),
        (lambda x: torch.nested.nested_tensor([*x]), "stem.weight is a nested torch.float32"),
        (lambda x: x.to("meta"), "stem.weight is on the meta device"),
        (lambda x: nn.UninitializedParameter(), "missing stem.weight; 'first.weight' is Uninit"),
        (lambda x: np.asarray(x), "missing stem.weight; 'first.weight' is ndarray"),
        (lambda x: x.tolist(), "missing stem.weight; 'first.weight' is list"),
        (lambda x: None, "missing stem.weight; 'first.weight' is NoneType"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore::DeprecationWarning")
def test_what_is_no_weight(change: Callable[[Tensor], Any], message: str) -> None:
    assert_refused(Net(), altered("first.weight", change), message)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_averaged_counts_are_integers_again(device: str) -> None:
    state = altered("norm.num_batches_tracked", lambda x: x + 7.5)
    with torch.device(device):
        model = Net()
    load_checkpoint(model, state)
    assert model.norm.num_batches_tracked is not None
    assert model.norm.num_batches_tracked.dtype == torch.int64
    assert model.norm.num_batches_tracked == 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_converted(dtype: torch.dtype) -> None:
    model, state = Net(), published(trained())
    load_checkpoint(model, {k: x.to(dtype) if x.dim() else x for k, x in state.items()})
    assert torch.equal(model.stem.weight, state["first.weight"].to(dtype).float())
    assert model.fc.bias is not None
    assert model.fc.bias.dtype == torch.float32


def test_counts_of_batches_may_be_missing() -> None:
    """As PyTorch wrote them before 0.4.1."""
    state = published(trained())
    del state["norm.num_batches_tracked"]
    assert_same(load_checkpoint(Net(), state), trained())  # type: ignore[arg-type]


@pytest.mark.parametrize("view", [expanded, lambda x: x.mT.contiguous().mT])
def test_strided_tensors(view: Callable[[Tensor], Tensor]) -> None:
    """Also where the model takes the tensors: what it learns afterwards is its own."""
    state = altered("first.weight", view)
    with torch.device("meta"):
        empty = Net()
    for model in (Net(), empty):
        load_checkpoint(model, state)
        assert torch.equal(model.stem.weight, state["first.weight"])
        assert model.stem.weight.is_contiguous()


def test_shared_tensors_are_separated(tmp_path: Path) -> None:
    state = published(trained())
    state["norm.bias"] = state["norm.weight"]
    with torch.device("meta"):
        model = Net()
    load_checkpoint(model, state)
    with torch.no_grad():
        model.norm.bias.add_(1)
    assert torch.equal(model.norm.weight, state["norm.weight"])
    model.norm.bias = model.norm.weight  # by the user's wish
    save_checkpoint(model, tmp_path / "net.safetensors")
    assert_same(load_checkpoint(Net(), tmp_path / "net.safetensors"), model)  # type: ignore[arg-type]


def test_a_models_own_tensors() -> None:
    """Exchanged within the model that they are loaded into."""
    model = trained()
    state = dict(model.state_dict())
    before = {key: x.clone() for key, x in state.items()}
    state["norm.weight"], state["norm.bias"] = state["norm.bias"], state["norm.weight"]
    load_checkpoint(model, state)
    assert torch.equal(model.norm.weight, before["norm.bias"])
    assert torch.equal(model.norm.bias, before["norm.weight"])


def test_mappings() -> None:
    state = published(trained())
    numbered: dict[Any, Any] = {5: state.pop("first.weight"), **state}
    assert_refused(Net(), numbered, "missing stem.weight; 5 is Tensor")
    endless: dict[str, Any] = {}
    endless["state_dict"] = endless
    assert_refused(Net(), endless, "source holds no tensors")
    deep: dict[str, Any] = published(trained())
    for _ in range(4):
        deep = {"model": {"state_dict": deep}}
    assert_same(load_checkpoint(Net(), deep), trained())  # type: ignore[arg-type]


# --------------------------------------------------------------------------------- files


def safetensors_file(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def entry(**changes: Any) -> bytes:
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return safetensors_file(json.dumps({"first.weight": fields}).encode()) + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        safetensors_file(b"{}"),
        safetensors_file(b'{"__metadata__":{"layout":"other"}}'),
        safetensors_file(b"{}", 1 << 62),
        safetensors_file(b"{}", (1 << 64) - 1),
        safetensors_file(b"[" * 100_000),
        entry(dtype="F128"),
        entry(shape=[1 << 40, 1 << 40]),
        entry(data_offsets=[0, 1 << 60]),
        entry(data_offsets=[8, 0]),
    ],
)
def test_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    assert_refused(Net(), path, r"net\.safetensors (is not a safetensors file|holds no tensors)")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_that_are_cut_or_changed(legacy: bool, tmp_path: Path) -> None:
    """A ValueError that names the file, or weights of some kind; never another error."""
    file = io.BytesIO()
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    whole, path = file.getvalue(), tmp_path / "net.pth"
    places = range(1, len(whole), 7)
    broken = [whole[:at] for at in places]
    broken += [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in places]
    refused = refusals(broken, path)
    assert len(refused) > len(places)
    assert all("net.pth" in message for message in refused)


def test_archives_that_unpack_to_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/0", bytes(1 << 20))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(_sources, "MOST_BYTES", 100_000)
    assert_refused(Net(), path, r"it unpacks to 1048576 bytes, more than 100000")


def test_what_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "net.pth"
    folder.mkdir()
    assert_refused(Net(), folder, r"cannot read .*net\.pth/model\.safetensors: No such file")
    (folder / "model.safetensors").mkdir()
    assert_refused(Net(), folder, r"model\.safetensors must be a file, or a folder")


def test_models_that_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with torch.device("meta"), pytest.raises(ValueError, match=r"its stem\.weight is .* meta dev"):
        save_checkpoint(Net(), path)
    with pytest.raises(OSError, match=r"net\.safetensors"):
        save_checkpoint(Net(), tmp_path / "nowhere" / "net.safetensors")
    assert not [*tmp_path.iterdir()]
