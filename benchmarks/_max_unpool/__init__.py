"""The max-unpooling benchmark's parts: workloads, who computes them, gates before timing."""
