"""Linear-attention benchmark: who computes, and the operations that everybody is asked for.

Everybody gets maps as convolutions give them, q and k [B, D, N], v [B, E, N], and returns
o [B, E, N].
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import segfast
from benchmarks._common import Job
from benchmarks._linear_attention.workloads import Inputs, Workload
from benchmarks._measure import Provider, repeated
from segfast.kernels.linear_attention import reference

EPS = 1e-6  # as published
Attend = Callable[[str, Tensor, Tensor, Tensor], Tensor]  # feature map, q, k, v


def convolved(attend: Attend) -> Callable[..., Tensor]:
    """The block as published: three 1 x 1 convolutions, the attention, the residual."""

    def block(
        feature_map: str, x: Tensor,
        w_q: Tensor, b_q: Tensor, w_k: Tensor, b_k: Tensor, w_v: Tensor, b_v: Tensor, gamma: Tensor,
    ) -> Tensor:  # fmt: skip
        pairs = (w_q, b_q), (w_k, b_k), (w_v, b_v)
        q, k, v = (F.conv2d(x, w[:, :, None, None], b).flatten(2) for w, b in pairs)
        return x + gamma * attend(feature_map, q, k, v).view(x.shape)

    return block


@dataclass(frozen=True)
class Functions:
    """The attention and the block around it."""

    attend: Attend
    block: Callable[..., Tensor]


def einsum(feature_map: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The published chain of einsums: MANet's with softplus, MAResU-Net's with l2 norms.

    softplus  o_n = phi(q_n)^T (sum_j phi(k_j) v_j^T) / phi(q_n) . (sum_j phi(k_j) + eps)
    taylor    o_n = (sum_j v_j + u_n^T sum_j w_j v_j^T) / (N + u_n . (sum_j w_j + eps)),
              u = q / |q|, w = k / |k|
    """
    if feature_map == "softplus":
        q, k = F.softplus(q).transpose(1, 2), F.softplus(k)  # [B, N, D], [B, D, N]
        state = torch.einsum("bdn,ben->bde", k, v)
        scale = 1 / torch.einsum("bnd,bd->bn", q, k.sum(-1) + EPS)
        return torch.einsum("bnd,bde,bn->ben", q, state, scale)
    q = (q / q.norm(p=2, dim=1, keepdim=True)).transpose(1, 2)
    k = k / k.norm(p=2, dim=1, keepdim=True)
    scale = 1 / (k.shape[-1] + torch.einsum("bnd,bd->bn", q, k.sum(-1) + EPS))
    state = torch.einsum("bdn,ben->bde", k, v)
    total = torch.einsum("ben->be", v).unsqueeze(-1) + torch.einsum("bnd,bde->ben", q, state)
    return torch.einsum("ben,bn->ben", total, scale)


def matmul(feature_map: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same in three products, positions always last: nothing is transposed in memory."""
    if feature_map == "softplus":
        q, k = F.softplus(q), F.softplus(k)
    else:
        q, k = F.normalize(q, dim=1, eps=1e-6), F.normalize(k, dim=1, eps=1e-6)
    numerator = (v @ k.mT) @ q  # [B, E, N]
    denominator = (k.sum(-1, keepdim=True) + EPS).mT @ q  # [B, 1, N]
    if feature_map == "taylor":
        numerator, denominator = numerator + v.sum(-1, keepdim=True), denominator + k.shape[-1]
    return numerator / denominator


def softmax(feature_map: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over all pairs: what the linear one stands in for, not the same."""
    q, k, v = (x.mT[:, None] for x in (q, k, v))  # fused kernels take [B, heads, N, channels]
    return F.scaled_dot_product_attention(q, k, v)[:, 0].mT


def flash_bla(feature_map: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """flash-bidirectional-linear-attention: features by PyTorch, [B, heads, N, channels]."""
    fused = importlib.import_module("flash_bla.ops.linear_attn.fused")
    q, k, v = (x.mT[:, None] for x in (F.softplus(q), F.softplus(k), v))
    o: Tensor = fused.linear_attention(q, k, v)
    return o[:, 0].mT


def _attend(feature_map: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return segfast.ops.linear_attention(q.mT, k.mT, v.mT, feature_map, EPS).mT


def _block(feature_map: str, *tensors: Tensor) -> Tensor:
    x, w_q, b_q, w_k, b_k, w_v, b_v, gamma = tensors
    return segfast.ops.linear_attention2d(
        x, w_q, b_q, w_k, b_k, w_v, b_v, gamma, feature_map, EPS
    )  # fmt: skip


def _exact(feature_map: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.linear(q, k, v, feature_map, EPS)


EXACT = Functions(_exact, convolved(_exact))  # for the gates


def once(functions: Functions, workload: Workload, inputs: Inputs, compiled: bool = False) -> Job:
    """One call: the result, or the gradients of all inputs."""
    function = functions.block if workload.block else functions.attend
    run: Callable[..., Tensor] = functools.partial(function, workload.feature_map)
    if compiled:
        torch._dynamo.reset()  # one function, many shapes: it would give up after a few
        run = torch.compile(run, dynamic=False)
    if not workload.train:
        return lambda: run(*inputs.tensors)

    def train() -> Any:
        leaves = [x.detach().requires_grad_() for x in inputs.tensors]
        return torch.autograd.grad(run(*leaves), leaves, inputs.grad)

    return train


def prepare(name: str, workload: Workload, inputs: Inputs) -> Job:
    """`workload.repeat` times the operation; returns the last result."""
    provider = PROVIDERS[name]
    return repeated(once(provider.functions, workload, inputs, provider.compiled), workload)


def _segfast_serves(workload: Workload) -> str:
    return str(segfast.info()["served_by"]["linear_attention"][workload.device])


def _torch_serves(what: str) -> Callable[[Workload], str]:
    return lambda workload: f"torch {torch.__version__}, {what}"


PROVIDERS = {
    "segfast": Provider(Functions(_attend, _block), _segfast_serves),
    "torch": Provider(Functions(einsum, convolved(einsum)), _torch_serves("published einsums")),
    "torch-compile": Provider(
        Functions(einsum, convolved(einsum)), _torch_serves("inductor, published einsums"), True
    ),
    "torch-matmul": Provider(
        Functions(matmul, convolved(matmul)), _torch_serves("three products")
    ),
    "sdpa": Provider(
        Functions(softmax, convolved(softmax)),
        _torch_serves("softmax over all pairs: another function, only run"),
    ),
    "flash-bla": Provider(
        Functions(flash_bla, convolved(flash_bla)),
        lambda workload: "flash-bidirectional-linear-attention, features by torch",
        needs="flash_bla",
        foreign=True,
    ),
}  # fmt: skip
