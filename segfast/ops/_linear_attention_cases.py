"""Every configuration of linear attention's Triton kernels, to be compiled without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton.language as tl

from segfast._triton_resources import Case
from segfast.kernels.linear_attention.triton_configurations import ROWS, TABLE, choose
from segfast.kernels.linear_attention.triton_features import SOFTPLUS, TAYLOR
from segfast.kernels.linear_attention.triton_read import read_backward_kernel, read_kernel
from segfast.kernels.linear_attention.triton_state import state_kernel, sum_splits_kernel

FUNCTIONS = {
    "state": state_kernel,
    "grad_state": state_kernel,
    "read": read_kernel,
    "grad_v": read_kernel,
    "read_backward": read_backward_kernel,
    "state_backward": read_backward_kernel,
}
MAPS = {"k", "v", "q", "o", "residual", "grad", "grad_k", "grad_v", "grad_q"}
FLOATS = {"state", "partial", "gamma", "out", "last"}
# softplus, the largest, on maps whose rows are aligned; taylor on maps of odd sizes.
VARIANTS = ("softplus aligned", "taylor odd")
ONES = "softplus ones"  # Triton makes a constant of every size that is 1; no gamma, no residual
WIDE = "softplus wide aligned"  # offsets in int64


def cases() -> Iterator[Case]:
    for (kernel, dtype), tiles in TABLE.items():
        for rows in ROWS[: len(tiles)]:
            for variant in VARIANTS:
                yield _case(kernel, dtype, rows, variant)
    for kernel in FUNCTIONS:
        yield _case(kernel, "bfloat16", 1, ONES)
        yield _case(kernel, "bfloat16", 32, WIDE)
    for name, constants in (
        ("sum_splits", {"BLOCK": 256}),
        ("sum_splits ones", {"BLOCK": 256, "gamma": None, "last": None, "size": 1, "splits": 1}),
    ):
        types = _types(sum_splits_kernel, "fp32", set(constants), FLOATS)
        pointers = frozenset(name for name, kind in types.items() if kind.startswith("*"))
        yield Case(name, sum_splits_kernel, types, constants, pointers, {}, False)


def _case(kernel: str, dtype: str, rows: int, variant: str) -> Case:
    function = FUNCTIONS[kernel]
    chosen = choose(kernel, dtype, rows, (9, 0))
    assert chosen is not None
    constants: dict[str, Any] = {
        "FEATURES": (TAYLOR if variant.startswith("taylor") else SOFTPLUS).value,
        "INDEX": tl.int64 if variant == WIDE else tl.int32,
        "DOT": chosen.dot,
        "DOT_DTYPE": tl.bfloat16 if chosen.dot == "bfloat16" else tl.float32,
        "BLOCK_R": chosen.block_r,
        "BLOCK_E": chosen.block_e,
        "BLOCK_N": chosen.block_n,
    }
    if kernel == "state":
        constants["state"] = None
    if "KEYS" in function.arg_names:
        constants["KEYS"] = kernel in ("state_backward", "grad_v")
    if variant == ONES:
        constants |= dict.fromkeys({"gamma", "residual"} & set(function.arg_names))
        sizes = _types(function, "bf16", set(constants), FLOATS)
        constants |= {name: 1 for name, kind in sizes.items() if kind == "i32"}
    short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
    types = _types(function, short, set(constants), FLOATS)
    multiples = {name for name, kind in types.items() if kind.startswith("*")}
    if variant.endswith("aligned"):
        multiples |= {
            name
            for name in types
            if name in {"D", "E", "N", "span"} or name.endswith(("_batch", "_channel"))
        }
    tile = f"{chosen.block_r}x{chosen.block_e}x{chosen.block_n}"
    options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
    name = f"{kernel} {dtype} {tile} warps {chosen.num_warps} stages {chosen.num_stages} {variant}"
    return Case(name, function, types, constants, frozenset(multiples), options, True)


def _types(function: Any, dtype: str, constants: set[str], floats: set[str]) -> dict[str, str]:
    types = {}
    for name in function.arg_names:
        if name in constants:
            continue
        if name in floats:
            types[name] = "*fp32"
        elif name in MAPS:
            types[name] = f"*{dtype}"
        else:
            types[name] = "fp32" if name == "eps" else "i32"
    return types
