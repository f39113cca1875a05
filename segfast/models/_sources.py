"""Where published weights come from: files, none of which is trusted, and what wraps them."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from segfast.models import _caffemodel
from segfast.ops import _check

State = dict[str, Tensor]

MOST_BYTES = 8 << 30  # of a file
MOST_WRAPPERS = 8  # around each other
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which a state lies
PREFIXES = ("module.", "model.", "net.", "base.", "_orig_mod.")  # before every key
CAFFE_BLOBS = {"0": "weight", "1": "bias", "2": "running_mean", "3": "running_var"}


class Source(NamedTuple):
    """What was read.

    Attributes:
        state: published keys -> tensors.
        layout: whose wiring they have, where one of our models wrote them; else None.
        others: what was beside them and is no tensor: "'epoch' is int".
    """

    state: State
    layout: str | None = None
    others: Sequence[str] = ()


def read(source: Mapping[str, Any] | str | os.PathLike[str]) -> Source:
    """Of a mapping, a file, or a folder with model.safetensors.

    Raises:
        TypeError: `source` is neither.
        ValueError: the file cannot be read, is too large, or holds no tensors.
    """
    if isinstance(source, Mapping):
        return _opened(source, "source")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source must be a path or a mapping of keys to tensors, got {_check.describe(source)}"
        )
    path = Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    try:
        size = path.stat().st_size
        if not path.is_file():  # a pipe would wait for its writer
            raise ValueError(f"{path} must be a file, or a folder with model.safetensors")
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if not 0 < size <= MOST_BYTES:
        raise ValueError(f"{path} must have 1 to {MOST_BYTES} bytes, it has {size}")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".caffemodel":
        return Source(_caffemodel.read(path))
    return _opened(_unpickled(path), str(path))


def _safetensors(path: Path) -> Source:
    try:
        from safetensors import safe_open
    except ImportError:
        raise ValueError(f"{path} needs safetensors: pip install safetensors") from None
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            layout = (file.metadata() or {}).get("layout")
    except Exception as error:  # of many kinds: headers are not trusted
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    if not state:
        raise ValueError(f"{path} holds no tensors")
    return Source(state, layout)


def _unpickled(path: Path) -> Any:
    """torch.load, which runs no code of the file."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(record.file_size for record in archive.infolist())
            if size > MOST_BYTES:
                raise ValueError(f"it unpacks to {size} bytes, more than {MOST_BYTES}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and is not read{_culprit(str(error))}"
        ) from None
    except Exception as error:  # of many kinds: its reader meets broken files unprepared
        raise ValueError(f"{path} is not a checkpoint of PyTorch: {error}") from None


def _culprit(message: str) -> str:
    """What was refused, of PyTorch's message, which otherwise says how to read it all the same."""
    found = re.search(r"\bGLOBAL (\S+)", message)
    return f": {found[1]}" if found else ""


def _opened(source: Any, name: str) -> Source:
    """The innermost mapping of keys to tensors, without what is beside them."""
    for _ in range(MOST_WRAPPERS):
        if not isinstance(source, Mapping):
            break
        inner = [source[key] for key in WRAPPERS if isinstance(source.get(key), Mapping)]
        if not inner:
            break
        source = inner[0]
    found = source.items() if isinstance(source, Mapping) else ()
    state = {key: x for key, x in found if isinstance(key, str) and _is_tensor(x)}
    if not state:
        raise ValueError(f"{name} holds no tensors: {_check.describe(source)}")
    others = [f"{key!r} is {type(x).__name__}" for key, x in found if key not in state]
    return Source(state, _recorded(source), others)


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor) and not is_lazy(x)


def _recorded(state: object) -> str | None:
    """The layout that a model's `state_dict` says, in the entry of the outermost module."""
    metadata = getattr(state, "_metadata", None)
    entries = metadata.items() if isinstance(metadata, Mapping) else ()
    said = {
        prefix: entry["layout"]
        for prefix, entry in entries
        if isinstance(prefix, str) and isinstance(entry, Mapping) and "layout" in entry
    }
    return str(said[min(said, key=len)]) if said else None


def candidates(state: State) -> Iterator[State]:
    """The state as it is, and without each prefix that all its keys share, one after another."""
    blob = re.compile(r"/([0-3])$")
    if all(blob.search(key) for key in state):  # Caffe's
        yield {blob.sub(lambda m: f".{CAFFE_BLOBS[m[1]]}", key): x for key, x in state.items()}
    yield state
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): x for key, x in state.items()}
        yield state
