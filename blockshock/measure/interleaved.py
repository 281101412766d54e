"""Times of steps that are to be compared: they take turns, so that what drifts touches all alike.

times = interleaved(Timer("cuda_graph", device), {"mine": step, "baseline": other}, 3, 10, rounds=5)
times["mine"].rounds, times["mine"].clocks
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from blockshock.measure.clocks import ClockLog
from blockshock.measure.timing import CapturedLoop, Samples, Timer, synchronize, warm_up
from blockshock.ranks import distributed

WHOLE = "total_step"
ROUNDS, ITERS = 5, 4  # of steps between which is chosen


@dataclass(frozen=True)
class Turns:
    rounds: list[list[float]]  # milliseconds of each iteration; of several ranks the slowest one's
    clocks: dict[str, Any]  # `ClockLog.summary` of these rounds


def interleaved(
    timer: Timer,
    steps: Mapping[str, Callable[[], Any]],
    warmup_iters: int,
    iters: int,
    rounds: int,
    regions: Mapping[str, str] | None = None,
    keep_loops: bool = True,
) -> dict[str, Turns]:
    """Times `rounds` rounds in which every step has its turn of `iters` iterations, after a round that warms up.

    In mode `cuda_graph` each step is a captured loop. regions: of these steps, the region inside that is timed in place
    of the whole. `keep_loops=False` captures each loop anew in every round, so that one at a time has its memory. A
    collective.
    """
    regions = regions or {}
    runs: dict[str, Callable[[], Samples]] = {}
    for name, step in steps.items():
        warm_up(step, warmup_iters)
        if timer.mode == "cuda_graph":
            captured = partial(CapturedLoop, timer, WHOLE, step, iters, inner=name in regions)
            runs[name] = (
                partial(_replayed, timer, captured()) if keep_loops else partial(_replayed_once, timer, captured)
            )
        else:
            runs[name] = partial(timer.measure, WHOLE, step, 0, iters)
    by_step: dict[str, list[list[float]]] = {name: [] for name in steps}
    logs = {name: ClockLog(timer.device) for name in steps}
    order = list(runs.items())
    for turn in range(rounds + 1):
        for name, run in order:
            distributed.barrier()
            timer.while_running = logs[name].sample if turn else _nothing
            samples = distributed.max_over_ranks(run()[regions.get(name, WHOLE)])
            if turn:
                by_step[name].append(samples)
        order.append(order.pop(0))  # so that none always follows the one that heats most
    timer.while_running = _nothing
    return {name: Turns(by_step[name], logs[name].summary()) for name in steps}


def medians_ms(steps: Mapping[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """For choosing between steps: medians over a few rounds, L2 cache cold, the same on all ranks. A collective."""
    timer = Timer("cuda_graph" if device.type == "cuda" else "sync", device, flush_l2=True)
    turns = interleaved(timer, steps, warmup_iters=2, iters=ITERS, rounds=ROUNDS, keep_loops=False)
    return {name: statistics.median(ms for turn in own.rounds for ms in turn) for name, own in turns.items()}


def _replayed(timer: Timer, loop: CapturedLoop) -> Samples:
    loop.replay()
    timer.while_running()
    synchronize(timer.device)
    return loop.samples()


def _replayed_once(timer: Timer, captured: Callable[[], CapturedLoop]) -> Samples:
    loop = captured()
    loop.replay()
    synchronize(timer.device)
    return _replayed(timer, loop)


def _nothing() -> None:
    """Called while a round runs that is not counted."""
