r"""Receptive fields, by the rule that composes layers.

A layer of kernel k and stride s on what sees k' pixels at a distance of s' sees

    f_{k,s} o g_{k',s'} = (f o g)_{k' + (k - 1) s', s s'}

(Long, Shelhamer and Darrell, CVPR 2015, section 3, equation 2). Dilation d makes k d (k - 1) + 1;
several inputs give the largest field of them; enlarging divides the stride. The rule is applied to
every operation that runs, on the meta device: nothing is computed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from segfast.kernels.max_unpool.reference import Windows
from segfast.models._base import SegmentationModel
from segfast.ops import _check


class Axis(NamedTuple):
    """Pixels that a value sees along an axis, and the distance of neighbouring values in pixels."""

    size: float = 1
    stride: float = 1

    def layer(self, kernel: float, stride: float = 1, dilation: int = 1) -> Axis:
        """After a layer of that kernel and stride."""
        return Axis(self._wider(dilation * (kernel - 1)), self.stride * stride)

    def enlarged(self, kernel: float, factor: float) -> Axis:
        """After a layer that makes `factor` values of one, each from `kernel` neighbours."""
        return Axis(self._wider(kernel - 1), self.stride / factor)

    def _wider(self, steps: float) -> float:
        return self.size + steps * self.stride if steps else self.size  # 0 times infinity is 0


class ReceptiveField(NamedTuple):
    """What one value sees; sizes are infinite where it sees the whole image."""

    rows: Axis = Axis()
    columns: Axis = Axis()

    def map(self, f: Callable[[Axis, int], Axis]) -> ReceptiveField:
        """f(axis, 0) of the rows and f(axis, 1) of the columns."""
        return ReceptiveField(f(self.rows, 0), f(self.columns, 1))


EVERYTHING = Axis(math.inf, math.inf)
Rule = Callable[[ReceptiveField, Any, Any], ReceptiveField]  # of the input; arguments; result


def _convolution(field: ReceptiveField, arguments: Any, result: Tensor) -> ReceptiveField:
    _, weight, _, strides, _, dilations, transposed, *_ = arguments
    kernel = weight.shape[2:]
    if transposed:  # kernel / stride of its inputs reach a value
        return field.map(lambda a, i: a.enlarged(-(-kernel[i] // strides[i]), strides[i]))
    return field.map(lambda a, i: a.layer(kernel[i], strides[i], dilations[i]))


def _torch_pool(field: ReceptiveField, arguments: Any, result: Any) -> ReceptiveField:
    kernel = arguments[1] * (2 if len(arguments[1]) == 1 else 1)
    strides = arguments[2] if len(arguments) > 2 and arguments[2] else kernel
    strides = strides * (2 if len(strides) == 1 else 1)
    return field.map(lambda a, i: a.layer(kernel[i], strides[i]))


def _packed_pool(field: ReceptiveField, arguments: Any, result: Any) -> ReceptiveField:
    windows = Windows(*arguments[1 : 1 + len(Windows._fields)])
    return field.map(
        lambda a, i: a.layer(windows.kernel[i], windows.stride[i], windows.dilation[i])
    )


def _resized(neighbours: int) -> Rule:
    def rule(field: ReceptiveField, arguments: Any, result: Tensor) -> ReceptiveField:
        x = arguments[0]
        factor = [result.shape[i] / x.shape[i] for i in (2, 3)]
        return field.map(lambda a, i: a.enlarged(neighbours, factor[i]))

    return rule


def _unpool(field: ReceptiveField, arguments: Any, result: Tensor) -> ReceptiveField:
    """By the stride of the pool that is undone; one that rounds up leaves less than that."""
    x = arguments[0]
    return field.map(lambda a, i: a.enlarged(1, round(result.shape[i + 2] / x.shape[i + 2])))


def _adaptive_pool(field: ReceptiveField, arguments: Any, result: Tensor) -> ReceptiveField:
    def axis(before: Axis, i: int) -> Axis:
        ratio = arguments[0].shape[i + 2] / result.shape[i + 2]
        return EVERYTHING if result.shape[i + 2] == 1 else before.layer(math.ceil(ratio), ratio)

    return field.map(axis)


def _along(field: ReceptiveField, arguments: Any, result: Any) -> ReceptiveField:
    """What combines all values along some axes, or all; positions may be one axis, behind two."""
    x = arguments[0]
    dims = arguments[1] if len(arguments) > 1 else None
    dims = (dims,) if isinstance(dims, int) else dims or range(x.dim())
    reduced = {dim % x.dim() for dim in dims}
    if x.dim() == 4:
        return field.map(lambda a, i: EVERYTHING if i + 2 in reduced else a)
    return _everywhere(field, arguments, result) if 2 in reduced else field


def _norm(field: ReceptiveField, arguments: Any, result: Any) -> ReceptiveField:
    x, _, *dims = arguments
    return _along(field, (x, *dims), result)


def _volume_pool(field: ReceptiveField, arguments: Any, result: Any) -> ReceptiveField:
    """Of [N, 1, C, H, W], as local response normalisation has it."""
    _, kernel, *rest = arguments
    strides = rest[0] if rest and rest[0] else kernel
    return field.map(lambda a, i: a.layer(kernel[i + 1], strides[i + 1]))


def _everywhere(field: ReceptiveField, arguments: Any, result: Any) -> ReceptiveField:
    return ReceptiveField(EVERYTHING, EVERYTHING)


# What combines all values along axes that it names.
COMBINED = """
    mean sum prod var std amax amin max min argmax argmin logsumexp
    _softmax _log_softmax _safe_softmax
"""
# By the names of the operators.
RULES: dict[str, Rule] = {
    "aten::convolution": _convolution,
    "aten::max_pool2d_with_indices": _torch_pool,
    "aten::avg_pool2d": _torch_pool,
    "aten::_adaptive_avg_pool2d": _adaptive_pool,
    "aten::adaptive_max_pool2d": lambda f, a, r: _adaptive_pool(f, a, r[0]),
    **dict.fromkeys((f"aten::{name}" for name in COMBINED.split()), _along),
    "aten::linalg_vector_norm": _norm,
    "aten::avg_pool3d": _volume_pool,
    "aten::upsample_nearest2d": _resized(1),
    "aten::max_unpool2d": _unpool,
    "aten::pixel_shuffle": _resized(1),
    "aten::upsample_bilinear2d": _resized(2),
    "aten::upsample_bicubic2d": _resized(4),
    "segfast::_max_pool2d": _packed_pool,
    "segfast::_max_pool2d_values": _packed_pool,
    "segfast::_max_unpool2d": _unpool,
    "segfast::_max_unpool2d_indices": _unpool,
    **dict.fromkeys(
        (
            "segfast::gaussian_filter",
            "segfast::mean_field",
            "aten::mm",
            "aten::bmm",
            "aten::addmm",
            "aten::baddbmm",
            "aten::sort",
        ),
        _everywhere,
    ),
    **dict.fromkeys(
        (f"segfast::_linear_attention{part}" for part in ("", "_state", "_read")), _everywhere
    ),
}
ATTENTION = "aten::_scaled_dot_product"  # the beginning of several names
# What works position by position, or moves positions about (a mirrored border is one of them).
# Normalisations by statistics of the image are counted so, too: as fields of view are published.
KEPT = """
    relu relu_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid sigmoid tanh softplus elu
    leaky_relu leaky_relu_ gelu silu silu_ mish erf exp log sqrt rsqrt abs neg pow clamp clamp_min
    clamp_max add add_ sub mul mul_ div div_ maximum minimum eq ne lt le gt ge where masked_fill
    native_batch_norm native_group_norm native_layer_norm native_dropout
    constant_pad_nd reflection_pad2d replication_pad2d index_select
    cat stack split split_with_sizes unbind slice select squeeze unsqueeze expand repeat
    view _unsafe_view _reshape_alias transpose permute t alias detach clone copy_ _to_copy
"""
POINTWISE = frozenset(f"aten::{name}" for name in KEPT.split())


class _Follow(TorchDispatchMode):
    """Keeps the field of every tensor that depends on the image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.fields = WeakTensorKeyDictionary()
        self.fields[image] = ReceptiveField()
        self.unknown: set[str] = set()  # operators without a rule

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        name = function._schema.name
        tensors = (x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor))
        seen = [self.fields[x] for x in tensors if x in self.fields]
        if seen:
            rule = _everywhere if name.startswith(ATTENTION) else RULES.get(name)
            if rule is None and name not in POINTWISE:
                self.unknown.add(name)
            field = _together(seen)
            field = field if rule is None else rule(field, arguments, result)
            for x in tree_leaves(result):
                if isinstance(x, Tensor):
                    self.fields[x] = field
        return result


def _together(fields: list[ReceptiveField]) -> ReceptiveField:
    """What a value sees that is made of several: the most, at the finest distance."""

    def axis(parts: list[Axis]) -> Axis:
        return Axis(max(a.size for a in parts), min(a.stride for a in parts))

    return ReceptiveField(axis([f.rows for f in fields]), axis([f.columns for f in fields]))


class _Scores(nn.Module):
    """A model's published output, before it is resized."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        if isinstance(self.model, SegmentationModel):
            return self.model.scores(self.model.prepared(x))["out"]
        return self.model(x)


def follow(model: nn.Module, layer: str | None, shape: tuple[int, ...]) -> tuple[Any, set[str]]:
    """(receptive field, names of the operators without a rule) for an image of that shape."""
    scores = _Scores(model)
    state = {key: x.to("meta") for key, x in scores.state_dict(keep_vars=True).items()}
    caught: list[Any] = []
    hook = None
    if layer is not None:
        hook = model.get_submodule(layer).register_forward_hook(lambda m, a, y: caught.append(y))
    image = torch.empty(shape, device="meta")
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), _Follow(image) as run:
            caught.append(torch.func.functional_call(scores, state, (image,)))
    finally:
        for module, training in modes.items():
            module.training = training
        if hook is not None:
            hook.remove()
    output = next(x for x in tree_leaves(caught[0]) if isinstance(x, Tensor))
    return run.fields.get(output), run.unknown


def receptive_field(
    model: nn.Module,
    layer: str | None = None,
    size: tuple[int, int] = (512, 512),
    in_channels: int | None = None,
) -> ReceptiveField:
    """Pixels that one score sees, and the pixels from one score to the next.

        f_{k,s} o g_{k',s'} = (f o g)_{k' + (k - 1) s', s s'}

    exactly for convolutions and pools. What enlarges adds its neighbours (a transposed convolution
    ceil(kernel / stride), bilinear 2): the largest field of any phase. A pool of the whole image,
    a product of positions, attention or a dense CRF sees everything.

    Args:
        model: any module that takes one image; of a :class:`SegmentationModel` the scores are
            meant as published, before they are resized.
        layer: name of a submodule, whose output is meant instead.
        size: of the image; only pools to a fixed size depend on it.
        in_channels: of the image; None means `model.in_channels`, or 3.

    Raises:
        TypeError, ValueError: an argument breaks its contract, or the output does not depend on
            the image.

    Warns:
        UserWarning: operators of `model` that no rule is known for; they are taken to work
            position by position. The message names them.

    Example:
        >>> from torch import nn
        >>> from segfast.models import receptive_field
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, dilation=2))
        >>> receptive_field(net).rows
        Axis(size=11, stride=2)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {_check.describe(model)}")
    if layer is not None and layer not in dict(model.named_modules()):
        raise ValueError(f"layer must be the name of a submodule, got {_check.describe(layer)}")
    field, unknown = follow(model, layer, image_shape(model, size, in_channels))
    if field is None:
        raise ValueError("the output does not depend on the image")
    if unknown:
        names = ", ".join(sorted(unknown))
        warnings.warn(
            f"no rule is known for {names}: taken to work position by position", stacklevel=2
        )
    return field


def image_shape(
    model: nn.Module, size: tuple[int, int], in_channels: int | None
) -> tuple[int, int, int, int]:
    """Of one image for a model."""
    height, width = _check.pair("size", size, 1)
    if in_channels is None:
        in_channels = int(getattr(model, "in_channels", 3))
    _check.require_count("in_channels", in_channels, 1)
    if isinstance(model, SegmentationModel):
        if in_channels != model.in_channels:
            raise ValueError(
                f"in_channels must be the model's, {model.in_channels}, got {in_channels}"
            )
        if min(height, width) < model.least:
            raise ValueError(
                f"size must be at least {model.least} x {model.least} for a "
                f"{type(model).__name__}, got {height} x {width}"
            )
    return 1, in_channels, height, width
