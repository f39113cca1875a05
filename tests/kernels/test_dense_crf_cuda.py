"""The CUDA kernels of the dense CRF, run on the processor, against the reference.

Vertices are numbered otherwise than on the CPU, and splat, blur and slice sum in another order:
results are equal to rounding, not in every bit. In every order of threads and blocks, and in
whatever batch an image comes, they are equal in every bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dense_crf_host import Host
from torch import Tensor

import host_cuda
from segfast.kernels.dense_crf import reference
from segfast.ops import _dense_crf_lattice_cuda as cuda
from segfast.ops import _dense_crf_lattice_op as batch
from segfast.testing import assert_as_good_as

NORMALIZATIONS = reference.NORMALIZATIONS


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same_in_every_run(compute: Callable[[Host], Tensor]) -> Tensor:
    """In several orders, watched in every way, with the same bits each time."""
    host_cuda.operator("dense_crf")  # or skips
    results = [compute(Host(run)) for run in host_cuda.RUNS]
    for run, result in zip(host_cuda.RUNS, results, strict=True):
        assert torch.equal(result.nan_to_num(77), results[0].nan_to_num(77)), run
    return results[0]


# ---------------------------------------------------------------------------------------- lattice


def photo(count: int, d: int) -> Tensor:
    """Neighbours are alike: many pixels share a vertex."""
    steps = random(d, count, seed=d) * 0.3
    return steps.cumsum(1) * torch.linspace(0.2, 1, d)[:, None]


FEATURES = {  # [d, N]
    "1-D": photo(150, 1),
    "2-D": photo(131, 2),
    "5-D": photo(131, 5),
    "14-D": photo(37, 14),
    "noise": random(5, 120) * 20,
    "one point": random(3, 1),
    "twice each": photo(40, 3).repeat(1, 2),
    "all alike": random(4, 1).expand(4, 700).contiguous(),  # lists of 11 tiles
    "tiny sigmas": random(5, 60) * 2e4,  # keys of several words
}


def oracle(values: Tensor, features: Tensor, normalization: str, transpose: bool) -> Tensor:
    lattice = reference.Lattice(features)

    def forward(v: Tensor) -> Tensor:
        return lattice.filter(v)

    if not transpose:
        return reference.normalized(forward, values, normalization)(values)
    n = lattice.filter(torch.ones_like(values[:1])) + reference.TINY
    before = {"before": 1 / n, "symmetric": n.rsqrt()}.get(normalization, torch.ones_like(n))
    after = {"after": 1 / n, "symmetric": n.rsqrt()}.get(normalization, torch.ones_like(n))
    return lattice.filter(values * after, transpose=True) * before


@pytest.mark.parametrize("transpose", [False, True], ids=["forward", "transposed"])
@pytest.mark.parametrize("case", FEATURES)
def test_filter(case: str, transpose: bool) -> None:
    ops = Host()
    for dtype, channels, normalization in (
        (torch.float32, 2, "symmetric"),
        (torch.float64, 5, "after"),
        (torch.float64, 1, "none"),
    ):
        features = FEATURES[case].to(dtype)
        values = random(channels, features.shape[1], seed=1, dtype=dtype)
        y = batch.gaussian_filter(values[None], features[None], normalization, None, transpose, ops)
        truth, size = (
            oracle(v.double(), features.double(), normalization, transpose)
            for v in (values, values.abs())
        )
        assert_as_good_as(
            y[0], truth, oracle(values, features, normalization, transpose),
            terms=features.numel() + values.shape[1], magnitude=size,
        )  # fmt: skip


def test_vertices_are_those_of_the_reference() -> None:
    for features in FEATURES.values():
        lattice = cuda.build(features[None].double(), ops=Host())[0]
        truth = reference.Lattice(features.double())
        count = truth.num_vertices
        assert lattice.state[:3].tolist()[::2] == [count, 0]
        # The reference's number of each vertex, through a pixel that touches it.
        number = torch.empty(count + 1, dtype=torch.long)
        number[lattice.vertex.long()] = truth.index.t()
        number[count] = count
        assert number[:count].sort().values.equal(torch.arange(count))
        neighbours = lattice.neighbours.long().where(lattice.neighbours >= 0, count)
        assert number[neighbours].equal(truth.neighbours[:, :, number[:count]])
        # Each list has its vertex's pixels in ascending order.
        entries = lattice.vertex.flatten().long()
        assert lattice.pixel.equal((entries.argsort(stable=True) // lattice.vertex.shape[1]).int())


def test_the_layout_of_the_keys() -> None:
    """As many words as the ranges need, which the first attempt does not know."""
    ops = Host()
    wide = (random(1, 14, 20) * 1e3).double()
    *_, state = ops._crf_embed(wide, 1)
    assert state.tolist() == [0, 5, 2, 1]  # 14 coordinates of about 18 bits: "too wide"
    assert cuda.build(wide, ops=ops)[0].state.tolist() == [20 * 15, 5, 0, 1]
    far = random(1, 2, 10)
    far[0, 1, 3] = 3e6
    with pytest.raises(ValueError, match=r"reach 3e\+06, too far for torch.float32"):
        cuda.build(far, ops=ops)
    assert batch.gaussian_filter(far, far, "none", 100, ops=ops).isnan().all()
    assert cuda.build(far.double(), ops=ops)[0].finite
    with pytest.raises(ValueError, match=r"more than 2\^31: pass fewer images"):
        cuda.build(far.expand(2**28, 2, 10), ops=ops)


def test_batches_and_orders_give_the_same_bits() -> None:
    features = torch.stack([photo(90, 3), photo(90, 3).flip(1) * 3, random(3, 90)])
    values = random(3, 6, 90)
    together = same_in_every_run(
        lambda ops: batch.gaussian_filter(values, features, "symmetric", ops=ops)
    )
    alone = [
        batch.gaussian_filter(v[None], f[None], "symmetric", ops=Host())
        for v, f in zip(values, features, strict=True)
    ]
    assert together.equal(torch.cat(alone))


def test_capacity() -> None:
    features, values = photo(90, 3)[None], random(1, 2, 90)
    ops = Host()
    needed = int(cuda.build(features, ops=ops)[0].state[0])
    plain = batch.gaussian_filter(values, features, "after", ops=ops)
    for capacity in (needed, needed + 13, 10**9):
        roomy = batch.gaussian_filter(values, features, "after", capacity, ops=ops)
        assert roomy.equal(plain)
    for capacity in (0, 1, needed - 1):
        for run in host_cuda.RUNS:
            y = batch.gaussian_filter(values, features, "after", capacity, ops=Host(run))
            assert y.isnan().all()
    wide = random(1, 5, 30) * 2e4  # two words, for which nobody asked
    assert batch.gaussian_filter(wide[:, :2], wide, "none", 180, ops=ops).isnan().all()


# ------------------------------------------------------------------------------------- mean field


class Case:
    """A batch of two, as the operator is called."""

    def __init__(
        self, labels: int = 3, height: int = 9, width: int = 13, channels: int = 3,
        dtype: torch.dtype = torch.float32, kind: int = 0, normalization: str = "symmetric",
        spatial: str = "conv", images: int = 2,
    ) -> None:  # fmt: skip
        self.logits = random(images, labels, height, width, dtype=dtype)
        walk = random(images, channels, height, width, seed=1).cumsum(3) * 30 + 100
        self.image = walk.clamp(0, 255).round().to(dtype)
        shape = [labels] * kind
        self.weights = [random(*shape, seed=s).double().abs() + 0.5 for s in (2, 3)]
        self.spatial_sigma, self.bilateral_sigma, self.color_sigma = (1.3, 2.1), (4.7, 5.3), 21.7
        self.normalization, self.spatial = normalization, spatial

    def model(self, **changes: Any) -> batch.BatchModel:
        return batch.BatchModel(
            self.image, self.weights, self.spatial_sigma, self.bilateral_sigma,
            [self.color_sigma], self.normalization, self.spatial, **changes,
        )  # fmt: skip

    def reference(self, dtype: torch.dtype, iterations: int = 3) -> Tensor:
        each = [
            reference.mean_field(
                x.to(dtype), image.to(dtype), iterations=iterations,
                spatial_weight=self.weights[0].to(dtype), spatial_sigma=self.spatial_sigma,
                bilateral_weight=self.weights[1].to(dtype), bilateral_sigma=self.bilateral_sigma,
                color_sigma=self.color_sigma, normalization=self.normalization,
                spatial=self.spatial,
            )
            for x, image in zip(self.logits, self.image, strict=True)
        ]  # fmt: skip
        return torch.stack(each)

    def check(self, actual: Tensor, label: str = "") -> None:
        """As good as the reference in the same dtype: to rounding."""
        labels, height, width = self.logits.shape[1:]
        assert_as_good_as(
            actual, self.reference(torch.float64), self.reference(self.logits.dtype),
            terms=height * width + labels, label=label,  # a filter's and a mixing's
        )  # fmt: skip


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["number", "vector", "matrix"])
def test_mean_field(kind: int, normalization: str) -> None:
    for dtype in (torch.float32, torch.float64):
        spatial = "conv" if kind != 1 else "lattice"
        case = Case(5, dtype=dtype, kind=kind, normalization=normalization, spatial=spatial)
        out = batch.mean_field(case.logits, case.model(), 3, ops=Host())
        case.check(out[0])


@pytest.mark.parametrize("labels", [1, 2, 21, 45, 150])
def test_any_number_of_labels(labels: int) -> None:
    for kind in (0, 2):
        case = Case(labels, 5, 7, kind=kind, images=1)
        case.weights = [w / labels**0.5 for w in case.weights]  # messages of like size
        case.check(batch.mean_field(case.logits, case.model(), 3, ops=Host())[0])


def test_thousands_of_labels() -> None:
    """More than a block of 128 threads has shared memory for."""
    logits = random(1, 3000, 3, 3)
    ops = Host()
    case = Case(1, 3, 3, images=1)
    out = batch.mean_field(logits, case.model(), 0, softmax=True, ops=ops)
    assert_as_good_as(out[0], logits.double().softmax(1), logits.softmax(1), terms=3000)
    with pytest.raises(AssertionError, match="update"):
        batch.mean_field(random(1, 6137, 1, 1), case.model(), 0, ops=ops)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (23, 1), (40, 3)], ids=str)
@pytest.mark.filterwarnings("ignore:image spans")
def test_any_size(size: tuple[int, int]) -> None:
    case = Case(4, *size)
    case.check(batch.mean_field(case.logits, case.model(), 3, ops=Host())[0])


def test_photographs() -> None:
    """Constant images, noise, no channel, tiny and huge sigmas."""
    ops = Host()

    def check(case: Case) -> None:
        case.check(batch.mean_field(case.logits, case.model(), 3, ops=ops)[0])

    case = Case(21, 20, 30, images=1)
    case.image[:] = 77
    check(case)
    case.bilateral_sigma = case.spatial_sigma = (3e3, 2e3)  # all pixels in one simplex
    check(case)
    case = Case(2)
    case.image = random(*case.image.shape, seed=9) * 100
    check(case)
    case.bilateral_sigma, case.color_sigma = (1e-3, 1.1e-3), 1e-3
    check(case)
    check(Case(2, channels=0))


def test_orders_and_batches_of_mean_field() -> None:
    case = Case(5, 7, 11, kind=2)
    together = same_in_every_run(
        lambda ops: batch.mean_field(case.logits, case.model(), 2, True, ops=ops)
    )
    case.logits, case.image = case.logits[1:], case.image[1:]
    alone = batch.mean_field(case.logits, case.model(), 2, True, ops=Host())
    assert together[:, 1:].equal(alone)


def test_steps_belief_and_no_iterations() -> None:
    case, ops = Case(5, dtype=torch.float64), Host()
    steps = batch.mean_field(case.logits, case.model(), 3, keep_steps=True, ops=ops)
    for t in range(3):
        case_t = case.reference(torch.float64, t + 1)
        assert_as_good_as(steps[t], case_t, case_t, terms=117)
    belief = batch.mean_field(case.logits, case.model(), 3, softmax=True, ops=ops)[0]
    assert_as_good_as(belief, steps[2].softmax(1), steps[2].softmax(1), terms=5)
    assert batch.mean_field(case.logits, case.model(), 0, ops=ops)[0].equal(case.logits)
    assert batch.mean_field(case.logits, case.model(), 0, True, ops=ops).shape[0] == 0
    half = batch.mean_field(case.logits.half(), case.model(), 1, ops=ops)
    assert half.dtype == torch.float16


def test_what_is_not_finite() -> None:
    """As on the CPU: an image with NaN has NaN everywhere, and no say in the others."""
    case, ops = Case(3, images=3), Host()
    clean = batch.mean_field(case.logits, case.model(), 2, ops=ops)[0]
    for bad in (math.nan, math.inf):
        case.image[1, 0, 2, 3] = bad
        y = batch.mean_field(case.logits, case.model(), 2, ops=ops)[0]
        assert y[1].isnan().all()
        assert y[[0, 2]].equal(clean[[0, 2]])
    bright = Case(3, images=3)  # as far from the origin as fields of keys reach
    bright.image = 400 + bright.image / 5
    clean = batch.mean_field(bright.logits, bright.model(), 2, ops=ops)[0]
    for i in range(3):
        others, kept = [k for k in range(3) if k != i], bright.image[i].clone()
        bright.image[i, 1] = math.nan
        y = batch.mean_field(bright.logits, bright.model(), 2, ops=ops)[0]
        assert y[i].isnan().all()
        assert y[others].equal(clean[others])
        bright.image[i] = kept
    case.weights[1] = torch.zeros(())  # no bilateral kernel, no NaN
    y = batch.mean_field(case.logits, case.model(), 2, ops=ops)[0]
    assert y.isfinite().all()
    case = Case(3)
    case.bilateral_sigma = (1e-40, 1e-40)
    with pytest.raises(ValueError, match="bilateral_sigma and color_sigma must be larger"):
        batch.mean_field(case.logits, case.model(), 2, ops=ops)

    case = Case(3, 1, 8)  # -inf is a label that is not there; +inf and NaN have no softmax
    case.logits[:, 0] = -math.inf
    y = batch.mean_field(case.logits, case.model(), 1, softmax=True, ops=ops)[0]
    assert (y[:, 0] == 0).all()
    assert y.isfinite().all()
    case.logits[0, 1, 0, 0] = math.nan
    assert (
        batch.mean_field(case.logits, case.model(), 0, softmax=True, ops=ops)[0][0, :, 0, 0]
        .isnan()
        .all()
    )


def test_convolution_far_beyond_the_image() -> None:
    ops = Host()
    for sigma in ((0.2, 30.0), (5.0, 1.0), (1e3, 1e-3)):
        case = Case(2, 11, 19, dtype=torch.float64)
        case.spatial_sigma = sigma
        case.check(batch.mean_field(case.logits, case.model(), 3, ops=ops)[0], str(sigma))


# -------------------------------------------------------------------------------------- gradients


def through_the_reference(
    case: Case, logits: Tensor, weights: list[Tensor], mode: str, iterations: int
) -> tuple[Tensor, list[list[tuple[Tensor, Tensor]]]]:
    """What a gradient is given of, and of each weight what it mixed and the result, [L, N] both."""
    found: list[Tensor] = []
    mixed: list[list[tuple[Tensor, Tensor]]] = [[] for _ in weights]
    for x, image in zip(logits, case.image, strict=True):
        like, size = x.detach().flatten(1), (x.shape[1], x.shape[2])
        features = reference.image_features(image, case.bilateral_sigma, case.color_sigma)
        raw = [
            reference.separable_kernel(like, size, case.spatial_sigma),
            reference.Lattice(features).filter,
        ]
        kernels = [reference.normalized(k, like, case.normalization) for k in raw]
        scores, steps = x.flatten(1), []
        for _ in range(iterations):
            belief = scores.softmax(0)
            scores = x.flatten(1)
            for w, k, pairs in zip(weights, kernels, mixed, strict=True):
                filtered = k(belief)
                pairs.append((filtered, reference._mix(w, filtered)))
                scores = scores + pairs[-1][1]
            steps.append(scores)
        last = scores.softmax(0) if mode == "belief" else scores
        found.append(torch.stack(steps) if mode == "steps" else last[None])
    return torch.stack(found, 1).unflatten(3, logits.shape[2:]), mixed


@pytest.mark.parametrize("mode", ["scores", "belief", "steps"])
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["number", "vector", "matrix"])
def test_gradients(kind: int, mode: str) -> None:
    normalization = NORMALIZATIONS[1 + kind]
    case = Case(3, 6, 7, 1, torch.float64, kind, normalization)
    case.weights = [w / 4 for w in case.weights]  # gradients of like size
    inputs = [x.clone().requires_grad_() for x in (case.logits, *case.weights)]
    out, mixed = through_the_reference(case, inputs[0], inputs[1:], mode, 3)
    grad = random(*out.shape, seed=5, dtype=torch.float64)
    truth = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    sizes = [truth[0]]
    for pairs in mixed:  # dW sums G x^T: its trace, its diagonal or all of it
        filtered, results = zip(*pairs, strict=True)
        grads = torch.autograd.grad(out, results, grad, retain_graph=True)
        sums = sum(g.abs() @ x.abs().T for g, x in zip(grads, filtered, strict=True))
        sizes.append((torch.trace, torch.diagonal, torch.abs)[kind](sums))
    logits, mixings = batch.mean_field_gradients(
        grad, case.logits, case.model(), 3, mode == "belief", (True, True), Host()
    )
    for found, wanted, size in zip((logits, *mixings), truth, sizes, strict=True):
        # as far as sums over pixels, steps and images may differ in order
        assert_as_good_as(found, wanted, wanted, terms=42 * 3 * 2, magnitude=size)


def test_gradients_that_are_wanted() -> None:
    case, ops = Case(40, 5, 5, kind=2, images=1), Host()
    grad = random(1, *case.logits.shape, seed=5)
    full, both = batch.mean_field_gradients(
        grad, case.logits, case.model(), 2, False, (True, True), ops
    )
    logits, (first, second) = batch.mean_field_gradients(
        grad, case.logits, case.model(), 2, False, (False, True), ops
    )
    assert first is None
    assert logits.equal(full)
    assert second is not None
    assert both[1] is not None
    assert second.equal(both[1])
    case.weights[0] = torch.zeros(40, 40)  # its gradient is none that is zero
    _, (first, _) = batch.mean_field_gradients(
        grad, case.logits, case.model(), 2, False, (True, False), ops
    )
    assert first is not None
    assert first.abs().min() > 0
    logits, parts = batch.mean_field_gradients(
        grad, case.logits, case.model(), 0, False, (True, True), ops
    )
    assert logits.equal(grad[0])
    assert all(p is not None and p.eq(0).all() for p in parts)


def test_orders_of_gradients() -> None:
    case = Case(34, 5, 7, kind=2)
    grad = random(1, *case.logits.shape, seed=5)

    def compute(ops: Host) -> Tensor:
        logits, mixings = batch.mean_field_gradients(
            grad, case.logits, case.model(), 2, True, (True, True), ops
        )
        return torch.cat([logits.flatten(), *(m.flatten() for m in mixings if m is not None)])

    same_in_every_run(compute)


def test_products_of_many_chunks() -> None:
    """More pixels than a chunk has, and labels than a tile."""
    points, labels = 2500, 37
    a, b = (random(points, 40, seed=s) for s in (1, 2))
    ops = Host()
    chunks = -(-points // 1024)
    for shape in ((labels, labels), (labels,)):
        partial = torch.zeros(chunks, *shape)
        ops._crf_products(a, b, partial, labels)
        truth, plain, size = (
            x[:, :labels].T @ y[:, :labels]
            for x, y in ((a.double(), b.double()), (a, b), (a.abs(), b.abs()))
        )
        if len(shape) == 1:
            truth, plain = truth.diagonal(), plain.diagonal()
        found = partial.double().sum(0).float()
        assert_as_good_as(found, truth, plain, terms=points, magnitude=size)
