"""Where the time of each step went on one rank: an exact partition of the step's time on the device.

    table = step_table(collector)       # one row a step, nanoseconds
    compute + exposed communication + exposed copies + idle = step
    forward + backward + optimizer + other = compute + exposed copies

Communication is exposed while no compute kernel runs; a copy is exposed while neither runs. Time in which kernels of
two passes overlap counts once, for the first of forward, backward, optimizer, other. A step starts when the host
enters it, but not before the step before has ended; it ends when the host leaves it, but not before its last kernel
has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from profiler.errors import EmptyTraceError
from profiler.traces.intervals import clip, intersect, length, subtract, union
from profiler.traces.recording.collector import KernelDataCollector
from profiler.traces.records import NOBODY, REGIONS, KernelLaunch, MemoryCopy, together

Key = TypeVar("Key")
STEP_COLUMNS = [
    "rank",
    "step",
    "start_ns",
    "end_ns",
    "step_ns",
    *(f"{region}_ns" for region in REGIONS),
    "compute_ns",
    "communication_ns",
    "exposed_communication_ns",
    "overlapped_communication_ns",
    "copies_ns",
    "exposed_copies_ns",
    "idle_ns",
    "kernels",
    "copies",
    "kernel_ns",
    "attributed_ns",
    "on_cpu",
]


def step_table(collector: KernelDataCollector) -> pd.DataFrame:
    """One row a step, with `STEP_COLUMNS`. Raises EmptyTraceError if no step was marked or nothing ran in any.

    `kernel_ns` is the sum of the durations of the step's kernels and copies; `attributed_ns` the part of it that has an
    owner: a module, the loss or another operation between modules and backward, or the optimizer.
    """
    kernels, copies = collector.require_kernels(), collector.copies
    host = collector.attribution.steps
    if not host:
        raise EmptyTraceError("the profile has no steps: write `with collector.step():` around each training step")
    compute = spans_of_compute(kernels)
    communication = _spans(kernel for kernel in kernels if kernel.communication)
    moved = _spans(copies)
    by_region = {
        region: _spans(
            thing
            for thing in together(kernels, copies)
            if thing.region == region and not (isinstance(thing, KernelLaunch) and thing.communication)
        )
        for region in REGIONS
    }
    rows, before = [], 0
    last_ends = _last_ends(kernels, copies, len(host))
    for step, (entered, left) in enumerate(host):
        start, end = max(entered, before), max(left, last_ends[step])
        before = end
        work, exchange, copy = clip(compute, start, end), clip(communication, start, end), clip(moved, start, end)
        exposed = subtract(exchange, work)
        exposed_copies = subtract(copy, union(np.concatenate([work, exchange])))
        passes = _passes(by_region, union(np.concatenate([work, exposed_copies])))
        own_kernels = [kernel for kernel in kernels if kernel.step == step]
        own_copies = [copy for copy in copies if copy.step == step]
        counted: list[KernelLaunch | MemoryCopy] = together(own_kernels, [] if collector.on_cpu else own_copies)
        idle = (end - start) - length(work) - length(exposed) - length(exposed_copies)
        rows.append(
            [
                collector.rank,
                step,
                start,
                end,
                end - start,
                *passes,
                length(work),
                length(exchange),
                length(exposed),
                length(exchange) - length(exposed),
                length(copy),
                length(exposed_copies),
                idle,
                len(own_kernels),
                len(own_copies),
                sum(thing.end - thing.start for thing in counted),
                sum(thing.end - thing.start for thing in counted if is_attributed(thing)),
                collector.on_cpu,
            ]
        )
    return pd.DataFrame(rows, columns=STEP_COLUMNS)


def is_attributed(thing: KernelLaunch | MemoryCopy) -> bool:
    """Whether a module, the loss, the optimizer or a collective is known to have launched it."""
    communication = isinstance(thing, KernelLaunch) and thing.communication
    return communication or (thing.module != NOBODY and thing.region != "other")


def spans_of_compute(kernels: Iterable[KernelLaunch]) -> np.ndarray:
    """When kernels run that exchange nothing, (n, 2) nanoseconds."""
    return _spans(kernel for kernel in kernels if not kernel.communication)


def exposed(exchanged: Mapping[Key, list[tuple[int, int]]], compute: np.ndarray) -> dict[Key, int]:
    """Of each owner's collectives, the nanoseconds in which nothing is computed, each for the first owner."""
    left: dict[Key, int] = {}
    taken = compute
    for key, spans in exchanged.items():
        own = subtract(union(spans), taken)
        left[key] = length(own)
        taken = union(np.concatenate([taken, own]))
    return left


def _spans(things: Iterable[KernelLaunch | MemoryCopy]) -> np.ndarray:
    return union([(thing.start, thing.end) for thing in things])


def _last_ends(kernels: Iterable[KernelLaunch], copies: Iterable[MemoryCopy], steps: int) -> list[int]:
    ends = [0] * steps
    for thing in together(kernels, copies):
        if thing.step >= 0:
            ends[thing.step] = max(ends[thing.step], thing.end)
    return ends


def _passes(by_region: dict[str, np.ndarray], work: np.ndarray) -> list[int]:
    """Nanoseconds of `work` in each of REGIONS, each nanosecond once."""
    times = []
    for region in REGIONS:
        part = intersect(by_region[region], work)
        times.append(length(part))
        work = subtract(work, part)
    return times


def read_steps(folder: str | Path) -> list[pd.DataFrame]:
    """The step tables that the ranks of one run wrote into `folder`, in order of rank."""
    paths = [*Path(folder).glob("steps.csv"), *Path(folder).glob("steps.rank*.csv")]
    if not paths:
        raise EmptyTraceError(f"{folder} has no steps.csv or steps.rank*.csv: no rank has saved its profile there")
    tables = [pd.read_csv(path) for path in paths]
    return sorted(tables, key=lambda table: int(table["rank"].iloc[0]))
