"""Benchmarks: contenders that took turns, and where splits break even."""
