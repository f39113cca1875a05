"""The dense CRF benchmark's parts: workloads, who computes them, gates before timing."""
