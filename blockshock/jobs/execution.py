"""What a phase works with on one rank: the problem, the layer, the clock and the record."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from blockshock import SCHEMA
from blockshock.collectives import symmetric
from blockshock.config import Job
from blockshock.dtypes import DTYPES
from blockshock.jobs import correctness
from blockshock.masks import prunes
from blockshock.measure import calibration, roofline, timing
from blockshock.measure.clocks import ClockLog
from blockshock.measure.cpu_log import CpuLog
from blockshock.measure.roofline import Cost
from blockshock.measure.summarize import summarize_blocks
from blockshock.methods import ParallelModule
from blockshock.problem import Problem, problem_of
from blockshock.ranks import distributed
from blockshock.run_folder.folder import RunFolder

log = logging.getLogger("blockshock")


@dataclass
class Execution:
    """One rank's side of one job. All methods that measure or write are collectives: every rank calls them."""

    job: Job
    device: torch.device
    folder: RunFolder
    run_id: str

    def __post_init__(self) -> None:
        # What earlier jobs left in this process (library workspaces, when ranks are reused) is not this job's memory.
        self._allocated_before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    @staticmethod
    def log(message: str, *values: object) -> None:
        """To the rank's log, and from rank 0 to whoever shows progress."""
        log.info(message, *values)

    @cached_property
    def problem(self) -> Problem:
        return problem_of(self.job, self.device)

    @cached_property
    def _energy_kept(self) -> float | None:
        return self.problem.energy_kept()

    @cached_property
    def rates(self) -> calibration.Rates:
        hardware = self.job.hardware
        dtype = DTYPES[self.job.model.dtype]
        return calibration.rates(dtype, self.device, hardware.backend, hardware.recalibrate)

    def build(self) -> tuple[ParallelModule, timing.Samples]:
        """The method's layer from the problem's weights, and how long it took to build."""
        self.log("building %s", self.job.method.name)
        weights = self.problem.weights()
        timer = timing.Timer("sync", self.device)
        return timer.once("build", lambda: self.problem.build(self.job.method, weights))

    def check(self, layer: ParallelModule, quantities: tuple[str, ...]) -> dict[str, Any]:
        """Judge the layer against float64. A failure is recorded, then raised as CheckFailed."""
        self.log("checking %s against float64", ", ".join(quantities))
        verdicts = correctness.check(self.problem, layer, quantities)
        problem = correctness.failure(verdicts)
        if problem:
            self.write(layer, {}, correctness=verdicts)
            raise correctness.CheckFailed(problem)
        return verdicts

    def measure(
        self, outer: str, step: Callable[[], Any], samples: timing.Samples | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Time `step` as the phase's options say: (timings_ms by region, further record fields)."""
        phase = self.job.phase
        peak = self._peak_memory(step)
        timer = timing.Timer(phase.timing, self.device, phase.flush_l2)
        clocks = ClockLog(self.device)
        timer.while_running = clocks.sample
        cpu = CpuLog(self.device)
        log.info(
            "timing %d blocks of %d iterations (%s) after %d to warm up",
            phase.blocks,
            phase.timed_iters,
            phase.timing,
            phase.warmup_iters,
        )
        blocks = []
        for _ in range(phase.blocks):
            distributed.barrier()
            blocks.append(timer.measure(outer, step, phase.warmup_iters, phase.timed_iters))
        measured = {name: [values] for name, values in (samples or {}).items()}
        measured |= {name: [block[name] for block in blocks] for name in blocks[0]}
        timings = {
            name: summarize_blocks([distributed.max_over_ranks(values) for values in by_block])
            for name, by_block in sorted(measured.items())
        }
        fields = {
            "timing_mode": phase.timing,
            "flush_l2": phase.flush_l2,
            "memory_peak_bytes": peak,
            "memory_peak_kind": "allocated on the GPU" if self.device.type == "cuda" else "resident set of the rank",
            "clocks": clocks.summary(),
            "cpu": cpu.summary(),
        }
        return timings, fields

    def roofline(self, stages: list[Cost], measured_ms: float | None) -> dict[str, Any]:
        """The floor of `stages` on this machine and the fraction of it that `measured_ms` reaches."""
        least = roofline.floor(stages, self.rates)
        return {**least, "fraction": least["floor_ms"] / measured_ms if measured_ms else None}

    def write(self, layer: ParallelModule | None, timings: dict[str, Any], **fields: Any) -> None:
        """Append one line to metrics.jsonl (rank 0)."""
        self.append(self.record(layer, timings, **fields))

    def append(self, *records: dict[str, Any]) -> None:
        """Append a line per record to metrics.jsonl (rank 0): all or none."""
        if distributed.rank() == 0:
            self.folder.append(*records)

    def record(self, layer: ParallelModule | None, timings: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """A line of metrics.jsonl: what the job is, `timings`, and `fields`."""
        job = self.job
        record = {
            "schema": SCHEMA,
            "run_id": self.run_id,
            "timestamp_unix": time.time(),
            "phase": job.phase.name,
            "method": job.method.name,
            "mask": job.mask.name,
            "workload": job.workload.name,
            "N": job.model.N,
            "K": job.model.K,
            "B": job.model.B,
            "dtype": job.model.dtype,
            "world_size": job.hardware.world_size,
            "seed": job.experiment.seed,
            "device": device_name(self.device),
            "timings_ms": timings,
            "memory_peak_bytes": None,
            **fields,
        }
        if prunes(job.mask) and hasattr(job.method, "build"):  # what it builds, it builds of pruned weights
            record["energy_kept"] = self._energy_kept
        if layer is not None:
            record["weight_bytes"] = layer.weight_bytes()
            record["layer"] = layer.describe()
        return record

    def _peak_memory(self, step: Callable[[], Any]) -> int:
        """Bytes at the peak of one eager step: allocated by PyTorch on a GPU, resident on a CPU; the worst rank's."""
        if self.device.type == "cuda":
            step()
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            step()
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device) - self._allocated_before + symmetric.live_bytes()
        else:
            clear = Path("/proc/self/clear_refs")
            if clear.exists():
                clear.write_text("5")  # resets the high-water mark of the resident set
            step()
            peak = _resident_peak()
        return int(distributed.max_over_ranks([float(peak)])[0])


def _resident_peak() -> int:
    status = Path("/proc/self/status")
    line = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(line.group(1)) if line else 0


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
