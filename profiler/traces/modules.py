"""What each module's forward and its own backward cost, step by step.

    profile = ModuleProfile(collector, flops=count_flops(model, step), peak_tflops=790)
    profile.modules, profile.steps
    profile.save("out")

A module's *self* is what runs in it and in none of its submodules; its *total* adds the submodules by name, so that
totals of siblings add up to their parent's. Device time is the sum of the durations of kernels and copies; collectives
are apart, and exposed while no compute kernel runs. Where collectives of several modules run at once, the exposed time
counts once, so that modules add up to the step. Wall time is the host's: of the module's calls, and of the autograd
nodes that its forward made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from profiler.errors import EmptyTraceError
from profiler.traces.attribution import OwnedRange
from profiler.traces.flop_count import FlopCount
from profiler.traces.recording.collector import KernelDataCollector
from profiler.traces.records import NOBODY, OPTIMIZER, OUTSIDE, ROOT, KernelLaunch, MemoryCopy
from profiler.traces.steps import exposed, spans_of_compute, step_table

MODULE_COLUMNS = [
    "rank",
    "step",
    "module",
    "type",
    "depth",
    "region",
    "calls",
    "kernels",
    "device_self_ns",
    "device_total_ns",
    "communication_self_ns",
    "communication_total_ns",
    "exposed_communication_self_ns",
    "exposed_communication_total_ns",
    "wall_self_ns",
    "wall_total_ns",
    "flops_self",
    "flops_total",
    "tflops_self",
    "tflops_total",
]
Key = tuple[int, str, str]  # step, module, region
Spans = list[tuple[int, int]]
_SUMMED = ("device", "communication", "exposed_communication", "wall", "flops")


@dataclass
class ModuleProfile:
    """The modules and steps of one rank's trace.

    `flops`: of one step, by `count_flops`; without it FLOPs are 0 and TFLOP/s empty. `peak_tflops`: what the device
    reaches at best, a line in `plot_throughput_analysis`. Raises EmptyTraceError for a collector without steps.
    """

    collector: KernelDataCollector
    flops: FlopCount | None = None
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        self.steps = step_table(self.collector)

    @property
    def rank(self) -> int:
        return self.collector.rank

    @property
    def attributed(self) -> float:
        """Share of the device time in steps whose module, pass or collective is known."""
        total = self.steps["kernel_ns"].sum()
        return float(self.steps["attributed_ns"].sum() / total) if total else 0.0

    @property
    def table(self) -> pd.DataFrame:
        """The same as `modules`."""
        return self.modules

    @cached_property
    def modules(self) -> pd.DataFrame:
        """One row for each step, module and region (forward, backward; optimizer, other), with MODULE_COLUMNS."""
        own = self._own()
        total: dict[str, defaultdict[Key, int]] = {name: defaultdict(int) for name in _SUMMED}
        for name in _SUMMED:
            for (step, module, region), value in own[name].items():
                for ancestor in ancestors(module):
                    total[name][step, ancestor, region] += value
        types = {name: type(module).__name__ for module, name in self.collector.modules.items()}
        keys = {key for values in total.values() for key in values}
        order = {module: place for place, module in enumerate(types)}
        rows = []
        for step, module, region in sorted(keys, key=lambda k: (k[0], order.get(k[1], len(order)), k[1], k[2])):
            key = (step, module, region)
            row = [self.rank, step, module, types.get(module, ""), depth(module), region]
            row += [own["calls"].get(key, 0), own["kernels"].get(key, 0)]
            for name in _SUMMED:
                row += [own[name].get(key, 0), total[name].get(key, 0)]
            for values in (own, total):
                row.append(_tflops(values["flops"].get(key, 0), values["device"].get(key, 0)))
            rows.append(row)
        return pd.DataFrame(rows, columns=MODULE_COLUMNS)

    def _own(self) -> dict[str, defaultdict[Key, int]]:
        """Each quantity's (step, module, region) → value, of the modules themselves."""
        own: dict[str, defaultdict[Key, int]] = {name: defaultdict(int) for name in (*_SUMMED, "calls", "kernels")}
        exchanged: defaultdict[Key, Spans] = defaultdict(list)
        things: list[KernelLaunch | MemoryCopy] = [*self.collector.kernels]
        if not self.collector.on_cpu:  # there a copy is an operator, or part of one
            things += self.collector.copies
        for thing in things:
            if thing.step < 0:
                continue
            key = (thing.step, thing.module or "(unknown)", thing.region)
            communication = isinstance(thing, KernelLaunch) and thing.communication
            own["communication" if communication else "device"][key] += thing.end - thing.start
            own["kernels"][key] += 1
            if communication:
                exchanged[key].append((thing.start, thing.end))
        own["exposed_communication"].update(
            exposed(_modules_first(exchanged), spans_of_compute(self.collector.kernels))
        )
        steps = self.collector.attribution.steps
        for found, wall in _self_times(self.collector.attribution.ranges):
            step = next((n for n, (start, end) in enumerate(steps) if start <= found.start < end), None)
            if step is not None:
                key = (step, found.module, found.region)
                own["wall"][key] += wall
                own["calls"][key] += 1
        for (module, region), count in (self.flops or {}).items():
            for step in self.steps["step"]:
                own["flops"][int(step), module, region] += count
        return own

    def samples(self, column: str, region: str) -> pd.DataFrame:
        """A table of one column: a row a step, a column a module. Modules that have none of it are left out."""
        rows = self.table[(self.table["region"] == region) & (self.table[column] > 0)]
        return rows.pivot_table(index="step", columns="module", values=column, sort=False)

    def with_markers(self, forward_markers: Sequence[str] | None) -> ModuleProfile:
        """This profile with ranges of these names as modules; itself if there are no names."""
        if not forward_markers:
            return self
        return ModuleProfile(self.collector.attributed_again(forward_markers), self.flops, self.peak_tflops)

    def save(self, folder: str | Path, world_size: int = 1) -> list[Path]:
        """Write kernels.csv, memcpy.csv, modules.csv, steps.csv and trace.json into `folder`.

        With `world_size` > 1 each rank writes files of its own: `kernels.rank0.csv` and so on.
        """
        folder = Path(folder)
        paths = save_records(self.collector, folder, world_size)
        for name, table in (("modules", self.modules), ("steps", self.steps)):
            paths.append(rank_path(folder, f"{name}.csv", self.rank, world_size))
            table.to_csv(paths[-1], index=False)
        paths.append(rank_path(folder, "trace.json", self.rank, world_size))
        self.collector.save_trace(paths[-1])
        return paths


_TIMES = ["start_ns", "end_ns", "duration_ns", "device", "stream"]
_OWNER = ["step", "region", "module", "operator"]
KERNEL_COLUMNS = [*_TIMES, "grid_x", "grid_y", "grid_z", "correlation", "communication", *_OWNER, "name"]
COPY_COLUMNS = [*_TIMES, "bytes", "kind", "correlation", *_OWNER]


def save_records(collector: KernelDataCollector, folder: Path, world_size: int = 1) -> list[Path]:
    """Write kernels.csv and memcpy.csv, one row each, in order of start. Raises EmptyTraceError without kernels."""
    found = collector.require_kernels()
    kernels = pd.DataFrame(
        [(k.start, k.end, k.end - k.start, k.device, k.stream, *k.grid, *_links(k), k.name) for k in found],
        columns=KERNEL_COLUMNS,
    )
    copies = pd.DataFrame(
        [(c.start, c.end, c.end - c.start, c.device, c.stream, c.bytes, c.kind, *_links(c)) for c in collector.copies],
        columns=COPY_COLUMNS,
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in (("kernels", kernels), ("memcpy", copies)):
        paths.append(rank_path(folder, f"{name}.csv", collector.rank, world_size))
        table.to_csv(paths[-1], index=False)
    return paths


def _links(thing: KernelLaunch | MemoryCopy) -> tuple[Any, ...]:
    communication = (thing.communication,) if isinstance(thing, KernelLaunch) else ()
    return (thing.correlation, *communication, thing.step, thing.region, thing.module, thing.operator)


def rank_path(folder: Path, name: str, rank: int, world_size: int) -> Path:
    """`kernels.csv` of one rank; `kernels.rank1.csv` of several."""
    stem, _, ending = name.partition(".")
    return folder / (name if world_size == 1 else f"{stem}.rank{rank}.{ending}")


def ancestors(module: str) -> list[str]:
    """`a.b` → `a.b`, `a`, `(model)`; a name in parentheses is its own and only one."""
    if module.startswith("("):
        return [module]
    parts = module.split(".")
    return [*(".".join(parts[:count]) for count in range(len(parts), 0, -1)), ROOT]


def depth(module: str) -> int:
    """0 for the model and what is outside of it, 1 for its children, …"""
    return 0 if module.startswith("(") else module.count(".") + 1


def _modules_first(spans: dict[Key, Spans]) -> dict[Key, Spans]:
    """In the order in which they begin; what no module is known for comes last."""
    return dict(sorted(spans.items(), key=lambda item: (not is_module(item[0][1]), min(item[1]))))


def is_module(module: str) -> bool:
    """Whether a name of the table is a module's, not the optimizer or the rest."""
    return module not in (OUTSIDE, OPTIMIZER, NOBODY, "(unknown)")


def _tflops(flops: int, nanoseconds: int) -> float | None:
    return flops / nanoseconds / 1e3 if flops and nanoseconds else None


def _self_times(ranges: Iterable[OwnedRange]) -> list[tuple[OwnedRange, int]]:
    """Each range with its duration less that of the ranges directly within it."""
    by_thread: defaultdict[int, list[OwnedRange]] = defaultdict(list)
    for found in ranges:
        by_thread[found.thread].append(found)
    results: list[tuple[OwnedRange, int]] = []
    for thread in by_thread.values():
        thread.sort(key=lambda r: (r.start, -r.end))
        inner = [0] * len(thread)
        stack: list[int] = []
        for place, found in enumerate(thread):
            while stack and thread[stack[-1]].end <= found.start:
                stack.pop()
            if stack:
                inner[stack[-1]] += found.end - found.start
            stack.append(place)
        results += [(found, found.end - found.start - inside) for found, inside in zip(thread, inner, strict=True)]
    return results


def require_profile(profile: ModuleProfile) -> None:
    """Raises EmptyTraceError unless modules were traced."""
    if not any(is_module(module) for module in profile.table["module"]):
        raise EmptyTraceError(
            "profile has no modules: give KernelDataCollector(model), or forward_markers that name "
            "record_function ranges in your code"
        )
