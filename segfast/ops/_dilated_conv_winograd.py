"""The setting that allows Winograd's kernels: exact in exact arithmetic, less so in float32."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from segfast.ops._check import describe


class Setting(NamedTuple):
    allowed: bool
    change: int  # which one made it so: a decision in the midst of two changes shows


_changes = itertools.count(1)
_setting = Setting(False, 0)


def winograd_setting() -> Setting:
    return _setting


def _set(allowed: bool) -> None:
    global _setting
    _setting = Setting(allowed, next(_changes))


def allow_winograd(allowed: bool = True) -> AbstractContextManager[None]:
    r"""Lets dilated convolutions on the CPU use Winograd's algorithm, faster and less accurate.

    A 3x3 convolution at rate r falls apart into those of its r x r phases, ordinary convolutions of
    the positions p with one p mod r. Each is computed in tiles of 4x4 results y, from 6x6 inputs x:

    .. math:: y = A^T \Bigl[ \sum_c (G w_c G^T) \odot (B^T x_c B) \Bigr] A

    with 36 products instead of 144. It serves float32 maps in planes, stride 1, groups = 1, the
    forward pass and the input's gradient, where it was measured to be faster (`segfast.explain`
    says "winograd"), which is at low rates and with many channels. The weight's gradient, and
    everything else, is computed as before.

    The error, against the exact convolution with unit roundoff u = 2^-24:

    .. math:: |\hat y - y| \le \gamma_n \bigl( 176 \max |x| \sum_{c,t} |w_{c,t}| + |b| \bigr),
              \quad \gamma_n = n u / (1 - n u), \quad n = C + 27

    unless a number overflows (Winograd's do from inputs of about 3e37 on) or underflows. Direct
    summation has 1 instead of 176, and n = 9 C + 1. That is the worst case. On normally distributed
    maps of 512 channels the error is 1.9e-6 of the results' standard deviation in the
    root mean square and 2.8e-5 at its largest, 7 and 14 times that of direct summation; of 256
    channels 1.4e-6 and 2.5e-5. An infinity or NaN spoils all results of the tiles that read it.
    Results are the same bits for any number of threads.

    Args:
        allowed: whether Winograd's kernels may be used from now on, by all threads of the process.
            The setting counts when a kernel runs: for a gradient, when `backward` is called.

    Returns:
        A context manager that restores the setting as it was before the call; it is no decorator.

    Raises:
        TypeError: allowed is no bool.
        RuntimeError: inside of what torch.compile compiles; call the compiled function under it.

    Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section
    4; points 0, 5/8, -5/8, 3/2, -3/2, infinity. Derivations: kernels/dilated_conv/README.md.

    Example:
        >>> import torch, segfast
        >>> x, w = torch.randn(1, 64, 33, 33), torch.randn(64, 64, 3, 3)
        >>> with segfast.allow_winograd():
        ...     y = segfast.ops.dilated_conv2d(x, w, padding=2, dilation=2)
    """
    if not isinstance(allowed, bool):
        raise TypeError(f"allowed must be a bool, got {describe(allowed)}")
    if torch.compiler.is_compiling():
        raise RuntimeError("allow_winograd must be called outside of what torch.compile compiles")
    before = _setting.allowed
    _set(allowed)
    return _Restored(before)


class _Restored(AbstractContextManager[None]):
    def __init__(self, before: bool) -> None:
        self.before = before

    def __exit__(self, *_: object) -> None:
        _set(self.before)
