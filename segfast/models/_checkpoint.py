"""Published weights into our networks, and ours into files."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
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

    The same keys may belong into networks that compute something else: strides, rates, corners. So
    a model's `state_dict()` says its layout, and files keep that: those of :func:`save_checkpoint`,
    and those of `torch.save` where it was given that mapping, alone or in a wrapper. Of keys of
    ours that were copied into a mapping of another kind, or written by another library, nothing is
    known: they load into every wiring that they fit, and only the one they were trained in computes
    what it did. Options beside the layout, such as rates or an output stride, are never known.

    Args:
        model: a network of any class or name.
        source: published key -> tensor; or a path: `.safetensors` (or a folder with
            model.safetensors), `.caffemodel`, or what `torch.save` wrote, which is read without
            running code from it. Files above 8 GiB are refused. Numbers are converted to the
            model's dtype and device; integers are no weights.
        layout: whose keys these are, one of `model.layouts`, or "segfast" for our own; "auto"
            tries our own and those that are wired as the model. What belongs into another wiring is
            refused: a source that says so, and keys that fit its layout only.
        strict: False loads what fits, and warns of each key that does not.

    Returns:
        The model. On the meta device it takes the tensors themselves, as they are; those that
        share memory are copied.

    Raises:
        TypeError, ValueError: an argument breaks its contract, a file cannot be read, or keys or
            shapes do not fit: the message names every one, and the model is as it was.

    Example:
        >>> from segfast.models import create_model
        >>> from segfast.models import load_checkpoint
        >>> model = create_model("fcn_resnet50")
        >>> state = {f"module.{key}": x for key, x in model.state_dict().items()}
        >>> load_checkpoint(model, {"state_dict": state, "epoch": 3}) is model
        True
    """
    _require_model(model)
    _check.require_bool("strict", strict)
    layouts: dict[str, Rules] = {OURS: AS_IT_IS, **model.layouts}
    _check.require_choice("layout", layout, ("auto", *layouts))
    found = _sources.read(source)
    said = found.layout if found.layout in model.layouts else None
    if layout == "auto" and said is not None and not model.wired_as(said):
        raise ValueError(
            f"source was saved from a model wired as {said!r}, this one is wired as "
            f"{model.layout!r}: build it with layout={said!r}, or say layout={OURS!r} here if the "
            f"wiring is right"
        )
    alike = [name for name in (model.layout, *model.layouts) if model.wired_as(name)]
    tried = (OURS, *alike) if layout == "auto" else (layout,)
    best = _best(model, found.state, {name: layouts[name] for name in tried})
    if best.problems and layout == "auto":
        other = _best(model, found.state, layouts)
        if not other.problems:
            raise ValueError(
                f"source has the keys of layout {other.layout!r}, the model is wired as "
                f"{model.layout!r}: build it with layout={other.layout!r}, or say "
                f"layout={other.layout!r} here if the wiring is right"
            )
    report(best, strict, found.others)
    ours = model.state_dict().values()
    on_meta = any(tensor.is_meta for tensor in ours)
    model.load_state_dict(separate(best.state, ours), strict=strict, assign=on_meta)
    return model


def report(fit: Fit, strict: bool, others: Sequence[str] = ()) -> None:
    """Raises, or warns, of all that does not fit, and of the others that were no tensors."""
    if fit.problems:
        listed = "; ".join([*fit.problems, *others])
        keys = "1 key does" if len(fit.problems) == 1 else f"{len(fit.problems)} keys do"
        message = f"{keys} not fit layout {fit.layout!r}: {listed}"
        if strict:
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)


def save_checkpoint(model: SegmentationModel, path: str | os.PathLike[str]) -> None:
    """Writes a model's state under our keys as safetensors, with its layout in the metadata.

    Args:
        model: a network of any class or name.
        path: of the file, which ends in .safetensors; it appears when it is whole.

    Raises:
        TypeError, ValueError: an argument breaks its contract.
        ImportError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    _require_model(model)
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, got {_check.describe(path)}")
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = model.state_dict()
    for key, x in state.items():
        if not isinstance(x, Tensor) or x.is_meta or x.is_quantized or x.layout != torch.strided:
            raise ValueError(
                f"model must have strided tensors with numbers, its {key} is {_check.describe(x)}"
                f"{' on the meta device' if getattr(x, 'is_meta', False) else ''}"
            )
    unfinished = path.with_name(f"{path.name}.part")
    try:
        save_file(separate(state), unfinished, {"format": "pt", "layout": model.layout})
        unfinished.replace(path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _require_model(model: object) -> None:
    if not isinstance(model, SegmentationModel):
        raise TypeError(f"model must be a SegmentationModel, got {_check.describe(model)}")


def separate(state: Mapping[str, Tensor], others: Iterable[Tensor] = ()) -> dict[str, Tensor]:
    """The tensors, contiguous; copied where they share memory with one before, or with `others`."""
    taken = {_memory(x) for x in others}
    found = {}
    for key, shared in state.items():
        x = shared.detach()
        if _memory(x) in taken or not x.is_contiguous() or x.is_inference():
            x = x.clone(memory_format=torch.contiguous_format)
        taken.add(_memory(x))
        found[key] = x
    return found


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


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
    return matched(ours, state, model.in_channels, layout, rules)


def matched(
    ours: Mapping[str, Tensor],
    state: _sources.State,
    in_channels: int,
    layout: str,
    rules: Rules,
) -> Fit:
    """A state under our keys against what is wanted: what it lacks by `rules` is filled in."""
    state = dict(state)
    given = next((x for x in state.values() if x.is_floating_point()), None)
    for key in ours.keys() - state.keys():
        if given is not None and (value := rules.constant(key)) is not None:
            dtype = given.dtype if ours[key].is_floating_point() else ours[key].dtype
            state[key] = torch.full(ours[key].shape, value, dtype=dtype, device=given.device)
    problems = [f"missing {key}" for key in ours if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in ours]
    fitting = {}
    for key in (key for key in ours if key in state):
        if why := _unfit(state[key], ours[key]):
            problems.append(f"{key} {why}")
            continue
        x = _shaped(state[key], ours[key].shape, in_channels)
        if x is None:
            found, wanted = tuple(state[key].shape), tuple(ours[key].shape)
            problems.append(f"{key} has shape {found}, wanted {wanted}")
        else:  # counts of batches, where states were averaged, are floating
            fitting[key] = x if ours[key].is_floating_point() else x.to(ours[key].dtype)
    return Fit(layout, fitting, sorted(problems))


def _unfit(x: Tensor, wanted: Tensor) -> str | None:
    """Why x cannot be what is wanted, whatever its shape; None if it can."""
    if x.is_nested or x.layout != torch.strided:
        return f"is a {_check.describe(x)}, wanted a strided one"
    if x.is_meta and not wanted.is_meta:
        return "is on the meta device, where tensors have no numbers"
    if wanted.is_floating_point() and x.dtype not in _check.DTYPES:
        return f"has dtype {x.dtype}, wanted float32, float64, float16 or bfloat16"
    if x.is_complex() or x.is_quantized:
        return f"has dtype {x.dtype}, wanted integers"
    return None


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
