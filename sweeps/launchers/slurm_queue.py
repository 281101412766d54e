"""What SLURM says of a job: its state, how it ended, and why in words.

states({"17_0": sweep})         # {"17_0": State("RUNNING")}: those of this sweep's jobs that SLURM knows
how_it_ended("17_0")            # ("timeout", "SLURM: ran into its time limit (job 17_0)")

A job has ended when it is in a terminal state, or when the controller says that it knows no such id. A list that does
not show it proves nothing: squeue's defaults hide jobs, and so do SQUEUE_* variables.

Format strings, not `squeue --json`: in SLURM 22.05 it ignores --jobs and dumps the whole cluster (6 kB per job, at
every look), `scontrol` has none there, and later versions changed the types of its fields. `%i|%T|%r|%o` is the same
in all of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TERMINAL = {  # https://slurm.schedmd.com/job_state_codes.html; any other state, known or new, goes on
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "RESV_DEL_HOLD"}
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

REQUEUED = "JOB REQUEUE"
_TOLD = {  # what slurmstepd writes into the job's log when it ends a job, while the job can still read it
    "": ("failed", "cancelled (scancel)"),
    "TIME LIMIT": ("timeout", "ran into its time limit"),
    "PREEMPTION": ("failed", "preempted; it starts over if it is requeued"),
    REQUEUED: ("failed", "requeued; it starts over"),
    "NODE FAILURE": ("failed", "a node failed; it starts over if it is requeued"),
}

_TASK_ENDED = re.compile(r"srun: error: \S+ (tasks? [\d,-]+: [^\n]+)")  # "srun: error: n2: task 1: Killed"
STARTS = "blockshock starts: "  # begins the first line of a run in a job's log; a requeued job appends to it
OWN_WORDS = "blockshock ends: "  # begins the line that a job prints when a signal ends it
REQUEUES = "blockshock starts over: "  # ... for now
_UNKNOWN = ("Invalid job id", "not found")  # the controller's words for an id that it does not know
_WHICH_SLURM = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
_ID = re.compile(r"\d+(_\d+)?")
ANSWER_S = 120  # what a command of SLURM's gets


@dataclass(frozen=True)
class State:
    name: str  # PENDING, RUNNING, TIMEOUT...
    detail: str = ""  # why it waits, or its exit code

    @property
    def goes_on(self) -> bool:
        return self.name not in TERMINAL

    @property
    def waits(self) -> bool:
        return self.name in WAITING


def available() -> bool:
    return shutil.which("squeue") is not None and shutil.which("sbatch") is not None


def own_job() -> str | None:
    """The id of the SLURM job that our launcher made of this process, `17` or `17_3` in an array; None elsewhere.

    A local launcher's process may run in an allocation too, whose job is not its own: what the launcher says counts.
    """
    env = os.environ
    if env.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    if env.get("SLURM_ARRAY_JOB_ID"):
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID") or None


def own_restarts() -> int:
    """How often SLURM has started this job over."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def own_place() -> tuple[int, int, int]:
    """(rank, ranks, restarts) of this process in its own SLURM job; (0, 1, 0) elsewhere."""
    if own_job() is None:
        return 0, 1, 0
    return int(os.environ.get("SLURM_PROCID") or 0), int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1), own_restarts()


def requeue(job: str) -> None:
    done = _ask("scontrol", "requeue", job)
    if done is None or done.returncode:
        raise RuntimeError(f"scontrol requeue {job}: {done.stderr.strip() if done else 'no answer'}")


def cancel(jobs: Sequence[str]) -> None:
    """End jobs of ours: `jobs` are ids that `states` knows."""
    if jobs:
        _ask("scancel", *jobs)


def states(jobs: Mapping[str, Path]) -> dict[str, State] | None:
    """The state of those of `jobs` that SLURM knows; None when it does not answer.

    `jobs`: id -> folder of the sweep that submitted it, in which its batch script lies. An id that belongs to another
    script (another cluster's sweep.json, ids that started over) is as unknown as one that SLURM has forgotten.
    """
    asked = {id_: folder for id_, folder in jobs.items() if _ID.fullmatch(id_)}
    if not asked:
        return {}
    shown = _ask("squeue", "--noheader", "--all", "--array", "--states=all", "--format=%i|%T|%r|%o",
                 f"--jobs={','.join(asked)}")  # fmt: skip
    if shown is None or (shown.returncode and not _unknown(shown)):
        return None
    rows = {id_: (State(name, reason), script) for id_, name, reason, script in _fields(shown.stdout, 4)}
    for array in sorted({id_.partition("_")[0] for id_ in asked.keys() - rows.keys()}):
        known = _controller(array)  # squeue did not show it: is it unknown, or only hidden?
        if known is None:
            return None
        rows = known | rows
    return {id_: rows[id_][0] for id_ in asked if id_ in rows and _lies_in(rows[id_][1], asked[id_])}


def _lies_in(script: str, folder: Path) -> bool:
    return folder.resolve() in Path(script).resolve().parents


def _fields(text: str, count: int) -> list[list[str]]:
    return [line.split("|", count - 1) for line in text.splitlines() if line.count("|") >= count - 1]


def _controller(array: str) -> dict[str, tuple[State, str]] | None:
    """id -> (state, batch script) of a job or of all jobs of an array; {} if it is unknown, None without an answer."""
    shown = _ask("scontrol", "--oneliner", "--all", "show", "job", array)
    if shown is None or (shown.returncode and not _unknown(shown)):
        return None
    found: dict[str, tuple[State, str]] = {}
    for line in filter(None, shown.stdout.splitlines()):
        told = (State(_value(line, "JobState"), _value(line, "ExitCode")), _value(line, "Command"))
        tasks = _tasks(_value(line, "ArrayTaskId"))
        ids = [f"{_value(line, 'ArrayJobId')}_{task}" for task in tasks] or [_value(line, "JobId")]
        found |= dict.fromkeys(ids, told)
    return found


def _value(line: str, key: str) -> str:
    found = re.search(rf"(?:^|\s){key}=(.*?)(?=\s\w[\w/:]*=|$)", line)
    return found.group(1).strip() if found else ""


def _tasks(text: str) -> list[int]:
    """`3-5,8%2`, an array's tasks that wait, as numbers."""
    tasks: list[int] = []
    for low, high in re.findall(r"(\d+)(?:-(\d+))?", text.partition("%")[0]):
        tasks += range(int(low), int(high or low) + 1)
    return tasks


def _unknown(done: subprocess.CompletedProcess[str]) -> bool:
    return any(words in done.stderr for words in _UNKNOWN)


def state(job: str) -> State | None:
    """One job's state from the controller, or from the accounting where the controller has forgotten it."""
    known = (_controller(job.partition("_")[0]) or {}).get(job)
    if known:
        return known[0]
    if shutil.which("sacct"):
        done = _ask("sacct", "-X", "--noheader", "--parsable2", "--format=State,ExitCode", "-j", job)
        for name, code in _fields(done.stdout, 2) if done else []:
            return State(name.split()[0], code)  # "CANCELLED by 0"
    return None


def how_it_ended(job: str, log: str = "", exit_code: str = "", ask: bool = True) -> tuple[str, str]:
    """(status, reason) for a job that ended without a report of its own.

    `log`: what its processes printed last. `exit_code`: srun's, where the batch script has seen it. `ask`: SLURM too.
    """
    own = re.findall(rf"^{OWN_WORDS}(\w+): (.+)$", log, re.MULTILINE)
    if own:
        return own[-1]
    now = state(job) if ask else None
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
    if task and task.group(1).endswith("User defined signal 2"):  # SLURM's warning, before our process heard signals
        return "timeout", f"SLURM: out of time or preempted before it began (job {job})"
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
    return "".join(log.read_text(errors="replace").rpartition(STARTS)[2][-4000:] for log in logs)


def _ask(*words: str) -> subprocess.CompletedProcess[str] | None:
    """Run a command of SLURM's; None when it does not answer.

    SQUEUE_* and SLURM_* variables choose what is shown and how, or are those of the allocation we run in: only the ones
    that say which SLURM it is are handed on.
    """
    env = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("SQUEUE_", "SACCT_", "SCONTROL_", "SLURM_")) or name in _WHICH_SLURM
    } | {"SLURM_BITSTR_LEN": "0"}  # the tasks of an array in full  # fmt: skip
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=ANSWER_S, env=env)
    except (subprocess.TimeoutExpired, OSError):  # hangs, or was uninstalled under our feet
        return None
