"""Which way to sum a layer's partial products, and in how many chunks: said by the user or measured at build time.

    chosen = choose(method, multiply, group, batch=B, features=K, width=R, dtype=..., device=..., kernel={...})
    y = chosen.total(x, multiply);   record["collective"] = chosen.describe()

`auto` times every implementation and number of chunks that this machine and size allow, with the layer's own product at
its own size, in CUDA graphs. They take turns: a GPU at its power cap slows by more, while they are timed, than they
differ. The slowest rank's times count, so all ranks agree. measure/cache.py keeps the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from blockshock.collectives.matmul_all_reduce import FEWEST_ROWS, MatmulAllReduce, Multiply, Total, alone, most_chunks
from blockshock.collectives.reductions import GPU_NAMES, REDUCTIONS
from blockshock.collectives.symmetric import SymmetricBuffer, symmetric_buffer
from blockshock.dtypes import DTYPES, torch_name
from blockshock.errors import ConfigError, at_least, one_of
from blockshock.flatten import flatten
from blockshock.measure.cache import cached_measurement
from blockshock.measure.interleaved import ROUNDS, medians_ms
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job

CHUNKS = (1, 2, 4, 8)  # tried where X has the rows


@dataclass(kw_only=True)
class CollectiveOptions:
    """Options of a method that sums partial products: alike for all, so that comparing them compares nothing else."""

    collective: str = "auto"  # auto (the fastest here) | nccl | one_shot | two_shot | copy
    overlap_chunks: int | None = None  # chunks of X's rows whose sums overlap the next product; null: the fastest here

    def check_in_step(self, job: Job) -> None:
        """Settle what a step that is one graph does: PyTorch's all-reduce after the product (in_graph.py)."""
        if self.collective not in ("auto", "nccl"):
            raise ConfigError("method.collective", self.collective, "is no operator of a graph; use auto or nccl")
        if self.overlap_chunks not in (None, 1):
            problem = "chunks overlap on streams, which a graph has not; use 1 or null"
            raise ConfigError("method.overlap_chunks", self.overlap_chunks, problem)
        if job.hardware.backend == "nccl":
            self.collective, self.overlap_chunks = "nccl", 1


PLAIN = CollectiveOptions(collective="nccl", overlap_chunks=1)  # what one would write: all_reduce after the product


@dataclass
class Chosen:
    """A layer's way to sum, and why not another."""

    total: Total
    impossible: dict[str, str] = field(default_factory=dict)  # implementation: what stands against it here
    ms: dict[str, float] = field(default_factory=dict)  # product and sum, by "implementation/chunks", where measured

    def describe(self) -> dict[str, Any]:
        if not isinstance(self.total, MatmulAllReduce):
            return {}
        collective = self.total.describe()
        if self.impossible:
            collective["impossible"] = self.impossible
        if self.ms:
            collective["measured_ms"] = self.ms
        return {"collective": collective}


def check_collective(job: Job, options: CollectiveOptions, ranks: int, rows: int) -> None:
    """Refuse what can't sum partial products (B, rows) over `ranks` ranks, as far as can be said before they start."""
    name, chunks, batch = options.collective, options.overlap_chunks, job.model.B
    one_of("method.collective", name, ("auto", *GPU_NAMES))
    if chunks is not None:
        at_least("method.overlap_chunks", chunks, 1)
    if ranks == 1:
        return  # it sums nothing: both options mean nothing
    if chunks is not None and chunks > most_chunks(batch):
        problem = f"chunks have {FEWEST_ROWS} rows of X at least, so model.B={batch} allows {most_chunks(batch)}"
        raise ConfigError("method.overlap_chunks", chunks, problem)
    if name == "auto":
        return
    if job.hardware.backend != "nccl":
        problem = f"needs GPUs and hardware.backend=nccl, not {job.hardware.backend}; use auto"
        raise ConfigError("method.collective", name, problem)
    dtype = DTYPES[job.model.dtype]
    why = REDUCTIONS[name].unsupported(ranks, dtype, batch * rows * dtype.itemsize)
    if why:
        raise ConfigError("method.collective", name, f"{why}; use auto or nccl")


def choose(
    options: CollectiveOptions,
    multiply: Multiply,
    group: dist.ProcessGroup | None,
    *,
    batch: int,
    features: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    kernel: dict[str, Any],
) -> Chosen:
    """How to sum `multiply(x)`, (batch, features) -> (batch, width), over `group`. All ranks of the job must call it.

    `kernel` says what multiplies: a measurement holds for it alone.
    Raises ConfigError where the user chose what this machine can't do.
    """
    if group is None:
        return Chosen(alone)
    ranks = dist.get_world_size(group)
    if dist.get_backend(group) != "nccl":
        return Chosen(MatmulAllReduce(REDUCTIONS["gloo"].build(group, width, None), options.overlap_chunks or 1))
    size = batch * width * dtype.itemsize
    names = list(GPU_NAMES) if options.collective == "auto" else [options.collective]
    whys = {name: REDUCTIONS[name].unsupported(ranks, dtype, size) for name in names}
    symmetric = [name for name in names if REDUCTIONS[name].symmetric and whys[name] is None]
    buffer: SymmetricBuffer | None = None
    if symmetric:
        buffer, problem = symmetric_buffer(group, device, size)
        if problem:
            whys |= dict.fromkeys(symmetric, problem)
    impossible = {name: why for name, why in whys.items() if why}
    names = [name for name in names if name not in impossible]
    if not names:
        raise ConfigError(
            "method.collective", options.collective, f"{impossible[options.collective]}; use auto or nccl"
        )
    counts = [chunks for chunks in CHUNKS if chunks <= most_chunks(batch)]
    if options.overlap_chunks is not None:
        counts = [options.overlap_chunks]
    ways = {
        f"{name}/{chunks}": MatmulAllReduce(REDUCTIONS[name].build(group, width, buffer), chunks)
        for name in names
        for chunks in counts
    }
    if len(ways) == 1:
        return Chosen(next(iter(ways.values())), impossible)
    key = {
        "ranks": f"{ranks}of{distributed.world_size()}",
        "dtype": torch_name(dtype),
        **{"B": batch, "K": features, "R": width},
        "kernel": ",".join(f"{name}:{value}" for name, value in flatten(kernel).items()),
        "of": ",".join(ways),
        "rounds": ROUNDS,
    }
    measure = partial(time_ways, ways, multiply, (batch, features), dtype, device)
    times = cached_measurement("collective", key, device, measure, list(ways))
    return Chosen(ways[min(times, key=times.__getitem__)], impossible, times)


def time_ways(
    ways: Mapping[str, Total],
    multiply: Multiply,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, float]:
    """Milliseconds of product and sum by each way, on random data; the slowest rank's. A collective."""
    x = torch.randn(*shape, device=device).to(dtype)
    with torch.no_grad():
        return medians_ms({name: partial(way, x, multiply) for name, way in ways.items()}, device)
