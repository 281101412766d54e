"""What the machine at hand can do: copy bandwidth, matmul rate, all-reduce bandwidth. Measured once, then cached.

All ranks measure at the same time, since they share memory and links, and the slowest rank's rate counts. measured.py
keeps the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial

import torch

from blockshock.dtypes import torch_name
from blockshock.measure.cache import cached_measurement
from blockshock.measure.timing import Timer
from blockshock.ranks import distributed


@dataclass(frozen=True)
class Rates:
    copy_gbs: float  # GB/s, bytes read plus bytes written
    matmul_tflops: float  # TFLOP/s of a large square product on random data in the dtype at hand
    link_gbs: float  # GB/s that a rank sends in a large all-reduce: 2(P-1)/P of the buffer over its time; 0 if alone


def rates(dtype: torch.dtype, device: torch.device, backend: str, again: bool = False) -> Rates:
    """The rates of this device, dtype and number of ranks; measured when not known or when `again`. A collective."""
    key = {
        "dtype": torch_name(dtype),
        "ranks": distributed.world_size(),
        "backend": backend,
        "threads": torch.get_num_threads(),
    }
    names = [field.name for field in fields(Rates)]
    return Rates(**cached_measurement("rates", key, device, lambda: asdict(measure(dtype, device)), names, again))


def measure(dtype: torch.dtype, device: torch.device) -> Rates:
    """Measure all three rates now; every rank must call it. Seconds on a CPU, a fraction of one on a GPU."""
    return Rates(_copy_gbs(device), _matmul_tflops(dtype, device), _link_gbs(dtype, device))


def _copy_gbs(device: torch.device) -> float:
    on_cpu = device.type == "cpu"  # which takes a second for so many random numbers, and copies any as fast
    size = (1 << 27) if on_cpu else (1 << 31)  # bytes, well past any cache
    source = torch.ones(size, dtype=torch.uint8, device=device)
    if not on_cpu:
        source.random_(0, 255)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device) / 1e9


def _matmul_tflops(dtype: torch.dtype, device: torch.device) -> float:
    if device.type == "cuda":
        size = 8192 if dtype in (torch.bfloat16, torch.float16) else 4096
        return 2 * size**3 / _seconds(_product(size, dtype, device), device) / 1e12
    small, large = 256, 1024
    seconds = _seconds(_product(small, dtype, device), device, repeats=1, bursts=1)
    # A CPU without instructions for the dtype (fp16) is as slow at any size, and would take a minute at the large one.
    size = large if (large / small) ** 3 * seconds < 0.2 else small
    return 2 * size**3 / _seconds(_product(size, dtype, device), device) / 1e12


def _product(size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return partial(torch.mm, a, b, out=torch.empty_like(a))


def _link_gbs(dtype: torch.dtype, device: torch.device) -> float:
    ranks = distributed.world_size()
    if ranks == 1:
        return 0.0
    buffer = torch.zeros((1 << 28) if device.type == "cuda" else (1 << 23), dtype=dtype, device=device)
    seconds = _seconds(lambda: distributed.allreduce_sum(buffer), device)
    return 2 * (ranks - 1) / ranks * buffer.numel() * buffer.element_size() / seconds / 1e9


def _seconds(work: Callable[[], object], device: torch.device, repeats: int = 7, bursts: int = 3) -> float:
    """The best of several runs in several bursts, of the slowest rank: a floor must hold on a quiet machine."""
    timer = Timer("cuda_events" if device.type == "cuda" else "sync", device)
    samples: list[float] = []
    for _ in range(bursts):
        distributed.barrier()
        times = timer.measure("total_step", work, warmup_iters=2, timed_iters=repeats)["total_step"]
        samples += distributed.max_over_ranks(times)
    return min(samples) / 1e3
