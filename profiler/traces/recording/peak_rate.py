"""The arithmetic rate that a device reaches at best: a large matrix product."""

from __future__ import annotations

import time

import torch


def measure_peak_tflops(device: torch.device | str, dtype: torch.dtype = torch.float32) -> float:
    """TFLOP/s of the fastest of ten square products of random matrices. Half a second on a CPU, less on a GPU."""
    device = torch.device(device)
    size = 1024 if device.type == "cpu" else 8192 if dtype.itemsize == 2 else 4096
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            torch.mm(a, b)
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1e3
        else:
            began = time.perf_counter()
            torch.mm(a, b)
            seconds = time.perf_counter() - began
        best = min(best, seconds)
    return 2 * size**3 / best / 1e12
