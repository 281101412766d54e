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

from blockshock.collectives.parts import Parts
from blockshock.errors import ConfigError, at_least
from blockshock.jobs.execution import Execution
from blockshock.measure.interleaved import Turns, interleaved
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
        """Per entry: the median, and the median of each round, in µs, and the clocks of those rounds; the same of its
        parts. A collective.

        Eager times have the host's part in them: steps follow one another without a flush of the L2 cache between,
        which would give the host time to run ahead.
        """
        device = execution.device
        gpu = device.type == "cuda"
        steps = {str(place): _named_step(entry.contender, entry.step) for place, entry in enumerate(entries)}
        parts, regions = _steps_of_parts(entries)
        timer = Timer("cuda_graph" if gpu else "sync", device, self.FLUSH_L2)
        turns = interleaved(timer, steps | parts, self.warmup_iters, self.timed_iters, self.rounds, regions)
        eager: dict[str, Turns] = {}
        if self.eager and gpu:
            eager = interleaved(Timer("cuda_events", device), steps, 2, self.timed_iters, 2)
        times = []
        for place, entry in enumerate(entries):
            found = {**_times("", turns[str(place)]), "clocks": turns[str(place)].clocks}
            if str(place) in eager:
                found["eager_p50_us"] = _median_us(eager[str(place)].rounds)
            if entry.parts:
                found["parts"] = _fields_of_parts(entry.parts, str(place), turns)
            times.append(found)
        return times


EMPTY = "empty"  # a step that does nothing: what the clock itself takes


def _steps_of_parts(entries: list[Entry]) -> tuple[dict[str, Step], dict[str, str]]:
    """Steps of the entries' parts, by "place/part", with EMPTY; and the regions that are a collective's time."""
    steps: dict[str, Step] = {}
    regions = {}
    for place, entry in enumerate(entries):
        if not entry.parts:
            continue
        steps[f"{place}/matmul"] = _named_step(entry.contender, entry.parts.matmul)
        inside = entry.parts.forward or entry.step
        for name, work in {"collective": entry.parts.collective, "inside": inside}.items():
            steps[f"{place}/{name}"] = _named_step(entry.contender, work)
            regions[f"{place}/{name}"] = entry.parts.region
    return (steps | {EMPTY: lambda: None} if steps else {}), regions


def _fields_of_parts(parts: Parts, place: str, turns: dict[str, Turns]) -> dict[str, Any]:
    found: dict[str, Any] = {"chunks": parts.chunks, **_times("empty_", turns[EMPTY])}
    for name in ("matmul", "collective", "inside"):
        own = turns[f"{place}/{name}"]
        found |= {**_times(f"{name}_", own), f"{name}_clocks": own.clocks}
    return found


def _times(prefix: str, turns: Turns) -> dict[str, Any]:
    each = [round(1e3 * statistics.median(block), 3) for block in turns.rounds]
    return {f"{prefix}p50_us": _median_us(turns.rounds), f"{prefix}rounds_us": each}


def _named_step(contender: str, work: Step) -> Step:
    def step() -> Any:
        try:  # costs the host nothing, which a context manager would
            return work()
        except Exception as error:  # whatever it raises: the job's one line must say whose it is
            raise blame(contender, error) from error

    return step


def _median_us(blocks: list[list[float]]) -> float:
    return 1e3 * statistics.median(value for block in blocks for value in block)


def _listed(entries: list[Entry]) -> str:
    return ", ".join(f"{entry.method}/{entry.variant}".rstrip("/") for entry in entries)
