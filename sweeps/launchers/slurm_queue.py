"""What SLURM says of a job: its place in the queue, how it ended, and why in words.

states(["17_0", "17_1"])        # {"17_0": State("RUNNING", ...)}: what the queue still knows
how_it_ended("17_0")            # ("timeout", "SLURM: ran into its time limit (job 17_0)")
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# https://slurm.schedmd.com/job_state_codes.html
GOES_ON = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STAGE_OUT")
_ENDED = {
    "TIMEOUT": ("timeout", "ran into its time limit"),
    "DEADLINE": ("timeout", "could not end before its deadline"),
    "OUT_OF_MEMORY": ("oom", "used more memory than it asked for"),
    "NODE_FAIL": ("failed", "a node failed"),
    "BOOT_FAIL": ("failed", "a node did not boot"),
    "CANCELLED": ("failed", "cancelled (scancel)"),
    "PREEMPTED": ("failed", "preempted"),
    "REVOKED": ("failed", "revoked"),
}

_TOLD = {  # what slurmstepd writes into the job's log when it ends a job, while the job can still read it
    "": ("failed", "cancelled (scancel)"),
    "TIME LIMIT": ("timeout", "ran into its time limit"),
    "PREEMPTION": ("failed", "preempted; it starts over if it is requeued"),
    "JOB REQUEUE": ("failed", "requeued; it starts over"),
    "NODE FAILURE": ("failed", "a node failed; it starts over if it is requeued"),
}

_TASK_ENDED = re.compile(r"srun: error: \S+ (tasks? [\d,-]+: [^\n]+)")  # "srun: error: n2: task 1: Killed"
OWN_WORDS = "blockshock ends: "  # begins the line that a job prints when a signal ends it: job_process.py
_STARTS = "Starting with JobEnvironment("  # submitit's first line of a run; a requeued job appends to its log


@dataclass(frozen=True)
class State:
    name: str  # PENDING, RUNNING, TIMEOUT...
    detail: str = ""  # why it waits, or its exit code

    @property
    def goes_on(self) -> bool:
        return self.name in GOES_ON


def available() -> bool:
    return shutil.which("squeue") is not None and shutil.which("sbatch") is not None


def own_job() -> str | None:
    """The id of the SLURM job that this process belongs to, `17` or `17_3` in an array; None outside."""
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def own_restarts() -> int:
    """How often SLURM has started this job over."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def requeue(job: str) -> None:
    _command("scontrol", "requeue", job, check=True)


def cancel(jobs: Sequence[str]) -> None:
    if jobs:
        _command("scancel", *jobs)


def states(jobs: Iterable[str]) -> dict[str, State] | None:
    """The state of those of `jobs` that SLURM's queue still holds; None when its controller does not answer."""
    wanted = set(jobs)
    if not wanted:
        return {}
    user = f"--user={getpass.getuser()}"
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", user]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return None
    if shown.returncode:
        return None
    rows = (line.split("|", 2) for line in shown.stdout.splitlines() if line.count("|") >= 2)
    return {job: State(name, detail) for job, name, detail in rows if job in wanted}


def state(job: str) -> State | None:
    """One job's state from the controller, or from the accounting where the controller has forgotten it."""
    shown = _command("scontrol", "--oneliner", "show", "job", job)
    found = re.search(r"\bJobState=(\S+)", shown)
    if found:
        code = re.search(r"\bExitCode=(\S+)", shown)
        return State(found.group(1), code.group(1) if code else "")
    if shutil.which("sacct"):
        rows = _command("sacct", "-X", "--noheader", "--parsable2", "--format=State,ExitCode", "-j", job).splitlines()
        if rows and "|" in rows[0]:
            name, code_text = rows[0].split("|", 1)
            return State(name.split()[0], code_text)  # "CANCELLED by 0"
    return None


def how_it_ended(job: str, log: str = "", exit_code: str = "") -> tuple[str, str]:
    """(status, reason) for a job that ended without a word of its own.

    `log`: what its processes printed last. `exit_code`: srun's, where the batch script has seen it.
    """
    own = re.findall(rf"^{OWN_WORDS}(\w+): (.+)$", log, re.MULTILINE)
    if own:
        return own[-1]
    now = state(job)
    if now and now.name in _ENDED:
        status, words = _ENDED[now.name]
        return status, f"SLURM: {words} (job {job})"
    told = told_in(log)
    if told is not None:
        status, words = _TOLD.get(told, ("failed", f"ended, {told.lower()}"))
        return status, f"SLURM: {words} (job {job})"
    if re.search(r"oom[-_]kill|out[- ]of[- ]memory", log, re.IGNORECASE):
        return "oom", f"SLURM: the kernel's out-of-memory killer ended it (job {job})"
    task = _TASK_ENDED.search(log)
    if task:
        return "failed", f"SLURM: {task.group(1)} (job {job})"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    exit_code = exit_code or (now.detail if now else "")
    ended = f"ended with exit code {exit_code}" if exit_code else "is gone"
    return "failed", f"SLURM: job {job} {ended}" + (f": {last[:200]}" if last else "")


def told_in(log: str) -> str | None:
    """Why slurmstepd says that it ends the job: "TIME LIMIT" or the like, "" for a scancel; None where it does not.

    A step alone is also cancelled when one of its tasks has failed, which is no reason.
    """
    told = re.findall(r"\*\*\* (JOB|STEP) \S+ ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z ]+?))? \*\*\*", log)
    why = [words for _, words in told if words]
    return why[-1] if why else "" if any(what == "JOB" for what, _ in told) else None


def has_last_words(log: str) -> bool:
    """Whether SLURM has written into the log why the job ends."""
    return told_in(log) is not None or _TASK_ENDED.search(log) is not None


def read_log(folder: str | os.PathLike[str], job: str) -> str:
    """The end of what SLURM and the job's processes have written in its last run (submitit's files in `folder`)."""
    logs = sorted(Path(folder).glob(f"{job}_*log.out"))
    return "".join(log.read_text(errors="replace").rpartition(_STARTS)[2][-4000:] for log in logs)


def _command(*words: str, check: bool = False) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        raise RuntimeError(f"{words[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
