"""What the plans for CUDA know of a device; needs no Triton."""

from __future__ import annotations

import functools

import torch

from segfast.kernels.dilated_conv.triton_context_work import H100, Chip


def chip(device: torch.device) -> Chip:
    """An H100's where there is no GPU; without an index, the current device's."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return H100
    return facts_of(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def facts_of(index: int) -> Chip:
    facts = torch.cuda.get_device_properties(index)
    return Chip(facts.multi_processor_count, facts.L2_cache_size, (facts.major, facts.minor))
