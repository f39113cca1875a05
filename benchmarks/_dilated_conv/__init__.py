"""The dilated-convolution benchmark's parts: workloads, who computes them, gates before timing."""
