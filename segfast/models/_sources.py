"""Where published weights come from: files, none of which is trusted, and what wraps them."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segfast.models import _caffemodel
from segfast.ops import _check

State = dict[str, Tensor]

MOST_BYTES = 8 << 30  # of a file
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which a state lies
PREFIXES = ("module.", "model.", "net.", "base.", "_orig_mod.")  # before every key
CAFFE_BLOBS = {"0": "weight", "1": "bias", "2": "running_mean", "3": "running_var"}


def read(source: Mapping[str, Any] | str | os.PathLike[str]) -> State:
    """Published keys and tensors of a mapping, a file, or a folder with model.safetensors.

    Raises:
        TypeError: `source` is neither.
        ValueError: the file cannot be read, is too large, or holds no tensors.
    """
    if isinstance(source, Mapping):
        return _tensors(source, "source")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source must be a path or a mapping of keys to tensors, got {_check.describe(source)}"
        )
    path = _file(source)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if not 0 < size <= MOST_BYTES:
        raise ValueError(f"{path} must have 1 to {MOST_BYTES} bytes, it has {size}")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".caffemodel":
        return _caffemodel.read(path)
    return _tensors(_unpickled(path), str(path))


def saved_layout(source: object) -> str | None:
    """Whose wiring a readable file of `save_checkpoint` has; None of any other source."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = _file(source)
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("layout")


def _file(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    return path / "model.safetensors" if path.is_dir() else path


def _safetensors(path: Path) -> State:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(f'{path} needs safetensors: pip install "segfast[models]"') from None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def _unpickled(path: Path) -> Any:
    """torch.load, which runs no code of the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = str(error).splitlines()[0]
        raise ValueError(f"{path} holds more than tensors, and is not read: {what}") from None
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of PyTorch: {error}") from None


def _tensors(source: Any, name: str) -> State:
    """The innermost mapping of keys to tensors, without what is beside them."""
    while isinstance(source, Mapping):
        inner = [source[key] for key in WRAPPERS if isinstance(source.get(key), Mapping)]
        if not inner:
            break
        source = inner[0]
    found = source.items() if isinstance(source, Mapping) else ()
    state = {key: x for key, x in found if isinstance(key, str) and isinstance(x, Tensor)}
    if not state:
        raise ValueError(f"{name} holds no tensors: {_check.describe(source)}")
    return state


def candidates(state: State) -> Iterator[State]:
    """The state as it is, and without each prefix that all its keys share, one after another."""
    blob = re.compile(r"/([0-3])$")
    if all(blob.search(key) for key in state):  # Caffe's
        yield {blob.sub(lambda m: f".{CAFFE_BLOBS[m[1]]}", key): x for key, x in state.items()}
    yield state
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): x for key, x in state.items()}
        yield state
