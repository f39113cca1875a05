"""What holds for every attention module: its formula, in every layout, dtype and tracer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from segfast.nn import ChannelAttention2d, LinearAttention2d, NonLocal2d, PositionAttention2d
from segfast.testing import assert_as_good_as
from tests.fingerprints import assert_reproduces
from tests.nn.attention_cases import CASES, Case, maps

EACH = pytest.mark.parametrize("case", CASES, ids=str)
NO_RESIDUAL = {"feature_map": "taylor", "residual": False}
# Tracing is slow and sees no feature maps: tests/ops/test_linear_attention_torch.py has them all.
TRACED = [c for c in CASES if c.cls is not LinearAttention2d or c.options in ({}, NO_RESIDUAL)]
ALIKE = (  # others of the class are traced, with each of these options in one of them or below it
    (LinearAttention2d, NO_RESIDUAL),  # the operator's battery has it
    (PositionAttention2d, {"key_channels": 20}),
    (ChannelAttention2d, {"sign": "paper"}),
    (NonLocal2d, {}),
    (NonLocal2d, {"use_scale": False, "batch_norm": False}),  # in other modules of PyTorch's
    (NonLocal2d, {"mode": "dot_product", "sub_sample": True}),
)
# Programs are made of what tracing found: an operator of ours, and the most of PyTorch's.
MADE = (
    (LinearAttention2d, {}),
    (NonLocal2d, {"mode": "embedded_gaussian", "sub_sample": True}),
)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def fresh_compiler() -> None:
    """A module compiled in another test does not count as a recompilation of this one."""
    torch.compiler.reset()


def assert_same(actual: Any, expected: Any) -> None:
    """In float64, but for the order of summation."""
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["mod_danet_CAM_64", "mod_manet_CAM"])
def test_golden_channel_attention(name: str, dtype: torch.dtype) -> None:
    assert_reproduces(ChannelAttention2d(), name, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_position_attention(dtype: torch.dtype) -> None:
    assert_reproduces(PositionAttention2d(64), "mod_danet_PAM_64", dtype)


# ------------------------------------------------------------------------------- the formula


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 9, 14), (1, 16, 23, 2)])
def test_is_its_formula(case: Case, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """In inference, and where gradients are wanted, which other kernels serve."""
    module, x = case.build(dtype), maps(*shape, dtype=dtype)
    with torch.no_grad():
        oracle = case.formula(copy.deepcopy(module).double(), x.double())
        # Energies of half precision say nothing of channel attention: its baseline has float32's.
        half = dtype in (torch.float16, torch.bfloat16)
        wide = torch.float32 if half and case.cls is ChannelAttention2d else dtype
        baseline = case.formula(copy.deepcopy(module).to(wide), x.to(wide)).to(dtype)
        y = module(x)
    for found in (y, module(x)):
        assert found.dtype == dtype
        if dtype == torch.float64:
            # Which is the oracle: only the order of summation differs. Energies of some hundreds,
            # sums of 126 products, are known to 1e-13, and so is what the softmax makes of them.
            torch.testing.assert_close(found, oracle, rtol=1e-12, atol=1e-12)
        else:
            assert_as_good_as(found, oracle, baseline, terms=max(16, shape[2] * shape[3]))


@EACH
def test_gradients_are_those_of_the_formula(case: Case) -> None:
    module, x = case.build(), maps(2, 16, 5, 8).requires_grad_()
    inputs = [x, *module.parameters()]
    weight = maps(2, 16, 5, 8).flip(3)
    # PyTorch's fused softmax attention has no second derivative: refused, and never zero.
    fused = case.cls is NonLocal2d and module.mode == "embedded_gaussian"
    firsts, seconds = [], []
    for f in (module, lambda x: case.formula(module, x)):
        firsts.append(torch.autograd.grad((f(x) * weight).sum(), inputs, create_graph=True))
        if not (fused and f is module):
            squares = sum(g.square().sum() for g in firsts[-1])
            seconds.append(torch.autograd.grad(squares, inputs, allow_unused=True))
    assert_same(*firsts)
    if fused:
        with pytest.raises(RuntimeError, match=r"derivative .* is not implemented"):
            torch.autograd.grad(firsts[0][0].sum(), x)
    else:
        # Sums of what reaches 1e5, and may cancel: that of the keys' bias is 0, and only rounding.
        largest = max(float(s.abs().max()) for s in seconds[1] if s is not None)
        torch.testing.assert_close(*seconds, rtol=0, atol=1e-12 * max(1, largest))


@EACH
def test_layouts(case: Case) -> None:
    """Channels-last, every second column, one map for the whole batch, negative strides' copies."""
    module, x = case.build(), maps(2, 16, 6, 8)
    expected = module(x)
    wide = torch.stack([x, x + 1], -1)
    layouts = [
        x.contiguous(memory_format=torch.channels_last),
        wide[..., 0],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ]
    for y in layouts:
        assert torch.equal(y, x)
        assert_same(module(y), expected)
    one = module(x[:1].expand(3, -1, -1, -1))
    assert_same(one, expected[:1].expand_as(one))


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(case: Case, dtype: torch.dtype) -> None:
    module, x = case.build(dtype), maps(0, 16, 4, 6, dtype=dtype).requires_grad_()
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())
    with torch.no_grad():
        assert module(x).shape == x.shape


@pytest.mark.parametrize("case", [c for c in CASES if not c.options.get("sub_sample")], ids=str)
def test_one_position(case: Case) -> None:
    module, x = case.build(), maps(3, 16, 1, 1)
    assert_same(module(x), case.formula(module, x))


@pytest.mark.parametrize("case", [c for c in CASES if not c.options.get("sub_sample")], ids=str)
def test_positions_have_no_order(case: Case) -> None:
    """Permuted positions in, permuted positions out."""
    module, x = case.build(), maps(2, 16, 5, 7)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(1))
    permuted = x.flatten(2)[..., order].view_as(x)
    expected = module(x).flatten(2)[..., order].view_as(x)
    assert_same(module(permuted), expected)


# ----------------------------------------------------------------------------------- PyTorch


@EACH
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's softmax attention
def test_torch_func(case: Case) -> None:
    """vmap, and the gradient of each sample."""
    module, x = case.build(), maps(3, 2, 16, 4, 5)
    assert_same(torch.func.vmap(module)(x), module(x.flatten(0, 1)).view_as(x))

    def loss(x: Tensor) -> Tensor:
        return (module(x) * torch.linspace(-1, 1, x.shape[-1]).double()).sum()

    each = torch.func.vmap(torch.func.grad(loss))(x)
    leaf = x.flatten(0, 1).requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert_same(each.flatten(0, 1), expected)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=pytest.mark.thorough if (c.cls, c.options) in ALIKE else ())
        for c in TRACED
    ],
    ids=str,
)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_and_exported(case: Case) -> None:
    """One graph, for every size; gradients of the parameters through it."""
    module, x, other = case.build(), maps(2, 16, 8, 18), maps(3, 16, 9, 21)
    results = [module(y) for y in (x, other)]
    sum(y.square().sum() for y in results).backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    # Packed indices of the sub-sampling are one byte for widths up to 9: another graph.
    sizes = {0: ("batch", 2), 2: ("height", 4), 3: ("width", 10)}
    dynamic = ({i: torch.export.Dim(name, min=n, max=9999) for i, (name, n) in sizes.items()},)
    for run in (
        torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager"),
        torch.export.export(module, (x,), dynamic_shapes=dynamic).module(),
    ):
        run.zero_grad()
        found = [run(x), run(other)]
        for y, expected in zip(found, results, strict=True):
            assert_same(y, expected)
        sum(y.square().sum() for y in found).backward()
        for name, p in run.named_parameters():
            assert_same(p.grad, gradients[name.removeprefix("_orig_mod.")])


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=() if (c.cls, c.options) in MADE else pytest.mark.thorough)
        for c in TRACED
    ],
    ids=str,
)
@pytest.mark.usefixtures("fresh_compiler", "inductor")
def test_inductor(case: Case) -> None:
    module, x = case.build(torch.float32), maps(2, 16, 4, 6, dtype=torch.float32)
    run, oracle = torch.compile(module, fullgraph=True), case.build()(x.double())
    assert_as_good_as(run(x), oracle, module(x), terms=4 * 6)


@EACH
def test_shapes_without_memory(case: Case) -> None:
    x = torch.empty(2, 16, 5, 8, device="meta", dtype=torch.float16)
    y = case.build(torch.float16).to("meta")(x)
    assert (y.device, y.dtype, y.shape) == (x.device, x.dtype, x.shape)


@EACH
def test_state_round_trip(case: Case) -> None:
    module, x = case.build(), maps(1, 16, 4, 6)
    sizes = [] if case.cls is ChannelAttention2d else [16]
    fresh = case.cls(*sizes, **case.options).double().eval()
    assert not torch.equal(fresh(x), module(x))
    fresh.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(fresh(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@EACH
def test_starts_as_the_identity(case: Case) -> None:
    """gamma, or the last scale, is zero; without a residual nothing is left."""
    sizes = [] if case.cls is ChannelAttention2d else [16]
    module, x = case.cls(*sizes, **case.options), maps(2, 16, 4, 6, dtype=torch.float32)
    expected = x if case.options.get("residual", True) else torch.zeros_like(x)
    assert torch.equal(module(x), expected)
    (module(x) * maps(2, 16, 4, 6).float().flip(3)).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in module.parameters())  # and learns


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(case: Case, dtype: torch.dtype) -> None:
    """x stays in float32; products may be rounded, sums over many positions not."""
    module, x = case.build(torch.float32), maps(1, 16, 24, 32, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = module(x)
    assert y.dtype == torch.float32
    rounding = 8 * torch.finfo(dtype).eps  # of products and of what is summed, a few each
    torch.testing.assert_close(y, module(x), rtol=0, atol=rounding * x.abs().max().item())


# ---------------------------------------------------------------------------------- refusals


@EACH
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "^x must be a tensor .*H, W., got NoneType"),
        (torch.zeros(1, 16, 4, 4, dtype=torch.int64), TypeError, "floating-point tensor .B, "),
        (torch.zeros(16, 4, 4), ValueError, r"^x must be \[B, (C|16), H, W\], got .*\(16, 4, 4\)"),
        (torch.zeros(1, 0, 4, 4), ValueError, r"^x must be \[B, (C|16), H, W\], got .*\(1, 0, 4"),
    ],
)
def test_maps_are_checked(case: Case, x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        case.build()(x)


@pytest.mark.parametrize("case", [c for c in CASES if c.cls is not ChannelAttention2d], ids=str)
def test_channels_are_checked(case: Case) -> None:
    with pytest.raises(ValueError, match=r"^x must be \[B, 16, H, W\], got .*\(1, 8, 4, 4\)"):
        case.build()(torch.zeros(1, 8, 4, 4).double())
    with pytest.raises(TypeError, match=r"^x must have the dtype of the module, torch\.float64"):
        case.build()(torch.zeros(1, 16, 4, 4).half())
    with pytest.raises(ValueError, match=r"^channels must be at least 1, got 0"):
        case.cls(0)
    with pytest.raises(TypeError, match=r"^channels must be an integer, got float 16\.0"):
        case.cls(16.0)
    inner = "inner_channels" if case.cls is NonLocal2d else "key_channels"
    with pytest.raises(ValueError, match=f"^{inner} must be at least 1, got 0"):
        case.cls(16, 0)


def test_few_channels_have_one_key() -> None:
    """channels // 8 is zero below 8: one remains."""
    assert PositionAttention2d(4)(torch.zeros(1, 4, 3, 3)).shape == (1, 4, 3, 3)
    assert NonLocal2d(1)(torch.zeros(1, 1, 3, 3)).shape == (1, 1, 3, 3)


def nan_in_the_corner() -> Tensor:
    x = maps(2, 16, 5, 6)
    x[1, 3, 0, 0] = float("nan")
    return x


@EACH
def test_nan_reaches_its_map_and_no_other(case: Case) -> None:
    module, x = case.build(), nan_in_the_corner()
    with torch.no_grad():
        y, expected = module(x), case.formula(module, x)
    assert torch.equal(y[0].isfinite(), expected[0].isfinite())
    assert y[1].isnan().any()
    assert_same(y[0], expected[0])
