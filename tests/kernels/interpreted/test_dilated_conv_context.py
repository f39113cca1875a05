"""The context module in one launch by Triton's interpreter: alone, and by programs that wait."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime import interpreter

from segfast.kernels.dilated_conv.triton_configurations import CONTEXT, Configuration
from segfast.ops import _dilated_conv_triton, _dilated_conv_triton_context
from segfast.ops._dilated_conv_triton_context import one_launch
from segfast.testing import assert_as_good_as


class Chain(NamedTuple):
    channels: tuple[int, ...]  # of x, and of every layer
    kernels: tuple[tuple[int, int], ...]
    rates: tuple[int, ...]
    size: tuple[int, int]
    batch: int = 1
    biases: str = ""  # "b" for a layer that has one; "": all of them

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        """x, weights, biases, rates."""
        torch.manual_seed(len(self.kernels) + self.channels[0])
        x = torch.randn(self.batch, self.channels[0], *self.size).to(dtype)
        shapes = zip(self.channels[1:], self.channels, self.kernels, strict=False)
        weights = [torch.randn(o, c, *k).div((c * k[0] * k[1]) ** 0.5).to(dtype)
                   for o, c, k in shapes]  # fmt: skip
        biased = self.biases or "b" * len(weights)
        biases = [torch.randn(len(w)).to(dtype) if b == "b" else None
                  for w, b in zip(weights, biased, strict=True)]  # fmt: skip
        return x, weights, biases, self.rates


THREE, ONE = (3, 3), (1, 1)
CHAINS = {
    "classes": Chain((21,) * 4, (THREE, THREE, ONE), (1, 3, 1), (5, 7)),
    "other channels": Chain((5, 7, 16, 3), (THREE, THREE, ONE), (1, 2, 1), (3, 4), 2, "b-b"),
    "rates beyond the map": Chain((3, 40, 33, 4), (THREE, (3, 5), THREE), (9, 7, 30), (2, 4), 2),
    "tiles of positions": Chain((2, 3, 1), ((1, 3), ONE), (1, 1), (5, 31), 2, "--"),
    "one position, one channel": Chain((1, 1, 1), (THREE, (5, 1)), (3, 1), (1, 1)),
    "one row": Chain((16, 32, 16), ((1, 3), THREE), (5, 2), (1, 20)),
}


def formula(dtype: torch.dtype, x: Tensor, weights: Any, biases: Any, rates: Any) -> Tensor:
    y = x.to(dtype)
    for i, (w, b, rate) in enumerate(zip(weights, biases, rates, strict=True)):
        y = y.relu() if i else y
        bias = b if b is None else b.to(dtype)
        y = F.conv2d(y, w.to(dtype), bias, padding="same", dilation=rate)
    return y


def check(chain: Chain, given: tuple[Any, ...], actual: Tensor | None) -> None:
    assert actual is not None
    dtype, terms = given[0].dtype, sum(w[0].numel() for w in given[1])
    single = formula(torch.float32, *given)
    if dtype != torch.float32:  # maps between layers are rounded
        single = given[0]
        for i, layer in enumerate(zip(*given[1:], strict=True)):
            single = single.relu() if i else single
            single = formula(torch.float32, single, *([part] for part in layer)).to(dtype)
    assert actual.shape == (chain.batch, chain.channels[-1], *chain.size)
    assert_as_good_as(actual, formula(torch.float64, *given), single, terms=terms)


def smallest(dtype: str = "float32") -> Configuration:
    return CONTEXT[dtype][0]


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    given = CHAINS[name].tensors()
    check(CHAINS[name], given, one_launch(*given, smallest()))


@pytest.mark.parametrize(
    ("name", "which"), [("float32", 1), ("bfloat16", 1), *(("float16", i) for i in range(4))]
)
def test_every_configuration(name: str, which: int) -> None:
    chain = Chain((20, 35, 3), ((3, 1), ONE), (2, 1), (4, 3), 2)
    given = chain.tensors(getattr(torch, name))
    check(chain, given, one_launch(*given, CONTEXT[name][which]))


def test_memory_formats() -> None:
    """Of x and of each weight: the same numbers, the same bits."""
    x, weights, biases, rates = CHAINS["other channels"].tensors()
    expected = one_launch(x, weights, biases, rates, smallest())
    last = [torch.channels_last, torch.contiguous_format, torch.channels_last]
    mixed = [w.contiguous(memory_format=f) for w, f in zip(weights, last, strict=True)]
    inside = F.pad(x, (1, 2, 0, 3))[..., :3, 1:5]  # of a larger map
    for other in (x.contiguous(memory_format=torch.channels_last), inside):
        assert torch.equal(one_launch(other, mixed, biases, rates, smallest()), expected)


@pytest.mark.parametrize("serve", ["one launch", "layer by layer"])
def test_infinities_stay_where_they_belong(serve: str) -> None:
    """Not in the channels that pad, whose weights are 0."""
    x, weights, biases, rates = CHAINS["other channels"].tensors()
    x[0, 1, 2, 3] = float("inf")
    given = x, [w.abs() for w in weights], biases, rates  # it stays what it is
    if serve == "one launch":
        actual = one_launch(*given, smallest())
    else:
        actual = _dilated_conv_triton.layer_by_layer(*given)
    expected = formula(torch.float64, *given)
    assert actual is not None
    assert 0 < expected.isfinite().sum() < expected.numel()
    assert not actual.isnan().any()
    assert torch.equal(actual.isposinf(), expected.isposinf())


def test_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided by triton_context_work.choose: one layer is no chain."""
    chain = CHAINS["other channels"]
    given = chain.tensors()
    assert one_launch(*(part[:1] for part in given)) is None
    monkeypatch.setattr(_dilated_conv_triton, "_dense", lambda *_, **__: pytest.fail("a layer"))
    check(chain, given, _dilated_conv_triton.context_module(*given))


# ------------------------------------------------------------------------------ the barrier

PROGRAMS = 3


class Recorded:
    """In place of the kernel: keeps a launch's arguments, in memory that processes share."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *arguments: Any, **options: Any) -> None:
        self.options = options
        self.arguments = [a.share_memory_() if isinstance(a, Tensor) else a for a in arguments]


def run_program(number: int, arguments: Sequence[Any], options: dict[str, Any]) -> None:
    """One of PROGRAMS, in a process of its own; the last is behind by more than their work."""
    time.sleep(number**2 / 2)
    builder = interpreter.interpreter_builder
    builder.set_grid_dim = lambda *_: setattr(builder, "grid_dim", (PROGRAMS, 1, 1))
    builder.set_grid_idx = lambda *_: setattr(builder, "grid_idx", (number, 0, 0))
    interpreter.GridExecutor._restore_args_dev = lambda *_: None  # it copies memory onto itself
    _dilated_conv_triton_context.context_kernel[(1,)](*arguments, **options)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_programs_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, each with its share of every layer: the bits of one program alone."""
    given, recorded = CHAINS["rates beyond the map"].tensors(), Recorded()
    expected = one_launch(*given, smallest())
    with monkeypatch.context() as patch:
        patch.setattr(_dilated_conv_triton_context, "context_kernel", recorded)
        actual = one_launch(*given, smallest())
    assert actual is not None
    assert actual.isnan().all()
    fork = multiprocessing.get_context("fork")
    facts = recorded.arguments, recorded.options
    programs = [fork.Process(target=run_program, args=(i, *facts)) for i in range(PROGRAMS)]
    for program in programs:
        program.start()
    end = time.monotonic() + 60
    for program in programs:
        program.join(max(0.0, end - time.monotonic()))
        program.kill()
        program.join()
    assert [program.exitcode for program in programs] == [0] * PROGRAMS
    arrived = recorded.arguments[5]
    assert arrived.item() == PROGRAMS * len(given[1])
    assert torch.equal(actual, expected)
