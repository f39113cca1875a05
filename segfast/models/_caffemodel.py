"""Weights of a `.caffemodel`: the few fields of its protocol buffer that hold them.

    NetParameter   2: layers (V1)          100: layer
    layers         4: name, 6: blobs       layer  1: name, 7: blobs
    blob           7: shape {1: dims}, or 1 to 4: num, channels, height, width;  5: data, float32

The wire format (https://protobuf.dev/programming-guides/encoding/) is a sequence of fields: a
varint (number << 3 | type), then a varint (type 0), 8 bytes (1), a length and as many bytes (2), or
4 bytes (5). Everything is checked against the end of what holds it: the file is not trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Field = tuple[int, "int | memoryview"]  # number, value

_LAYERS = {2: (4, 6), 100: (1, 7)}  # field of the net -> fields of a layer: name, blobs
_MOST_AXES = 8


def read(path: Path) -> dict[str, Tensor]:
    """float32 tensors by "layer/i", the i-th blob of a layer, in the order of the file.

    Raises:
        ValueError: the file is no such protocol buffer, or contradicts itself.
    """
    state: dict[str, Tensor] = {}
    net = memoryview(path.read_bytes())
    try:
        for number, layer in _fields(net):
            if number in _LAYERS:
                name_field, blob_field = _LAYERS[number]
                fields = list(_fields(_bytes(layer)))
                names = [_bytes(value) for found, value in fields if found == name_field]
                name = bytes(names[-1]).decode() if names else ""
                blobs = [_bytes(value) for found, value in fields if found == blob_field]
                for i, blob in enumerate(blobs):
                    if f"{name}/{i}" in state:
                        raise ValueError(f"two layers are called {name!r}")
                    state[f"{name}/{i}"] = _blob(blob)
    except ValueError as error:
        raise ValueError(f"{path} is not a Caffe model: {error}") from None
    if not state:
        raise ValueError(f"{path} is not a Caffe model: it holds no weights")
    return state


def _blob(blob: memoryview) -> Tensor:
    shape: list[int] | None = None
    legacy = dict.fromkeys((1, 2, 3, 4), 1)
    parts: list[np.ndarray] = []
    for number, value in _fields(blob):
        if number in legacy:
            legacy[number] = _integer(value)
        elif number == 7:
            shape = [
                dim for found, dims in _fields(_bytes(value)) if found == 1 for dim in _dims(dims)
            ]
        elif number == 5:
            floats = _bytes(value)
            if len(floats) % 4:
                raise ValueError(f"float data of {len(floats)} bytes")
            parts.append(np.frombuffer(floats, "<f4"))
    shape = list(legacy.values()) if shape is None else shape
    data = np.concatenate(parts) if parts else np.empty(0, "<f4")
    if len(shape) > _MOST_AXES or math.prod(shape) != data.size:
        raise ValueError(f"a blob of shape {shape} holds {data.size} numbers")
    return torch.from_numpy(data.astype(np.float32)).reshape(shape)


def _dims(value: int | memoryview) -> list[int]:
    """One, or several packed."""
    if isinstance(value, int):
        return [value]
    dims, at = [], 0
    while at < len(value):
        dim, at = _varint(value, at)
        dims.append(dim)
    return dims


def _fields(message: memoryview) -> Iterator[Field]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if size > len(message) - at:
            raise ValueError(f"a field of {size} bytes where {len(message) - at} are left")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value
