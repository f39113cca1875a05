"""Published weights into our networks, and ours into files."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segfast.models import _sources
from segfast.models._base import SegmentationModel
from segfast.models._keys import AS_IT_IS, OURS, Rules
from segfast.ops import _check


class Fit(NamedTuple):
    """How a published state fits a model: its tensors under our keys, and what does not fit."""

    layout: str
    state: dict[str, Tensor]
    problems: list[str]


def load_checkpoint(
    model: SegmentationModel,
    source: Mapping[str, Any] | str | os.PathLike[str],
    layout: str = "auto",
    strict: bool = True,
) -> SegmentationModel:
    """Copies published weights into a model, in place.

    Wrappers (`state_dict`, `model_state_dict`, `model`) are opened and prefixes that all keys share
    (`module.`, `model.`, `net.`, `base.`, `_orig_mod.`) removed. Weights for RGB images enter a
    network of C channels by one rule, where the first convolution is all that differs:

        C = 1:  w'[:, 0] = sum_k w[:, k]            grey, as an RGB image of three equal channels
        else:   w'[:, c] = 3 / C  w[:, c mod 3]     the same scale of sums

    Args:
        model: from `create_model`.
        source: published key -> tensor; or a path: `.safetensors` (or a folder with
            model.safetensors), `.caffemodel`, or what `torch.save` wrote, which is read without
            running code from it. Files above 8 GiB are refused.
        layout: whose keys these are, one of `model.layouts`, or "segfast" for our own; "auto"
            tries our own and that of the model. Keys that fit another layout only are refused:
            their weights belong into another wiring. So is a file of :func:`save_checkpoint` from
            a model of another layout.
        strict: False loads what fits, and warns of each key that does not.

    Returns:
        The model. On the meta device it takes the tensors themselves.

    Raises:
        TypeError, ValueError: an argument breaks its contract, a file cannot be read, or keys or
            shapes do not fit: the message names every one.

    Example:
        >>> from segfast.models import create_model
        >>> model = create_model("fcn_resnet50")
        >>> state = {f"module.{key}": x for key, x in model.state_dict().items()}
        >>> load_checkpoint(model, {"state_dict": state, "epoch": 3}) is model
        True
    """
    if not isinstance(model, SegmentationModel):
        raise TypeError(f"model must be from create_model, got {_check.describe(model)}")
    _check.require_bool("strict", strict)
    layouts: dict[str, Rules] = {OURS: AS_IT_IS, **model.layouts}
    _check.require_choice("layout", layout, ("auto", *layouts))
    state = _sources.read(source)
    saved = _sources.saved_layout(source)
    if layout == "auto" and saved != model.layout and saved in model.layouts:
        raise ValueError(
            f"source was saved from a model wired as {saved!r}, this one is wired as "
            f"{model.layout!r}: build it with layout={saved!r}, or say layout={OURS!r} here if "
            f"the wiring is right"
        )
    tried = (OURS, model.layout) if layout == "auto" else (layout,)
    best = _best(model, state, {name: layouts[name] for name in tried})
    if best.problems and layout == "auto":
        other = _best(model, state, layouts)
        if not other.problems:
            raise ValueError(
                f"source has the keys of layout {other.layout!r}, the model is wired as "
                f"{model.layout!r}: build it with layout={other.layout!r}, or say "
                f"layout={other.layout!r} here if the wiring is right"
            )
    if best.problems:
        listed = "; ".join(best.problems)
        message = f"{len(best.problems)} keys do not fit layout {best.layout!r}: {listed}"
        if strict:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
    on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
    model.load_state_dict(best.state, strict=strict, assign=on_meta)
    return model


def save_checkpoint(model: SegmentationModel, path: str | os.PathLike[str]) -> None:
    """Writes a model's state under our keys as safetensors, with its layout in the metadata.

    Args:
        model: from `create_model`.
        path: of the file, which ends in .safetensors; it appears when it is whole.

    Raises:
        TypeError, ValueError: an argument breaks its contract.
        ImportError: safetensors is not installed ("segfast[models]").
        OSError: the file cannot be written.
    """
    if not isinstance(model, SegmentationModel):
        raise TypeError(f"model must be from create_model, got {_check.describe(model)}")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, got {_check.describe(path)}")
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    from safetensors.torch import save_file

    state = {key: x.detach().contiguous() for key, x in model.state_dict().items()}
    unfinished = path.with_name(f"{path.name}.part")
    try:
        save_file(state, unfinished, {"format": "pt", "layout": model.layout})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _best(model: SegmentationModel, state: _sources.State, layouts: Mapping[str, Rules]) -> Fit:
    """The layout, with a prefix or without, that leaves the fewest problems; the first of them."""
    fits = [
        _fit(model, candidate, name, rules)
        for name, rules in layouts.items()
        for candidate in _sources.candidates(state)
    ]
    return min(fits, key=lambda fit: len(fit.problems))


def _fit(model: SegmentationModel, published: _sources.State, layout: str, rules: Rules) -> Fit:
    ours = model.state_dict()
    try:
        state = rules.apply(published)
    except ValueError as error:  # keys of another layout may become one
        return Fit(layout, {}, [str(error), *(f"missing {key}" for key in ours)])
    given = next((x for x in state.values() if x.is_floating_point()), None)
    for key in ours.keys() - state.keys():
        if given is not None and (value := rules.constant(key)) is not None:
            dtype = given.dtype if ours[key].is_floating_point() else ours[key].dtype
            state[key] = torch.full(ours[key].shape, value, dtype=dtype, device=given.device)
    problems = [f"missing {key}" for key in ours if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in ours]
    fitting = {}
    for key in ours.keys() & state.keys():
        x = _shaped(state[key], ours[key].shape, model.in_channels)
        if x is None:
            found, wanted = tuple(state[key].shape), tuple(ours[key].shape)
            problems.append(f"{key} has shape {found}, wanted {wanted}")
        else:
            fitting[key] = x
    return Fit(layout, fitting, sorted(problems))


def _shaped(x: Tensor, wanted: torch.Size, in_channels: int) -> Tensor | None:
    """x in the shape that is wanted, where that is the same weight; else None."""
    if x.shape == wanted:
        return x
    vector = len(wanted) <= 1 and x.numel() == wanted.numel() == max(x.shape, default=1)
    if vector or (x.shape[: -len(wanted)].numel() == 1 and x.shape[-len(wanted) :] == wanted):
        return x.reshape(wanted)  # Caffe keeps axes of one element
    if len(wanted) == 4 and list(x.squeeze().shape) == [wanted[0], math.prod(wanted[1:])]:
        return x.reshape(wanted)  # a fully connected layer as a convolution
    of_rgb = x.dim() == len(wanted) == 4 and x.shape[1] == 3 and wanted[1] == in_channels != 3
    if of_rgb and (x.shape[0], *x.shape[2:]) == (wanted[0], *wanted[2:]):
        return adapted(x, in_channels)
    return None


def adapted(weight: Tensor, in_channels: int) -> Tensor:
    """A first convolution's weight [O, 3, k, k] for images of another number of channels."""
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(in_channels) % 3] * (3 / in_channels)
