"""Benchmarks: one pytest-benchmark file per operator, a report, and the one-go GPU script."""
