"""Each network computes what its published code does, with the same number of parameters."""

from __future__ import annotations

import pytest

from tests.models.golden import assert_golden, golden_model, parameters
from tests.models.networks import GOLDEN, Golden


@pytest.mark.parametrize("golden", [golden.case() for golden in GOLDEN])
def test_golden(golden: Golden) -> None:
    model = golden_model(golden.model, golden.published, **golden.options)
    assert parameters(model) == golden.params
    assert_golden(model, golden.published, golden.at_input_size, golden.after)
