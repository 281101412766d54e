"""One cell of a benchmark: sizes, and how everything that is compared in it is timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from blockshock.dtypes import torch_name
from blockshock.masks import Mask
from blockshock.measure.timing import Timer
from blockshock.ranks import distributed

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """Y = X Wᵀ with X (B, K), W (N, K), and what to compare on it."""

    N: int
    K: int
    B: int
    dtype: torch.dtype
    device: torch.device
    masks: tuple[Mask, ...]
    seed: int = 0
    iters: int = 10  # of a captured loop
    rounds: int = 5  # replays of each loop, taking turns
    eager: bool = True  # also time without CUDA graphs

    def row(self, part: str, name: str, about: dict[str, Any]) -> Row:
        return {
            "part": part,
            "method": name.split("/")[0],
            "variant": name.partition("/")[2],
            "mask": "",
            "kernel": "",
            "N": self.N,
            "K": self.K,
            "B": self.B,
            "dtype": torch_name(self.dtype),
            "world_size": distributed.world_size(),
        } | about


def measure(
    cell: Cell,
    part: str,
    steps: dict[str, Callable[[], Any]],
    about: dict[str, dict[str, Any]],
    flush_l2: bool = True,
) -> Iterator[Row]:
    """A row for each step: median, and the median of each round, in µs; as CUDA graphs where there is a GPU.

    Eager times have the host's part in them: steps follow one another without a flush of the L2 cache between, which
    would give the host time to run ahead. A collective.
    """
    gpu = cell.device.type == "cuda"
    timer = Timer("cuda_graph" if gpu else "sync", cell.device, flush_l2)
    rounds = timer.interleaved(steps, 3, cell.iters, cell.rounds)
    eager: dict[str, list[list[float]]] = {}
    if cell.eager and gpu:
        eager = Timer("cuda_events", cell.device).interleaved(steps, 2, cell.iters, 2)
    for name, found in rounds.items():
        row = cell.row(part, name, about[name])
        row["p50_us"] = 1e3 * statistics.median(value for block in found for value in block)
        row["rounds_us"] = [round(1e3 * statistics.median(block), 3) for block in found]
        if name in eager:
            row["eager_p50_us"] = 1e3 * statistics.median(value for block in eager[name] for value in block)
        yield row
