"""What the machine at hand can do: copy bandwidth, matmul rate, all-reduce bandwidth. Measured once, then cached.

The cache is one JSON file a machine under $XDG_CACHE_HOME/blockshock (~/.cache/blockshock); all ranks measure at the
same time, since they share memory and links, and the slowest rank's rate counts.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from blockshock import distributed
from blockshock.timing import Timer

log = logging.getLogger("blockshock")


@dataclass(frozen=True)
class Rates:
    copy_gbs: float  # GB/s, bytes read plus bytes written
    matmul_tflops: float  # TFLOP/s of a large square product on random data in the dtype at hand
    link_gbs: float  # GB/s that a rank sends in a large all-reduce: 2(P-1)/P of the buffer over its time; 0 if alone


def rates(dtype: torch.dtype, device: torch.device, backend: str, again: bool = False) -> Rates:
    """The cached rates of this device, dtype and number of ranks; measured when missing or when `again`."""
    path = cache_path(device)
    ranks = f"{distributed.world_size()}x{backend}/{torch.get_num_threads()}threads"
    key = f"{str(dtype).removeprefix('torch.')}/{ranks}"
    known = json.loads(path.read_text()) if path.exists() else {}
    # Rank 0's view decides for all: the cache may appear on disk between two ranks' looks.
    missing = 1.0 if again or key not in known else 0.0
    if not distributed.max_over_ranks([missing])[0]:
        return Rates(**known[key])
    measured = measure(dtype, device)
    if distributed.rank() == 0:
        _remember(path, key, measured)
    return measured


def _remember(path: Path, key: str, measured: Rates) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.exists() else {}
        known[key] = asdict(measured)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        temporary.replace(path)
    except OSError as error:  # the rates are known all the same; the next job measures them again
        log.warning("the calibration can't be kept in %s: %s", path, error.strerror)


def cache_path(device: torch.device) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockshock"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    safe = "".join(c if c.isalnum() else "-" for c in f"{name}-torch-{torch.__version__}")
    return root / f"calibration-{safe}.json"


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")
    return f"{name}-{os.cpu_count()}-cores"


def measure(dtype: torch.dtype, device: torch.device) -> Rates:
    """Measure all three rates now; every rank must call it. Seconds on a CPU, a fraction of one on a GPU."""
    return Rates(_copy_gbs(device), _matmul_tflops(dtype, device), _link_gbs(dtype, device))


def _copy_gbs(device: torch.device) -> float:
    size = (1 << 31) if device.type == "cuda" else (1 << 27)  # bytes, well past any cache
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device) / 1e9


def _matmul_tflops(dtype: torch.dtype, device: torch.device) -> float:
    half = dtype in (torch.bfloat16, torch.float16)
    size = 1024 if device.type == "cpu" else 8192 if half else 4096
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _seconds(lambda: torch.mm(a, b, out=out), device) / 1e12


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
        found = timer.measure("total_step", work, warmup_iters=2, timed_iters=repeats)["total_step"]
        samples += distributed.max_over_ranks(found)
    return min(samples) / 1e3
