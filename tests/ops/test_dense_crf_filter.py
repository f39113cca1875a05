"""gaussian_filter: the exact sum over pairs, its bound, and edge sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segfast import _native
from segfast.kernels.dense_crf import reference
from segfast.ops import gaussian_filter
from segfast.testing import assert_as_good_as, dtypes


def random(dims: int, channels: int, pixels: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Values [1, C, N] and features [1, F, N], float64 but exact in float32."""
    generator = torch.Generator().manual_seed(dims + 100 * channels + pixels)
    values = torch.randn(1, channels, pixels, generator=generator)
    features = spread * torch.randn(1, dims, pixels, generator=generator)
    return values.double(), features.double()


def assert_filter(
    found: Tensor, values: Tensor, features: Tensor, normalization: str = "none"
) -> None:
    """Against float64, as good as a brute force in the dtype of `found`."""
    truth = reference.gaussian_filter(values, features, normalization)
    brute = reference.gaussian_filter(
        values.to(found.dtype), features.to(found.dtype), normalization
    )
    sums = reference.gaussian_filter(values.abs(), features, normalization)  # sum |K_ij v_j|
    assert_as_good_as(found, truth, brute, terms=values.shape[1], magnitude=sums)


@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
@pytest.mark.parametrize("dims", [1, 2, 3, 5, 8, 14, 32])
@dtypes(torch.float32, torch.float64)
def test_feature_dimensions(dtype: torch.dtype, dims: int, normalization: str) -> None:
    values, features = random(dims, 5, 333)
    found = gaussian_filter(
        values.to(dtype), features.to(dtype), normalization=normalization, tolerance=0.0
    )
    assert found.dtype == dtype
    assert_filter(found[0], values[0], features[0], normalization)


@pytest.mark.parametrize("channels", [1, 2, 7, 12, 13, 24, 25, 150])
@pytest.mark.parametrize("pixels", [1, 2, 31, 32, 33, 257])
def test_sizes_around_tiles_and_vectors(channels: int, pixels: int) -> None:
    values, features = random(5, channels, pixels)
    assert_filter(gaussian_filter(values.float(), features.float())[0], values[0], features[0])


@pytest.mark.parametrize("name", _native.instruction_sets() or ["none compiled"])
@dtypes(torch.float32, torch.float64)
def test_instruction_sets(compiled_kernels: None, dtype: torch.dtype, name: str) -> None:
    values, features = random(5, 21, 500, spread=3.0)
    with _native.use_instruction_set(name):
        found = gaussian_filter(values.to(dtype), features.to(dtype), tolerance=0.0)
    assert_filter(found[0], values[0], features[0])


@pytest.mark.parametrize("tolerance", [1e-7, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("spread", [0.5, 4.0, 30.0])
def test_bound_holds(tolerance: float, spread: float) -> None:
    """|y - exact| <= tolerance max|v| for every row; float64, so rounding is 1e-13 of it."""
    values, features = random(3, 4, 1500, spread)
    exact = reference.gaussian_filter(values[0], features[0])
    found = gaussian_filter(values, features, tolerance=tolerance)[0]
    assert (found - exact).abs().max() <= (tolerance + 1e-12) * values.abs().max()


def test_bound_is_used(compiled_kernels: None) -> None:
    """Otherwise the test above would show nothing: a loose tolerance changes the result."""
    values, features = random(3, 4, 1500, 4.0)
    exact, loose = (gaussian_filter(values, features, tolerance=t) for t in (0.0, 0.1))
    assert (exact - loose).abs().max() > 1e-4


def test_equal_features_and_far_ones() -> None:
    """All pixels in one place: every row is the sum. All far apart: every row is the value."""
    values, features = random(4, 3, 100)
    together = gaussian_filter(values, features * 0)
    torch.testing.assert_close(together, values.sum(2, keepdim=True).expand_as(values))
    apart = gaussian_filter(values, torch.arange(100.0).double().expand(1, 1, 100) * 50)
    torch.testing.assert_close(apart, values)


@settings(max_examples=60)
@given(
    dims=st.integers(1, 6),
    channels=st.integers(1, 30),
    pixels=st.integers(1, 140),
    spread=st.sampled_from([1e-3, 1.0, 20.0]),
    method=st.sampled_from(["exact", "lattice"]),
    normalization=st.sampled_from(reference.NORMALIZATIONS),
)
def test_any_size(
    dims: int, channels: int, pixels: int, spread: float, method: str, normalization: str
) -> None:
    values, features = random(dims, channels, pixels, spread)
    filter_ = reference.gaussian_filter if method == "exact" else reference.lattice_filter
    found = gaussian_filter(values, features, method, normalization, tolerance=0.0)
    expected = filter_(values[0], features[0], normalization)
    # float64, sums of at most 140 terms of size 1 to 4
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_linear_and_transposable(method: str) -> None:
    """Linear in the values, and labels do not meet."""
    values, features = random(5, 6, 200)
    y = gaussian_filter(values, features, method)
    torch.testing.assert_close(gaussian_filter(2 * values, features, method), 2 * y)
    torch.testing.assert_close(gaussian_filter(values[:, 2:4], features, method), y[:, 2:4])


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_layouts(compiled_kernels: None, method: str) -> None:
    values, features = random(3, 4, 90)
    values, features = values.repeat(2, 1, 1), features.repeat(2, 1, 1)
    values[1] += 1
    expected = gaussian_filter(values, features, method)
    for v, f in (
        (values.permute(2, 0, 1).contiguous().permute(1, 2, 0), features),
        (values, features.transpose(1, 2).contiguous().transpose(1, 2)),
        (values.repeat(1, 2, 2)[:, :4, :90], features[:1].expand(2, -1, -1)),
        (values.repeat_interleave(2, 2)[..., ::2], features),
    ):
        assert torch.equal(gaussian_filter(v, f, method), expected)


@pytest.mark.parametrize("method", ["exact", "lattice"])
@pytest.mark.parametrize("shape", [(0, 3, 7), (2, 0, 7), (2, 3, 0), (0, 0, 0)])
def test_empty(method: str, shape: tuple[int, int, int]) -> None:
    features = torch.zeros(shape[0], 5, shape[2])
    for normalization in reference.NORMALIZATIONS:
        y = gaussian_filter(torch.zeros(shape), features, method, normalization)
        assert y.shape == shape


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_exact_keeps_nan_and_infinity(spread: float, special: float) -> None:
    """0 NaN and 0 inf are NaN: the channel holds no finite number, whatever the distance."""
    values, features = random(3, 4, 400, spread)
    values[0, 1, 17] = special
    found = gaussian_filter(values, features)[0]
    assert not found[1].isfinite().any()
    assert found[[0, 2, 3]].isfinite().all()
    assert found[1, 17].isnan() if special != special else found[1, 17] == special


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_nan_in_the_features_shows(method: str) -> None:
    values, features = random(3, 4, 200)
    features[0, 1, 5] = float("nan")
    assert gaussian_filter(values, features, method)[0, :, 5].isnan().all()


V, F = torch.zeros(2, 3, 10), torch.zeros(2, 5, 10)
WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "values no tensor": (([1.0], F), {}, TypeError, r"values .* got list"),
    "values integers": ((V.int(), F), {}, TypeError, r"values .*floating.* got torch\.int32"),
    "values 2-D": ((V[0], F), {}, ValueError, r"values .*\[B, C, N\].*\(3, 10\)"),
    "features integers": ((V, F.long()), {}, TypeError, r"features .*floating.*int64"),
    "features 2-D": ((V, F[0]), {}, ValueError, r"features .*\[2, F, 10\].*\(5, 10\)"),
    "another N": ((V, F[..., :9]), {}, ValueError, r"features .*\[2, F, 10\].*\(2, 5, 9\)"),
    "another B": ((V, F[:1]), {}, ValueError, r"features .*\[2, F, 10\].*\(1, 5, 10\)"),
    "no features": ((V, F[:, :0]), {}, ValueError, r"features .* 1 to 32"),
    "33 features": ((V, F.repeat(1, 7, 1)[:, :33]), {}, ValueError, r"features .* 1 to 32"),
    "method": ((V, F), {"method": "fast"}, ValueError, r"method .*lattice.*'fast'"),
    "normalization": ((V, F), {"normalization": "sym"}, ValueError, r"normalization .*after.*sym"),
    "negative tolerance": ((V, F), {"tolerance": -1.0}, ValueError, r"tolerance .*-1"),
    "NaN tolerance": ((V, F), {"tolerance": float("nan")}, ValueError, r"tolerance .*nan"),
    "tolerance of a type": ((V, F), {"tolerance": "0"}, TypeError, r"tolerance .*'0'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case: str) -> None:
    args, options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        gaussian_filter(*args, **options)
