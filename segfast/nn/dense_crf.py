"""The fully connected CRF as a module, trainable, and the parameter sets published for it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from segfast.ops import _check, mean_field
from segfast.ops._dense_crf_check import (
    METHODS,
    SPATIAL,
    require_capacity,
    require_number,
    require_sigmas,
)
from segfast.ops._dense_crf_options import SIGMAS
from segfast.ops.dense_crf import NORMALIZATIONS


@dataclass(frozen=True)
class Preset:
    """One published parameter set; `color_sigma` is in the units of an image of 0 to 255."""

    spatial_weight: float
    spatial_sigma: float
    bilateral_weight: float
    bilateral_sigma: float
    color_sigma: float
    iterations: int
    normalization: str
    source: str

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but `source`: the arguments of `DenseCRF` and `segfast.ops.mean_field`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "source"}


# DeepLab and CRF-RNN ran the NIPS 2011 code, which divides the filtered value ("after"); people
# who reproduce them with pydensecrf run "symmetric": pass normalization="symmetric" for that.
# fmt: off
PRESETS: dict[str, Preset] = {
    # name: spatial weight, sigma; bilateral weight, sigma, color sigma; iterations; normalisation
    "krahenbuhl2011": Preset(
        3, 3, 10, 60, 20, 10, "after",
        "Kraehenbuehl and Koltun, NIPS 2011: the example of the code released with the paper"),
    "pydensecrf": Preset(
        3, 3, 10, 80, 13, 5, "symmetric",
        "pydensecrf, README and examples/inference.py; also the example of the densecrf 2 library"),
    "deeplab-v1": Preset(
        3, 3, 5, 50, 10, 10, "after",
        "Chen et al., ICLR 2015, DeepLab-CRF, as listed by public re-implementations"),
    "deeplab-v1-largefov": Preset(
        3, 3, 4, 121, 5, 10, "after",
        "Chen et al., ICLR 2015, DeepLab-CRF-LargeFOV, as listed by public re-implementations"),
    "deeplab-v2-vgg16": Preset(
        2, 2, 4, 65, 3, 10, "after",
        "Chen et al., TPAMI 2018, VGG-16, as configured by public re-implementations"),
    "deeplab-v2-resnet101": Preset(
        3, 1, 4, 67, 3, 10, "after",
        "Chen et al., TPAMI 2018, ResNet-101: kazuto1011/deeplab-pytorch, configs/voc12.yaml"),
    "crf-rnn": Preset(
        3, 3, 5, 160, 3, 10, "after",
        "Zheng et al., ICCV 2015: the released layer before training, 10 iterations at test time"),
}
# fmt: on


WEIGHTS = ("spatial_weight", "bilateral_weight", "compatibility")


class DenseCRF(nn.Module):
    """Mean-field inference in a fully connected CRF: `segfast.ops.mean_field` as a module.

        scores = logits - mu sum_m W_m K~_m softmax(scores of the iteration before)

    Arguments mean what they mean for `segfast.ops.mean_field`, which checks them against the
    inputs; what can be refused without the inputs is refused here.

    Args:
        spatial_weight, bilateral_weight: a number, [L] or [L, L].
        spatial_sigma, bilateral_sigma: pixels; one number, or (y, x).
        color_sigma: image units; one number or one per channel. None: 13, for uint8 images only.
        compatibility: None (Potts) or the penalty mu [L, L], used as given.
        iterations: number of mean-field updates; 0 returns the logits.
        normalization: "symmetric", "after", "before" or "none".
        method: "lattice", "exact" or "auto" (the bilateral kernel).
        spatial: "conv" (exact) or "lattice" (as pydensecrf).
        tolerance: bound on what the exact method may leave out.
        capacity: room for the vertices of a lattice on CUDA, for CUDA graphs; None: as needed.
        trainable: what becomes a parameter. False: nothing. True: both weights, the compatibility,
            and with ``method="exact"`` the sigmas; what is None stays as it is, Potts or 13. Or
            the names of those that shall, of the six from ``spatial_weight`` to ``compatibility``.

    Shape:
        logits [B, L, H, W], image [B, C, H, W] -> scores [B, L, H, W], before the softmax.

    Parameters start as the arguments that they are named after and have their shapes: a weight
    [], [L] or [L, L]; the compatibility [L, L]; a sigma [], [2] or [C]. So
    ``compatibility=-torch.eye(L)`` learns from the Potts model on, and
    ``spatial_weight=3 * torch.eye(L)`` a weight for every pair of labels. Other tensors among the
    arguments are buffers: they follow the module to its device and are part of its state.

    Gradients flow to the logits, with ``method="exact"`` to the image and the sigmas, too. A step
    that takes a sigma to zero or below is refused at the next call.

    Raises:
        ValueError, TypeError: an argument that no input could make valid.

    Example:
        >>> import torch
        >>> from segfast.nn import DenseCRF
        >>> crf = DenseCRF.from_preset("deeplab-v2-resnet101", iterations=5)
        >>> image = torch.randint(0, 256, (1, 3, 24, 32), dtype=torch.uint8)
        >>> crf(torch.randn(1, 21, 24, 32), image).softmax(1).shape
        torch.Size([1, 21, 24, 32])
        >>> crf = DenseCRF(compatibility=-torch.eye(21), trainable=True)
        >>> [(name, tuple(p.shape)) for name, p in crf.named_parameters()]
        [('spatial_weight', ()), ('bilateral_weight', ()), ('compatibility', (21, 21))]
    """

    spatial_weight: float | Tensor
    bilateral_weight: float | Tensor
    compatibility: Tensor | None
    spatial_sigma: float | Sequence[float] | Tensor
    bilateral_sigma: float | Sequence[float] | Tensor
    color_sigma: float | Sequence[float] | Tensor | None

    def __init__(
        self,
        spatial_weight: float | Tensor = 3.0,
        spatial_sigma: float | Sequence[float] = 3.0,
        bilateral_weight: float | Tensor = 10.0,
        bilateral_sigma: float | Sequence[float] = 80.0,
        color_sigma: float | Sequence[float] | None = None,
        compatibility: Tensor | None = None,
        iterations: int = 10,
        normalization: str = "symmetric",
        method: str = "lattice",
        spatial: str = "conv",
        tolerance: float = 1e-7,
        capacity: int | None = None,
        trainable: bool | Sequence[str] = False,
    ) -> None:
        super().__init__()
        require_sigmas(spatial_sigma, bilateral_sigma, color_sigma)
        iterations = _check.require_count("iterations", iterations)
        _check.require_choice("normalization", normalization, NORMALIZATIONS)
        _check.require_choice("method", method, METHODS)
        _check.require_choice("spatial", spatial, SPATIAL)
        tolerance = _check.not_negative("tolerance", tolerance)
        require_capacity(capacity)
        require_weight("spatial_weight", spatial_weight, "a number, [L] or [L, L]", (0, 1, 2))
        require_weight("bilateral_weight", bilateral_weight, "a number, [L] or [L, L]", (0, 1, 2))
        require_weight("compatibility", compatibility, "None or [L, L]", (2,))
        values: dict[str, Any] = {
            "spatial_weight": spatial_weight,
            "bilateral_weight": bilateral_weight,
            "compatibility": compatibility,
            "spatial_sigma": spatial_sigma,
            "bilateral_sigma": bilateral_sigma,
            "color_sigma": color_sigma,
        }
        self.trainable = _learnt(trainable, values, method)
        for name, value in values.items():
            self._keep(name, _check.plain(value), name in self.trainable)
        self.iterations = iterations
        self.normalization = normalization
        self.method = method
        self.spatial = spatial
        self.tolerance = tolerance
        self.capacity = capacity

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> DenseCRF:
        """A published parameter set by name, see `PRESETS` for each one's source.

        Args:
            name: a key of `PRESETS`.
            overrides: constructor arguments that replace the preset's.

        Raises ValueError for an unknown name, TypeError for an unknown override.

        Example:
            >>> from segfast.nn import DenseCRF
            >>> DenseCRF.from_preset("crf-rnn").bilateral_sigma
            160
        """
        if name not in PRESETS:
            raise ValueError(f"name must be one of {', '.join(PRESETS)}; got {name!r}")
        return cls(**{**PRESETS[name].parameters, **overrides})

    def forward(self, logits: Tensor, image: Tensor, return_belief: bool = False) -> Tensor:
        """logits [B, L, H, W], image [B, C, H, W] -> scores [B, L, H, W] (before the softmax).

        With ``return_belief`` their softmax over the labels, faster than a softmax afterwards.
        """
        return mean_field(
            logits,
            image,
            spatial_weight=self.spatial_weight,
            spatial_sigma=self.spatial_sigma,
            bilateral_weight=self.bilateral_weight,
            bilateral_sigma=self.bilateral_sigma,
            color_sigma=self.color_sigma,
            compatibility=self.compatibility,
            iterations=self.iterations,
            normalization=self.normalization,
            method=self.method,
            spatial=self.spatial,
            tolerance=self.tolerance,
            capacity=self.capacity,
            return_belief=return_belief,
        )

    def extra_repr(self) -> str:
        """The arguments, in the constructor's order; tensors that are no numbers by their shape."""
        return ", ".join(f"{name}={_shown(getattr(self, name))}" for name in _ARGUMENTS)

    def _keep(self, name: str, value: Any, learn: bool) -> None:
        """Stores a parameter, a buffer for a tensor that is none, or the value as it is."""
        if learn:
            start = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
            dtype = start.dtype if start.is_floating_point() else torch.get_default_dtype()
            self.register_parameter(name, nn.Parameter(start.to(dtype)))
        elif isinstance(value, Tensor):
            if value.requires_grad:
                raise ValueError(
                    f"{name} must not require a gradient where it is not learned: name it in "
                    f"trainable, or pass {name}.detach()"
                )
            self.register_buffer(name, value.clone())
        else:
            setattr(self, name, value)


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return str(list(value.shape)) if value.dim() or value.is_meta else f"{value.item():g}"


def _learnt(
    trainable: bool | Sequence[str], values: dict[str, Any], method: str
) -> tuple[str, ...]:
    """Names of what becomes a parameter, in the order of `values`."""
    if isinstance(trainable, bool):
        wanted = (*WEIGHTS, *(SIGMAS if method == "exact" else ())) if trainable else ()
        return tuple(name for name in wanted if values[name] is not None)
    if isinstance(trainable, str) or not isinstance(trainable, Sequence):
        raise TypeError(
            f"trainable must be True, False or a list of names, got {_check.describe(trainable)}"
        )
    for name in trainable:
        if name not in values:
            raise ValueError(f"trainable must name some of {', '.join(values)}; got {name!r}")
        if name in SIGMAS and method != "exact":
            raise ValueError(
                f'trainable must not name {name} with method={method!r}: only "exact" has a '
                f"gradient there"
            )
        if values[name] is None:
            raise ValueError(f"{name} must be given to be learned: there is no shape to start from")
    return tuple(name for name in values if name in trainable)


def require_weight(name: str, value: Any, wanted: str, dims: Sequence[int]) -> Any:
    """A number where `dims` has 0, None where it has not, or a floating tensor of `dims`."""
    if isinstance(value, Tensor):
        _check.require_dtype(name, value)
        square = value.dim() != 2 or value.shape[0] == value.shape[1]
        if value.dim() not in dims or not square:
            raise ValueError(f"{name} must be {wanted}, got {_check.describe(value)}")
        return value
    if 0 in dims:
        return require_number(name, value, wanted)
    if value is not None:
        raise TypeError(f"{name} must be {wanted}, got {_check.describe(value)}")
    return None


_ARGUMENTS = tuple(inspect.signature(DenseCRF.__init__).parameters)[1:]
