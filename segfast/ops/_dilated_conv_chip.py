"""What the plans for CUDA know of a device; needs no Triton."""

from __future__ import annotations

import functools

import torch

from segfast.kernels.dilated_conv.triton_context_work import H100, Chip


@functools.cache
def chip(device: torch.device) -> Chip:
    """An H100's where there is no GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return H100
    facts = torch.cuda.get_device_properties(device)
    return Chip(facts.multi_processor_count, facts.L2_cache_size, (facts.major, facts.minor))
