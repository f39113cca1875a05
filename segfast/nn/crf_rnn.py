"""CRF-RNN: a network of scores and the dense CRF behind it, learned together.

Zheng, Jayasumana, Romera-Paredes, Vineet, Su, Du, Huang and Torr, "Conditional Random Fields as
Recurrent Neural Networks", ICCV 2015.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segfast._warn import warn
from segfast.nn.dense_crf import PRESETS, require_weight
from segfast.ops import _check, mean_field
from segfast.ops._dense_crf_check import METHODS, SPATIAL, require_sigmas

PARAMETERS = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")
PUBLISHED = PRESETS["crf-rnn"]


@dataclass(frozen=True)
class Convention:
    """How one published implementation names the three matrices and signs the last one.

    Attributes:
        endings: of the three keys, in the order of `PARAMETERS`.
        sign: of the message, ``logits + sign * C (W_s m_s + W_b m_b)``.
    """

    endings: tuple[str, str, str]
    sign: int


# All three multiply from the left: entry [l, k] is what label k's filtered belief says about l.
CONVENTIONS = {
    "pytorch": Convention(PARAMETERS, +1),  # sadeepj/crfasrnn_pytorch
    "keras": Convention(  # sadeepj/crfasrnn_keras
        ("spatial_ker_weights:0", "bilateral_ker_weights:0", "compatibility_matrix:0"), -1
    ),
    # torrvision/crfasrnn, layer MultiStageMeanfield of TVG_CRFRNN_COCO_VOC.prototxt
    "caffe": Convention(("inference1/0", "inference1/1", "inference1/2"), -1),
}


class CRFRNN(nn.Module):
    """A model that gives scores, and mean-field iterations after it with learned weights.

        s_0 = model(x),   s_{t+1} = s_0 + C (W_s K~_s softmax(s_t) + W_b K~_b softmax(s_t))

    K~_s and K~_b are the spatial and the bilateral Gaussian kernel, each divided by its mass
    (normalisation "after"). Zheng et al., ICCV 2015, as released: 5 iterations in training, 10 at
    test time. Batches of any size; the bits do not depend on the number of threads.

    Args:
        model: takes x, gives logits [B, L, H, W], or a dict with them under "out".
            ``nn.Identity()`` makes this the layer alone, ``crf(logits, image)``.
        labels: L.
        spatial_weight, bilateral_weight: the diagonal that W_s and W_b start with.
        spatial_sigma, bilateral_sigma: pixels; one number, or (y, x).
        color_sigma: in the units of the image, one number or one per channel; 3 is for 0 to 255.
        training_iterations, iterations: mean-field updates in training mode, in evaluation mode.
        method, spatial, tolerance: see `segfast.ops.mean_field`; ``spatial="lattice"`` filters the
            spatial kernel as the published code does, "conv" (the default) exactly.
        device, dtype: of the layer's own parameters, as `torch.nn`'s modules have them.

    Parameters, by their published names, all [L, L]:
        spatial_ker_weights: W_s, 3 on the diagonal.
        bilateral_ker_weights: W_b, 5 on the diagonal.
        compatibility_matrix: C, the identity (the Potts model; with the sign of crfasrnn_pytorch:
            minus the penalty mu of `segfast.ops.mean_field`).

    Gradients reach them and the model. They want larger steps than the model: the released Caffe
    network multiplies its rate by 10000 for the weights and by 1000 for C.

    Raises:
        TypeError, ValueError: an argument, or what the model gives, breaks its contract.

    Example:
        >>> import torch
        >>> from segfast.nn import CRFRNN
        >>> from torch import nn
        >>> net = CRFRNN(nn.Conv2d(3, 21, 1), labels=21)
        >>> x = torch.randn(2, 3, 24, 32)
        >>> image = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
        >>> net(x, image).shape
        torch.Size([2, 21, 24, 32])
        >>> [name for name, _ in net.named_parameters()][:3]
        ['spatial_ker_weights', 'bilateral_ker_weights', 'compatibility_matrix']
    """

    def __init__(
        self,
        model: nn.Module,
        labels: int,
        *,
        spatial_weight: float = PUBLISHED.spatial_weight,
        spatial_sigma: float | tuple[float, float] = PUBLISHED.spatial_sigma,
        bilateral_weight: float = PUBLISHED.bilateral_weight,
        bilateral_sigma: float | tuple[float, float] = PUBLISHED.bilateral_sigma,
        color_sigma: float | tuple[float, ...] = PUBLISHED.color_sigma,
        training_iterations: int = 5,
        iterations: int = PUBLISHED.iterations,
        method: str = "lattice",
        spatial: str = "conv",
        tolerance: float = 1e-7,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {_check.describe(model)}")
        labels = _check.require_count("labels", labels, 1)
        training_iterations = _check.require_count("training_iterations", training_iterations)
        iterations = _check.require_count("iterations", iterations)
        require_sigmas(spatial_sigma, bilateral_sigma, color_sigma)
        _check.require_choice("method", method, METHODS)
        _check.require_choice("spatial", spatial, SPATIAL)
        tolerance = _check.not_negative("tolerance", tolerance)
        diagonal = "a number, the diagonal's (matrices are copied into the parameters)"
        spatial_weight = require_weight("spatial_weight", spatial_weight, diagonal, (0,))
        bilateral_weight = require_weight("bilateral_weight", bilateral_weight, diagonal, (0,))
        self.labels = labels
        self.spatial_sigma = _check.plain(spatial_sigma)
        self.bilateral_sigma = _check.plain(bilateral_sigma)
        self.color_sigma = _check.plain(color_sigma)
        self.training_iterations, self.iterations = training_iterations, iterations
        self.method, self.spatial, self.tolerance = method, spatial, tolerance
        eye = torch.eye(labels, device=device, dtype=dtype)  # [L, L]
        self.spatial_ker_weights = nn.Parameter(spatial_weight * eye)
        self.bilateral_ker_weights = nn.Parameter(bilateral_weight * eye)
        self.compatibility_matrix = nn.Parameter(eye.clone())
        self.model = model

    def forward(self, x: Any, image: Tensor | None = None) -> Any:
        """Scores before the softmax [B, L, H, W]; of a dict, the same dict with another "out".

        Args:
            x: what the model takes.
            image: [B, C, H, W], what the kernels compare, in units that suit ``color_sigma``;
                None: x itself, with a warning where it was scaled to a small range.
        """
        given = self.model(x)
        scores: Any = given.get("out") if isinstance(given, Mapping) else given
        image = x if image is None else image
        self._require_scores(scores, image)
        refined = mean_field(
            scores,
            image,
            spatial_weight=self.spatial_ker_weights,
            spatial_sigma=self.spatial_sigma,
            bilateral_weight=self.bilateral_ker_weights,
            bilateral_sigma=self.bilateral_sigma,
            color_sigma=self.color_sigma,
            compatibility=-self.compatibility_matrix,  # C says how much, mu how little
            iterations=self.training_iterations if self.training else self.iterations,
            normalization=PUBLISHED.normalization,
            method=self.method,
            spatial=self.spatial,
            tolerance=self.tolerance,
        )
        return {**given, "out": refined} if isinstance(given, Mapping) else refined

    @torch.no_grad()
    def load_published(
        self, state: Mapping[str, Any] | str | os.PathLike[str], convention: str = "pytorch"
    ) -> dict[str, Any]:
        """Takes the three matrices of a published CRF-RNN, in its layout and with its sign.

        ==========  =============================  =========================  ==================
        convention  keys end in                    the update                 C of the Potts model
        ==========  =============================  =========================  ==================
        "pytorch"   the names of the parameters    logits + C (...)           identity
        "keras"     the same and ``:0``            logits - C (...)           minus the identity
        "caffe"     ``inference1/0``, ``1``, ``2``  logits - C (...)           minus the identity
        ==========  =============================  =========================  ==================

        Whatever stands before the ending (``crfrnn.``, ``module.crfrnn.``) does not matter.

        Args:
            state: tensors or NumPy arrays by key, or a file of them that `torch.save` wrote (read
                with ``weights_only=True``). Caffe's blobs may be [1, 1, L, L].
            convention: "pytorch", "keras" or "caffe".

        Returns:
            The entries that are not the CRF's, for ``model.load_state_dict``.

        Raises:
            ValueError, TypeError: a matrix is missing, there twice, of another shape or not
                finite, or the file is not PyTorch's; then nothing has been changed.

        Warns:
            UserWarning: the CRF would push equal labels apart: the sign is likely another one's.

        Example:
            >>> import torch
            >>> from segfast.nn import CRFRNN
            >>> from torch import nn
            >>> net = CRFRNN(nn.Identity(), labels=2)
            >>> caffe = {f"inference1/{i}": m * torch.eye(2) for i, m in enumerate((3, 5, -1))}
            >>> net.load_published({**caffe, "conv1_1/0": torch.ones(1)}, "caffe")
            {'conv1_1/0': tensor([1.])}
            >>> net.compatibility_matrix[0, 0].item()
            1.0
        """
        _check.require_choice("convention", convention, tuple(CONVENTIONS))
        if isinstance(state, (str, os.PathLike)):
            state = _read(state)
        if not isinstance(state, Mapping):
            raise TypeError(f"state must hold tensors by name, got {_check.describe(state)}")
        kind = CONVENTIONS[convention]
        keys = [_only_key(state, ending, convention) for ending in kind.endings]
        spatial, bilateral, compatibility = (self._matrix(key, state[key]) for key in keys)
        compatibility = kind.sign * compatibility
        if (compatibility @ (spatial + bilateral)).trace() < 0:
            warn(
                f"compatibility_matrix has the sign that pushes equal labels apart: is the state "
                f"really convention={convention!r}?"
            )
        for name, value in zip(PARAMETERS, (spatial, bilateral, compatibility), strict=True):
            getattr(self, name).copy_(value)
        return {key: value for key, value in state.items() if key not in keys}

    def extra_repr(self) -> str:
        """What is not learned."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in _SHOWN)

    def _require_scores(self, scores: Any, image: Tensor) -> None:
        if not isinstance(scores, Tensor):
            raise TypeError(
                f'model must give a tensor or a dict with one under "out", '
                f"got {_check.describe(scores)}"
            )
        _check.require_tensor("image", image, "[B, C, H, W]")
        if scores.dim() != 4 or scores.shape[1] != self.labels:
            raise ValueError(
                f"model must give scores [B, L, H, W] with L = {self.labels}, "
                f"got {_check.describe(scores)}"
            )
        if scores.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"model must give scores of the image's size {tuple(image.shape[-2:])}, got "
                f"{_check.describe(scores)} for an image [B, C, H, W] of shape "
                f"{tuple(image.shape)}: let it end with an interpolation"
            )

    def _matrix(self, key: str, value: Any) -> Tensor:
        """state[key] as [L, L], in the dtype and on the device of the parameters."""
        like = self.compatibility_matrix
        matrix = torch.as_tensor(value)
        if not matrix.is_floating_point():
            raise TypeError(f"state[{key!r}] must be floating, got {_check.describe(matrix)}")
        if tuple(matrix.shape) not in ((self.labels,) * 2, (1, 1, self.labels, self.labels)):
            raise ValueError(
                f"state[{key!r}] must have shape [L, L] = [{self.labels}, {self.labels}], "
                f"got {_check.describe(matrix)}"
            )
        if not matrix.isfinite().all():
            raise ValueError(f"state[{key!r}] must be finite, it is not")
        return matrix.reshape(like.shape).to(like)


def _read(path: str | os.PathLike[str]) -> Any:
    """torch.load, which runs no code of the file; of others' files it makes any kind of error."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"state must be a mapping of names to arrays, or a file of one that torch.save wrote, "
            f"got {os.fspath(path)!r}, which torch.load cannot read safely; what Caffe or Keras "
            f"wrote is to be read with their libraries and passed as a dict"
        ) from error


def _only_key(state: Mapping[str, Any], ending: str, convention: str) -> str:
    """The one key that is `ending` or ends with it after a dot or a slash."""
    found = [
        key
        for key in state
        if isinstance(key, str) and (key == ending or key.endswith((f".{ending}", f"/{ending}")))
    ]
    if len(found) != 1:
        some = ", ".join(map(repr, found or list(state)[:5]))
        raise ValueError(
            f"state must have one key that ends in {ending!r} (convention {convention!r}), "
            f"got {len(found)}: {some or 'no keys at all'}"
        )
    return found[0]


_SHOWN = (
    "labels", "spatial_sigma", "bilateral_sigma", "color_sigma", "training_iterations",
    "iterations", "method", "spatial", "tolerance",
)  # fmt: skip
