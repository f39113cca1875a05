"""explain() counts what a call multiplies and says what serves it, computing nothing."""

from __future__ import annotations

import copy
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segfast
from segfast import explain, ops
from segfast.explain import Explanation, operator_of
from segfast.nn import ASPP, ASPPv2, ContextModule, DilatedConv2d, SeparableDilatedConv2d
from segfast.ops._dilated_conv_kernels import available
from segfast.ops._dilated_conv_plan import DIRECTIONS, Plan
from segfast.ops._function import observer

PYTORCHS = Plan("torch", "PyTorch's own operator was called")


def meta(*shape: int, **options: Any) -> Tensor:
    return torch.empty(shape, device="meta", **options)


def shapes(found: Explanation) -> list[tuple[tuple[int, ...], ...]]:
    return [(c.x, c.weight, c.y) for c in found.convolutions]


# ------------------------------------------------------------------------------ counts


def test_separable_against_dense() -> None:
    """5 x 5, 3 to 256 channels, 8 x 8 values: 1,228,800 products, or 4,800 + 49,152."""
    x = meta(1, 3, 12, 12)
    dense = explain(ops.dilated_conv2d, x, meta(256, 3, 5, 5))
    assert dense.convolutions[0].y == (1, 256, 8, 8)
    assert dense.multiplications == 1_228_800
    separable = explain(SeparableDilatedConv2d(3, 256, 5), x)
    assert [c.multiplications for c in separable.convolutions] == [4_800, 49_152]
    assert separable.multiplications == 53_952
    assert "1,228,800 multiplications" in str(dense)
    assert "  4,800 multiplications" in str(separable)
    assert "  49,152 multiplications" in str(separable)


@pytest.mark.parametrize(
    ("rate", "saved", "rectangles"),
    [(1, 0.040, 9), (6, 0.228, 9), (12, 0.426, 9), (18, 0.595, 9), (24, 0.735, 9), (36, 8 / 9, 1)],
)
def test_padding_that_is_left_out(rate: int, saved: float, rectangles: int) -> None:
    """33 x 33 values: (99 - 2 r)^2 of 9 * 33^2 products are none with padding, up to r = 33."""
    x, weight = meta(2, 8, 33, 33), meta(4, 8, 3, 3)
    (found,) = explain(ops.dilated_conv2d, x, weight, padding="same", dilation=rate).convolutions
    assert found.multiplications == 2 * 8 * 4 * 9 * 33**2
    assert found.live_multiplications == 2 * 8 * 4 * (99 - 2 * min(rate, 33)) ** 2
    assert found.saved == pytest.approx(saved, abs=5e-4)
    assert found.rectangles == rectangles


def test_one_dimension() -> None:
    (found,) = explain(ops.dilated_conv1d, meta(4, 30), meta(6, 4, 3), dilation=5).convolutions
    assert (found.x, found.weight, found.y) == ((1, 4, 1, 30), (6, 4, 1, 3), (1, 6, 1, 20))
    assert found.multiplications == found.live_multiplications == 4 * 6 * 3 * 20


def test_transposed() -> None:
    """As many products as the convolution that it is the transpose of."""
    found = explain(ops.dilated_conv_transpose2d, meta(1, 4, 9, 9), meta(4, 6, 4, 4), None, 2, 1)
    back = explain(ops.dilated_conv2d, meta(1, 6, 18, 18), meta(4, 6, 4, 4), None, 2, 1)
    assert shapes(found) == [((1, 4, 9, 9), (4, 6, 4, 4), (1, 6, 18, 18))]
    assert found.multiplications == back.multiplications == 4 * 6 * 16 * 81
    assert found.live_multiplications == back.live_multiplications
    assert found.convolutions[0].transposed
    assert "[1, 4, 9, 9] transposed by [4, 6, 4, 4] -> [1, 6, 18, 18], stride 2, pad" in str(found)


def test_pyramid_and_chain_are_told_apart() -> None:
    weights = [meta(4, 4, 3, 3), meta(4, 4, 3, 3)]
    pyramid = explain(ops.atrous_pyramid2d, meta(1, 4, 9, 9), weights, None, rates=(2, 9))
    chain = explain(ops.context_module2d, meta(1, 4, 9, 9), weights, None, dilations=(2, 9))
    for found in (pyramid, chain):
        assert [c.strides.dh for c in found.convolutions] == [2, 9]
        assert [c.live_multiplications for c in found.convolutions] == [16 * 23**2, 16 * 81]
        assert found.live_multiplications == 16 * (23**2 + 81)
        assert "2 convolutions: 23,328 multiplications, 9,760 without padding: 58.2%" in str(found)


def test_nothing_to_multiply() -> None:
    found = explain(ops.dilated_conv2d, meta(0, 4, 9, 9), meta(4, 4, 3, 3))
    assert found.multiplications == 0
    assert found.convolutions[0].saved == 0


@pytest.mark.skipif("triton" not in available("cuda"), reason="triton is not installed")
def test_launches_of_a_chain() -> None:
    """On CUDA, in half precision: one while the maps fit into the cache."""
    module = ContextModule(21).to(torch.bfloat16)

    def why(op: Any, *args: Any) -> set[str]:
        return {c.kernels["forward"].why for c in explain(op, *args, device="cuda").convolutions}

    x, w = meta(1, 21, 64, 64, dtype=torch.bfloat16), meta(21, 21, 3, 3, dtype=torch.bfloat16)
    for found in (why(module, x), why(ops.context_module2d, x, [w] * 3, None, (1, 2, 4))):
        (reason,) = found
        assert reason.startswith("one launch for all layers: two maps and a layer's weights are")
        assert reason.endswith("and stay in the L2 cache, where no gradient is wanted")
    (reason,) = why(module, meta(8, 21, 512, 1024, dtype=torch.bfloat16))
    assert reason.startswith("a launch for each layer: two maps and a layer's weights are")
    assert "above half of the L2 cache" in reason
    for found in (why(ContextModule(21), x.float()), why(ops.atrous_pyramid2d, x, [w], None, (1,))):
        assert not any("launch" in reason for reason in found)


# ------------------------------------------------------------------------------ modules


def test_aspp_folded_and_not() -> None:
    x, module = meta(2, 16, 33, 33), ASPP(16, out_channels=8)
    pooled, projected = ((2, 16, 1, 1), (8, 16, 1, 1), (2, 8, 1, 1)), (2, 8, 33, 33)
    branches = [(tuple(x.shape), (8, 16, k, k), projected) for k in (1, 3, 3, 3)]
    training = explain(module, x)
    assert shapes(training) == [
        *branches, pooled, ((2, 40, 33, 33), (8, 40, 1, 1), projected)
    ]  # fmt: skip
    folded = explain(module.eval(), x)
    image = ((2, 8, 1, 1), (8, 8, 1, 1), (2, 8, 1, 1))
    assert shapes(folded) == [
        *branches, pooled, image, ((2, 32, 33, 33), (8, 32, 1, 1), projected)
    ]  # fmt: skip
    assert [c.strides.dh for c in folded.convolutions] == [1, 6, 12, 18, 1, 1, 1]


@pytest.mark.parametrize(
    ("module", "count"),
    [(ASPPv2(4, 3), 4), (ContextModule(4), 8), (ASPP(4, separable=True), 9)],
    ids=lambda value: type(value).__name__,
)
def test_other_modules(module: nn.Module, count: int) -> None:
    found = explain(module, meta(2, 4, 21, 21))
    assert found.operator == type(module).__name__
    assert len(found.convolutions) == count
    assert str(found).count(" by [") == count


def test_networks_with_pytorchs_convolutions() -> None:
    """What is changed for DilatedConv2d can be seen before and after."""
    for conv, mine in ((nn.Conv2d, False), (DilatedConv2d, True)):
        net = nn.Sequential(
            conv(4, 8, 3, padding=9, dilation=9), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv1d(4, 4, 1)
        )[:2]
        first, second = explain(net, meta(1, 4, 9, 9)).convolutions
        assert first.live_multiplications == 4 * 8 * 81
        assert (first.kernels["forward"] == PYTORCHS) is not mine
        assert second.transposed
        assert second.kernels == dict.fromkeys(DIRECTIONS, PYTORCHS)


def test_the_module_stays_as_it_is() -> None:
    module = ASPP(4, out_channels=4)
    before = copy.deepcopy(module.state_dict())
    explain(module, torch.zeros(2, 4, 9, 9))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert module.training
    assert explain(nn.ReLU(), torch.ones(3)).served_by == "no convolution"


# ------------------------------------------------------------------------------ what serves


def test_plan_is_the_planners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for each direction, of a transposed convolution for the one that it really is."""
    asked = []

    def choose(direction: str, problem: Any) -> Plan:
        asked.append(problem)
        return Plan(f"kernel of {direction}", "a test")

    monkeypatch.setattr(importlib.import_module("segfast.explain"), "choose", choose)
    x, weight = meta(3, 8, 9, 9, dtype=torch.float16), meta(8, 2, 3, 3, dtype=torch.float16)
    x = x.to(memory_format=torch.channels_last)
    found = explain(ops.dilated_conv2d, x, weight, groups=4)
    assert {d: p.kernel for d, p in found.convolutions[0].kernels.items()} == {
        d: f"kernel of {d}" for d in DIRECTIONS
    }
    assert set(asked) == {asked[0]}
    assert asked[0][:7] == ("cpu", "float16", True, 3, 4, 2, 2)
    assert found.served_by == "kernel of forward, kernel of grad_input, kernel of grad_weight"
    assert "  grad_weight: kernel of grad_weight (a test)" in str(found)
    assert "-> [3, 8, 7, 7], groups 4, float16, channels_last\n" in str(found)
    explain(ops.dilated_conv2d, x, weight, groups=4, device="cuda:1")
    assert asked[-1] == asked[0]._replace(device="cuda")
    found = explain(ops.dilated_conv_transpose2d, x, weight, groups=4)
    assert {d: p.kernel for d, p in found.convolutions[0].kernels.items()} == {
        "forward": "kernel of grad_input",
        "grad_input": "kernel of forward",
        "grad_weight": "kernel of grad_weight",
    }


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_another_device(device: str) -> None:
    """It need not be there."""
    kind = device.partition(":")[0]
    for found in (
        explain(ops.dilated_conv2d, torch.ones(1, 4, 9, 9), meta(4, 4, 3, 3), device=device),
        explain(ContextModule(4), meta(1, 4, 9, 9), device=device),
    ):
        assert found.device == kind
        kernels = {p.kernel for c in found.convolutions for p in c.kernels.values()}
        assert kernels <= available(kind)
        assert found.served_by == ", ".join(sorted(kernels))


def test_pytorchs_promise_is_told() -> None:
    served = explain(nn.Conv2d(4, 4, 3), meta(1, 4, 9, 9))
    assert str(served).endswith("are as deterministic as PyTorch promises")
    assert "forward, grad_input, grad_weight: torch (PyTorch's own operator was" in str(served)


@pytest.mark.parametrize("name", [n for n in ops.__all__ if "conv" not in n and "2d" not in n])
def test_other_operators(name: str) -> None:
    operator = getattr(ops, name)
    module = importlib.import_module(operator.__module__)
    for device in ("cpu", "cuda"):
        found = explain(operator, meta(1, 2, 4, 4), device=device)
        assert found == Explanation(name, device, (), module.served_by()[device])
        assert str(found) == f"{name} on {device}: {module.served_by()[device]}"


def test_every_operator_is_known() -> None:
    for name in ops.__all__:
        assert hasattr(importlib.import_module(getattr(ops, name).__module__), "served_by")
    raw = [s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("segfast::")]
    assert {operator_of(name) for name in raw} == {
        "dense_crf", "dilated_conv", "linear_attention", "max_unpool"
    }  # fmt: skip
    assert operator_of("aten::add.Tensor") is None


def test_other_operators_in_a_module() -> None:
    module = nn.Sequential(segfast.nn.LinearAttention2d(16), segfast.nn.MaxPool2d(2))
    found = explain(module, meta(1, 16, 9, 9))
    attention, pooling = (import_served(name) for name in ("linear_attention", "max_unpool"))
    assert found.served_by == f"torch; linear_attention: {attention}; max_unpool: {pooling}"
    assert str(found).endswith("are as deterministic as PyTorch promises")


def import_served(name: str) -> str:
    return str(importlib.import_module(f"segfast.ops.{name}").served_by()["cpu"])


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "op",
    [torch.relu, "dilated_conv2d", len, lambda x: x],
    ids=["torch", "name", "built-in", "lambda"],
)
def test_what_is_no_operator_is_refused(op: Any) -> None:
    with pytest.raises(TypeError, match=r"^op must be an operator of segfast\.ops or a module"):
        explain(op, torch.ones(3))


def test_arguments_are_refused_as_by_the_operator() -> None:
    with pytest.raises(ValueError, match=r"^x must have 4 channels for weight"):
        explain(ops.dilated_conv2d, meta(1, 5, 9, 9), meta(4, 4, 3, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        explain(ASPP(4), meta(1, 4, 9, 9))


def test_nothing_is_left_behind() -> None:
    """Calls afterwards take their short cuts again, also when one was refused."""
    explain(ContextModule(4), meta(1, 4, 9, 9))
    assert not torch.compiler.is_compiling()
    with pytest.raises(ValueError, match="smaller than the kernel"):
        explain(DilatedConv2d(4, 4, 3), meta(1, 4, 1, 1))
    assert not torch.compiler.is_compiling()


def test_it_is_exported() -> None:
    assert segfast.explain is explain
    assert "explain" in segfast.__all__


def test_together() -> None:
    """What serves all branches of a pyramid, or all layers of the module, in one call is told."""
    x, weights = torch.empty(1, 32, 33, 33), [torch.empty(8, 32, 3, 3)] * 2
    cpu = explain(ops.atrous_pyramid2d, x, weights, None, (12, 24))
    kernel = "dense" if "dense" in available("cpu") else "torch"
    assert [c.kernels["forward"].kernel for c in cpu.convolutions] == [kernel] * 2
    assert ("all in one call" in str(cpu)) == (kernel == "dense")
    half, layers = x.half(), [torch.empty(32, 32, 3, 3).half()] * 2
    cuda = explain(ops.context_module2d, half, layers, None, (1, 2), device="cuda")
    together = ["where no gradient" in c.kernels["forward"].why for c in cuda.convolutions]
    assert together == ["triton" in available("cuda")] * 2
    after = explain(ops.dilated_conv2d, x, weights[0], padding=12, dilation=12)
    assert "all in one call" not in str(after)


@pytest.mark.parametrize(
    "normalized", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm]
)
def test_modules_stay_as_they_are(normalized: Any) -> None:
    """Also where a forward writes into its module, and for other threads meanwhile."""
    module = normalized(nn.Conv2d(4, 4, 3))
    weight, called, observers = type(module.weight), [], []
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def look(inner: nn.Module, _: Any) -> None:
        called.append(inner)
        with ThreadPoolExecutor(1) as thread:
            observers.extend([observer(), thread.submit(observer).result()])

    module.register_forward_pre_hook(look)
    assert explain(module, torch.ones(1, 4, 5, 5)).convolutions
    assert called[0] is not module
    assert observers[0] is not None
    assert observers[1] is None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert type(module.weight) is weight


class Looks(nn.Module):
    """Depends on a number in a map."""

    def __init__(self, look: Any) -> None:
        super().__init__()
        self.conv, self.look = nn.Conv2d(4, 4, 3), look

    def forward(self, x: Tensor) -> Any:
        return self.look(self.conv(x))


@pytest.mark.parametrize(
    ("look", "operator"),
    [(lambda y: y.sum().item(), "_local_scalar_dense"), (lambda y: y.nonzero(), "nonzero")],
    ids=["item", "nonzero"],
)
def test_what_depends_on_numbers_is_refused(look: Any, operator: str) -> None:
    message = rf"^op must not depend on numbers in a tensor.*it calls aten\.{operator}\.default"
    with pytest.raises(ValueError, match=message):
        explain(Looks(look), meta(1, 4, 9, 9))
    assert observer() is None


@pytest.mark.parametrize("device", ["gpu", "mps", "", 0, torch.device("meta")], ids=str)
def test_devices_that_are_refused(device: Any) -> None:
    with pytest.raises(ValueError, match=r"^device must be 'cpu' or 'cuda', got "):
        explain(ops.dilated_conv2d, meta(1, 4, 9, 9), meta(4, 4, 3, 3), device=device)
    for same in ("cuda", "cuda:1", torch.device("cuda")):
        args = ops.dilated_conv2d, meta(1, 4, 9, 9), meta(4, 4, 3, 3)
        assert explain(*args, device=same).device == "cuda"  # type: ignore[arg-type]


def test_only_what_is_left_out_is_saved(any_processor: None, compiled_kernels: None) -> None:
    def first(rate: int) -> str:
        x, w = meta(1, 64, 33, 33), meta(64, 64, 3, 3)
        return str(explain(ops.dilated_conv2d, x, w, padding=rate, dilation=rate))

    assert "without padding: 42.6% saved; rectangles: 9\n  forward, grad_in" in first(12)
    assert "without padding: 4.0% less; rectangles: 9\n  forward, grad_input: torch" in first(1)
