"""Benchmark of whole networks: by segfast's operators, or by PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import segfast
from benchmarks._common import Job
from benchmarks._measure import Provider, repeated
from benchmarks._models.workloads import Workload
from segfast.models import create_model


def network(name: str, workload: Workload) -> nn.Module:
    """The same parameters in every run, whoever computes; no unit is dropped."""
    torch.manual_seed(0)
    model = create_model(workload.model, ops=name)
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0  # float64 would draw others
    # Initial scores are zeros in some, attentions the identity. Where biases are zero, so is the
    # mean of all maps: a border padded with zeros then lies on its ReLU's kink, up to rounding.
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.any():
                nn.init.normal_(parameter, std=0.01)
        if isinstance(gamma := getattr(module, "gamma", None), nn.Parameter):
            nn.init.constant_(gamma, 0.5)
    return model.to(workload.device).train(workload.train)


def once(model: nn.Module, workload: Workload, x: Tensor) -> Job:
    """One call: the scores, or those and the gradients of all parameters that they reach.

    "backward" computes the gradients only, again and again through one graph.
    """
    if not workload.train:

        def forward() -> Any:
            with torch.no_grad():
                return (model(x),)

        return forward
    parameters = list(model.parameters())

    def gradients(scores: Tensor, keep: bool = False) -> Any:
        loss = scores.square().mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=keep)
        return (scores.detach(), *(g for g in found if g is not None))

    if workload.operation == "train":
        return lambda: gradients(model(x))
    scores = model(x)
    return lambda: gradients(scores, keep=True)


def exact(name: str, workload: Workload, x: Tensor) -> Job:
    """The job of "segfast" or "torch" in float64."""
    return once(network(name, workload).double(), workload, x.double())


def prepare(name: str, workload: Workload, x: Tensor) -> Job:
    """The job of "segfast" or "torch"."""
    return repeated(once(network(name, workload), workload, x), workload)


def _segfast_serves(workload: Workload) -> str:
    if workload.device == "cuda":
        return "segfast's operators, CUDA"
    isa = segfast.info()["instruction_set"]
    return f"segfast's operators ({isa})" if isa else "segfast's references (PyTorch)"


PROVIDERS = {
    "segfast": Provider(None, _segfast_serves),
    "torch": Provider(None, lambda workload: f"torch {torch.__version__}"),
}
