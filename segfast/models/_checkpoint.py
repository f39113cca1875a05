"""Published weights into our networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segfast.models._base import SegmentationModel
from segfast.ops import _check


def load_checkpoint(
    model: SegmentationModel, source: Mapping[str, Tensor], layout: str = "auto"
) -> SegmentationModel:
    """Copies weights under published keys into a model, in place; every key must fit.

    Args:
        model: from `create_model`.
        source: published key -> tensor.
        layout: whose keys these are; "auto" takes the layout of the model's.

    Returns:
        The model. On the meta device it takes the tensors themselves.

    Raises:
        TypeError, ValueError: an argument breaks its contract, or keys or shapes do not fit: the
            message names every one.
    """
    layout = model.layout if layout == "auto" else layout
    _check.require_choice("layout", layout, tuple(model.layouts))
    rules = model.layouts[layout]
    state = rules.apply(source)
    ours = model.state_dict()
    given = next((tensor for tensor in state.values() if tensor.is_floating_point()), None)
    for key in ours.keys() - state.keys():
        if given is not None and (value := rules.constant(key)) is not None:
            dtype = given.dtype if ours[key].is_floating_point() else ours[key].dtype
            state[key] = torch.full(ours[key].shape, value, dtype=dtype, device=given.device)
    problems = [f"missing {key}" for key in ours if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in ours]
    for key in ours.keys() & state.keys():
        wanted, found = ours[key].shape, state[key].shape
        if wanted != found:
            if [n for n in wanted if n != 1] == [n for n in found if n != 1]:
                state[key] = state[key].reshape(wanted)  # Caffe keeps axes of one element
            else:
                problems.append(f"{key} has shape {tuple(found)}, wanted {tuple(wanted)}")
    if problems:
        raise ValueError(
            f"{len(problems)} keys do not fit layout {layout!r}: {'; '.join(problems)}"
        )
    on_meta = any(tensor.is_meta for tensor in ours.values())
    model.load_state_dict(state, assign=on_meta)
    return model
