"""segfast.swap: what is exchanged, what stays and why, the way back."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import segfast
from segfast.nn import DilatedConv2d
from segfast.testing import assert_as_good_as
from tests.swap_networks import Net, Operators, SegNet, filled, results, same

NEITHER = "neither dilated nor grouped: PyTorch's is as good"


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dilated(channels: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=2, dilation=2, **options)


# ------------------------------------------------------------------------------ what is exchanged


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kernel_size": 3, "dilation": 2}, None),
        ({"kernel_size": (3, 1), "dilation": (2, 1), "padding": (2, 0), "stride": (2, 1)}, None),
        ({"kernel_size": 3, "dilation": 3, "padding": "same", "padding_mode": "reflect"}, None),
        ({"kernel_size": 3, "groups": 32, "padding": 1}, None),
        ({"kernel_size": 5, "groups": 32, "dilation": 2, "bias": False}, None),
        ({"kernel_size": 3, "groups": 4}, None),  # of eight channels
        ({"kernel_size": 3, "groups": 2}, "no kernel of ours takes groups of 16 channels"),
        ({"kernel_size": 3, "groups": 2, "dilation": 2}, "no kernel of ours takes groups of 16"),
        ({"kernel_size": 3, "padding": 1}, NEITHER),
        ({"kernel_size": 1, "dilation": 2}, NEITHER),
        ({"kernel_size": (1, 3), "dilation": (2, 1)}, NEITHER),
    ],
    ids=str,
)
def test_convolutions(options: dict[str, Any], why: str | None) -> None:
    conv = nn.Conv2d(32, 32, **options)
    model, x = nn.Sequential(conv).double(), maps(2, 32, 13, 11)
    before = results(model, x)
    report = segfast.swap(model)
    if why is None:
        assert type(model[0]) is DilatedConv2d
        assert model[0].weight is conv.weight
        assert model[0].bias is conv.bias
        assert not report.left
    else:
        assert model[0] is conv
        assert not report.changed
        assert why in report.left[0].why
    assert all(map(same, results(model, x), before))


def test_one_of_everything() -> None:
    model, x = filled(Net()).eval(), maps(2, 3, 33, 29)
    state, parameters, before = model.state_dict(), list(model.parameters()), results(model, x)
    report = segfast.swap(model)
    assert {row.name: row.now.removeprefix("segfast.nn.") for row in report.changed} == {
        "segnet.pool1": "MaxPool2d",
        "segnet.pool2": "MaxPool2d",
        "segnet.unpool1": "MaxUnpool2d",
        "segnet.unpool2": "MaxUnpool2d",
        "stem.1": "MaxPool2d",
        "dilated": "DilatedConv2d",
        "depthwise": "DilatedConv2d",
        "attention": "LinearAttention2d",
        "aspp": "ASPP",
        "classifier": "ASPPv2",
    }
    assert {row.why for row in report.left} == {NEITHER}
    assert set(model.state_dict()) == set(state)
    model.load_state_dict(state)
    after = list(model.parameters())
    assert all(a is b for a, b in zip(after, parameters, strict=True))  # in the same order
    assert all(map(same, results(model, x), before))
    with torch.no_grad():
        assert same(model(x), before[0])  # folded
        with Operators() as seen:
            model(x)
    assert not seen.of_torch()
    again = segfast.swap(model)
    assert not again.changed
    assert {row.why for row in again.left} == {NEITHER}
    copy.deepcopy(model)(x)


def test_training_and_an_optimiser_go_on() -> None:
    model, x = filled(Net()), maps(2, 3, 33, 29)
    twin = copy.deepcopy(model)
    for net, swaps in ((model, True), (twin, False)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(2):
            if swaps and step == 1:
                segfast.swap(net)
            torch.manual_seed(step)  # dropout
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # two steps magnify rounding


def test_shared_modules_stay_shared() -> None:
    conv, pool = dilated(), nn.MaxPool2d(2)
    model = nn.ModuleDict({"a": nn.Sequential(conv, pool), "b": nn.Sequential(conv), "c": pool})
    report = segfast.swap(model)
    assert type(model["a"][0]) is DilatedConv2d
    assert model["a"][0] is model["b"][0]
    assert model["a"][1] is model["c"]
    assert {row.note for row in report.changed} == {"rate 2, in 2 places", "in 2 places"}
    report.undo()
    assert model["a"][0] is conv is model["b"][0]


def test_the_model_itself_has_no_place() -> None:
    report = segfast.swap(conv := dilated())
    assert not report.changed
    assert report.left[0] == ("", "torch.nn.Conv2d", "it is the model itself, which nothing holds")
    assert type(conv) is nn.Conv2d


def test_what_users_set_is_kept() -> None:
    model = nn.Sequential(dilated(), nn.MaxPool2d(2))
    model[0].learning_rate, model[1].tag = 0.5, "pool"
    model[0].padding, model[0].dilation = (4, 4), (4, 4)  # as encoders are dilated in place
    model[0].eval()
    before = results(model.double(), maps(1, 4, 12, 12))[0]
    segfast.swap(model)
    assert (model[0].learning_rate, model[1].tag) == (0.5, "pool")
    assert (model[0].training, model[1].training) == (False, True)
    assert same(model(maps(1, 4, 12, 12)), before)


# ------------------------------------------------------------------------------ what stays


class Derived(nn.Conv2d):
    pass


class Marked(nn.Parameter):
    pass


def fused() -> nn.Module:
    return torch.ao.nn.intrinsic.ConvReLU2d(dilated(), nn.ReLU())


def having(**attributes: Any) -> nn.Module:
    conv = dilated()
    for name, value in attributes.items():
        setattr(conv, name, value)
    return conv


def calling(method: str, *arguments: Any) -> nn.Module:
    getattr(conv := dilated(), method)(*arguments)
    return conv


STAYS: dict[str, Callable[[], nn.Module]] = {
    "it has hooks": lambda: calling("register_forward_hook", print),
    "has hooks": lambda: calling("register_state_dict_pre_hook", print),
    "a parametrization": lambda: parametrizations.weight_norm(dilated()),
    "a class derived from Conv2d": lambda: Derived(4, 4, 3, dilation=2),
    "it is lazy": lambda: nn.LazyConv2d(4, 3, dilation=2),
    "its forward was replaced": lambda: having(forward=torch.relu),
    "it is to be quantized": lambda: having(qconfig=object()),
    "it is quantized": fused,
    "a Conv2d does not: mask": lambda: calling("register_buffer", "mask", torch.ones(1)),
    "weight is of the class Marked": lambda: having(weight=Marked(torch.ones(4, 4, 3, 3))),
    "takes torch.complex64": lambda: dilated(dtype=torch.complex64),
    "segfast.nn has no module": lambda: nn.Conv1d(4, 4, 3, dilation=2),
    "a class derived from MaxPool2d": lambda: type("Pool", (nn.MaxPool2d,), {})(2),
    "at most 256 positions": lambda: nn.MaxPool2d(17),
    "class derived from MaxUnpool2d": lambda: type("Unpool", (nn.MaxUnpool2d,), {})(2),
}


@pytest.mark.parametrize("why", STAYS)
def test_stays(why: str) -> None:
    module = STAYS[why]()
    model = nn.Sequential(module)
    report = segfast.swap(model)
    assert model[0] is module
    assert not report.changed
    assert [row for row in report.left if why in row.why]


@pytest.mark.parametrize("to", ["segfast", "torch"])
def test_refusals(to: str) -> None:
    net = nn.Sequential(dilated(), nn.MaxPool2d(2))
    compiled_in_place = copy.deepcopy(net)
    compiled_in_place.compile(backend="eager")
    x = torch.randn(1, 4, 8, 8)
    exported = torch.export.export(net, (x,))
    for model, message in (
        (torch.compile(net, backend="eager"), "it is already"),
        (nn.Sequential(torch.compile(net, backend="eager")), "compiled by torch.compile; its 0 is"),
        (compiled_in_place, "before it is compiled by torch.compile"),
        (exported.module(), "before it is exported"),
        (torch.jit.trace(net, x), "compiled by torch.jit"),
    ):
        with pytest.raises(ValueError, match=message):
            segfast.swap(model, to)
    with pytest.raises(TypeError, match="got ExportedProgram: swap its module before"):
        segfast.swap(exported, to)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        segfast.swap("model", to)
    with pytest.raises(ValueError, match="to must be one of segfast, torch; got str 'cudnn'"):
        segfast.swap(net, "cudnn")
    assert type(net[0]) is nn.Conv2d


# ------------------------------------------------------------------------------ the report


def test_the_table() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), dilated(groups=4), nn.ReLU())
    model[2].dilation = model[2].padding = (2, 3)
    report = segfast.swap(model)
    assert str(report).splitlines() == [
        "1 changed",
        "  2  torch.nn.Conv2d -> segfast.nn.DilatedConv2d  rate 2 x 3, depthwise",
        "2 left",
        f"  0 and 1 more  torch.nn.Conv2d  {NEITHER}",
    ]
    assert repr(report) == "<SwapReport: 1 changed, 2 left>"
    assert str(segfast.swap(nn.ReLU())) == "0 changed\n0 left"


def test_undo_restores_the_very_modules() -> None:
    model, x = filled(Net()).eval(), maps(2, 3, 33, 29)
    modules, before = list(model.named_modules()), results(model, x)
    report = segfast.swap(model)
    model.aspp.convs[1][0].weight = nn.Parameter(new := model.aspp.convs[1][0].weight * 2)
    model.attention.gamma = nn.Parameter(torch.ones(1, dtype=torch.float64))
    model.train()
    report.undo()
    assert [(n, id(m)) for n, m in model.named_modules()] == [(n, id(m)) for n, m in modules]
    assert all(module.training for module in model.modules())
    assert torch.equal(model.aspp.convs[1][0].weight, new)  # learned since
    assert model.attention.gamma == 1
    report.undo()  # nothing is left to do
    with torch.no_grad():
        model.aspp.convs[1][0].weight /= 2
        model.attention.gamma.copy_(filled(Net()).attention.gamma)
    assert all(map(torch.equal, results(model.eval(), x), before))


def test_undo_refuses_what_changed_since() -> None:
    model = nn.Sequential(dilated(), nn.MaxPool2d(2))
    report = segfast.swap(model)
    pool, model[0] = model[1], nn.Identity()
    with pytest.raises(RuntimeError, match=r"0 must be what swap put there .* it is Identity"):
        report.undo()
    assert model[1] is pool


# ------------------------------------------------------------------------------ the way back


def test_to_torch_and_back() -> None:
    model, x = filled(Net()).eval(), maps(2, 3, 33, 29)
    before, kinds = results(model, x), [type(m) for m in model.modules()]
    segfast.swap(model)
    report = segfast.swap(model, to="torch")
    assert not report.left
    for learns in (True, False):
        with torch.set_grad_enabled(learns), Operators() as seen:
            y = model(x)
        assert not seen.of_segfast()
        assert same(y, before[0])
    assert all(map(same, results(model, x), before))
    assert not segfast.swap(model, to="torch").changed
    back = segfast.swap(model, example=x)
    assert {row.name for row in back.changed} >= {row.name for row in report.changed}
    assert all(map(same, results(model, x), before))
    back.undo()
    report.undo()
    assert [type(m) for m in model.modules()] != kinds  # as after the first swap
    assert all(map(same, results(model, x), before))


def segfast_modules() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    ours, shape = segfast.nn, (2, 8, 11, 9)
    attentions = {
        f"attention {feature_map} {residual}": (
            ours.LinearAttention2d(8, 4, feature_map, residual=residual),
            shape,
        )
        for feature_map, residual in itertools.product(
            ("softplus", "taylor", "relu", "elu"), (True, False)
        )
    }
    return {
        "ASPP": (ours.ASPP(8, (2, 3), 4), shape),
        "separable ASPP": (ours.ASPP(8, (2, 3), 4, separable=True), shape),
        "ASPPv2": (ours.ASPPv2(8, 3, (1, 2)), shape),
        "ContextModule": (ours.ContextModule(8, dilations=(1, 2)), shape),
        "NonLocal2d": (ours.NonLocal2d(8, sub_sample=True), shape),
        "separable": (ours.SeparableDilatedConv2d(8, 4, 3, padding=2, dilation=2), shape),
        **attentions,
    }


@pytest.mark.parametrize("name", segfast_modules())
def test_segfast_s_modules_by_torch(name: str) -> None:
    module, shape = segfast_modules()[name]
    model, x = filled(nn.Sequential(module)).eval(), maps(*shape)
    before = results(model, x)
    with torch.no_grad():
        folded = model(x)
    report = segfast.swap(model, to="torch")
    assert report.changed
    assert not report.left
    with Operators() as seen:
        after = results(model, x)
        with torch.no_grad():
            assert same(model(x), folded)
    assert not seen.of_segfast()
    assert all(map(same, after, before))
    report.undo()
    with torch.no_grad():
        assert torch.equal(model(x), folded)


class Head(segfast.nn.LinearAttention2d):
    pass


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (segfast.nn.DenseCRF(), "PyTorch has no dense CRF"),
        (segfast.nn.FixedUnpool2d(2), "no unpooling without indices"),
        (segfast.nn.MaxUnpool2d(2, dilation=2), "has no dilation"),
        (Head(8), "a class derived from LinearAttention2d"),
        (hooked(segfast.nn.LinearAttention2d(8)), "it has hooks"),
        (hooked(DilatedConv2d(4, 4, 3)), "it has hooks"),
        (hooked(segfast.nn.MaxPool2d(2)), "it has hooks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_stays_segfast_s(module: nn.Module, why: str) -> None:
    model = nn.Sequential(module)
    report = segfast.swap(model, to="torch")
    assert model[0] is module
    assert why in report.left[0].why


def test_packed_indices_keep_both_ends() -> None:
    """A pool that must stay gives packed indices, so no unpooling may become PyTorch's."""
    model, x = SegNet().double(), maps(1, 3, 12, 12)
    segfast.swap(model)
    before = model(x)
    hooked(model.pool1)
    report = segfast.swap(model, to="torch")
    assert [row.name for row in report.changed] == ["pool2"]
    assert {row.name: row.why for row in report.left} == {
        "pool1": "it has hooks",
        "unpool1": "pool1 stays, and its packed indices may come here",
        "unpool2": "pool1 stays, and its packed indices may come here",
    }
    assert same(model(x), before)


# ------------------------------------------------------------------------------ other eyes


@torch.no_grad()
def test_export_and_compile_after_the_swap() -> None:
    model, x = filled(Net(), torch.float32).eval(), maps(2, 3, 33, 29).float()
    before = model(x)
    segfast.swap(model)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), before)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), before)


def test_autocast_and_channels_last_after_the_swap() -> None:
    model, x = filled(Net()).eval(), maps(2, 3, 33, 29)
    oracle = model(x)
    model, x = model.float(), x.float()
    last = x.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        segfast.swap(model)
        after = model(x)
        after_last = model.to(memory_format=torch.channels_last)(last)
    assert after.dtype == torch.bfloat16
    assert_as_good_as(after, oracle, before)
    assert_as_good_as(after_last, oracle, before)


def test_pools_are_one_node_of_traces() -> None:
    model, x = SegNet().double(), maps(1, 3, 12, 12)
    segfast.swap(model)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    names = [str(node.target) for node in traced.graph.nodes]
    assert sum("max_pool2d_packed" in name for name in names) == 2
