"""The linear-attention benchmark's parts: workloads, who computes them, gates before timing."""
