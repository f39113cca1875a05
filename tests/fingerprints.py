"""Our modules against published ones, without weights: both are filled by the same rule.

    def test_golden(dtype):
        assert_reproduces(LinearAttention2d(64), "mod_manet_PAM_softplus_64", dtype)

The rule needs no random generator and gives the same bits everywhere. With flat index i of a tensor
whose published key is `key`,

    u(key, i) = top 53 bits of splitmix64(2^32 crc32(key) + i), in [0, 1)

    two and more dimensions   (2u - 1) sqrt(g / fan_in), fan_in = numel / shape[0];
                              g = 3 in a state that has a running_mean, else 6
    weight, one dimension     0.5 + u
    bias                      0.2 (u - 0.5)
    running_mean              0.2 (u - 0.5)
    running_var               0.5 + u
    one element (a gamma)     0.5
    integers                  as they are
    input                     4u - 2, key "input"

What the published code made of it is in tests/data/.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest magnitude of an output


def read(kind: str, name: str) -> dict[str, Any]:
    """tests/data/KIND/NAME.json."""
    return json.loads((DATA / kind / f"{name}.json").read_text())


def uniform(key: str, count: int) -> np.ndarray:  # float64 [count]
    """u(key, i) for i < count."""
    start = np.uint64(zlib.crc32(key.encode()) << 32)
    with np.errstate(over="ignore"):  # modulo 2^64
        z = start + np.arange(count, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def filled_tensor(key: str, shape: tuple[int, ...], gain: float) -> Tensor:
    """float64, by the rule above."""
    count = math.prod(shape)
    u = uniform(key, count)
    if key.endswith("running_var"):
        u = 0.5 + u
    elif key.endswith("running_mean"):
        u = 0.2 * (u - 0.5)
    elif count == 1:
        u = np.full(1, 0.5)
    elif len(shape) >= 2:
        u = (2 * u - 1) * math.sqrt(gain * shape[0] / count)
    elif key.endswith("bias"):
        u = 0.2 * (u - 0.5)
    else:
        u = 0.5 + u
    return torch.from_numpy(u.reshape(shape))


def filled_input(shape: tuple[int, ...]) -> Tensor:
    """float64, in [-2, 2)."""
    return torch.from_numpy((4 * uniform("input", math.prod(shape)) - 2).reshape(shape))


def fill(module: nn.Module, published_keys: Mapping[str, str]) -> None:
    """Fills the module's state in place, by the rule, under the published keys."""
    gain = 3.0 if any(key.endswith("running_mean") for key in published_keys.values()) else 6.0
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(filled_tensor(published_keys[name], tuple(tensor.shape), gain))


def assert_reproduces(
    module: nn.Module,
    name: str,
    dtype: torch.dtype = torch.float64,
    renamed: Mapping[str, str] | None = None,
) -> None:
    """The module computes what the published one does.

    Args:
        module: is moved to `dtype`, put into evaluation mode and filled. It returns a tensor, a
            sequence of tensors or a dict of them, in the published order.
        name: of the files in tests/data/.
        dtype: float64 (to 1e-9 of each output's largest magnitude) or float32 (1e-5).
        renamed: our key -> the published one, where they differ. The state must have the published
            keys and shapes, all of them.
    """
    keys = {key: (renamed or {}).get(key, key) for key in module.state_dict()}
    shapes = {keys[key]: list(x.shape) for key, x in module.state_dict().items()}
    assert shapes == read("state_dicts", name)
    module.to(dtype).eval()
    fill(module, keys)
    fingerprint = read("fingerprints", name)
    with torch.no_grad():
        outputs = module(filled_input(fingerprint["input_shape"]).to(dtype))
    if isinstance(outputs, Tensor):
        outputs = [outputs]
    elif isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    assert all(output.dtype == dtype for output in outputs)
    assert_outputs(list(outputs), fingerprint, name)


def assert_outputs(outputs: list[Tensor], fingerprint: dict[str, Any], name: str) -> None:
    """They are what the published code made, to the tolerance of their dtype."""
    for output, expected in zip(outputs, fingerprint["outputs"], strict=True):
        assert list(output.shape) == expected["shape"]
        allowed = TOLERANCES[output.dtype] * expected["absmax"]
        flat = output.double().flatten()
        found = {
            "val": flat[expected["idx"]],
            "mean": flat.mean(),
            "std": flat.std(unbiased=False),
            "absmax": flat.abs().max(),
        }
        for what, value in found.items():
            error = (value - torch.tensor(expected[what], dtype=torch.float64)).abs().max()
            assert error <= allowed, f"{name}: {what} is off by {error:.3e}, allowed {allowed:.3e}"
