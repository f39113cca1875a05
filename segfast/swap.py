"""segfast's operators in anybody's model, and PyTorch's in segfast's."""

from __future__ import annotations

from typing import Any

from torch import nn

from segfast._swap.report import Changed, Exchange, Left, SwapReport
from segfast._swap.rules import RULES
from segfast._swap.sites import Site, kind, require_model, sites
from segfast._swap.verdict import Leave, Swap, first
from segfast.ops import _check


def swap(model: nn.Module, to: str = "segfast", *, example: Any = None) -> SwapReport:
    """Puts segfast's modules in the place of a model's that compute the same, or takes them out.

    Of the model, in place; parameters stay the same objects under the same state_dict keys.

    =====================================  ========================================================
    to="segfast"
    =====================================  ========================================================
    `torch.nn.Conv2d`                      :class:`segfast.nn.DilatedConv2d` where it is dilated or
                                           grouped, and not in groups that no kernel of ours takes;
                                           one that is neither stays, by rule
    `torch.nn.MaxPool2d`                   :class:`segfast.nn.MaxPool2d`; one that returns indices
                                           only if they are seen to end in unpoolings of its kernel,
                                           stride and padding: they are packed then
    `torch.nn.MaxUnpool2d`                 :class:`segfast.nn.MaxUnpool2d`, which takes int64
                                           indices, too
    ASPP as torchvision's, smp's, and      :class:`segfast.nn.ASPP`, :class:`segfast.nn.ASPPv2`, if
    DeepLab v2's                           nothing in it has hooks
    query_conv, key_conv, value_conv,      :class:`segfast.nn.LinearAttention2d`, of the feature map
    gamma (MANet, MAResU-Net, ABCNet)      and residual that it computes
    =====================================  ========================================================

    For the last two the structure alone is no proof: original and replacement are compared on a
    small random map with random parameters in float64, in evaluation and in training, and must be
    equal to rounding (1e-9). Where indices go, torch.fx tells, or one run on `example` without
    numbers, which also follows models that torch.fx cannot trace; neither computes anything or
    changes the model.

    to="torch" is the way back for segfast's modules, also for those that were never exchanged:
    convolutions, pools and unpools become those of `torch.nn`, LinearAttention2d its eager form;
    ASPP, ASPPv2 and ContextModule stay and compute layer by layer. A dense CRF stays.

    Modules that are hooked, parametrized, lazy, quantized, or of derived classes stay. A module
    that is shared is exchanged in all its places, for one. What is called by
    `torch.nn.functional` is no module and is not seen.

    Args:
        model: any module; swap before it is compiled or exported.
        to: "segfast" or "torch".
        example: an input, a tuple of inputs, or a dict of arguments of the model, of which only
            shapes and dtypes count; None: torch.fx traces. Read only where pools return indices.

    Returns:
        A report: `changed` (name, was, now, note), `left` (name, kind, why), a table as `str`, and
        `undo()`, which puts the very modules back. A second swap changes nothing.

    Raises:
        TypeError, ValueError: an argument breaks its contract (a model that has been compiled or
            exported does); the message names it.

    Example:
        >>> import torch, segfast
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, dilation=2))
        >>> report = segfast.swap(net)
        >>> print(report)
        2 changed
          1  torch.nn.MaxPool2d -> segfast.nn.MaxPool2d
          2  torch.nn.Conv2d -> segfast.nn.DilatedConv2d  rate 2
        1 left
          0  torch.nn.Conv2d  neither dilated nor grouped: PyTorch's is as good
        >>> report.undo()
    """
    require_model(model)
    _check.require_choice("to", to, tuple(RULES))
    rules = RULES[to](model, example)
    changed, left, exchanges = [], [], []
    settled: set[nn.Module] = set()  # all in what is exchanged, or left as a whole
    for site in sites(model):
        if site.places and all(parent in settled for parent, _ in site.places):
            continue
        verdict = first(rules, site.module)
        if isinstance(verdict, Swap) and not site.places:
            verdict = Leave("it is the model itself, which nothing holds")
        if isinstance(verdict, Swap):
            changed.append(_changed(site, verdict))
            exchanges.append(Exchange(site, verdict.new, verdict.below))
            settled.update(site.module.modules())
        elif verdict is not None:
            left.append(Left(site.name, kind(site.module), verdict.why))
            if not verdict.enter:
                settled.update(site.module.modules())
    for site, new, _ in exchanges:
        for parent, name in site.places:
            parent._modules[name] = new
    return SwapReport(changed, left, exchanges)


def _changed(site: Site, verdict: Swap) -> Changed:
    notes = [verdict.note] if verdict.note else []
    if len(site.places) > 1:
        notes.append(f"in {len(site.places)} places")
    return Changed(site.name, kind(site.module), kind(verdict.new), ", ".join(notes))
