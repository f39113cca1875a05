"""cuDNN at its best, without a GPU: a module like its frontend, whose plans PyTorch runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._dilated_conv import cudnn_plans, gates, providers
from benchmarks._dilated_conv.workloads import CPU, WORKLOADS, Workload, inputs_of
from benchmarks._gate import WrongResult

TINY = [row for row in CPU if row.name.startswith("small")]
SLOW, UNSUPPORTED, FAST = range(3)  # plans


@dataclass(eq=False)
class Node:
    """A tensor of a graph."""

    dim: list[int] | None = None
    stride: list[int] | None = None
    output: bool = False

    def set_output(self, value: bool) -> Node:
        self.output = value
        return self

    def set_dim(self, dim: list[int]) -> Node:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Node:
        self.stride = stride
        return self


class Graph:
    """One convolution, and the steps in their order."""

    ran: ClassVar[list[int]] = []
    wrong = 0.0

    def __init__(self, **types: Any) -> None:
        assert types["handle"] == "handle"
        assert types["compute_data_type"] == types["intermediate_data_type"] == "float"
        self.dtype, self.steps = types["io_data_type"], []

    def tensor(self, dim: list[int], stride: list[int], data_type: str) -> Node:
        assert data_type == self.dtype
        return Node(dim, stride)

    def _conv(self, operation: str, **arguments: Any) -> Node:
        self.operation, self.options = operation, arguments
        self.result = Node()
        return self.result

    def conv_fprop(self, image: Node, weight: Node, **options: Any) -> Node:
        return self._conv("fprop", a=image, b=weight, **options)

    def conv_dgrad(self, loss: Node, filter: Node, **options: Any) -> Node:
        return self._conv("dgrad", a=loss, b=filter, **options)

    def conv_wgrad(self, image: Node, loss: Node, **options: Any) -> Node:
        return self._conv("wgrad", a=image, b=loss, **options)

    def validate(self) -> None:
        assert self.result.output
        self.steps.append("valid")

    def build_operation_graph(self) -> None:
        self.steps.append("built")

    def create_execution_plans(self, modes: list[str]) -> None:
        assert modes == ["A", "B", "FALLBACK"]
        self.steps.append("plans")

    def check_support(self) -> None:
        self.steps.append("support")

    def build_plans(self, policy: str) -> None:
        assert policy == "ALL"
        assert self.steps == ["valid", "built", "plans", "support"]

    def get_execution_plan_count(self) -> int:
        return 3

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return 100 * index

    def execute_plan_at_index(
        self, given: dict[Node, Tensor], workspace: Tensor, index: int, handle: str
    ) -> None:
        assert workspace.numel() == max(1, 100 * index)
        if index == UNSUPPORTED:
            raise RuntimeError("not supported")
        time.sleep(0.02 * (index == SLOW))  # more than a busy machine takes away
        for node, tensor in given.items():
            assert (node.dim, node.stride) == (list(tensor.shape), list(tensor.stride()))
        a, b, out = (given[node] for node in (self.options["a"], self.options["b"], self.result))
        out.copy_(self.compute(a, b, out) + self.wrong)
        self.ran.append(index)

    def compute(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        names = ("stride", "padding", "dilation")
        stride, padding, dilation = (self.options[name] for name in names)
        if self.operation == "fprop":
            return F.conv2d(a, b, None, stride, padding, dilation, a.shape[1] // b.shape[1])
        x, weight, grad = (out, b, a) if self.operation == "dgrad" else (a, out, b)
        groups = x.shape[1] // weight.shape[1]
        rest = stride, padding, dilation, False, [0, 0], groups
        mask = [self.operation == "dgrad", self.operation == "wgrad", False]
        found = torch.ops.aten.convolution_backward(grad, x, weight, None, *rest, mask)
        return found[0] if mask[0] else found[1]


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Graph]]:
    module: Any = ModuleType("cudnn")
    module.pygraph, module.create_handle = Graph, lambda: "handle"
    module.data_type = SimpleNamespace(FLOAT="float", HALF="half", BFLOAT16="bfloat16")
    module.heur_mode = SimpleNamespace(A="A", B="B", FALLBACK="FALLBACK")
    module.build_plan_policy = SimpleNamespace(ALL="ALL")
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(Graph, "ran", [])
    cudnn_plans.fastest.cache_clear()
    yield Graph
    cudnn_plans.fastest.cache_clear()


def job(name: str, workload: Workload) -> Any:
    return providers.prepare(name, workload, inputs_of(workload))


@pytest.mark.parametrize("workload", TINY, ids=lambda w: w.name)
def test_the_fastest_plan_computes_it(cudnn: type[Graph], workload: Workload) -> None:
    plans = job("cudnn-plans", workload)
    assert gates.run_gates(workload, {"cudnn-plans": plans})
    assert set(cudnn.ran) == {SLOW, FAST}  # each was tried
    cudnn.ran.clear()
    plans()
    assert set(cudnn.ran) == {FAST}


def test_a_wrong_plan_fails_its_gate(cudnn: type[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "wrong", 1.0)
    with pytest.raises(WrongResult, match=TINY[0].name):
        gates.run_gates(TINY[0], {"cudnn-plans": job("cudnn-plans", TINY[0])})


def test_no_plan(cudnn: type[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "get_execution_plan_count", lambda self: 0)
    with pytest.raises(RuntimeError, match="cuDNN has no plan for conv_fprop"):
        job("cudnn-plans", TINY[0])()


@pytest.mark.parametrize("name", ["cudnn-benchmark", "cudnn-benchmark-other-layout"])
def test_benchmark_mode_lasts_as_long_as_the_job(name: str) -> None:
    modes: list[bool] = []

    def conv(x: Tensor, weight: Tensor, rate: int, groups: int) -> Tensor:
        modes.append(torch.backends.cudnn.benchmark)
        return providers.TORCH.conv(x, weight, rate, groups)

    assert gates.run_gates(TINY[0], {name: job(name, TINY[0])})
    functions = replace(providers.PROVIDERS[name].functions, conv=conv)
    before = torch.backends.cudnn.benchmark
    providers.once(functions, TINY[0], inputs_of(TINY[0]))()
    assert modes == [True]
    assert torch.backends.cudnn.benchmark == before


def test_every_row_on_a_gpu_meets_cudnn_at_its_best() -> None:
    rows = [row for row in WORKLOADS if row.device == "cuda"]
    assert all({"cudnn-benchmark", "cudnn-plans"} <= set(row.providers) for row in rows)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for layout in ("nchw", "nhwc"):
            assert any((row.dtype, row.layout) == (dtype, layout) for row in rows)
    pyramids = {(row.layout, row.batch) for row in rows if row.kind == "pyramid"}
    assert pyramids >= {("nchw", 1), ("nhwc", 1), ("nchw", 8)}
