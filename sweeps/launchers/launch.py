"""What both launchers share: compose, check, keep what is done, run the rest, say how it went, write the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from omegaconf import DictConfig, OmegaConf

from blockshock import SCHEMA
from blockshock.errors import ConfigError, JobFailed, at_least, one_of
from blockshock.locks import locked
from blockshock.run_folder.files import Unreadable
from blockshock.run_folder.folder import RunFolder
from sweeps.launchers import slurm_queue
from sweeps.launchers.options import LauncherConf
from sweeps.launchers.runner import Hydra, Runner, Sweep
from sweeps.launchers.sweep.compose import PlannedJob, compose, refuse_impossible
from sweeps.launchers.sweep.dry_run import dry_run
from sweeps.launchers.sweep.manifest import Manifest, check_path
from sweeps.text import clock, shown


def launch(
    runner_class: type[Runner],
    options: LauncherConf,
    hydra: Hydra,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    shares_equal_jobs: bool = True,
) -> Sequence[JobReturn]:
    """Run one job for each list of overrides. Refuses them all if one can't run and none may be skipped.

    A sweep's folder is made only once nothing stands against the sweep.
    """
    setup_globals()
    configure_log(hydra.config.hydra.hydra_logging, hydra.config.hydra.verbose)
    one_of("hydra.launcher.failure_policy", options.failure_policy, ("keep_going", "fail_fast"))
    at_least("hydra.launcher.retries", options.retries, 0)
    if options.resume is not None and not any(job_overrides):
        job_overrides = _of_earlier(options, hydra.config)
    application = hydra.application
    jobs = compose(hydra.context, hydra.config, job_overrides, first, application, runner_class.elsewhere)
    if not options.skip_unsupported:
        refuse_impossible(jobs)
    asked, jobs = jobs, _distinct(jobs, shares_equal_jobs)
    _refuse_occupied(jobs)
    sweeps = sorted({job.sweep for job in jobs})
    for path in sweeps:
        check_path(path)
    sweep = Sweep(options, hydra.run_id, jobs)
    runner = runner_class(options, hydra, sweep)
    runner.check([job for job in jobs if not job.refusal])
    if options.dry_run:
        print(dry_run(runner, jobs))
        return [_left(job) for job in asked]
    with ExitStack() as stack:
        for path in sweeps:
            stack.enter_context(_locked(path))
        for path in sweeps:
            own = {job.name: job.overrides for job in jobs if job.sweep == path}
            earlier = _earlier(path, options)
            sweep.outdated += _outdated(path, earlier, own)
            sweep.manifests[path] = _manifest(earlier, options, hydra, own)
        if not runner_class.elsewhere:
            _refuse_while_in_slurm(sweep.manifests)
        all_ended = _run(runner, hydra.config, sweep, jobs)
    if not all_ended:
        return [_left(job) for job in asked]
    if options.report and sweep.board.count["ok"]:
        application.report(sweeps)
    return [job.returned() for job in asked]


def _run(runner: Runner, config: DictConfig, sweep: Sweep, jobs: Sequence[PlannedJob]) -> bool:
    resume = " and ".join(m.resume_command(path) for path, m in sweep.manifests.items())
    started = time.monotonic()
    try:
        for path, manifest in sweep.manifests.items():
            manifest.write(path)
            OmegaConf.save(config, path / "multirun.yaml")  # as Hydra's sweeper does
        waiting = []
        for job in jobs:
            if job.is_kept():
                sweep.board.kept += 1
                sweep.board.ended(job.name, "ok", "")
            elif job.refusal:
                job.folder.close(job.settled, "unsupported", job.refusal, sweep.run_id)
                sweep.board.ended(job.name, "unsupported", job.refusal)
            else:
                waiting.append(job)
        with sweep.board:
            all_ended = runner.run(waiting)
    except KeyboardInterrupt:
        print(f"resume with: {resume}", file=sys.stderr)
        raise
    except OSError as error:  # a full disk, a vanished folder: every further job would meet it too
        what = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
        raise JobFailed(f"{what}; the sweep stops, what had finished is kept; resume with: {resume}") from error
    _summary(sweep, time.monotonic() - started, resume if sweep.board.failed or sweep.stopped else "")
    return all_ended


def _summary(sweep: Sweep, seconds: float, resume: str) -> None:
    board = sweep.board
    parts = [f"{count} {status}" for status, count in board.count.items() if count]
    print(f"{', '.join(parts) or 'nothing ended'} in {clock(seconds)}", file=sys.stderr)
    if board.kept:
        print(f"{board.kept} were measured before and kept; another experiment.name measures anew", file=sys.stderr)
    if sweep.outdated:
        hint = "their old folders stay; delete those to keep them out of the report"
        print(
            f"{sweep.outdated} were recorded before the configuration's hash changed, and anew now; {hint}",
            file=sys.stderr,
        )
    if board.retried:
        print(f"{board.retried} tries failed and were repeated", file=sys.stderr)
    if sweep.stopped:
        print(f"stopped at the first failure (fail_fast), {board.left} jobs were not finished", file=sys.stderr)
    if resume:
        print(f"run what is not ok again with: {resume}", file=sys.stderr)


def _left(job: PlannedJob) -> JobReturn:
    """Of a job that goes on without us: nothing to say yet."""
    if job.is_done():
        return job.returned()
    done = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    done.return_value = None
    return done


def _of_earlier(options: LauncherConf, config: DictConfig) -> list[list[str]]:
    """The jobs of the sweep in `resume`, for a command that names nothing else."""
    assert options.resume is not None
    found = _earlier(Path(options.resume), options)
    if found is None:
        problem = "holds no sweep.json to take the jobs from; repeat the sweep's own overrides too"
        raise ConfigError("hydra.launcher.resume", options.resume, problem)
    if sorted(_hydra_overrides(config)) != sorted(found.hydra_overrides):
        problem = f"that sweep had options of its own: {found.resume_command(Path(options.resume))}"
        raise ConfigError("hydra.launcher.resume", options.resume, problem)
    options.skip_unsupported = options.skip_unsupported or found.skip_unsupported
    return list(found.jobs.values())


def _earlier(sweep: Path, options: LauncherConf) -> Manifest | None:
    """The manifest of the sweep that has been in this folder."""
    try:
        return Manifest.read(sweep)
    except Unreadable as error:
        problem = f"{error}; restore the file, or delete it and repeat the sweep's own overrides: what is ok stays"
        key = "hydra.sweep.dir" if options.resume is None else "hydra.launcher.resume"
        raise ConfigError(key, sweep, problem) from error


def _hydra_overrides(config: DictConfig) -> list[str]:
    """Those that change what jobs are or how they run; the launcher's own options may differ from time to time."""
    own = ("hydra.launcher.", "hydra.mode=")
    given = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)  # a value may hold ${...}
    assert isinstance(given, list)
    return [str(override) for override in given if not str(override).startswith(own)]


def _outdated(path: Path, earlier: Manifest | None, jobs: dict[str, list[str]]) -> int:
    """How many of `jobs` are `ok` in this folder under another hash, of the time before the hash changed."""
    names = earlier.superseded_by(jobs) if earlier else []
    found = [RunFolder(path / name).status() for name in names if (path / name / "status.json").exists()]
    return sum(status["status"] == "ok" and status.get("schema", SCHEMA) < SCHEMA for status in found)


def _manifest(earlier: Manifest | None, options: LauncherConf, hydra: Hydra, jobs: dict[str, list[str]]) -> Manifest:
    """The folder's manifest with these jobs added: a sweeper may launch batch after batch into one folder."""
    arguments = sys.argv[1:]
    bare = options.resume is not None and not hydra.config.hydra.overrides.task
    if bare and earlier:
        arguments = earlier.arguments
    found = Manifest(
        arguments,
        _hydra_overrides(hydra.config),
        options.skip_unsupported,
        command=hydra.application.command(),
        application=hydra.config.hydra.launcher.application,
    )
    if earlier:
        gone = earlier.superseded_by(jobs)
        found.jobs = {name: overrides for name, overrides in earlier.jobs.items() if name not in gone}
        found.slurm = earlier.slurm
    found.jobs |= jobs
    return found


def _distinct(jobs: Sequence[PlannedJob], share: bool) -> list[PlannedJob]:
    """`jobs`, each of them once. Refuses two that would share a folder, unless they are the same and may `share`."""
    found: dict[Path, PlannedJob] = {}
    for job in jobs:
        path = job.folder.path
        other = found.setdefault(path, job)
        if other is not job and not (share and other.settled == job.settled):
            problem = f"jobs {other.number} and {job.number} of the sweep would share the folder {path.name}"
            if other.settled == job.settled:
                problem = f"{problem}: they are the same"
            raise ConfigError("hydra.sweep.subdir", job.config.hydra.sweep.subdir, problem)
    return list(found.values())


def _refuse_occupied(jobs: Sequence[PlannedJob]) -> None:
    """A job's folder may hold another configuration's result (a subdir that is the job's number)."""
    for job in jobs:
        problem = job.application.obstacle(job.folder, job.settled)
        if problem:
            raise ConfigError("hydra.sweep.subdir", job.name, f"{shown(job.folder.path)} {problem}")


def _refuse_while_in_slurm(manifests: dict[Path, Manifest]) -> None:
    for path, manifest in manifests.items():
        if manifest.slurm and slurm_queue.available():
            known = slurm_queue.states(dict.fromkeys(manifest.slurm.values(), path))
            left = [s for s in (known or {}).values() if s.goes_on]
            if left:
                problem = f"{len(left)} jobs of {shown(path)} are in SLURM's queue; wait for them or scancel them"
                raise ConfigError("hydra/launcher", "local", problem)


@contextmanager
def _locked(sweep: Path) -> Iterator[None]:
    """The sweep's folder to ourselves, until the end of this process, however it ends."""
    sweep.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(sweep / ".lock", wait_s=0))
        except Timeout:
            problem = "another sweep is writing here; wait for it, or choose another folder"
            raise ConfigError("hydra.sweep.dir", sweep, problem) from None
        yield
