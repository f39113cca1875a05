"""What is particular to DANet's attentions and to the non-local block. More: test_attention.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segfast.nn import ChannelAttention2d, LinearAttention2d, NonLocal2d, PositionAttention2d
from segfast.testing import assert_as_good_as
from tests.nn.attention_cases import Case, channel, maps


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = f(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (PositionAttention2d, {}),
        (LinearAttention2d, {}),
        (NonLocal2d, {}),
        (NonLocal2d, {"sub_sample": True}),
        (NonLocal2d, {"mode": "dot_product"}),
    ],
)
def test_inference_keeps_no_pairs(
    cls: Any, options: dict[str, Any], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """No tensor has more bytes than the map in float32; N x N numbers would be 34 times that."""
    module = cls(32, **options).to(dtype).eval()
    x = maps(1, 32, 27, 40, dtype=dtype).contiguous(memory_format=layout)
    with torch.no_grad(), Largest() as largest:
        module(x)
    assert 0 < largest.bytes <= 5 * x.numel()


@pytest.mark.parametrize("options", [{"mode": "dot_product"}, {}])
def test_training_of_the_non_local_block_keeps_no_pairs(options: dict[str, Any]) -> None:
    """Equal channels everywhere: PyTorch's fused kernel and its gradient serve."""
    module, x = NonLocal2d(32, **options), maps(1, 32, 27, 40, dtype=torch.float32)
    with Largest() as largest:
        module(x).sum().backward()
    assert 0 < largest.bytes <= 5 * x.numel()


# ------------------------------------------------------------------------- channel attention


def test_sign_of_channel_attention() -> None:
    """Channels a, a, -a: the first sees those like it by the paper, the other one by the code."""
    x = torch.tensor([[3.0, 0.0], [3.0, 0.0], [-3.0, 0.0]]).view(1, 3, 1, 2)
    for sign, expected in (("paper", 3.0), ("code", -3.0)):
        module = ChannelAttention2d(sign)
        torch.nn.init.ones_(module.gamma)
        torch.testing.assert_close((module(x) - x)[0, 0, 0, 0], torch.tensor(expected))
        assert repr(module) == f"ChannelAttention2d(sign='{sign}')"


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sign", ["code", "paper"])
def test_channel_energies_overflow_no_half(sign: str, autocast: bool) -> None:
    """|x . x'| is 16 * 96^2 = 147,456 for pairs of both signs, more than float16 holds."""
    case = Case(ChannelAttention2d, {"sign": sign}, channel)
    x = 4 * maps(1, 8, 96, 96, dtype=torch.float16).sign()
    x = torch.cat([x, -x], 1)
    module = case.build(torch.float32 if autocast else torch.float16)
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=autocast):
        y = module(x)
    oracle = channel(case.build(), x.double())
    assert_as_good_as(y, oracle, oracle.to(y.dtype), terms=96 * 96)


@pytest.mark.parametrize("autocast", [False, True])
def test_non_local_sums_overflow_no_half(autocast: bool) -> None:
    """phi . g summed is 8 * 8 * 96^2 = 589,824; what is added to x is 8 * 8 * (8 * 8 / 64) = 64."""
    dtype = torch.float32 if autocast else torch.float16
    block = NonLocal2d(8, 8, mode="dot_product", batch_norm=False).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=autocast):
        for p in block.parameters():
            p.zero_()
        for part, value in ((block.theta, 1 / 64), (block.phi, 8.0), (block.g, 8.0)):
            part.get_parameter("conv.bias").fill_(value)
        block.conv_out.get_parameter("conv.weight").copy_(8 * torch.eye(8)[..., None, None])
        y = block(torch.zeros(1, 8, 96, 96, dtype=dtype))
    assert torch.equal(y, torch.full_like(y, 64.0))


def test_choices_are_checked() -> None:
    with pytest.raises(ValueError, match=r"^sign must be one of code, paper; got str 'minus'"):
        ChannelAttention2d("minus")
    with pytest.raises(ValueError, match=r"^mode must be one of embedded_gaussian, dot_product;"):
        NonLocal2d(16, mode="gaussian")
    with pytest.raises(ValueError, match=r"^x must be at least 2 x 2 .* got .*\(1, 16, 1, 8\)"):
        NonLocal2d(16, sub_sample=True)(torch.zeros(1, 16, 1, 8))
    for module in (NonLocal2d(16), PositionAttention2d(16)):
        with pytest.raises(ValueError, match=r"^x must be at least 1 x 1 .* got .*\(1, 16, 4, 0\)"):
            module(torch.zeros(1, 16, 4, 0))
    for name in ("use_scale", "sub_sample", "batch_norm"):
        with pytest.raises(TypeError, match=f"^{name} must be True or False, got str 'no'"):
            NonLocal2d(16, **{name: "no"})


# ------------------------------------------------------------------------ the non-local block


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(x.shape) for key, x in module.state_dict().items()}


def test_state_of_mmseg_s_non_local_block() -> None:
    """`decode_head.nl_block` of nonlocal_r50-d8, keys and shapes."""
    published = {
        "g.conv.weight": (256, 512, 1, 1),
        "g.conv.bias": (256,),
        "theta.conv.weight": (256, 512, 1, 1),
        "theta.conv.bias": (256,),
        "phi.conv.weight": (256, 512, 1, 1),
        "phi.conv.bias": (256,),
        "conv_out.conv.weight": (512, 256, 1, 1),
        "conv_out.bn.weight": (512,),
        "conv_out.bn.bias": (512,),
        "conv_out.bn.running_mean": (512,),
        "conv_out.bn.running_var": (512,),
        "conv_out.bn.num_batches_tracked": (),
    }
    block = NonLocal2d(512)
    assert shapes(block) == published
    assert not block.conv_out.get_parameter("bn.weight").any()  # zero is the scale,
    assert block.conv_out.get_parameter("conv.weight").all()  # not what it scales
    sampled = {
        key.replace("g.", "g.0.") if key.startswith("g.") else key.replace("phi.", "phi.0."): shape
        for key, shape in published.items()
    }
    assert shapes(NonLocal2d(512, sub_sample=True)) == sampled
    plain = shapes(NonLocal2d(512, batch_norm=False))
    assert {key for key in plain if "out" in key} == {"conv_out.conv.weight", "conv_out.conv.bias"}
    assert "mode='dot_product', use_scale=True, sub_sample=False" in repr(
        NonLocal2d(8, mode="dot_product")
    )


def test_sub_sampling_begins_at_two_rows() -> None:
    block = NonLocal2d(4, sub_sample=True)
    assert block(torch.zeros(1, 4, 2, 2)).shape == (1, 4, 2, 2)
    assert block(torch.zeros(1, 4, 3, 2)).shape == (1, 4, 3, 2)
