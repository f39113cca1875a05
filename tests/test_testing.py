"""The test foundation is tested by what it must catch: a check that cannot fail is a defect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from segfast._native import native
from segfast.testing import assert_as_good_as, devices, dtypes, op_battery, poison_empty

# vmap says that it loops over our operators.
pytestmark = pytest.mark.filterwarnings("ignore:.*batching rule")

# ------------------------------------------------------------------------------ accuracy

TRUTH = torch.linspace(-2.0, 3.0, 24, dtype=torch.float64).reshape(4, 6)


@dtypes()
def test_rounded_oracle_passes(dtype: torch.dtype) -> None:
    assert_as_good_as(TRUTH.to(dtype), TRUTH, TRUTH.to(dtype))


def test_twice_the_baselines_error_passes_and_more_fails() -> None:
    baseline = TRUTH + 1e-6
    assert_as_good_as(TRUTH - 1.99e-6, TRUTH, baseline)
    with pytest.raises(AssertionError, match=r"scores: max error 2\.010e-06 .* exceeds 2\.000e-06"):
        assert_as_good_as(TRUTH - 2.01e-6, TRUTH, baseline, label="scores")


def test_message_names_the_worst_element() -> None:
    actual = TRUTH.float()
    actual[2, 3] += 1
    with pytest.raises(AssertionError, match=r"at \(2, 3\) \(got 2\.26\d+, oracle 1\.26"):
        assert_as_good_as(actual, TRUTH, TRUTH.float())


def test_floor_is_no_wider_than_stated() -> None:
    """Exact baseline: u_out max|oracle| + 2 u_acc sqrt(K) magnitude, in float32."""
    u = torch.finfo(torch.float32).eps / 2
    floor = u * 1.0 + 2 * u * 4 * 10.0  # K = 16, magnitude 10
    oracle = torch.ones(1, dtype=torch.float64)
    exact = oracle.float()
    below, above = (exact + f * floor for f in (0.9, 1.1))
    assert_as_good_as(below, oracle, exact, terms=16, magnitude=10.0)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_as_good_as(above, oracle, exact, terms=16, magnitude=10.0)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_as_good_as(below, oracle, exact)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_special_values_must_match_in_place_and_sign(special: float) -> None:
    oracle = TRUTH.clone()
    oracle[1, 2] = special
    assert_as_good_as(oracle.float(), oracle, oracle.float())
    for other in {0.0, float("nan"), float("inf"), -float("inf")} - {special}:
        actual = oracle.float()
        actual[1, 2] = other
        if torch.isnan(oracle[1, 2]) and torch.isnan(actual[1, 2]):
            continue
        with pytest.raises(AssertionError, match=r"one side only, first at \(1, 2\)|max error"):
            assert_as_good_as(actual, oracle, oracle.float())
    spread = oracle.float()
    spread[0, 0] = special
    with pytest.raises(AssertionError, match=r"first at \(0, 0\)"):
        assert_as_good_as(spread, oracle, oracle.float())


def test_overflow_of_the_dtype_is_expected_to_be_infinite() -> None:
    oracle = torch.tensor([1e6, 1.0], dtype=torch.float64)
    assert_as_good_as(oracle.half(), oracle, oracle.half())


def test_shapes_do_not_broadcast() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_as_good_as(torch.zeros(1), torch.zeros(3).double(), torch.zeros(3))


def test_meaningless_comparisons_are_refused() -> None:
    x = TRUTH.float()
    with pytest.raises(TypeError, match="oracle must be float64"):
        assert_as_good_as(x, x, x)
    with pytest.raises(TypeError, match="baseline must have"):
        assert_as_good_as(x, TRUTH, TRUTH)
    with pytest.raises(ValueError, match="baseline is not finite"):
        assert_as_good_as(x, TRUTH, x / 0)
    with pytest.raises(ValueError, match="differ"):
        assert_as_good_as(x, TRUTH, x[0])


def test_empty_tensors_have_a_shape_all_the_same() -> None:
    empty = torch.zeros(0, 3)
    assert_as_good_as(empty, empty.double(), empty)
    with pytest.raises(AssertionError, match="shape"):
        assert_as_good_as(torch.zeros(0, 2), empty.double(), empty)


@devices()
def test_devices_gives_devices(device: str) -> None:
    x = TRUTH.to(device)
    assert_as_good_as(x.float(), x, x.float())


# ------------------------------------------------------------------------------ poison

EMPTY: dict[str, Callable[[torch.dtype], Tensor]] = {
    "empty": lambda dtype: torch.empty(3, dtype=dtype),
    "empty_like": lambda dtype: torch.empty_like(torch.zeros(3, dtype=dtype)),
    "new_empty": lambda dtype: torch.zeros(1, dtype=dtype).new_empty(3),
    "empty_strided": lambda dtype: torch.empty_strided((3,), (2,), dtype=dtype),
    "new_empty_strided": lambda dtype: torch.zeros(1, dtype=dtype).new_empty_strided((3,), (1,)),
}


@pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY)
def test_poison_fills_fresh_memory(make: Callable[[torch.dtype], Tensor]) -> None:
    with poison_empty():
        assert make(torch.float32).isnan().all()
        assert make(torch.bfloat16).isnan().all()
        assert (make(torch.int32) == torch.iinfo(torch.int32).max).all()


def test_poison_shows_a_missing_write() -> None:
    def forgets_the_last(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        y[:-1] = x[:-1]
        return y

    with poison_empty():
        assert forgets_the_last(torch.ones(5)).isnan().sum() == 1


def test_poison_fills_what_the_kernels_get(compiled_kernels: None) -> None:
    module = native()
    assert module is not None
    with poison_empty():
        with poison_empty():
            pass
        assert module.poison(True)  # as it was; filling: test_buffer.py
    assert not module.poison(False)


def test_poison_ends_with_its_block() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), poison_empty():
        raise KeyError
    assert torch.are_deterministic_algorithms_enabled() == before


# ------------------------------------------------------------------------------ battery: w x^2

X = torch.tensor([[0.3, -1.2, 0.7], [1.1, 0.4, -0.6]], dtype=torch.float64)
W = torch.tensor([[0.9, 0.2, -0.5], [1.3, -0.8, 0.1]], dtype=torch.float64)


def keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def right(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return 2 * g * x * w, g * x * x


def wrong(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    dx, dw = right(ctx, g)
    return 1.001 * dx, dw


def right_once(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return 2 * g * x.detach() * w, g * x * x


def refuse(*_: Any) -> Any:
    raise NotImplementedError("w x^2 has no gradient yet")


def raw_operator(
    name: str,
    *,
    fake: Callable[..., Tensor] = lambda x, w: torch.empty_like(x),
    backward: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
) -> Any:
    """A fresh torch operator w x^2, its registrations as good or bad as asked."""

    @torch.library.custom_op(f"segfast_test::{name}", mutates_args=())
    def square(x: Tensor, w: Tensor) -> Tensor:
        return x * x * w

    square.register_fake(fake)
    if backward is not None:
        square.register_autograd(backward, setup_context=keep_inputs)
    if vmap is not None:
        square.register_vmap(vmap)
    return getattr(torch.ops.segfast_test, name).default


def wrapped(raw: Any, backward: Any = right, jvp: Any = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The raw operator in an autograd.Function, as segfast's public functions wrap theirs."""

    def forward(x: Tensor, w: Tensor) -> Tensor:
        return raw(x, w)

    members: dict[str, Any] = {
        "generate_vmap_rule": True,
        "forward": staticmethod(forward),
        "setup_context": staticmethod(keep_inputs),
        "backward": staticmethod(backward),
    }
    if jvp is not None:
        members["jvp"] = staticmethod(jvp)
    square: Any = type("Square", (torch.autograd.Function,), members)
    return square.apply


def zero_tangent(ctx: Any, *tangents: Tensor) -> Tensor:
    return torch.zeros_like(tangents[0])


def test_memory_is_left_alone_for_sanitizers(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("SEGFAST_UNPOISONED", "1")
    request.getfixturevalue("poisoned_empty")
    assert not torch.are_deterministic_algorithms_enabled()
    with poison_empty():
        assert torch.are_deterministic_algorithms_enabled()


def test_battery_passes_a_good_operator() -> None:
    raw = raw_operator("good", backward=right)
    op_battery(
        wrapped(raw),
        (X, W),
        differentiable=(0, 1),
        opcheck_op=raw,
        other_args=(X.repeat(2, 3), W.repeat(2, 3)),
    )


def test_battery_passes_a_good_forward_only_operator() -> None:
    raw = raw_operator("forward_only", backward=refuse)
    op_battery(wrapped(raw, refuse, refuse), (X, W), opcheck_op=raw)


def test_battery_takes_another_sample_for_vmap() -> None:
    """For operators that take no reversed argument."""

    @torch.library.custom_op("segfast_test::increasing", mutates_args=())
    def increasing(x: Tensor) -> Tensor:
        if bool((x.diff() < 0).any()):
            raise ValueError("x must increase")
        return x * 2

    increasing.register_fake(torch.empty_like)
    increasing.register_vmap(lambda info, in_dims, x: (x * 2, in_dims[0]))
    one, two = torch.tensor([1, 3, 7]), torch.tensor([0, 5, 6])
    op_battery(increasing, (one,), other_sample=(two,))
    with pytest.raises(AssertionError, match=r"vmap over .*x must increase"):
        op_battery(increasing, (one,))


def test_battery_passes_what_pytorch_ships() -> None:
    op_battery(torch.mul, (X, W), differentiable=(0, 1), opcheck_op=torch.ops.aten.mul.Tensor)
    op_battery(torch.mm, (X, W.T), differentiable=(0, 1), autocast="cast")
    op_battery(torch.var_mean, (X,), differentiable=(0,))  # two outputs


class ExpBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, y: Tensor) -> Tensor:
        return g * y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        raise NotImplementedError("exp has no second derivative")


class Exp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return ExpBackward.apply(g, *ctx.saved_tensors)


class ExpOnce(Exp):
    """once_differentiable's trap: silent about the second derivative if g needs no gradient."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0]


def test_battery_knows_refused_second_derivatives() -> None:
    op_battery(lambda x: Exp.apply(x), (X,), differentiable=(0,), second_order=False)
    with pytest.raises(AssertionError, match=r"gradgradcheck: .* no second derivative"):
        op_battery(Exp.apply, (X,), differentiable=(0,))
    with pytest.raises(AssertionError, match="second backward: no error"):
        op_battery(ExpOnce.apply, (X,), differentiable=(0,), second_order=False)


def detaching(x: Tensor, w: Tensor) -> Tensor:
    return x.detach() * x.detach() * w.detach()


def mutating(x: Tensor, w: Tensor) -> Tensor:
    return x.mul_(x) * w


def refusing_even_in_no_grad(x: Tensor, w: Tensor) -> Tensor:
    return refuse() if x.requires_grad or w.requires_grad else SAFE(x, w)


def breaking_the_graph(x: Tensor, w: Tensor) -> Tensor:
    return x * x * w if x.sum().item() < 1e9 else x


def specialised(x: Tensor, w: Tensor) -> Tensor:
    return x * x * w if x.shape[1] == 3 else w * x * x


def same_dtypes_only(x: Tensor, w: Tensor) -> Tensor:
    if x.dtype != w.dtype:
        raise TypeError("dtypes differ")
    return x * x * w


def mixes_samples(info: Any, in_dims: Any, x: Tensor, w: Tensor) -> tuple[Tensor, int]:
    if in_dims[0] is not None:
        x = x.movedim(in_dims[0], 0).mean(0)
    if in_dims[1] is not None:
        w = w.movedim(in_dims[1], 0)[0]
    return (x * x * w).expand(info.batch_size, *x.shape), 0


SAFE = wrapped(raw_operator("safe", backward=refuse), refuse, refuse)
OTHER_DTYPE = raw_operator("dtype", fake=lambda x, w: x.float(), backward=right)
BOTH: dict[str, Any] = {"differentiable": (0, 1)}

# what is wrong: (the function, op_battery's options, what the message must name)
DEFECTS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "wrong gradient": (
        wrapped(raw_operator("wrong", backward=wrong), wrong), BOTH, "gradcheck"),
    "wrong second derivative": (
        wrapped(raw_operator("once", backward=right_once), right_once), BOTH, "gradgradcheck"),
    "no torch.func, raw operator alone": (
        raw_operator("raw_alone", backward=right), BOTH, r"torch\.func\.grad"),
    "jvp silently zero": (
        wrapped(raw_operator("zero_jvp", backward=right), right, zero_tangent), BOTH, "jvp"),
    "gradient lost by export": (
        wrapped(raw_operator("function_alone")), BOTH, "exported module"),
    "fake of a wrong shape": (
        wrapped(raw_operator("shape", fake=lambda x, w: x.new_empty(x.shape[:-1]), backward=right)),
        BOTH, "torch.compile"),
    "fake of a wrong dtype": (
        wrapped(OTHER_DTYPE), {**BOTH, "opcheck_op": OTHER_DTYPE}, "opcheck"),
    "vmap mixes samples": (
        wrapped(raw_operator("mixes", backward=right, vmap=mixes_samples)), BOTH, "vmap"),
    "input overwritten": (mutating, BOTH, "forward"),
    "graph break": (breaking_the_graph, BOTH, r"vmap|torch\.compile"),
    "compiled once per size": (
        specialised, {**BOTH, "other_args": (X.repeat(1, 2), W.repeat(1, 2))}, "compiled again"),
    "autocast policy": (torch.mm, {**BOTH, "autocast": "keep"}, "autocast"),
    "mixed dtypes under autocast": (same_dtypes_only, BOTH, "autocast, a bfloat16"),
    "opcheck": (torch.mul, {**BOTH, "opcheck_op": raw_operator(
        "strides", fake=lambda x, w: torch.empty_like(x).T.contiguous().T)}, "opcheck"),
    "forward only, silently detached": (detaching, {}, "backward, argument 0: no error"),
    "forward only, silent jvp": (
        wrapped(raw_operator("silent", backward=refuse), refuse, zero_tangent), {},
        "jvp, argument 0: no error"),
    "forward only, unclear torch.func.grad": (
        raw_operator("unclear", backward=refuse), {}, r"torch\.func\.grad, .* without a clear"),
    "forward only, refuses in no_grad too": (refusing_even_in_no_grad, {}, "no_grad"),
    "half of it silently constant": (
        lambda x, w: x * x * w.detach(), {"differentiable": (0,)}, "backward, argument 1"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_battery_catches(defect: str) -> None:
    if defect == "opcheck" and TorchVersion(torch.__version__) < (2, 13):
        pytest.skip("torch 2.11's opcheck does not compare strides")
    fn, options, message = DEFECTS[defect]
    args = (X, W.T.contiguous()) if fn is torch.mm else (X, W)
    with pytest.raises(AssertionError, match=f"op_battery: .*(?:{message})"):
        op_battery(fn, args, **options)


def test_battery_refuses_arguments_it_cannot_judge() -> None:
    with pytest.raises(TypeError, match="float64"):
        op_battery(torch.mul, (X.float(), W))
    with pytest.raises(ValueError, match="differentiable names"):
        op_battery(torch.mul, (X, 2), differentiable=(1,))
    with pytest.raises(ValueError, match="autocast"):
        op_battery(torch.mul, (X, W), autocast="whatever")
