"""Whether two modules compute the same: by numbers, since names and structure do not tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from segfast._look_alike import look_alike
from segfast.ops._autocast import without_autocast

CLOSE = 1e-9  # of the largest result, in float64: sums in another order differ by 1e-13 or so


class Probe:
    """What a module makes of a small map with random parameters, in evaluation and in training.

    The module itself does not run: a look-alike with random numbers in float64 does, on the CPU,
    where modules that share a parameter share its numbers. A gamma that is still zero hides nothing
    then, nor is anything of the module's device or dtype.

    Args:
        module: what is to be replaced.
        shape: of the map.

    Attributes:
        failed: why the module cannot be run so, or None.
    """

    def __init__(self, module: nn.Module, shape: Sequence[int]) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        self._kind: Any = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        self._numbers: dict[int, tuple[Tensor, Tensor]] = {}
        self._expected: list[Tensor] = []
        self.failed: str | None = None
        try:
            with unset_fake_temporarily():
                self._x = torch.randn(shape, **self._kind)
                self._expected = self._run(module)
        except Exception as error:  # whatever somebody's forward may raise
            self.failed = f"on a probe it raised {type(error).__name__}: {error}".split("\n")[0]

    def equals(self, other: nn.Module) -> bool:
        """Whether another module with the same parameters gives the same results."""
        if self.failed is not None:
            return False
        with unset_fake_temporarily():
            return all(map(_close, self._expected, self._run(other)))

    def _run(self, module: nn.Module) -> list[Tensor]:
        results = []
        for training in (False, True):
            twin = look_alike(module, self._numbers_of, {}).train(training)
            with torch.random.fork_rng(devices=[]), torch.no_grad(), without_autocast(self._x):
                torch.manual_seed(0)  # dropout
                results.append(twin(self._x.clone()))
        return results

    def _numbers_of(self, tensor: Tensor) -> Tensor:
        """The same for the same tensor; statistics, which training writes, in their own memory."""
        if id(tensor) not in self._numbers:  # (kept with the tensor, or its id might come again)
            self._numbers[id(tensor)] = tensor, self._random(tensor)
        numbers = self._numbers[id(tensor)][1]
        return numbers.clone() if numbers.dim() < 2 else numbers

    def _random(self, like: Tensor) -> Tensor:
        """Weights of variance 1 / fan_in, factors and variances in [0.5, 1.5), counters 0."""
        if not like.dtype.is_floating_point:
            return torch.zeros(like.shape, dtype=like.dtype, device="cpu")
        uniform = torch.rand(like.shape, **self._kind).sub_(0.5)
        if like.dim() < 2:
            return uniform.add_(1)
        fan_in = max(1, like[0].numel()) if len(like) else 1
        return uniform.mul_((12 / fan_in) ** 0.5)


def _close(a: object, b: Tensor) -> bool:
    if not isinstance(a, Tensor) or a.shape != b.shape:
        return False
    return bool((a - b).abs().max() <= CLOSE * a.abs().max())
