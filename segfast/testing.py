"""What tests of numerical operators share; usable for your own operators too.

    assert_as_good_as   as accurate as PyTorch in the same dtype, measured against a float64 oracle
    op_battery          gradients, torch.func, torch.compile, torch.export, opcheck, autocast
    poison_empty        fresh memory holds NaN, so reading before writing shows
    devices, dtypes     pytest parametrisations

Only `devices` and `dtypes` need pytest.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segfast._native import native
from segfast._op_battery import op_battery
from segfast.ops._layout import dtype_name

if TYPE_CHECKING:
    import pytest

__all__ = ["assert_as_good_as", "devices", "dtypes", "op_battery", "poison_empty"]

# ------------------------------------------------------------------------------ accuracy


def assert_as_good_as(
    actual: Tensor,
    oracle: Tensor,
    baseline: Tensor,
    *,
    terms: int = 1,
    magnitude: float | Tensor | None = None,
    label: str = "",
) -> None:
    """Passes when `actual` is as accurate as `baseline`, both measured against `oracle`.

        max |actual - oracle| <= 2 max |baseline - oracle|
                                 + u_out max |oracle| + 2 u_acc sqrt(terms) magnitude

    u_out is the unit roundoff of the dtype, u_acc that of the accumulator (float64 for float64,
    float32 otherwise). The last two summands are the rounding floor: without it two equally good
    kernels would fail each other by chance.

    Args:
        actual: the result under test, any float dtype and shape.
        oracle: the true result, float64, same shape.
        baseline: what plain PyTorch gives in `actual`'s dtype, same shape.
        terms: K, how many products each element of the result sums.
        magnitude: max sum |a_i b_i| over the elements; default max |oracle|, a lower bound of it.
        label: names the tensor in the message.

    Raises:
        AssertionError: too far off; NaN or infinities elsewhere than the oracle's; other shapes.
        TypeError, ValueError: arguments that could make the comparison meaningless.

    Example:
        >>> import torch
        >>> from segfast.testing import assert_as_good_as
        >>> a, b = torch.rand(64, 512), torch.rand(512, 64)
        >>> assert_as_good_as(a @ b, a.double() @ b.double(), (b.T @ a.T).T, terms=512)
    """
    name = label or "result"
    if oracle.dtype != torch.float64:
        raise TypeError(f"oracle must be float64, got {oracle.dtype}")
    if baseline.dtype != actual.dtype:
        raise TypeError(f"baseline must have actual's dtype {actual.dtype}, got {baseline.dtype}")
    if terms < 1:
        raise ValueError(f"terms must be at least 1, got {terms}")
    if baseline.shape != oracle.shape:
        raise ValueError(
            f"baseline {tuple(baseline.shape)} and oracle {tuple(oracle.shape)} differ"
        )
    assert actual.shape == oracle.shape, (
        f"{name}: shape {tuple(actual.shape)}, expected {tuple(oracle.shape)}"
    )
    actual, oracle, baseline = (t.detach().cpu() for t in (actual, oracle, baseline))
    finite = _assert_same_special(actual, oracle, name)
    if not bool(torch.isfinite(baseline[finite]).all()):
        raise ValueError(f"{name}: the baseline is not finite where the oracle is")
    if not bool(finite.any()):
        return

    zero = torch.zeros((), dtype=torch.float64)
    truth = torch.where(finite, oracle, zero)
    error = torch.where(finite, actual.double() - oracle, zero).abs()
    baseline_error = torch.where(finite, baseline.double() - oracle, zero).abs()
    accumulator = torch.float64 if actual.dtype == torch.float64 else torch.float32
    largest = float(truth.abs().max())
    size = largest if magnitude is None else float(torch.as_tensor(magnitude).detach().abs().max())
    floor = _roundoff(actual.dtype) * largest
    floor += 2 * _roundoff(accumulator) * math.sqrt(terms) * size
    allowed = 2 * float(baseline_error.max()) + floor

    worst = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    assert float(error.max()) <= allowed, (
        f"{name}: max error {float(error.max()):.3e} at {worst} "
        f"(got {float(actual[worst]):.9g}, oracle {float(oracle[worst]):.9g}) exceeds "
        f"{allowed:.3e} = 2 x the baseline's {float(baseline_error.max()):.3e} "
        f"+ rounding floor {floor:.3e}; "
        f"RMS error / RMS oracle: {_rms_ratio(error, truth):.3e}, "
        f"baseline's {_rms_ratio(baseline_error, truth):.3e}"
    )


def _assert_same_special(actual: Tensor, oracle: Tensor, name: str) -> Tensor:
    """Where both are finite; NaN and infinities must stand at the same places with their signs."""
    rounded = oracle.to(actual.dtype)  # what overflows the dtype is expected to be infinite
    wrong = _kind(actual) != _kind(rounded)
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: {int(wrong.sum())} elements are NaN or infinite on one side only, "
            f"first at {at}: got {float(actual[at])}, oracle {float(oracle[at])}"
        )
    return torch.isfinite(actual)


def _kind(x: Tensor) -> Tensor:
    """0 for finite elements, 1 for NaN, 2 and 3 for the infinities."""
    return x.isnan() + 2 * x.isposinf() + 3 * x.isneginf()


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _rms_ratio(error: Tensor, truth: Tensor) -> float:
    return float(error.square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-300))


# ------------------------------------------------------------------------------ pytest


def devices() -> pytest.MarkDecorator:
    """Parametrises `device` over "cpu" and "cuda" (marked cuda, skipped where there is none)."""
    import pytest

    absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    cuda = pytest.param("cuda", marks=[pytest.mark.cuda, absent])
    return pytest.mark.parametrize("device", ["cpu", cuda])


def dtypes(*choices: torch.dtype) -> pytest.MarkDecorator:
    """Parametrises `dtype`; default float32, float64, float16, bfloat16."""
    import pytest

    chosen = choices or (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    names = [dtype_name(dtype) for dtype in chosen]
    return pytest.mark.parametrize("dtype", chosen, ids=names)


@contextlib.contextmanager
def poison_empty() -> Iterator[None]:
    """Inside the block uninitialised memory is NaN (floats) or the largest value (integers).

    Covers torch.empty, empty_like, empty_strided, new_empty and resize_, from Python and from C++
    that allocates through PyTorch; results and scratch memory of segfast's compiled kernels on the
    CPU (all bits set). A kernel that writes past the end of its scratch memory ends the process.
    Uses PyTorch's deterministic mode, the whole process's.
    """
    module = native()
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    before = module is not None and module.poison(True)
    try:
        yield
    finally:
        if module is not None:
            module.poison(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.set_deterministic_debug_mode(mode)
