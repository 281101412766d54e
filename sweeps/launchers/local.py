"""Jobs on this machine: each in a fresh process through submitit, as many at once as GPUs allow, one on a CPU."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import psutil

from blockshock.errors import ConfigError, at_least
from sweeps.launchers import job_process
from sweeps.launchers.machine.gpu_placement import Machine, choose, share_of_cores
from sweeps.launchers.machine.local_process import POLL_S, LocalProcess, end_families
from sweeps.launchers.options import LauncherConf

if TYPE_CHECKING:
    import submitit

    from sweeps.launchers.runner import Hydra, Sweep
    from sweeps.launchers.sweep.compose import Needs, PlannedJob

RETRY_S = 0.5  # between two tries to start a job while none has ended
SIGNAL_S = 30  # between the signal that tells a process of its time limit and its end
FOREVER_S = 1e8  # three years: submitit wants a number


@dataclass
class LocalLauncherConf(LauncherConf):
    kind: str = "local"
    max_parallel: int | None = None  # jobs at once; default: as many as the GPUs allow, one on a CPU
    use_busy_gpus: bool = False  # also use GPUs on which another process runs
    jobs_per_gpu: int = 1  # one-GPU jobs that share a GPU: they compile side by side, and measure one at a time


class LocalRunner:
    elsewhere: ClassVar[bool] = False

    def __init__(self, options: LocalLauncherConf, hydra: Hydra, sweep: Sweep) -> None:
        self.options, self.hydra, self.sweep = options, hydra, sweep
        self.running: list[LocalProcess] = []
        self._turns: TemporaryDirectory[str] | None = None  # once jobs share a GPU
        self._alone: set[str] = set()  # names of jobs that failed beside others, and run again by themselves

    def check(self, jobs: Sequence[PlannedJob]) -> None:
        if self.options.max_parallel is not None:
            at_least("hydra.launcher.max_parallel", self.options.max_parallel, 1)
        at_least("hydra.launcher.jobs_per_gpu", self.options.jobs_per_gpu, 1)
        gpus = _gpus() if any(job.needs.gpus for job in jobs) else []
        self.machine = Machine(gpus, sorted(os.sched_getaffinity(0)), self.options.jobs_per_gpu)
        memory_gb = psutil.virtual_memory().total / 2**30
        for needs in {job.needs for job in jobs}:
            has = {
                "gpus": (needs.gpus, len(self.machine.gpus), "GPUs"),
                "cpus_per_rank": (_cores(needs), len(self.machine.cores), "cores"),
                "memory_gb": (needs.memory_gb or 0, round(memory_gb, 1), "GiB of memory"),
            }
            for name, (wanted, there, unit) in has.items():
                if wanted > there:
                    problem = f"a job needs {wanted:g} {unit}, this machine has {there:g}"
                    raise ConfigError(f"hydra.launcher.{name}", getattr(needs, name), problem)
        wide = [_cores(job.needs) for job in jobs if not job.needs.gpus]
        says = bool(wide) and all(wide)  # else one at a time, so that what is timed is undisturbed
        self.slots = self.options.max_parallel or (len(self.machine.cores) // max(wide) if says else 1)

    def plan(self, jobs: Sequence[PlannedJob]) -> str:
        gpus = f"{len(self.machine.gpus)} GPUs" if any(job.needs.gpus for job in jobs) else f"{self.slots} at once"
        shared = f", up to {self.options.jobs_per_gpu} jobs on each" if self.options.jobs_per_gpu > 1 else ""
        return f"on this machine, each in a process of its own: {gpus}{shared}"

    def run(self, jobs: Sequence[PlannedJob]) -> bool:
        if not jobs:
            return True
        import submitit

        folder = jobs[0].sweep / ".submitit"
        executor = submitit.LocalExecutor(folder, python=job_process.interpreter())
        waiting = self._batches(jobs)
        running = self.running
        try:
            next_try = 0.0  # asking NVML who uses the GPUs has its price
            while running or (waiting and not self.sweep.stopped):
                if self.sweep.stopped:
                    self._end_all()
                elif time.monotonic() >= next_try:
                    started = True
                    while started:
                        started = self._start_one(waiting, executor)
                    next_try = time.monotonic() + RETRY_S
                for one in list(running):
                    waiting += self._look_after(one)
                    if one not in running:
                        next_try = 0.0
                time.sleep(POLL_S)
        finally:
            self._end_all()
            if self._turns is not None:
                self._turns.cleanup()
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        return True

    def _batches(self, jobs: Sequence[PlannedJob]) -> list[list[PlannedJob]]:
        """A process for each job, or with reuse_ranks one for all jobs of a shape that run one after another."""
        if not self.options.reuse_ranks:
            return [[job] for job in jobs]
        batches = []
        for _, group in groupby(sorted(jobs, key=_shape), key=_shape):
            alike = list(group)
            gpus = alike[0].needs.gpus
            at_once = len(self.machine.gpus) // gpus if gpus else 1
            at_once *= self.options.jobs_per_gpu if gpus == 1 else 1
            at_once = max(1, min(at_once, self.options.max_parallel or at_once, len(alike)))
            batches += [alike[i::at_once] for i in range(at_once)]
        return batches

    def _start_one(self, waiting: list[list[PlannedJob]], executor: submitit.LocalExecutor) -> bool:
        """Start the next batch that fits; whether there was one."""
        running, limit = self.running, self.options.max_parallel
        if not waiting or (limit is not None and len(running) >= limit):
            return False
        slots = set(range(self.slots)) - {one.slot for one in running}
        candidates = [batch for batch in waiting if batch[0].needs.gpus or slots]
        if not candidates:
            return False
        wanted = any(batch[0].needs.gpus for batch in candidates)
        free = self.machine.free(self.options.use_busy_gpus) if wanted else []
        chosen = choose([batch[0].needs.gpus for batch in candidates], free)
        self.machine.release(set(free) - set(chosen[1] if chosen else ()))
        if chosen is None:
            chosen = self._beside_others(candidates)
        if chosen is None:
            self._explain_waiting(free)
            return False
        self.sweep.board.note = ""
        batch, gpus = candidates[chosen[0]], chosen[1]
        waiting.remove(batch)
        self._start(batch, gpus, None if gpus else min(slots), executor)
        return True

    def _beside_others(self, batches: Sequence[list[PlannedJob]]) -> tuple[int, tuple[int, ...]] | None:
        """The first batch that may share a GPU with jobs that run, and the GPU."""
        gpu = self.machine.with_room()
        index = next((i for i, batch in enumerate(batches) if self._may_share(batch)), None)
        return None if gpu is None or index is None else (index, (gpu,))

    def _may_share(self, batch: list[PlannedJob]) -> bool:
        failed = not self._alone.isdisjoint(job.name for job in batch)
        return self.options.jobs_per_gpu > 1 and batch[0].needs.gpus == 1 and not failed

    def _explain_waiting(self, free: Sequence[int]) -> None:
        if not self.running:
            note = f"{len(free)} of {len(self.machine.gpus)} GPUs are not used by others: waiting for more"
            self.sweep.board.say(f"{note} (hydra.launcher.use_busy_gpus=true takes them all)")

    def _start(
        self, jobs: list[PlannedJob], gpus: tuple[int, ...], slot: int | None, executor: submitit.LocalExecutor
    ) -> None:
        names = ",".join(self.machine.gpus[i] for i in gpus)
        if gpus:
            cores = share_of_cores(self.machine.cores, gpus, len(self.machine.gpus))
        else:
            cores = share_of_cores(self.machine.cores, {slot or 0}, self.slots)
        shares = self._may_share(jobs)
        payload = self.hydra.submission(
            jobs,
            # NVML and CUDA number GPUs alike only in the order of their PCI buses
            environment={"CUDA_VISIBLE_DEVICES": names, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            cores=cores,
            launcher=os.getpid(),
            reuse_ranks=self.options.reuse_ranks,
            over_limit=_over_limit(jobs),
            shares=(self._turns_on(gpus[0]), self.options.jobs_per_gpu) if shares else None,
        )
        for job in jobs:
            self.sweep.submitted(job)
        executor.update_parameters(timeout_min=(_limit_s(jobs) + SIGNAL_S) / 60, signal_delay_s=SIGNAL_S)
        # A Ctrl-C reaches all processes of a terminal: the jobs leave it to us, who tell them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = executor.submit(job_process.run, *payload)
            one = LocalProcess(jobs, process, gpus, slot, shares)
            self.running.append(one)
            self.machine.hold(gpus, shares)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self.sweep.started(jobs[0], f"GPU {names}" if gpus else "CPU")

    def _turns_on(self, gpu: int) -> str:
        """The folder where jobs that share a GPU find each other."""
        self._turns = self._turns or TemporaryDirectory(prefix="block-shock-turns-", ignore_cleanup_errors=True)
        folder = Path(self._turns.name) / str(gpu)
        folder.mkdir(exist_ok=True)
        return str(folder)

    def _look_after(self, one: LocalProcess) -> list[list[PlannedJob]]:
        """Note what has ended in a process; what is to run again."""
        gone = one.process.done()  # asked first: what it wrote before is there to read now
        again: list[list[PlannedJob]] = []
        if not gone and one.position == len(one.jobs) - 1:
            return again  # nothing follows in this process: its end is soon enough, and this is asked often
        while one.position < len(one.jobs) and self.sweep.final(one.jobs[one.position]):
            again += self._next(one, "")
        if not gone:
            return again
        if one.position < len(one.jobs):
            again += self._next(one, f"its process ended without a report: {one.last_words()}")
            left = one.jobs[one.position :]
            again += [left] if left else []
        self.running.remove(one)
        self.machine.leave(one.gpus)
        self._tidy(one)
        return again

    def _next(self, one: LocalProcess, reason: str) -> list[list[PlannedJob]]:
        job = one.jobs[one.position]
        again = self.sweep.ended(job, "failed", reason, crowded=one.shares)
        if again and one.shares:
            self._alone.add(job.name)
        one.position += 1
        if one.position < len(one.jobs):
            self.sweep.started(one.jobs[one.position], f"GPU {','.join(map(str, one.gpus))}" if one.gpus else "CPU")
        return [[job]] if again else []

    def _end_all(self) -> None:
        """End every process; a job that has not said so itself is recorded as interrupted."""
        running = self.running
        end_families(one.pid for one in running)
        for one in running:
            while not one.process.done():  # reaps it
                time.sleep(POLL_S)
            for job in one.jobs[one.position : one.position + 1]:
                self.sweep.ended(job, "failed", "interrupted")
            self.machine.leave(one.gpus)
            self._tidy(one)
        running.clear()

    def _tidy(self, one: LocalProcess) -> None:
        """Submitit's files go; what processes of failed jobs printed stays."""
        failed = any(not job.is_done() for job in one.jobs)
        for path in one.process.paths.folder.glob(f"{one.pid}_*"):
            if not (failed and path.suffix in (".out", ".err") and path.stat().st_size):
                path.unlink(missing_ok=True)


def _shape(job: PlannedJob) -> tuple[Any, ...]:
    return job.needs.gpus, job.needs.ranks, job.needs.cpus_per_rank or 0, sorted(job.environment.items())


def _gpus() -> list[str]:
    """This machine's, or those of them that CUDA_VISIBLE_DEVICES names, as it names them."""
    import torch  # seconds, which a sweep on a CPU does not pay

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]


def _over_limit(jobs: Sequence[PlannedJob]) -> str:
    """Why a process of `jobs` is ended at the limit: an application that has time to start watches its own limit."""
    if any(job.application.startup_s for job in jobs):
        return "its process hung"
    return f"ran longer than {_limit_s(jobs):g} s (hydra.launcher.timeout_s)"


def _cores(needs: Needs) -> int:
    """Of all ranks; 0 where a job does not say."""
    return (needs.cpus_per_rank or 0) * needs.ranks


def _limit_s(jobs: Sequence[PlannedJob]) -> float:
    """What a process that runs `jobs` one after another may take."""
    limits = [job.needs.timeout_s for job in jobs]
    limited = [limit + job.application.startup_s for limit, job in zip(limits, jobs, strict=True) if limit is not None]
    return min(sum(limited), FOREVER_S) if len(limited) == len(jobs) else FOREVER_S
