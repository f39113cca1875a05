"""The same sums in another order, in float64: rounding may put them apart, by how much?

By the rounding floor of `segfast.testing.assert_as_good_as`, 2 u sqrt(K) M + u |y|: K counts how
often a product is rounded on its way into the result y, alone and in sums, and M is the sum of the
products' magnitudes. For a module that is what its formula gives of magnitudes: `positive`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segfast.testing import assert_as_good_as


def positive(module: nn.Module) -> Any:
    """A copy that gives the sizes of the module's results, of magnitudes as input."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.abs_()
            if name.endswith("running_mean"):  # is subtracted
                tensor.neg_()
    return module


def with_gradients(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor], up: Tensor
) -> list[Tensor]:
    """y = function(x), and the gradients of x and of the parameters."""
    x = x.detach().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], up)]


def assert_same_sums(actual: Any, expected: Any, sizes: Any, roundings: int) -> None:
    """Tensors, or lists of them. sizes: M; roundings: K, at most."""
    if isinstance(actual, Tensor):
        actual, expected, sizes = [actual], [expected], [sizes]
    for a, e, size in zip(actual, expected, sizes, strict=True):
        assert a.dtype == torch.float64
        assert_as_good_as(a, e.detach(), e, terms=roundings, magnitude=size.detach())
