"""The battery of `segfast.testing.op_battery`: what PyTorch may do to an operator, in one call."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# A refusal must say what is refused; "setup_context" or "does not require grad" help nobody.
REFUSAL = r"gradient|differentia|derivative|forward.only|autograd formula|forward.mode"

# Central differences of step 1e-6 are good to about 1e-10 of the function in float64; PyTorch's own
# defaults (1e-5, 1e-3) would pass a gradient that is wrong by a thousandth.
NUMERIC: dict[str, Any] = {"atol": 1e-7, "rtol": 1e-6}


def op_battery(
    fn: Callable[..., Any],
    args: Sequence[Any],
    *,
    differentiable: Sequence[int] = (),
    second_order: bool = True,
    other_args: Sequence[Any] | None = None,
    other_sample: Sequence[Any] | None = None,
    opcheck_op: Any = None,
    opcheck_args: Sequence[Any] | None = None,
    autocast: str = "keep",
    refusal: str = REFUSAL,
) -> None:
    """Everything PyTorch may do to an operator: one call, an AssertionError naming what failed.

    For the arguments in `differentiable`: backward, gradcheck, gradgradcheck, torch.func.grad,
    jacrev, and jvp (right, or refused). For every other floating-point tensor argument: backward,
    torch.func.grad and jvp must *refuse*, since a gradient silently zero is a wrong one, and the
    operator must still run under torch.no_grad(). For all: vmap over each tensor argument and
    over all, torch.compile(fullgraph=True, dynamic=True), torch.export(strict=False) with the
    exported module's parameter gradients, opcheck, autocast.

    Args:
        fn: the public function; returns a tensor or a tuple or list of tensors.
        args: its positional arguments, floats as small float64 tensors (gradcheck is O(size^2)).
        differentiable: positions in `args` with a gradient; empty for a forward-only operator.
        second_order: False if differentiating twice is refused with a clear error.
        other_args: arguments of other sizes; the compiled function must serve them, uncompiled.
        other_sample: arguments of the same shapes, vmap's second sample; default the first one
            reversed along the last axis.
        opcheck_op: the raw operator for torch.library.opcheck, e.g. torch.ops.segfast.x.default.
        opcheck_args: the raw operator's arguments, default `args`.
        autocast: "keep" if float32 stays float32 under autocast, "cast" if autocast's dtype is
            taken (as matmul and convolution do).
        refusal: regular expression that refusing messages must match (case ignored).

    Raises:
        AssertionError: naming the check that failed.

    Example:
        >>> import torch
        >>> from segfast.testing import op_battery
        >>> op_battery(torch.mul, (torch.rand(3).double(), torch.rand(3).double()),
        ...            differentiable=(0, 1), autocast="keep")
    """
    if autocast not in ("keep", "cast"):
        raise ValueError(f"autocast must be 'keep' or 'cast', got {autocast!r}")
    floats = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]
    if bad := [i for i in floats if args[i].dtype != torch.float64]:
        raise TypeError(f"floating-point arguments must be float64; arguments {bad} are not")
    if bad := [i for i in differentiable if i not in floats]:
        raise ValueError(f"differentiable names arguments {bad}, which are no float64 tensors")
    case = _Case(fn, args, tuple(differentiable), refusal)
    with _stage("forward"):
        case.forward()
    for i in (i for i in floats if i not in differentiable):
        case.refuses(i)
    if differentiable:
        case.gradients(second_order)
    case.vmap(other_sample)
    case.compiles(other_args)
    case.exports()
    case.autocasts(autocast)
    if opcheck_op is not None:
        with _stage("opcheck"):
            torch.library.opcheck(opcheck_op, tuple(args if opcheck_args is None else opcheck_args))


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"op_battery: {name}: {type(error).__name__}: {error}") from error


def _leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _same(actual: Any, expected: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """The defaults suit float64, where a wrong rule is off by the size of the result and another
    order of summation by 1e-15 of it."""
    found, wanted = _leaves(actual), _leaves(expected)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, equal_nan=True)


class _Case:
    """One operator with arguments; every method is a check."""

    def __init__(
        self, fn: Callable[..., Any], args: Sequence[Any], wrt: tuple[int, ...], refusal: str
    ) -> None:
        self.fn, self.args, self.wrt, self.refusal = fn, list(args), wrt, refusal
        self.tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]

    def call(self, positions: Sequence[int], values: Sequence[Any], args: Any = None) -> Any:
        """fn with some arguments replaced."""
        given = list(self.args if args is None else args)
        for i, value in zip(positions, values, strict=True):
            given[i] = value
        return self.fn(*given)

    def loss(self, output: Any) -> Tensor:
        """A weighted sum in which no two elements of the output can stand in for each other."""
        total = torch.zeros((), dtype=torch.float64)
        for leaf in (o for o in _leaves(output) if o.is_floating_point()):
            weight = torch.linspace(0.5, 1.5, leaf.numel(), dtype=torch.float64).cos()
            total = total + (leaf * weight.reshape(leaf.shape)).sum()
        return total

    def forward(self) -> None:
        before = pytree.tree_map_only(Tensor, torch.clone, self.args)
        if not _leaves(self.fn(*self.args)):
            raise TypeError("the function returns no tensor")
        _same(before, self.args, rtol=0.0, atol=0.0)  # inputs are left alone

    def leaf(self, i: int) -> Tensor:
        return self.args[i].detach().clone().requires_grad_()

    def eager_gradients(self) -> list[Tensor]:
        leaves = [self.leaf(i) for i in self.wrt]
        return list(torch.autograd.grad(self.loss(self.call(self.wrt, leaves)), leaves))

    # -------------------------------------------------------------- derivatives

    def attempt(self, what: str, run: Callable[[], Any]) -> tuple[bool, Any]:
        """(refused clearly, result): an error that explains nothing is a failure."""
        try:
            return False, run()
        except Exception as error:
            if re.search(self.refusal, str(error), re.IGNORECASE):
                return True, None
            raise AssertionError(
                f"op_battery: {what}: failed without a clear message: "
                f"{type(error).__name__}: {error}"
            ) from error

    def must_refuse(self, what: str, run: Callable[[], Any]) -> None:
        if not self.attempt(what, run)[0]:
            raise AssertionError(f"op_battery: {what}: no error, so its result is silently wrong")

    def refuses(self, i: int) -> None:
        """The x.sum() keeps each derivative alive where the operator silently drops its own."""

        def loss(x: Tensor) -> Tensor:
            return self.loss(self.call([i], [x])) + x.sum()

        x = self.args[i]
        self.must_refuse(f"backward, argument {i}", lambda: loss(self.leaf(i)).backward())
        self.must_refuse(f"torch.func.grad, argument {i}", lambda: torch.func.grad(loss)(x))
        self.must_refuse(f"jvp, argument {i}", lambda: torch.func.jvp(loss, (x,), (x,)))
        with _stage(f"no_grad, argument {i}"), torch.no_grad():
            _same(self.call([i], [self.leaf(i)]), self.fn(*self.args))

    def gradients(self, second_order: bool) -> None:
        wrt, values = self.wrt, [self.args[i] for i in self.wrt]

        def of(*xs: Tensor) -> tuple[Tensor, ...]:
            return tuple(o for o in _leaves(self.call(wrt, xs)) if o.is_floating_point())

        with _stage("backward"):
            expected = self.eager_gradients()
        with _stage("gradcheck"):
            torch.autograd.gradcheck(of, [self.leaf(i) for i in wrt], **NUMERIC)
        if second_order:
            with _stage("gradgradcheck"):
                torch.autograd.gradgradcheck(of, [self.leaf(i) for i in wrt], **NUMERIC)
        else:
            self.must_refuse("second backward", lambda: self.backward_twice(of))
        with _stage("torch.func.grad"):
            positions = tuple(range(len(wrt)))
            _same(torch.func.grad(lambda *xs: self.loss(of(*xs)), positions)(*values), expected)
        jacobian = torch.autograd.functional.jacobian(of, tuple(values))
        with _stage("torch.func.jacrev"):
            _same(torch.func.jacrev(of, positions)(*values), jacobian)
        self.forward_mode(of, values, jacobian)

    def backward_twice(self, of: Callable[..., tuple[Tensor, ...]]) -> None:
        leaves = [self.leaf(i) for i in self.wrt]
        first = torch.autograd.grad(self.loss(of(*leaves)), leaves, create_graph=True)
        (self.loss(first) + sum(x.square().sum() for x in leaves)).backward()

    def forward_mode(self, of: Any, values: list[Tensor], jacobian: Any) -> None:
        tangents = tuple(torch.ones_like(x) for x in values)
        refused, result = self.attempt("jvp", lambda: torch.func.jvp(of, tuple(values), tangents))
        if refused:
            return
        outputs, product = result
        with _stage("jvp"):
            _same(product, [
                sum(block.reshape(*output.shape, -1).sum(-1) for block in row)
                for output, row in zip(outputs, jacobian, strict=True)
            ])  # fmt: skip

    # -------------------------------------------------------------- transformations

    def vmap(self, other: Sequence[Any] | None) -> None:
        """Two samples, the second `other` or reversed along the last axis, against a loop."""
        if other is None:
            other = [a.flip(-1) if isinstance(a, Tensor) and a.ndim else a for a in self.args]
        for mapped in {*((i,) for i in self.tensors), tuple(self.tensors)}:
            pairs = [(self.args[i], other[i]) for i in mapped]
            with _stage(f"vmap over arguments {mapped}"):
                in_dims = tuple(0 if i in mapped else None for i in range(len(self.args)))
                stacked = list(self.args)
                for i, pair in zip(mapped, pairs, strict=True):
                    stacked[i] = torch.stack(pair)
                each = [_leaves(self.call(mapped, sample)) for sample in zip(*pairs, strict=True)]
                batched = torch.func.vmap(self.fn, in_dims)(*stacked)
                _same(batched, [torch.stack(pair) for pair in zip(*each, strict=True)])

    def compiles(self, other_args: Sequence[Any] | None) -> None:
        from torch._dynamo.backends.debugging import aot_eager

        graphs = 0

        def counting(module: Any, inputs: Any, **kwargs: Any) -> Any:
            nonlocal graphs
            graphs += 1
            return aot_eager(module, inputs, **kwargs)

        torch._dynamo.reset()
        compiled = torch.compile(self.fn, fullgraph=True, dynamic=True, backend=counting)
        with _stage("torch.compile"):
            _same(compiled(*self.args), self.fn(*self.args))
            before = graphs
            if other_args is not None:
                _same(compiled(*other_args), self.fn(*other_args))
                assert graphs == before, "compiled again for other sizes"
        if self.wrt:
            with _stage("gradients of torch.compile"):
                leaves = [self.leaf(i) for i in self.wrt]
                loss = _Case(compiled, self.args, self.wrt, self.refusal)
                gradients = torch.autograd.grad(loss.loss(loss.call(self.wrt, leaves)), leaves)
                _same(gradients, self.eager_gradients())
        torch._dynamo.reset()

    def exports(self) -> None:
        """Differentiable arguments are the module's parameters, other tensors its inputs."""
        module = _Module(self)
        inputs = tuple(self.args[i] for i in self.tensors if i not in self.wrt)
        with _stage("torch.export"):
            program = torch.export.export(module, inputs, strict=False).module()
            _same(program(*inputs), self.fn(*self.args))
        if self.wrt:
            with _stage("gradients of the exported module"):
                self.loss(program(*inputs)).backward()
                found = dict(program.named_parameters())
                gradients = [found[f"argument_{i}"].grad for i in self.wrt]
                lost = [i for i, g in zip(self.wrt, gradients, strict=True) if g is None]
                assert not lost, f"parameters {lost} have no gradient after export"
                _same(gradients, self.eager_gradients())

    def autocasts(self, policy: str) -> None:
        def cast(dtype: torch.dtype) -> list[Any]:
            return [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a
                    for a in self.args]  # fmt: skip

        single, reduced = cast(torch.float32), cast(torch.bfloat16)
        device = next((self.args[i].device.type for i in self.tensors), "cpu")
        with _stage(f"autocast ({policy})"):
            expected = self.fn(*(single if policy == "keep" else reduced))
            with torch.autocast(device, torch.bfloat16):
                _same(self.fn(*single), expected, rtol=0.0, atol=0.0)
        with _stage("autocast, a bfloat16 tensor among float32 ones"):
            mixed = [reduced[i] if i == min(self.tensors) else a for i, a in enumerate(single)]
            with torch.autocast(device, torch.bfloat16):
                output = _leaves(self.fn(*mixed))
            assert [o.shape for o in output] == [o.shape for o in _leaves(expected)]


class _Module(torch.nn.Module):
    def __init__(self, case: _Case) -> None:
        super().__init__()
        self.case = case
        for i in case.wrt:
            self.register_parameter(f"argument_{i}", torch.nn.Parameter(case.args[i].clone()))

    def forward(self, *inputs: Tensor) -> Any:
        given = iter(inputs)
        values = [getattr(self, f"argument_{i}") if i in self.case.wrt else next(given)
                  for i in self.case.tensors]  # fmt: skip
        return self.case.call(self.case.tensors, values)
