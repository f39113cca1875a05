"""The benchmark of whole networks: workloads, who computes them, gates before timing."""
