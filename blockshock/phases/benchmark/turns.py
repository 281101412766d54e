"""Taking turns: the options that all parts share, and how everything that is compared in a job is timed.

Medians come from rounds in which every entry has its turn, so that a clock that falls as the chip gets warm touches
all alike; in CUDA graphs on GPUs, with the L2 cache cold unless a part says otherwise.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from blockshock.errors import ConfigError, at_least
from blockshock.jobs.execution import Execution
from blockshock.measure.timing import Timer
from blockshock.methods.contenders import Contenders
from blockshock.phases.benchmark.contenders import Admitted, Entry, Step, blame

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class Benchmark(ABC):
    """A part: what is compared, on how many ranks, and with which baseline."""

    PART: ClassVar[str]
    BASELINE: ClassVar[str]  # the `method` whose time in the same job ratios are to; "": none
    RANKS: ClassVar[str]  # "one", "even" or "two"
    FLUSH_L2: ClassVar[bool] = True

    name: str
    part: str
    warmup_iters: int = 3
    timed_iters: int = 10  # in a captured loop
    rounds: int = 5  # replays of each loop, in turn
    eager: bool = True  # on GPUs, also time without CUDA graphs: the host's part

    @abstractmethod
    def admitted(self, job: Job) -> Admitted[Any]:
        """The contenders that can run in this job; ConfigError where one can't that is not optional."""

    @abstractmethod
    def entries(self, execution: Execution, admitted: Admitted[Any]) -> Iterable[Entry]:
        """What is compared: built, and compared with float64. A collective."""

    def check(self, job: Job) -> None:
        if self.part != self.PART:
            problem = f"a part comes with its contenders: choose it by phase/part={self.part}"
            raise ConfigError("phase.part", self.part, problem)
        if not isinstance(job.method, Contenders):
            problem = "phase=benchmark compares phase.contenders; leave method out, or add one by "
            problem += f"+method@phase.contenders.NAME.method={job.method.name}"
            raise ConfigError("method", job.method.name, problem)
        for key in ("warmup_iters", "timed_iters", "rounds"):
            at_least(f"phase.{key}", getattr(self, key), 1)
        self._check_ranks(job)
        self.admitted(job)

    def _check_ranks(self, job: Job) -> None:
        ranks = job.hardware.world_size
        problem = {
            "one": "is one rank's work" if ranks != 1 else "",
            "even": "needs an even number of ranks: two halves each" if ranks % 2 else "",
            "two": "is about two ranks" if ranks != 2 else "",
        }[self.RANKS]
        if problem:
            raise ConfigError("hardware.world_size", ranks, f"part {self.PART} {problem}")
        if job.hardware.device == "cuda" and ranks > 1 and job.hardware.backend != "nccl":
            problem = "contenders are timed as CUDA graphs, which can't hold gloo's collectives; use nccl"
            raise ConfigError("hardware.backend", job.hardware.backend, problem)

    def run(self, execution: Execution) -> float:
        """Record every entry's times, all at once; the fastest entry's median in ms."""
        admitted = self.admitted(execution.job)
        for contender, reason in admitted.left_out.items():
            execution.log("without %s: %s", contender, reason)
        entries = list(self.entries(execution, admitted))
        execution.log("timing %d contenders in %d rounds: %s", len(entries), self.rounds, _listed(entries))
        times = self._take_turns(execution, entries)
        left_out = [f"{contender}: {reason}" for contender, reason in admitted.left_out.items()]
        rows = [self._row(entry) | found | {"left_out": left_out} for entry, found in zip(entries, times, strict=True)]
        execution.append(*(execution.record(None, {}, **row) for row in rows))
        return min(found["p50_us"] for found in times) / 1e3

    def _row(self, entry: Entry) -> dict[str, Any]:
        """What a record says of the entry, beside the job's sizes."""
        common = {"part": self.PART, "baseline": self.BASELINE, "method": entry.method, "variant": entry.variant}
        return {**common, "mask": "", "kernel": ""} | entry.about

    def _take_turns(self, execution: Execution, entries: list[Entry]) -> list[dict[str, Any]]:
        """Per entry: the median, and the median of each round, in µs. A collective.

        Eager times have the host's part in them: steps follow one another without a flush of the L2 cache between,
        which would give the host time to run ahead.
        """
        device = execution.device
        gpu = device.type == "cuda"
        steps = {str(place): _named_step(entry) for place, entry in enumerate(entries)}
        timer = Timer("cuda_graph" if gpu else "sync", device, self.FLUSH_L2)
        rounds = timer.interleaved(steps, self.warmup_iters, self.timed_iters, self.rounds)
        eager: dict[str, list[list[float]]] = {}
        if self.eager and gpu:
            eager = Timer("cuda_events", device).interleaved(steps, 2, self.timed_iters, 2)
        times = []
        for place, blocks in rounds.items():
            found: dict[str, Any] = {
                "p50_us": _median_us(blocks),
                "rounds_us": [round(1e3 * statistics.median(block), 3) for block in blocks],
            }
            if place in eager:
                found["eager_p50_us"] = _median_us(eager[place])
            times.append(found)
        return times


def _named_step(entry: Entry) -> Step:
    def step() -> Any:
        try:  # costs the host nothing, which a context manager would
            return entry.step()
        except Exception as error:  # whatever it raises: the job's one line must say whose it is
            raise blame(entry.contender, error) from error

    return step


def _median_us(blocks: list[list[float]]) -> float:
    return 1e3 * statistics.median(value for block in blocks for value in block)


def _listed(entries: list[Entry]) -> str:
    return ", ".join(f"{entry.method}/{entry.variant}".rstrip("/") for entry in entries)
