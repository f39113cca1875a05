"""The raw max_unpool operators as PyTorch sees them: schema, kernel, fake, vmap rule.

They take [N, C, H, W] tensors, dense, contiguous or channels_last, all of one call alike, with the
checked geometry as plain integers: lists of them cost a small map a third of its call. The compiled
kernels serve CPU and CUDA tensors where they are there; kernels/max_unpool/reference.py serves the
rest on the tensors' own device. Gradients: _max_unpool_grad.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast.kernels.max_unpool import reference
from segfast.kernels.max_unpool.reference import Windows
from segfast.ops._layout import channels_last, gapless
from segfast.ops._register import batch, serve

Size = Sequence[int]

_WINDOWS = ", ".join(f"int {name}" for name in Windows._fields)
_SIZE = "SymInt height, SymInt width"  # of the result; _max_pack, _max_unpack: of the pool's input
SCHEMAS = {
    "_max_pool2d": f"(Tensor x, {_WINDOWS}, {_SIZE}) -> (Tensor, Tensor)",
    "_max_pool2d_values": f"(Tensor x, {_WINDOWS}, {_SIZE}) -> Tensor",
    "_max_pool2d_backward": f"(Tensor grad_y, Tensor packed, {_WINDOWS}, {_SIZE}) -> Tensor",
    "_max_unpool2d": f"(Tensor y, Tensor packed, {_WINDOWS}, {_SIZE}) -> Tensor",
    "_max_gather2d": f"(Tensor x, Tensor packed, {_WINDOWS}, SymInt output_width, bool winners)"
    " -> Tensor",
    "_max_unpool2d_indices": f"(Tensor y, Tensor indices, {_SIZE}) -> Tensor",
    "_max_gather2d_indices": "(Tensor x, Tensor indices, bool winners) -> Tensor",
    "_max_pack": f"(Tensor indices, {_WINDOWS}, {_SIZE}) -> Tensor",
    "_max_unpack": f"(Tensor packed, {_WINDOWS}, {_SIZE}, SymInt output_width) -> Tensor",
}
for _name, _schema in SCHEMAS.items():
    torch.library.define(f"segfast::{_name}", _schema)


def packed_width(width: int, kernel: Size) -> int:
    """Bytes per row of `width` windows."""
    return (width * reference.bits(kernel) + 7) // 8


def grouped(name: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """A raw operator's arguments as its reference takes them: tensors, Windows, (H, W), others."""
    schema = SCHEMAS[name]
    count = schema.partition(")")[0].count("Tensor")
    tensors, rest = arguments[:count], list(arguments[count:])
    if _WINDOWS in schema:
        eight = len(Windows._fields)
        rest[:eight] = [Windows(*rest[:eight])]
    if _SIZE in schema:
        at = int(_WINDOWS in schema)
        rest[at : at + 2] = [(rest[at], rest[at + 1])]
    return *tensors, *rest


def _by_reference(name: str) -> Callable[..., Any]:
    compute = getattr(reference, name.removeprefix("_"))
    return lambda *arguments: compute(*grouped(name, arguments))


# Fakes: shapes, dtypes and memory formats only.
def _fake(like: Tensor, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    layout = torch.channels_last if channels_last(like) else torch.contiguous_format
    shape = (*like.shape[:2], *size)
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def _fake_packed(like: Tensor, windows: Windows, size: Size) -> Tensor:
    return _fake(like, (size[0], packed_width(size[1], windows.kernel)), torch.uint8)


FAKES: dict[str, Callable[..., Any]] = {  # of grouped arguments
    "_max_pool2d": lambda x, w, size: (_fake(x, size), _fake_packed(x, w, size)),
    "_max_pool2d_values": lambda x, w, size: _fake(x, size),
    "_max_pool2d_backward": lambda grad_y, packed, w, size: _fake(grad_y, size),
    "_max_unpool2d": lambda y, packed, w, size: _fake(y, size),
    "_max_gather2d": lambda x, packed, w, width, winners: _fake(x, (packed.shape[2], width)),
    "_max_unpool2d_indices": lambda y, indices, size: _fake(y, size),
    "_max_gather2d_indices": lambda x, indices, winners: _fake(x, indices.shape[2:]),
    "_max_pack": lambda indices, w, size: _fake_packed(indices, w, indices.shape[2:]),
    "_max_unpack": lambda packed, w, size, width: packed.new_empty(
        (*packed.shape[:3], width), dtype=torch.int64
    ),
}


def _fake_of(name: str) -> Callable[..., Any]:
    return lambda *arguments: FAKES[name](*grouped(name, arguments))


for _name in SCHEMAS:
    serve(_name, _by_reference(_name))
    batch(_name, gapless)
    torch.library.register_fake(f"segfast::{_name}", _fake_of(_name))
