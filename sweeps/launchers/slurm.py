"""Jobs on a SLURM cluster through submitit: one array for all jobs that ask for the same, one task a rank.

The submission is recorded in sweep.json at once, so a launcher that was killed, or one that did not wait, finds its
jobs again: the same command attaches to what is in the queue and submits only what is neither there nor `ok`.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import OmegaConf

from blockshock.errors import ConfigError, at_least
from sweeps.launchers import job_process, slurm_queue
from sweeps.launchers.options import LauncherConf
from sweeps.text import shown

if TYPE_CHECKING:
    import submitit

    from sweeps.launchers.compose import PlannedJob
    from sweeps.launchers.runner import Hydra, Sweep

ARRAY = 1000  # jobs in one array at most: SLURM's own default limit (MaxArraySize) is 1001
STARTUP_MIN = 5  # what a job gets beside its hardware.timeout_s
LOOKS = 2  # how often in a row a job must be missing from the queue: shared file systems show its status late


@dataclass
class SlurmLauncherConf(LauncherConf):
    kind: str = "slurm"
    wait: bool = True  # show progress until all have ended; false: return once the jobs are in the queue
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    ranks_per_node: int = 8  # at most; on GPU nodes the GPUs of one
    cpus_per_rank: int | None = None
    memory_gb: float | None = None  # of a node
    timeout_min: int | None = None  # of a job; default: hardware.timeout_s and five minutes to start
    array_parallelism: int = 256  # jobs of one array that run at once
    max_requeues: int = 3  # of a job that was preempted or ran out of time; it then starts over
    signal_delay_s: int = 90  # how long before the time limit a job is told
    setup: list[str] = field(default_factory=list)  # shell lines before the job: module load, source activate
    sbatch: dict[str, Any] = field(default_factory=dict)  # further parameters: {mail-type: END, exclude: n7}
    poll_s: float = 5.0  # how often the queue is asked


@dataclass(frozen=True)
class Shape:
    """What jobs of one array ask for, in submitit's words."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    timeout_min: int


def shape(ranks: int, gpus: int, timeout_s: float, options: SlurmLauncherConf) -> Shape:
    """As few nodes as hold the ranks, with equally many on each."""
    nodes = next(n for n in range(math.ceil(ranks / options.ranks_per_node), ranks + 1) if ranks % n == 0)
    minutes = options.timeout_min or math.ceil(timeout_s / 60) + STARTUP_MIN
    return Shape(nodes, ranks // nodes, ranks // nodes if gpus else 0, minutes)


class SlurmRunner:
    elsewhere: ClassVar[bool] = True

    def __init__(self, options: SlurmLauncherConf, hydra: Hydra, sweep: Sweep) -> None:
        self.options, self.hydra, self.sweep = options, hydra, sweep
        self.jobs: dict[str, PlannedJob] = {}  # in the queue, by SLURM's id
        self._missing: dict[str, int] = {}

    def check(self, jobs: Sequence[PlannedJob]) -> None:
        if not slurm_queue.available():
            raise ConfigError("hydra/launcher", "slurm", "no sbatch and squeue here; log in to a cluster, or use local")
        options = self.options
        for name in ("ranks_per_node", "array_parallelism"):
            at_least(f"hydra.launcher.{name}", getattr(options, name), 1)
        at_least("hydra.launcher.max_requeues", options.max_requeues, 0)
        at_least("hydra.launcher.poll_s", options.poll_s, 0.1)
        if options.timeout_min is not None:
            at_least("hydra.launcher.timeout_min", options.timeout_min, 1)
        if options.reuse_ranks:
            print("hydra.launcher.reuse_ranks: SLURM starts every job's ranks itself, none are reused", file=sys.stderr)

    def run(self, jobs: Sequence[PlannedJob]) -> bool:
        """Attach to what is in the queue, submit the rest; then wait, or return False with jobs on their way."""
        self._submit(self._attach(jobs))
        if not self.options.wait:
            return self._leave()
        try:
            while self.jobs:
                time.sleep(self.options.poll_s)
                self._look()
        except KeyboardInterrupt:
            print(f"{len(self.jobs)} jobs go on in SLURM; end them with: {self._scancel()}", file=sys.stderr)
            raise
        return True

    def _attach(self, jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
        """Take up those of `jobs` that an earlier launcher submitted; the others."""
        known = {job.name: self.sweep.manifests[job.sweep].slurm.get(job.name) for job in jobs}
        queue = slurm_queue.states({id_: job.sweep for job in jobs if (id_ := known[job.name])})
        if queue is None:
            raise ConfigError("hydra/launcher", "slurm", "its controller does not answer (squeue); try again later")
        rest = []
        for job in jobs:
            id_ = known[job.name]
            if id_ in queue and queue[id_].goes_on:
                self.sweep.submitted(job)
                self.jobs[id_] = job
            else:
                rest.append(job)
        if self.jobs:
            print(f"{len(self.jobs)} jobs are in SLURM's queue already", file=sys.stderr)
        return rest

    def _submit(self, jobs: Sequence[PlannedJob]) -> None:
        def asks(job: PlannedJob) -> tuple[str, Shape]:
            return str(job.sweep), shape(job.ranks, job.gpus, job.timeout_s, self.options)

        ordered = sorted(jobs, key=lambda job: (str(job.sweep), -job.ranks, asks(job)[1].timeout_min, job.number))
        for (sweep, wanted), group in groupby(ordered, key=asks):
            alike = list(group)
            for start in range(0, len(alike), ARRAY):
                self._submit_array(Path(sweep), wanted, alike[start : start + ARRAY])

    def _submit_array(self, sweep: Path, wanted: Shape, jobs: list[PlannedJob]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self._executor(sweep, wanted)
        for job in jobs:
            self.sweep.submitted(job)
        try:
            with executor.batch():
                started = [
                    executor.submit(
                        job_process.run, *self.hydra.submission([job], max_requeues=self.options.max_requeues)
                    )
                    for job in jobs
                ]
        except (FailedJobError, FailedSubmissionError) as error:  # submitit has printed what sbatch said
            problem = "sbatch refused the jobs for the reason above; hydra.launcher.* and .sbatch are what it was given"
            raise ConfigError("hydra/launcher", "slurm", problem) from error
        manifest = self.sweep.manifests[sweep]
        for job, handle in zip(jobs, started, strict=True):
            manifest.slurm[job.name] = handle.job_id
            self.jobs[handle.job_id] = job
        manifest.write(sweep)

    def _executor(self, sweep: Path, wanted: Shape) -> submitit.SlurmExecutor:
        import submitit

        options = self.options
        folder = (sweep / ".submitit").absolute()
        executor = submitit.SlurmExecutor(folder, python=job_process.interpreter())
        say_why = shlex.join([sys.executable, "-m", "sweeps.launchers.job_process", str(folder)])
        teardown = f"code=$?; [ $code = 0 ] || {say_why} $code; exit $code"
        named = {
            "partition": options.partition,
            "account": options.account,
            "qos": options.qos,
            "constraint": options.constraint,
            "cpus_per_task": options.cpus_per_rank,
            "mem": None if options.memory_gb is None else f"{round(options.memory_gb * 1024)}M",
            "gpus_per_node": wanted.gpus_per_node or None,
        }
        executor._internal_update_parameters(  # SLURM's own names; update_parameters knows only submitit's few
            **{name: value for name, value in named.items() if value is not None},
            job_name=f"blockshock-{sweep.name}",
            nodes=wanted.nodes,
            ntasks_per_node=wanted.tasks_per_node,
            time=wanted.timeout_min,
            array_parallelism=options.array_parallelism,
            signal_delay_s=options.signal_delay_s,
            srun_args=["--kill-on-bad-exit=1"],  # a rank that is gone takes its peers with it
            stderr_to_stdout=True,
            setup=list(options.setup),
            teardown=[teardown],
            additional_parameters={"requeue": True, **_plain(options.sbatch)},
        )
        return executor

    def _look(self) -> None:
        """One look at the queue: what has started, what has ended."""
        queue = slurm_queue.states({id_: job.sweep for id_, job in self.jobs.items()})
        board = self.sweep.board
        if queue is None:
            board.note = "SLURM's controller does not answer"
            return
        waits = sorted({state.detail for state in queue.values() if state.name == "PENDING"} - {"None", ""})
        pending = sum(state.name == "PENDING" for state in queue.values())
        board.note = f"{pending} wait in the queue ({', '.join(waits)})" if pending else ""
        again = []
        for id_, job in list(self.jobs.items()):
            state = queue.get(id_)
            if state and state.goes_on:
                self._missing.pop(id_, None)
                if state.name == "RUNNING":
                    self.sweep.started(job, f"SLURM {id_}")
                continue
            self._missing[id_] = self._missing.get(id_, 0) + 1
            if self.sweep.final(job) or self._missing[id_] >= LOOKS:
                del self.jobs[id_]
                why = (
                    ("", "")
                    if self.sweep.final(job)
                    else slurm_queue.how_it_ended(id_, slurm_queue.read_log(job.sweep / ".submitit", id_))
                )
                if self.sweep.ended(job, *why):
                    again.append(job)
                if job.folder.is_done():  # submitit's files go; what processes of failed jobs printed stays
                    for path in (job.sweep / ".submitit").glob(f"{id_}_*"):
                        path.unlink(missing_ok=True)
        self._submit(again)
        if self.sweep.stopped and self.jobs:
            slurm_queue.cancel(list(self.jobs))

    def _leave(self) -> bool:
        sweeps = sorted({job.sweep for job in self.jobs.values()})
        if self.jobs:
            print(f"{len(self.jobs)} jobs are in SLURM's queue; end them with: {self._scancel()}", file=sys.stderr)
        for path in sweeps:
            print(f"how they fare: blockshock-status {shown(path)}", file=sys.stderr)
            print(f"the report, at any time: blockshock-report {shown(path)}", file=sys.stderr)
        return not self.jobs

    def _scancel(self) -> str:
        return shlex.join(["scancel", *sorted({id_.split("_")[0] for id_ in self.jobs})])


def _plain(options: Any) -> dict[str, Any]:
    if not OmegaConf.is_config(options):
        return dict(options)
    container = OmegaConf.to_container(options, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
