"""The command line: `blockshock`, a Hydra application over conf/. See `blockshock --help`."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from blockshock import config, ranks
from blockshock.cli import resolvers
from blockshock.cli.hydra_errors import UserErrors, explain, is_users
from blockshock.cli.pipes import closed_pipe_ends_quietly, leave_closed_pipe
from blockshock.cli.startup import check_packages, end_at_once, hide_working_directory_from_children, versions
from blockshock.cli.sweep_keys import left_to_jobs
from blockshock.config import CONF
from blockshock.errors import REFUSED, ConfigError, JobFailed, writable
from blockshock.run_folder import contents
from blockshock.run_folder.files import printable
from blockshock.run_folder.folder import RunFolder
from blockshock.run_folder.naming import config_hash


def main() -> None:
    """Run Hydra; turn what a user got wrong into one line and exit status 2 (HYDRA_FULL_ERROR=1 shows the trace)."""
    global _show_trace, _typed
    if "--version" in sys.argv[1:]:
        print(versions())
        sys.exit(0)
    check_packages("blockshock")
    end_at_once()
    hide_working_directory_from_children()
    resolvers.register()
    _show_trace = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and we explain
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        resolvers.use_run_id(resolvers.new_run_id())
        if ranks.launched():
            resolvers.use_run_id(ranks.share_run_id(resolvers.run_id()))  # before Hydra names a folder with it
        _typed = sys.argv[1:]
        sys.argv[1:] = left_to_jobs(_typed)
        with closed_pipe_ends_quietly():
            _app()
    except JobFailed as error:
        sys.exit(f"blockshock: {printable(str(error))}")  # exit status 1
    except KeyboardInterrupt:
        sys.exit("blockshock: interrupted; what had finished is kept")
    except UserErrors as error:
        refuse(error)
    except ValueError as error:
        if not is_users(error):
            raise
        refuse(error)


_show_trace = False
_typed: list[str] = []  # the command line's arguments as its user gave them


def refuse(error: Exception) -> None:
    """One line on stderr, exit status 2."""
    if _show_trace:
        traceback.print_exception(error)
    overrides = [argument for argument in _typed or sys.argv[1:] if "=" in argument]
    print(f"blockshock: {printable(explain(error, overrides))}", file=sys.stderr)
    sys.exit(REFUSED)


_interrupted = False


def _interrupt(*_: object) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def _heed_interrupt() -> None:
    """Raise one that an import, or a callback of the garbage collector's, has swallowed."""
    if _interrupted:
        raise KeyboardInterrupt


class RefuseEarly(Callback):
    """Checks a single run's configuration before Hydra makes its folder. Sweeps: the launcher checks every job."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not ranks.launched() and not config.hydra.job.env_set:  # the ranks have to see what is set there
            ranks.start_forking_server()  # it imports torch while this process does, to check the configuration
        try:
            preset = config.hydra.runtime.choices.get("sweep")
            if preset is not None:
                raise ConfigError("+sweep", preset, f"a sweep needs -m: blockshock -m +sweep={preset} ...")
            job = check(config)
            writable("hydra.run.dir", config.hydra.run.dir)
            _check_run_folder(config.hydra.run.dir, job)
        except UserErrors as error:
            refuse(error)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sys.argv[1:] = _typed or sys.argv[1:]  # Hydra has read them
        try:
            _heed_interrupt()
            if ranks.launched():
                problem = "a sweep starts its own ranks: run it without torchrun or srun"
                raise ConfigError("hydra.mode", "MULTIRUN", problem)
            resumed = config.hydra.launcher.get("resume")
            if resumed is not None and not Path(resumed).is_dir():
                raise ConfigError("hydra.launcher.resume", resumed, "no such folder; give that of an earlier sweep")
            writable("hydra.sweep.dir", config.hydra.sweep.dir)
            given = OmegaConf.to_container(config.hydra.sweep, resolve=False)  # a job fills in what it interpolates
            assert isinstance(given, dict)
            subdir = given["subdir"]
            if not str(subdir or "").strip("./"):
                problem = "names no folder of a job's own; leave it out, or use ${hydra.job.num}"
                raise ConfigError("hydra.sweep.subdir", subdir, problem)
            obstacle = contents.obstacle_to_sweep(Path(config.hydra.sweep.dir))
            if obstacle:
                raise ConfigError("hydra.sweep.dir", config.hydra.sweep.dir, obstacle)
        except UserErrors as error:
            refuse(error)


def _check_run_folder(path: str, job: config.Job) -> None:
    """ConfigError, on every rank, where the folder holds something else than this configuration's run."""

    def problem() -> str:
        folder = RunFolder(path)
        if folder.is_claimed():
            return "another run is writing there; choose another folder"
        return contents.obstacle(folder.path, config_hash(job.config), untouched=True) or ""

    found = ranks.from_first_launched("folder", problem)  # the others would see what rank 0 has begun to write
    if found:
        raise ConfigError("hydra.run.dir", path, found)


def check(cfg: DictConfig, elsewhere: bool = False) -> config.Job:
    """The typed job of a composed configuration with its `hydra` node, or ConfigError. `elsewhere`: see load_job."""
    for key in cfg:
        if key not in (*config.Config.__dataclass_fields__, "hydra"):
            raise ConfigError(str(key), cfg[key], "unknown key (all keys: blockshock --cfg job)")
    for group, choice in cfg.hydra.runtime.choices.items():
        if group in config.GROUPS and cfg[group].get("name") not in (None, choice):
            problem = f"a name is no choice: select the {group} with {group}={cfg[group].name}"
            raise ConfigError(f"{group}.name", cfg[group].name, problem)
    job = config.load_job(cfg, elsewhere)
    writable("experiment.output_dir", job.experiment.output_dir)
    return job


_settled: ContextVar[dict[str, Any] | None] = ContextVar("_settled", default=None)


@contextmanager
def settled(config: dict[str, Any]) -> Iterator[None]:
    """Meanwhile, `run` is called for the job of this configuration, which `check` has found to be right elsewhere.

    To check it once more `run` would have to import torch, which is the ranks' to do: they check it where they run.
    """
    token = _settled.set(config)
    try:
        yield
    finally:
        _settled.reset(token)


def run(cfg: DictConfig) -> float | None:
    """One job, inside Hydra. Returns what a sweeper optimises; JobFailed when it did not end well."""
    from blockshock.jobs.job import execute

    node = HydraConfig.get()
    sweep = node.mode == RunMode.MULTIRUN
    say = (lambda text: None) if sweep else _print
    joined = ranks.launched()
    first = joined is None or joined.rank == 0
    folder = RunFolder(node.runtime.output_dir)
    # A sweep's job has been claimed by its launcher's process.
    with folder.claim(wait_s=0.0) if first and not sweep else nullcontext(True) as ours:
        if not ours:
            raise ConfigError("hydra.run.dir", folder.path, "another run is writing there; choose another folder")
        known = _settled.get() if joined is None else None  # a launched rank imports torch in any case
        checked = known or config.load_job(cfg).config
        _heed_interrupt()
        outcome = execute(checked, node.runtime.output_dir, resolvers.run_id(), say)
    if outcome.status == "ok" or (sweep and outcome.status == "oom"):
        if first and outcome.status == "ok" and not folder.has_records():
            raise JobFailed(f"failed: its folder was deleted while it ran ({folder.path})")
        if not sweep and first:
            from blockshock.cli.summary import print_summary

            print_summary(node.runtime.output_dir)
        return outcome.value
    raise JobFailed(f"{outcome.status}: {outcome.reason} ({node.runtime.output_dir})")


def _print(text: str) -> None:
    try:
        print(printable(text), flush=True)  # as it happens, also into a pipe; a failing rank of torchrun's won't flush
    except BrokenPipeError:  # `blockshock ... | head -1`: the job goes on without a reader
        leave_closed_pipe()


_app = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run)
