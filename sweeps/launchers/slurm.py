"""Jobs on a SLURM cluster through submitit: one array for all jobs that ask for the same, one task a rank.

The submission is recorded in sweep.json at once, so a launcher that was killed, or one that did not wait, finds its
jobs again: the same command attaches to what is in the queue and submits only what is neither there nor `ok`.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import OmegaConf

from blockshock.errors import ConfigError, at_least
from sweeps.launchers import job_process, slurm_queue
from sweeps.launchers.options import LauncherConf
from sweeps.text import counted, shown

if TYPE_CHECKING:
    from sweeps.launchers.runner import Hydra, Sweep
    from sweeps.launchers.sbatch import ArrayExecutor
    from sweeps.launchers.sweep.compose import Needs, PlannedJob

LOOKS = 2  # how often in a row a job must be missing from the queue: shared file systems show its status late


@dataclass
class SlurmLauncherConf(LauncherConf):
    kind: str = "slurm"
    wait: bool = True  # show progress until all jobs end; false: return once they are in the queue
    partition: str | None = None  # as sbatch's
    account: str | None = None  # as sbatch's
    qos: str | None = None  # as sbatch's
    constraint: str | None = None  # as sbatch's
    ranks_per_node: int = 8  # most ranks on a node; on GPU nodes, its number of GPUs
    timeout_min: int | None = None  # SLURM's time limit of a job; default: timeout_s and 5 minutes
    array_parallelism: int = 256  # jobs of one array that run at once
    max_requeues: int = 3  # how often a job that was preempted or ran out of time starts over
    signal_delay_s: int = 90  # seconds before the time limit at which a job is signalled; less than the limit
    setup: list[str] = field(default_factory=list)  # shell lines before the job: '[module load cuda,...]'
    sbatch: Any = None  # further sbatch parameters: '{mail-type: END, exclude: n7}'
    poll_s: float = 5.0  # seconds between two looks at the queue


@dataclass(frozen=True)
class Shape:
    """What jobs of one array ask for, in submitit's words."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    timeout_min: int | None  # None: the partition's own limit
    cpus_per_task: int | None = None
    memory_gb: float | None = None


def shape(needs: Needs, options: SlurmLauncherConf, startup_s: float = 0.0) -> Shape:
    """As few nodes as hold the ranks, with equally many on each."""
    ranks = needs.ranks
    nodes = next(n for n in range(math.ceil(ranks / options.ranks_per_node), ranks + 1) if ranks % n == 0)
    if needs.gpus % nodes:
        problem = f"can't be shared out equally over the {nodes} nodes of {ranks} ranks"
        raise ConfigError("hydra.launcher.gpus", needs.gpus, problem)
    minutes = options.timeout_min
    if minutes is None and needs.timeout_s is not None and math.isfinite(needs.timeout_s):
        minutes = math.ceil((needs.timeout_s + startup_s) / 60)
    return Shape(nodes, ranks // nodes, needs.gpus // nodes, minutes, needs.cpus_per_rank, needs.memory_gb)


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
        at_least("hydra.launcher.signal_delay_s", options.signal_delay_s, 0)
        for wanted in {self._shape(job) for job in jobs}:
            if wanted.timeout_min is not None and options.signal_delay_s >= 60 * wanted.timeout_min:
                problem = f"must be shorter than the time limit of a job, here {60 * wanted.timeout_min} s"
                raise ConfigError("hydra.launcher.signal_delay_s", options.signal_delay_s, problem)
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
                self.sweep.attached(job)
                self.jobs[id_] = job
            else:
                rest.append(job)
        if self.jobs:
            print(f"{len(self.jobs)} jobs are in SLURM's queue already", file=sys.stderr)
        return rest

    def _submit(self, jobs: Sequence[PlannedJob]) -> None:
        for sweep, wanted, alike in self._arrays(jobs):
            self._submit_calls(sweep, wanted, alike)

    def _arrays(self, jobs: Sequence[PlannedJob]) -> Iterator[tuple[Path, Shape, list[PlannedJob]]]:
        """Jobs of one sweep that ask for the same, the widest first, in arrays that the cluster takes."""
        from sweeps.launchers.sbatch import array_limit

        limit = array_limit() if len(jobs) > 1 else 1
        alike: dict[tuple[Path, Shape], list[PlannedJob]] = {}
        for job in sorted(jobs, key=lambda job: (-job.needs.ranks, job.number)):
            alike.setdefault((job.sweep, self._shape(job)), []).append(job)
        for (sweep, wanted), group in alike.items():
            for start in range(0, len(group), limit):
                yield sweep, wanted, group[start : start + limit]

    def _shape(self, job: PlannedJob) -> Shape:
        return shape(job.needs, self.options, job.application.startup_s)

    def plan(self, jobs: Sequence[PlannedJob]) -> str:
        """The batch scripts: one for each array."""
        parts = []
        for sweep, wanted, alike in self._arrays(jobs):
            text = self._executor(sweep, wanted).script(len(alike))
            parts.append(f"sbatch script of {counted(len(alike), 'job')}, {alike[0].name} first:\n{text}")
        return "\n".join(parts)

    def _submit_calls(self, sweep: Path, wanted: Shape, jobs: list[PlannedJob]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self._executor(sweep, wanted)
        for job in jobs:
            self.sweep.submitted(job)
        try:
            given = [self.hydra.submission([job], max_requeues=self.options.max_requeues) for job in jobs]
            ids = executor.submit_calls(job_process.run, given)
        except (FailedJobError, FailedSubmissionError) as error:  # submitit has printed what sbatch said
            problem = "sbatch refused the jobs for the reason above; hydra.launcher.* and .sbatch are what it was given"
            raise ConfigError("hydra/launcher", "slurm", problem) from error
        manifest = self.sweep.manifests[sweep]
        for job, id_ in zip(jobs, ids, strict=True):
            manifest.slurm[job.name] = id_
            self.jobs[id_] = job
        manifest.write(sweep)

    def _executor(self, sweep: Path, wanted: Shape) -> ArrayExecutor:
        from sweeps.launchers.sbatch import PARTITION_LIMIT, ArrayExecutor

        options = self.options
        folder = (sweep / ".submitit").absolute()
        executor = ArrayExecutor(folder, python=job_process.interpreter())
        say_why = shlex.join([*job_process.command(), str(folder)])
        teardown = f"code=$?; [ $code = 0 ] || {say_why} $code; exit $code"
        named = {
            "partition": options.partition,
            "account": options.account,
            "qos": options.qos,
            "constraint": options.constraint,
            "cpus_per_task": wanted.cpus_per_task,
            "mem": None if wanted.memory_gb is None else f"{round(wanted.memory_gb * 1024)}M",
            "gpus_per_node": wanted.gpus_per_node or None,
        }
        executor._internal_update_parameters(  # SLURM's own names; update_parameters knows only submitit's few
            **{name: value for name, value in named.items() if value is not None},
            job_name=f"{self.hydra.config.hydra.job.name}-{sweep.name}",
            nodes=wanted.nodes,
            ntasks_per_node=wanted.tasks_per_node,
            time=wanted.timeout_min or PARTITION_LIMIT,
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
                if job.is_done():  # submitit's files go; what processes of failed jobs printed stays
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
    if options is None or isinstance(options, dict):
        return options or {}
    container = OmegaConf.to_container(options, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
