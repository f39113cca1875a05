"""When the context module is one launch, and that launch's tables: pure functions of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segfast.kernels.dilated_conv.triton_configurations import ALIGNMENT, CONTEXT, DTYPES
from segfast.kernels.dilated_conv.triton_context_work import (
    BLOCK,
    H100,
    LAYER,
    PROVEN,
    Chip,
    Layer,
    choose,
    on_chip,
    work,
)
from segfast.kernels.dilated_conv.triton_work import DENSE, NEVER
from segfast.ops import _dilated_conv_chip
from segfast.ops._dilated_conv_chip import chip

RATES = (1, 1, 2, 4, 8, 16, 1)


def module(channels: Sequence[int]) -> list[Layer]:
    """Yu and Koltun's: 3 x 3 at RATES, and 1 x 1."""
    pairs = zip(channels[:-1], channels[1:], (*RATES, 1), strict=True)
    return [Layer(c, o, (1, 1) if i == 7 else (3, 3), r, True) for i, (c, o, r) in enumerate(pairs)]


BASIC = module((21,) * 9)
LARGE = module([21 * m for m in (1, 2, 2, 4, 8, 16, 32, 32, 1)])
BF16 = "bfloat16"


def test_the_module_of_21_classes_is_one_launch() -> None:
    for batch in (1, 8, 32):
        chosen = choose(BASIC, batch, (64, 64), BF16, H100)
        assert "stay in the L2 cache" in chosen.why
        assert chosen.configuration == CONTEXT[BF16][0]  # others pad 21 channels to 64
    assert choose(BASIC, 1, (64, 64), "float32", H100).configuration in CONTEXT["float32"]


def test_facts_are_those_of_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Facts(NamedTuple):
        multi_processor_count: int
        L2_cache_size: int = 1
        major: int = 9
        minor: int = 0

    current = 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Facts(100 + index))
    _dilated_conv_chip.facts_of.cache_clear()
    assert chip(torch.device("cuda")).multiprocessors == 100
    current = 3
    assert chip(torch.device("cuda")).multiprocessors == 103
    assert chip(torch.device("cuda", 1)).multiprocessors == 101
    assert chip(torch.device("cpu")) == H100
    _dilated_conv_chip.facts_of.cache_clear()


def test_what_does_not_fit_is_not() -> None:
    bytes_of_maps = 2 * 2 * 64 * 64 * 32
    assert on_chip(BASIC, 1, (64, 64), BF16, 32) == bytes_of_maps + 2 * 9 * 32 * 32
    assert on_chip(BASIC, 3, (64, 64), "float32", 16) == 6 * bytes_of_maps + 4 * 9 * 32 * 32
    assert on_chip(LARGE, 1, (64, 64), BF16, 32) == 2 * (2 * 64 * 64 * 672 + 9 * 672 * 672)
    needed = on_chip(BASIC, 4, (64, 64), BF16, 32)
    assert choose(BASIC, 4, (64, 64), BF16, Chip(132, 2 * needed, (9, 0))).configuration
    refused = choose(BASIC, 4, (64, 64), BF16, Chip(132, 2 * needed - 2, (9, 0)))
    assert refused.configuration is None
    assert "above half of the L2 cache" in refused.why
    assert choose(BASIC, 1, (1024, 2048), BF16, H100).configuration is None


def test_nor_what_gains_nothing() -> None:
    assert choose(BASIC[:1], 1, (64, 64), BF16, H100) == (None, "there is one layer")
    deep = [Layer(4096, 64, (3, 3), 2, False), Layer(64, 64, (1, 1), 1, False)]
    refused = choose(deep, 1, (8, 8), BF16, H100)  # its sum is for many programs
    assert refused.configuration is None
    assert "tiles of its own" in refused.why


def test_configurations() -> None:
    assert set(CONTEXT) == set(DTYPES)
    for tiles in CONTEXT.values():
        for c in tiles:
            assert c.block_n % c.block_k == 0  # padded outputs are inputs
            assert c.block_k % ALIGNMENT == 0
            assert c.resident >= 1


def named(row: tuple[int, ...], names: tuple[str, ...]) -> dict[str, Any]:
    return dict(zip(names, row, strict=True))


layers = st.builds(
    Layer,
    st.just(0),
    st.integers(1, 70),
    st.sampled_from([(1, 1), (3, 3), (1, 5)]),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=60)
@given(
    st.lists(layers, min_size=2, max_size=5),
    st.integers(1, 70),
    st.integers(1, 3),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(CONTEXT[BF16]),
)
def test_tables(found: Any, first: int, batch: int, size: tuple[int, int], c: Any) -> None:
    """Blocks and elements follow one another; every layer's tiles are its own rows'."""
    chain, inputs = [], first
    for layer in found:
        chain.append(layer._replace(inputs=inputs))
        inputs = layer.outputs
    made = work(chain, batch, size, c, H100)
    rows = [named(row, LAYER) for row in made.layers]
    count = len(made.products) // len(rows)
    block = packed = parameter = 0
    for i, (layer, row) in enumerate(zip(chain, rows, strict=True)):
        assert (row["live_inputs"], row["live_outputs"]) == (layer.inputs, layer.outputs)
        assert layer.outputs <= row["outputs"] < layer.outputs + c.block_k
        assert i == 0 or row["inputs"] == rows[i - 1]["outputs"]
        assert (row["first"], row["packed"], row["weight"]) == (block, packed, parameter)
        assert row["packed"] % ALIGNMENT == row["weights"] % ALIGNMENT == 0
        block += -(-(row["weights"] + row["outputs"]) // BLOCK)
        packed += row["inputs"] * row["outputs"] * layer.taps + row["outputs"]
        parameter += layer.inputs * layer.outputs * layer.taps
        assert row["bias"] == (parameter if layer.bias else -1)
        parameter += layer.outputs * layer.bias
        products = [named(p, DENSE) for p in made.products[i * count : (i + 1) * count]]
        products = [p for p in products if p["first"] != NEVER]
        assert all((p["pieces"], p["n"]) == (1, row["outputs"]) for p in products)
        assert sum(p["m"] for p in products) == batch * size[0] * size[1]
        tiles = [-(-p["m"] // c.block_m) * -(-p["n"] // c.block_n) for p in products]
        assert [p["first"] for p in products] == [sum(tiles[:j]) for j in range(len(tiles))]
        assert row["tiles"] == sum(tiles)
        assert made.largest >= batch * size[0] * size[1] * max(row["inputs"], row["outputs"])
    assert (made.blocks, made.packed) == (block, packed)
    assert 1 <= made.programs <= H100.multiprocessors * c.resident


def test_no_more_programs_than_are_resident() -> None:
    """The barrier needs all of them; where nothing is proven, a multiprocessor has one."""
    c = CONTEXT[BF16][0]
    for capability in (*PROVEN, (8, 6), (12, 0)):
        made = work(BASIC, 64, (64, 64), c, Chip(10, 50 << 20, capability))
        assert made.programs == 10 * (c.resident if capability in PROVEN else 1)
    few = work(BASIC, 1, (8, 8), c, H100)
    assert few.programs == few.blocks  # laying the weights out is most
