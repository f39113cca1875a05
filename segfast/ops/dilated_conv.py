r"""Dilated (atrous) convolution without products with padding, its transpose, ASPP, context module.

    y[n, o, p] = bias[o] + sum_{c, t} weight[o, c, t] x[n, c, p s - b + t r]

with stride s, padding b and the atrous rate r. At large rates most taps of an output fall into the
padding (23 to 89 % at ASPP's rates): they are not computed.

Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016, sections 2 and
3 (context module); Chen et al., "DeepLab", TPAMI 2018, sections 3.1 and 3.2 (ASPP); Chen et al.,
"Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3. Derivations:
kernels/dilated_conv/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segfast._native import native
from segfast.ops import _check, _dilated_conv_cpu, _dilated_conv_cuda, _dilated_conv_fused
from segfast.ops._check import IntOrPair
from segfast.ops._dilated_conv_geometry import MAP1
from segfast.ops._dilated_conv_grad import Conv, GradInput
from segfast.ops._dilated_conv_kernels import available
from segfast.ops._dilated_conv_prepared import CONV, TRANSPOSED, cast, prepare
from segfast.ops._function import call, needs_graph, tracing, watched


def dilated_conv2d(
    x: Tensor,  # [N, C, H, W] or [C, H, W]
    weight: Tensor,  # [O, C / groups, kh, kw]
    bias: Tensor | None = None,  # [O]
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    r"""Two-dimensional convolution: `F.conv2d`, which multiplies no padding.

    .. math:: y_{o,p} = b_o + \sum_{c,t} w_{o,c,t} \, x_{c,\, p s - b + t r}

    Args:
        x: [N, C, H, W] or [C, H, W], float32, float64, float16 or bfloat16, contiguous or
            channels_last (other strides are copied). N may be 0.
        weight: [O, C / groups, kh, kw]; bias: [O] or None; both of the dtype of x.
        stride: one number or (vertical, horizontal), in positions of x.
        padding: zeros before and behind, in positions; "valid" (none); "same": as many as keep H
            and W at stride 1, the odd one behind.
        dilation: the atrous rate: the distance of neighbouring taps, in positions; it may be larger
            than the map.
        groups: how many groups of channels do not mix; C for a depthwise convolution.

    Returns:
        y [N, O, Ho, Wo] (or [O, Ho, Wo]) in the memory format of x; where PyTorch serves and no
        gradient is wanted, in the one that PyTorch chooses (channels_last if weight is, too). Sums
        are in float32 or wider. Under autocast, inputs are cast first, as `F.conv2d` does.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch, segfast
        >>> x, w = torch.randn(1, 16, 33, 33), torch.randn(8, 16, 3, 3)
        >>> segfast.ops.dilated_conv2d(x, w, padding=12, dilation=12).shape
        torch.Size([1, 8, 33, 33])
    """
    found = prepare(CONV, x, weight, bias, stride, padding, dilation, groups)
    learns = needs_graph(x, weight, bias)
    if found.torch_always or (found.torch_result and not learns) or tracing():
        return F.conv2d(x, weight, bias, *found.for_torch)
    if found.serve is not None and not learns and not watched():
        return found.serve(x, weight, bias)
    maps, weight, bias = cast(found.cast, x, weight, bias)
    y = call(Conv, maps, weight, bias, *found.rest)
    return y if x.dim() == 4 else y[0]


def dilated_conv1d(
    x: Tensor,  # [N, C, L] or [C, L]
    weight: Tensor,  # [O, C / groups, k]
    bias: Tensor | None = None,  # [O]
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """One-dimensional convolution: `F.conv1d`; see :func:`dilated_conv2d`.

    Args:
        x: [N, C, L] or [C, L]; weight: [O, C / groups, k]; bias: [O] or None.
        stride, padding, dilation: one number (or a sequence of one); padding also "same", "valid".
        groups: how many groups of channels do not mix.

    Returns:
        y [N, O, Lo] (or [O, Lo]).

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch, segfast
        >>> x, w = torch.randn(2, 4, 100), torch.randn(8, 4, 3)
        >>> segfast.ops.dilated_conv1d(x, w, padding="same", dilation=16).shape
        torch.Size([2, 8, 100])
    """
    _check.require_floating("x", x, MAP1)
    _check.require_floating("weight", weight, "[O, C / groups, k]")
    if x.dim() not in (2, 3):
        raise ValueError(f"x must be {MAP1}, got {_check.describe(x)}")
    if weight.dim() != 3:
        raise ValueError(f"weight must be [O, C / groups, k], got {_check.describe(weight)}")
    y = dilated_conv2d(
        x.unsqueeze(-2),
        weight.unsqueeze(-2),
        bias,
        (1, _single("stride", stride)),
        padding if isinstance(padding, str) else (0, _single("padding", padding)),
        (1, _single("dilation", dilation)),
        groups,
    )
    return y.squeeze(-2)


def dilated_conv_transpose2d(
    x: Tensor,  # [N, C, H, W] or [C, H, W]
    weight: Tensor,  # [C, O / groups, kh, kw]
    bias: Tensor | None = None,  # [O]
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Tensor:
    r"""Transposed convolution: `F.conv_transpose2d`, the gradient of :func:`dilated_conv2d`'s x.

    .. math:: y_{o,q} = b_o + \sum_{c, t, p:\; p s - b + t r = q} w_{c,o,t} \, x_{c,p}

    Args:
        x: [N, C, H, W] or [C, H, W]; weight: [C, O / groups, kh, kw]; bias: [O] or None.
        stride, padding, dilation: of the convolution that this is the transpose of.
        output_padding: rows and columns more at the end; smaller than stride or dilation.
        groups: how many groups of channels do not mix.

    Returns:
        y [N, O, Ho, Wo] (or [O, Ho, Wo]), Ho = (H - 1) s - 2 b + r (kh - 1) + 1 + output_padding.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch, segfast
        >>> x, w = torch.randn(1, 16, 12, 15), torch.randn(16, 8, 4, 4)
        >>> segfast.ops.dilated_conv_transpose2d(x, w, stride=2, padding=1).shape
        torch.Size([1, 8, 24, 30])
    """
    found = prepare(TRANSPOSED, x, weight, bias, stride, padding, output_padding, groups, dilation)
    learns = needs_graph(x, weight, bias)
    if found.torch_always or (found.torch_result and not learns) or tracing():
        return F.conv_transpose2d(x, weight, bias, *found.for_torch)
    if found.serve is not None and not learns and not watched():
        y = found.serve(x, weight)
        return y if bias is None else y.add_(bias[:, None, None])
    maps, weight, bias = cast(found.cast, x, weight, bias)
    y = call(GradInput, maps, weight, *found.rest)
    if bias is not None:
        y = y + bias[:, None, None]
    return y if x.dim() == 4 else y[0]


def atrous_pyramid2d(
    x: Tensor,  # [N, C, H, W]
    weights: Sequence[Tensor],  # [O_b, C, k_b, k_b] each, k_b odd
    biases: Sequence[Tensor | None] | None,  # [O_b] each
    rates: Sequence[int],
    scale: Tensor | None = None,  # [O], O = sum O_b
    shift: Tensor | None = None,  # [O]
    activation: str | None = None,
) -> Tensor:
    r"""Convolutions of one map at several atrous rates, side by side: the branches of ASPP.

    .. math:: y = \mathrm{act}(\mathrm{scale} \cdot
                  [w_1 *_{r_1} x + b_1, \; w_2 *_{r_2} x + b_2, \dots] + \mathrm{shift})

    Every branch keeps H and W (stride 1, zeros around). Scale and shift are a batch normalisation
    of inference, folded: scale = gamma / sqrt(var + eps), shift = beta - mean scale.

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16, contiguous or channels_last.
        weights: [O_b, C, kh, kw] of every branch, kh and kw odd; 1x1 is a branch, too.
        biases: [O_b] or None of every branch, or None.
        rates: the atrous rate of every branch.
        scale, shift: [O_1 + O_2 + ...] or None (1 and 0), of any floating-point dtype: applied
            in float32 or wider.
        activation: None or "relu".

    Returns:
        y [N, O_1 + O_2 + ..., H, W], the branches in their order, in the dtype of x (after
        autocast) and its memory format, but for what :func:`dilated_conv2d` says.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch, segfast
        >>> x, w = torch.randn(1, 16, 33, 33), [torch.randn(8, 16, 3, 3) for _ in range(3)]
        >>> segfast.ops.atrous_pyramid2d(x, w, None, rates=(6, 12, 18)).shape
        torch.Size([1, 24, 33, 33])
    """
    given = x, weights, biases, rates, scale, shift, activation
    if (fused := _dilated_conv_fused.pyramid(*given)) is not None:
        return fused
    branches = zip(weights, biases or [None] * len(weights), rates, strict=True)
    y = torch.cat([dilated_conv2d(x, w, b, 1, "same", r) for w, b, r in branches], 1)
    z = y
    if scale is not None or shift is not None:
        z = y.to(torch.promote_types(y.dtype, torch.float32))
    if scale is not None:
        z = z * scale.to(z.dtype)[:, None, None]
    if shift is not None:
        z = z + shift.to(z.dtype)[:, None, None]
    return (z if activation is None else z.relu()).to(y.dtype)


def context_module2d(
    x: Tensor,  # [N, C, H, W]
    weights: Sequence[Tensor],  # [C_i, C_{i - 1}, k_i, k_i] each, k_i odd
    biases: Sequence[Tensor | None] | None,  # [C_i] each
    dilations: Sequence[int],
) -> Tensor:
    r"""A chain of dilated convolutions with ReLU between them: the dilated context module.

    .. math:: x_i = \max(w_i *_{r_i} x_{i-1} + b_i, 0), \qquad y = w_n *_{r_n} x_{n-1} + b_n

    Every layer keeps H and W. With 3x3 kernels at 1, 1, 2, 4, 8, 16, 1 and a 1x1 at the end it is
    Yu and Koltun's module (table 1): receptive fields 3, 5, 9, 17, 33, 65, 67, 67.

    Args:
        x: [N, C, H, W], float32, float64, float16 or bfloat16, contiguous or channels_last.
        weights: [C_i, C_{i-1}, kh, kw] of every layer, kh and kw odd.
        biases: [C_i] or None of every layer, or None.
        dilations: the atrous rate of every layer.

    Returns:
        y [N, C_n, H, W], not rectified, in the memory format of x, but for what
        :func:`dilated_conv2d` says.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch, segfast
        >>> x, w = torch.rand(1, 21, 64, 64), [torch.randn(21, 21, 3, 3) / 14 for _ in range(3)]
        >>> segfast.ops.context_module2d(x, w, None, dilations=(1, 2, 4)).shape
        torch.Size([1, 21, 64, 64])
    """
    if (fused := _dilated_conv_fused.context_module(x, weights, biases, dilations)) is not None:
        return fused
    layers = zip(weights, biases or [None] * len(weights), dilations, strict=True)
    for i, (weight, bias, rate) in enumerate(layers):
        x = dilated_conv2d(x if i == 0 else x.relu(), weight, bias, 1, "same", rate)
    return x


def served_by() -> dict[str, str]:
    """Device -> the kernels that serve there."""
    cpu = "PyTorch"
    kernels = _dilated_conv_cpu.families()
    if (module := native()) is not None and kernels:
        if "winograd" in kernels and "winograd" not in available("cpu"):
            kernels[kernels.index("winograd")] = "winograd (off: segfast.allow_winograd)"
        cpu = f"{', '.join(kernels)}: C++ ({module.instruction_set()}); the rest: PyTorch"
    return {"cpu": cpu, "cuda": _dilated_conv_cuda.served_by()}


def _single(name: str, value: Any) -> Any:
    if isinstance(value, (tuple, list)) and len(value) == 1:
        return _single(name, value[0])
    if (number := _check.integer(value)) is None:
        raise TypeError(f"{name} must be an integer or (integer,), got {_check.describe(value)}")
    return number
