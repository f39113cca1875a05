"""ASPP and ASPPv2 are the published pyramids, folded or not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.nn import ASPP, ASPP_RATES, ASPPv2, DilatedConv2d
from segfast.nn import aspp as implementation
from segfast.testing import assert_as_good_as
from tests.fingerprints import assert_reproduces, fill, filled_input, read
from tests.nn.sums import assert_same_sums, positive, with_gradients

DTYPES = [torch.float64, torch.float32]
TORCHVISION, DEEPLAB_V2 = "mod_torchvision_ASPP_64", "mod_deeplabv2_ASPP_64"
EACH = pytest.mark.parametrize("separable", [False, True], ids=["dense", "separable"])


FORMS: dict[str, dict[str, Any]] = {  # beside those of EACH
    "mmseg": {"pooled_first": True, "projection": 3},
    "mmseg separable": {"separable": "act", "pooled_first": True, "projection": 3},
    "pooled first": {"pooled_first": True},
    "without pooling": {"image_pooling": False},
    "without pooling, 3 x 3": {"image_pooling": False, "projection": 3},
}


def build(
    separable: bool | str = False, dtype: torch.dtype = torch.float64, **options: Any
) -> ASPP:
    module = ASPP(12, (2, 5, 30), 10, separable, **options)
    fill(module, {key: key for key in module.state_dict()})
    return module.to(dtype).eval()


# Roundings of a product: 3x3 of 12 channels (or 9 and 12), or the mean of a map and 12 channels; a
# normalisation; the projection from 5 times 10 channels; a normalisation.
LOCAL, POOLED = 108 + 6 + 50 + 6, 17 * 9 + 12 + 6 + 50 + 6


def formula(
    module: Any,
    x: Tensor,
    state: dict[str, Tensor] | None = None,
    pooled_first: bool = False,
    **others: Any,
) -> Tensor:
    """Layer by layer, by PyTorch."""
    p = state or dict(module.state_dict())

    def normalized(y: Tensor, key: str, eps: float = 1e-5) -> Tensor:
        mean, var, gamma, beta = (
            p[f"{key}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return ((y - mean) / (var + eps).sqrt() * gamma + beta).relu()

    parts = [normalized(F.conv2d(x, p["convs.0.0.weight"]), "convs.0.1")]
    for i, rate in enumerate((2, 5, 30), 1):
        if f"convs.{i}.0.weight" in p:
            y = F.conv2d(x, p[f"convs.{i}.0.weight"], None, 1, rate, rate)
        else:
            y = F.conv2d(x, p[f"convs.{i}.0.0.weight"], None, 1, rate, rate, groups=x.shape[1])
            if f"convs.{i}.0.bn.weight" in p:
                y = normalized(y, f"convs.{i}.0.bn")
            y = F.conv2d(y, p[f"convs.{i}.0.1.weight"])
        parts.append(normalized(y, f"convs.{i}.1"))
    if "convs.4.1.weight" in p:
        pooled = F.conv2d(x.mean((2, 3), keepdim=True), p["convs.4.1.weight"])
        pooled = normalized(pooled, "convs.4.2").expand_as(parts[0])
        parts.insert(0 if pooled_first else 4, pooled)
    weight = p["project.0.weight"]
    return normalized(
        F.conv2d(torch.cat(parts, 1), weight, None, 1, weight.shape[-1] // 2), "project.1"
    )


@pytest.fixture
def pyramids(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the folded pyramid."""
    calls = []

    def pyramid(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return original(*arguments)

    original = implementation.atrous_pyramid2d
    monkeypatch.setattr(implementation, "atrous_pyramid2d", pyramid)
    return calls


# ------------------------------------------------------------------------------ version 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden(dtype: torch.dtype) -> None:
    assert_reproduces(ASPP(64, (12, 24, 36), 32), TORCHVISION, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_unfolded(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ASPP, "_folds", lambda self, x: False)
    assert_reproduces(ASPP(64, (12, 24, 36), 32), TORCHVISION, dtype)


def test_another_rate_is_seen() -> None:
    """(Of those that are not larger than the map of 17 x 21.)"""
    with pytest.raises(AssertionError, match="val is off by"):
        assert_reproduces(ASPP(64, (11, 24, 36), 32), TORCHVISION)


@EACH
@pytest.mark.parametrize("shape", [(2, 12, 17, 9), (1, 12, 1, 40), (0, 12, 5, 5)], ids=str)
def test_folded_unfolded_and_formula_are_one(separable: bool, shape: tuple[int, ...]) -> None:
    module, x = build(separable), filled_input(shape)
    expected = formula(module, x)
    unfolded = module(x)
    assert unfolded.requires_grad
    with torch.no_grad():
        folded = module(x)
    sizes = formula(positive(module), x.abs())
    assert_same_sums(unfolded, expected, sizes, max(LOCAL, POOLED))
    assert_same_sums(folded, expected, sizes, max(LOCAL, POOLED))


@pytest.mark.parametrize("form", FORMS)
def test_published_forms(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = build(**FORMS[form]), filled_input((2, 12, 11, 9))
    expected = formula(module, x, **FORMS[form])
    sizes = formula(positive(module), x.abs(), **FORMS[form])
    roundings = max(LOCAL + 9 + 6, POOLED) + 8 * 50  # an inner normalisation; 3 x 3 projections
    assert_same_sums(module(x), expected, sizes, roundings)
    with torch.no_grad():
        assert_same_sums(module(x), expected, sizes, roundings)
        monkeypatch.setattr(ASPP, "_folds", lambda self, x: False)
        assert_same_sums(module(x), expected, sizes, roundings)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_folding_is_as_exact(separable: bool, dtype: torch.dtype) -> None:
    module = build(separable, dtype)
    x = filled_input((2, 12, 17, 19)).to(dtype)
    oracle = formula(copy.deepcopy(module).double(), x.double())
    with torch.no_grad():
        assert_as_good_as(module(x), oracle, formula(module, x), terms=108)


@EACH
@torch.no_grad()
def test_half_convolutions_with_normalisations_in_float32(separable: bool) -> None:
    module = build(separable, torch.bfloat16)
    oracle_module = copy.deepcopy(module).double()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.float()
    x = filled_input((2, 12, 17, 19)).bfloat16()
    all_half = formula(build(separable, torch.bfloat16), x)
    assert_as_good_as(module(x), formula(oracle_module, x.double()), all_half, terms=108)


@torch.no_grad()
def test_every_normalisation_has_its_epsilon() -> None:
    module = build()
    for i, norm in enumerate(m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 0.1 * (i + 1)
    x = filled_input((2, 12, 9, 9))
    *local, pooled = (branch(x) for branch in module.convs)
    expected = module.project(torch.cat([*local, pooled.expand_as(local[0])], 1))
    assert_same_sums(module(x), expected, formula(positive(module), x.abs()), max(LOCAL, POOLED))


def test_folds_where_nothing_learns(pyramids: list[Any]) -> None:
    module, x = build(), filled_input((2, 12, 9, 9))
    module(x)
    assert not pyramids  # parameters may learn
    with torch.no_grad():
        module(x)
    assert len(pyramids) == 1
    assert len(pyramids[0][1]) == 4  # all branches at once
    scale, shift, activation = pyramids[0][4:]
    assert scale.shape == shift.shape == (40,)
    assert activation == "relu"
    module.requires_grad_(False)
    module(x)
    assert len(pyramids) == 2
    module(x.requires_grad_())
    assert len(pyramids) == 2
    with torch.no_grad():
        module.train()(x)
        module.eval().convs[2][1].train()  # type: ignore[index]
        module(x)
        module.eval().convs[4][2] = nn.GroupNorm(2, 10).double()  # type: ignore[index, operator]
        module(x)
    assert len(pyramids) == 2


class Doubled(nn.Conv2d):
    """Its weight does not tell what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@torch.no_grad()
def test_what_was_changed_is_not_folded(pyramids: list[Any]) -> None:
    x = filled_input((2, 12, 9, 9))
    changed: list[Any] = [build(), build(), build(), build(image_pooling=False)]
    changed[0].project[0] = nn.Conv2d(50, 10, 1, dtype=torch.float64)
    changed[1].convs[1][2] = nn.GELU()
    changed[2].convs[0][0] = Doubled(12, 10, 1, bias=False, dtype=torch.float64)
    changed[3].convs[3][0] = Doubled(12, 10, 3, padding=1, bias=False, dtype=torch.float64)
    for module in changed:
        module(x)
    assert not pyramids
    for module in (build(), build(image_pooling=False)):
        module(x)
    assert len(pyramids) == 2


@EACH
def test_gradients_are_those_of_the_formula(separable: bool) -> None:
    module, x = build(separable), filled_input((2, 12, 9, 7))
    up = filled_input((2, 10, 9, 7)).flip(3)

    def expected(module: Any, x: Tensor, up: Tensor) -> list[Tensor]:
        leaves = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
        state = {**module.state_dict(), **leaves}
        return with_gradients(lambda x: formula(module, x, state), x, list(leaves.values()), up)

    found = with_gradients(module, x, list(module.parameters()), up)
    sizes = expected(positive(module), x.abs(), up.abs())
    back = 6 + 10 + 6 + 9 * 10 + 2 * 9 * 7  # the projection's, a branch's, over all positions
    assert_same_sums(found, expected(module, x, up), sizes, max(LOCAL, POOLED) + back)


def test_training() -> None:
    """Statistics of the batch, dropout after the projection, and gradients everywhere."""
    torch.manual_seed(1)
    module, x = build().train(), filled_input((2, 12, 33, 33))
    whole = copy.deepcopy(module)
    whole.project[3] = nn.Identity()
    expected, y = whole(x), module(x)
    kept = y[expected > 0] != 0
    assert 0.48 < kept.double().mean() < 0.52  # of 11,000: 4 standard deviations
    torch.testing.assert_close(y[y != 0], 2 * expected[y != 0])
    assert not torch.allclose(expected, formula(module, x))  # whose statistics are recorded ones
    y.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_one_image_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match=r"^x must be \[N, C, H, W\] with N > 1 in training"):
        build().train()(filled_input((1, 12, 9, 9)))
    assert build(image_pooling=False).train()(filled_input((1, 12, 9, 9))).shape[0] == 1
    frozen = build().train()
    frozen.convs[4].eval()
    assert frozen(filled_input((1, 12, 9, 9))).shape[0] == 1


@EACH
def test_state_is_the_published_one(separable: bool) -> None:
    """torchvision's, or with separable convolutions segmentation_models.pytorch's."""
    expected = read("state_dicts", TORCHVISION)
    if separable:
        for i in (1, 2, 3):
            del expected[f"convs.{i}.0.weight"]
            expected[f"convs.{i}.0.0.weight"] = [64, 1, 3, 3]
            expected[f"convs.{i}.0.1.weight"] = [32, 64, 1, 1]
    module = ASPP(64, (12, 24, 36), 32, separable)
    assert {k: list(v.shape) for k, v in module.state_dict().items()} == expected
    state = {
        k: torch.zeros(shape, dtype=torch.int64) if not shape else torch.rand(shape)
        for k, shape in expected.items()
    }
    module.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def test_counts_of_parameters() -> None:
    """With 2048 channels: 1x1, three 3x3, pooling and projection of DeepLab v3."""
    with torch.device("meta"):
        module = ASPP(2048)
    convolutions = 2048 * 256 * (1 + 3 * 9 + 1) + 5 * 256 * 256
    assert sum(p.numel() for p in module.parameters()) == convolutions + 6 * 2 * 256


@EACH
@torch.no_grad()
def test_memory_format_stays(separable: bool) -> None:
    module = build(separable)
    x = filled_input((2, 12, 9, 7))
    y = module(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_same_sums(y, module(x), formula(positive(module), x.abs()), max(LOCAL, POOLED))


@EACH
@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(separable: bool, copied: Any) -> None:
    module, x = build(separable), filled_input((2, 12, 9, 7))
    assert torch.equal(copied(module)(x), module(x))


@EACH
@pytest.mark.parametrize("learning", [False, True])
def test_compiles(separable: bool, learning: bool) -> None:
    torch.compiler.reset()
    module, x = build(separable), filled_input((2, 12, 9, 7))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(learning):
        y = compiled(x)
        assert_same_sums(y, module(x), formula(positive(module), x.abs()), max(LOCAL, POOLED))
    assert y.requires_grad == learning


@EACH
@torch.no_grad()
def test_autocast(separable: bool) -> None:
    module, x = build(separable, torch.float32), filled_input((2, 12, 17, 19)).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        baseline = formula(module, x)
    assert y.dtype == torch.bfloat16
    oracle = formula(copy.deepcopy(module).double(), x.double())
    assert_as_good_as(y, oracle, baseline.bfloat16(), terms=108)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rates": 6}, TypeError, "^rates must be a list of integers, got int 6"),
        ({"rates": ()}, ValueError, "^rates must hold at least one integer, got tuple"),
        ({"rates": (6, 0)}, ValueError, "^rates must be at least 1, got 0"),
        ({"rates": (6, 1.5)}, TypeError, "^rates must be an integer, got float 1.5"),
        ({"out_channels": 0}, ValueError, "^out_channels must be at least 1, got 0"),
        ({"in_channels": "64"}, TypeError, "^in_channels must be an integer, got str '64'"),
        ({"dropout": 2.0}, ValueError, "dropout probability"),
        ({"separable": "relu"}, TypeError, "^separable must be True, .* got str 'relu'"),
        ({"image_pooling": 1}, TypeError, "^image_pooling must be True or False, got int 1"),
        ({"pooled_first": None}, TypeError, "^pooled_first must be True or False"),
        ({"projection": 2}, ValueError, "^projection must be odd, got 2"),
    ],
)
def test_options_are_checked(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ASPP(**{"in_channels": 8, **options})


@pytest.mark.parametrize("module", [ASPP(8), ASPPv2(8, 3)], ids=["v3", "v2"])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(1, 7, 9, 9), ValueError, r"^x must be \[B, 8, H, W\], got .*\(1, 7, 9, 9\)"),
        (torch.ones(8, 9, 9), ValueError, r"^x must be \[B, 8, H, W\], got .*\(8, 9, 9\)"),
        (torch.ones(1, 8, 9, 9, dtype=torch.int32), TypeError, "^x must be a floating-point"),
        (
            torch.ones(1, 8, 9, 9).double(),
            TypeError,
            r"^x must have the dtype of the module, torch\.float32, got torch\.float64",
        ),
    ],
)
def test_input_is_checked(
    module: nn.Module, x: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        module(x)


# ------------------------------------------------------------------------------ version 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_v2(dtype: torch.dtype) -> None:
    assert_reproduces(ASPPv2(64, 21), DEEPLAB_V2, dtype)


def test_v2_is_a_sum_of_classifiers() -> None:
    module = ASPPv2(12, 7, "S").double()
    convs: list[Any] = list(module.children())
    assert [type(conv) for conv in convs] == [DilatedConv2d] * 4
    assert [conv.dilation for conv in convs] == [(r, r) for r in (2, 4, 8, 12)]
    assert all(not conv.bias.any() and 0.008 < conv.weight.std() < 0.012 for conv in convs)
    fill(module, {key: key for key in module.state_dict()})
    x, up = filled_input((2, 12, 9, 14)), filled_input((2, 7, 9, 14)).flip(2)

    def expected(module: nn.Module, x: Tensor, up: Tensor) -> list[Tensor]:
        convs: list[Any] = list(module.children())
        return with_gradients(
            lambda x: sum(F.conv2d(x, c.weight, c.bias, 1, c.padding, c.dilation) for c in convs),  # type: ignore[arg-type, return-value]
            x, list(module.parameters()), up,
        )  # fmt: skip

    found = with_gradients(module, x, list(module.parameters()), up)
    sizes = expected(positive(module), x.abs(), up.abs())
    # 9 taps of 12 channels and the bias, 4 times; in gradients no more: 9 x 7, or 2 x 9 x 14
    assert_same_sums(found, expected(module, x, up), sizes, 4 * 109)


@torch.no_grad()
def test_v2_memory_format_copies_and_compiler() -> None:
    torch.compiler.reset()
    module = ASPPv2(12, 7)
    x = filled_input((2, 12, 9, 14)).float().contiguous(memory_format=torch.channels_last)
    y = module(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(copy.deepcopy(module)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), y)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), y)


def test_presets_of_v2() -> None:
    assert ASPP_RATES == {"S": (2, 4, 8, 12), "L": (6, 12, 18, 24)}
    assert ASPPv2(4, 2).rates == ASPP_RATES["L"]
    assert ASPPv2(4, 2, [3, 9]).rates == (3, 9)
    with pytest.raises(ValueError, match=r"^rates must be one of S, L; got str 'M'"):
        ASPPv2(4, 2, "M")
    with pytest.raises(ValueError, match=r"^classes must be at least 1, got 0"):
        ASPPv2(4, 0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces() -> None:
    """The graph of a trace, with or without gradients, is the unfolded module's."""
    aspp, x = ASPP(8, (2, 4), 4).eval(), torch.randn(2, 8, 9, 9)
    traced = torch.jit.trace(aspp, x)
    other = torch.randn(1, 8, 9, 9)
    torch.testing.assert_close(traced(other), aspp(other))
