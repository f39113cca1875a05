"""Every configuration of dilated convolution's Triton kernels, to be compiled without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import triton.language as tl

from segfast._triton_resources import Case
from segfast.kernels.dilated_conv.triton_configurations import (
    CONTEXT,
    DEPTHWISE,
    MOST_TAPS,
    SUM_ROWS,
    TABLE,
    Configuration,
    Product,
    fits,
)
from segfast.kernels.dilated_conv.triton_context import context_kernel
from segfast.kernels.dilated_conv.triton_context_work import BLOCK
from segfast.kernels.dilated_conv.triton_dense import dense_kernel, grad_weight_kernel
from segfast.kernels.dilated_conv.triton_depthwise import (
    depthwise_grad_weight_kernel,
    depthwise_kernel,
    sum_splits_kernel,
)
from segfast.kernels.dilated_conv.triton_tiles import sum_pieces_kernel
from segfast.kernels.dilated_conv.triton_work import DENSE

FUNCTIONS = {"dense": dense_kernel, "grad_weight": grad_weight_kernel}
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
MAPS = {"x", "y", "weight", "bias", "grad", "out", "parameters", "maps", "packed"}
FLOATS = {"scale", "shift", "partial"}
TABLES = {"table", "arrived", "products", "layers"}
# Channels that tiles divide, everything after the sum; others, a bias after it, offsets in int64
# (launchers pad channels that are read; few tiles serve odd ones that are written).
VARIANTS = ("whole", "ragged")


def cases() -> Iterator[Case]:
    for (kernel, dtype), tiles in TABLE.items():
        for chosen in tiles:
            for variant in VARIANTS:
                yield _dense(kernel, dtype, chosen, variant)
    for dtype, tiles in CONTEXT.items():
        for chosen in tiles:
            for variant in VARIANTS:
                yield _context(dtype, chosen, variant)
    yield _sum_pieces()
    for dtype in SHORT:
        for channels_last in (False, True):
            for variant in VARIANTS:
                yield _depthwise(dtype, channels_last, variant)
                yield _depthwise_grad_weight(dtype, channels_last, variant)
    yield _case("sum_splits", sum_splits_kernel, "bfloat16", {"BLOCK": 256}, set(), {}, False)


def _dense(kernel: str, dtype: str, chosen: Configuration, variant: str) -> Case:
    whole = variant == "whole"
    aligned = whole or kernel == "grad_weight" or not fits(chosen, (Product(1, 1, 1, 1),))
    constants = {"INDEX": tl.int32 if whole else tl.int64, **_tiles(chosen, dtype)}
    if kernel == "dense":
        constants |= {"RELU": whole, "WHOLE": whole, "ALIGNED": aligned}
    if not whole:
        absent = {"scale", "shift", "partial", "filled"} & set(FUNCTIONS[kernel].arg_names)
        constants |= dict.fromkeys(absent)
    multiples = {"O", "C"} | ({"channels"} if aligned else set())
    name = _title(kernel, dtype, chosen, variant)
    return _case(name, FUNCTIONS[kernel], dtype, constants, multiples, _options(chosen), True)


def _context(dtype: str, chosen: Configuration, variant: str) -> Case:
    constants = {
        **_tiles(chosen, dtype),
        **_contiguous(variant == "whole", "x"),
        "LAYER_ROWS": 16,
        "BLOCK": BLOCK,
    }
    # In channels_last, of channels without a rest; planes with one.
    multiples = {"C", "x_image", "x_line", "x_column"} if variant == "whole" else set()
    options = {**_options(chosen), "launch_cooperative_grid": True}
    name = _title("context", dtype, chosen, variant)
    case = _case(name, context_kernel, dtype, constants, multiples, options, True)
    return replace(case, resident=chosen.resident)


def _title(kernel: str, dtype: str, c: Configuration, variant: str) -> str:
    tile = f"{c.block_m}x{c.block_n}x{c.block_k}"
    return f"{kernel} {dtype} {tile} warps {c.num_warps} stages {c.num_stages} {variant}"


def _options(chosen: Configuration) -> dict[str, int]:
    return {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}


def _tiles(chosen: Configuration, dtype: str) -> dict[str, Any]:
    return {
        "DOT_DTYPE": getattr(tl, dtype),
        "ROWS": 16,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "BLOCK_K": chosen.block_k,
    }


def _sum_pieces() -> Case:
    constants = {
        "RELU": True,
        "ALIGNED": True,
        "INDEX": tl.int32,
        "ROWS": 16,
        "COLUMNS": len(DENSE),
        "BLOCK_M": 128,
        "BLOCK_N": 256,
        "SUM_ROWS": SUM_ROWS,
        "column": 1,
    }
    return _case("sum_pieces", sum_pieces_kernel, "bfloat16", constants, {"channels"}, {}, False)


def _depthwise(dtype: str, channels_last: bool, variant: str) -> Case:
    block = DEPTHWISE["depthwise", channels_last]
    constants = {
        **_contiguous(channels_last, "x", "y"),
        "TRANSPOSED": variant == "ragged",
        "INDEX": tl.int32 if variant == "whole" else tl.int64,
        "BLOCK_P": block.positions,
        "BLOCK_C": block.channels,
    }
    name = f"depthwise {dtype} {_layout(channels_last)} {variant}"
    strides = _strides(variant, "x", "y")
    options = {"num_warps": block.num_warps}
    return _case(name, depthwise_kernel, dtype, constants, strides, options, False)


def _depthwise_grad_weight(dtype: str, channels_last: bool, variant: str) -> Case:
    block = DEPTHWISE["grad_weight", channels_last]
    constants = {
        **_contiguous(channels_last, "x", "grad"),
        "INDEX": tl.int32 if variant == "whole" else tl.int64,
        "BLOCK_T": MOST_TAPS,
        "BLOCK_P": block.positions,
        "BLOCK_C": block.channels,
    }
    name = f"depthwise_grad_weight {dtype} {_layout(channels_last)} {variant}"
    strides = _strides(variant, "x", "grad")
    options = {"num_warps": block.num_warps}
    return _case(name, depthwise_grad_weight_kernel, dtype, constants, strides, options, False)


def _layout(channels_last: bool) -> str:
    return "channels_last" if channels_last else "contiguous"


def _contiguous(channels_last: bool, *maps: str) -> dict[str, Any]:
    return {f"{name}_{'channel' if channels_last else 'column'}": 1 for name in maps}


def _strides(variant: str, *maps: str) -> set[str]:
    names = {f"{name}_{what}" for name in maps for what in ("image", "channel", "line", "column")}
    return names | {"C"} if variant == "whole" else set()


def _case(
    name: str, kernel: Any, dtype: str, constants: dict[str, Any], multiples: set[str],
    options: dict[str, int], matrix: bool,
) -> Case:  # fmt: skip
    types = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if argument in MAPS:
            types[argument] = f"*{SHORT[dtype]}"
        elif argument in FLOATS:
            types[argument] = "*fp32"
        else:
            types[argument] = "*i32" if argument in TABLES else "i32"
    pointers = {argument for argument, kind in types.items() if kind.startswith("*")}
    aligned = frozenset(pointers | (multiples & set(types)))
    return Case(name, kernel, types, constants, aligned, options, matrix)
