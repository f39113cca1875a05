"""RefineNet's parts, against the published ones and written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segfast.models.refinenet import ChainedResidualPooling, RefineNet, units
from tests.fingerprints import assert_reproduces


def test_residual_units_are_the_published_ones() -> None:
    renamed = {
        f"{k}.{i}.{name}": f"{k + 1}_conv{'_relu_varout_dimred' * i}.{name}"
        for k in range(2)
        for i in range(2)
        for name in ("weight", "bias")
    }
    assert_reproduces(units(32, 2), "mod_refinenet_RCU_32_2_2", renamed=renamed)


def test_chained_pooling_is_the_published_one() -> None:
    renamed = {f"convs.{k}.weight": f"{k + 1}_outvar_dimred.weight" for k in range(4)}
    pooling = ChainedResidualPooling(32, 4, 3, "pool_conv")
    assert_reproduces(pooling, "mod_refinenet_CRP_32_4", renamed=renamed)


def test_convolutions_before_pools() -> None:
    """The order of the networks that were released later, written out."""
    torch.manual_seed(0)
    pooling = ChainedResidualPooling(3, 2, 3, "conv_pool").double()
    x = torch.randn(1, 3, 9, 7, dtype=torch.float64)
    a, b = (conv.weight for conv in pooling.convs)
    first = F.max_pool2d(F.conv2d(x, a, padding=1), 5, 1, 2)  # type: ignore[arg-type]
    second = F.max_pool2d(F.conv2d(first, b, padding=1), 5, 1, 2)  # type: ignore[arg-type]
    torch.testing.assert_close(pooling(x), x + first + second)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="order must be one of pool_conv, conv_pool"):
        RefineNet(order="none")
    with pytest.raises(ValueError, match="widths must be four integers"):
        RefineNet(widths=(512, 256))
    with pytest.raises(ValueError, match="pool_stages must be at least 1"):
        RefineNet(pool_stages=0)
