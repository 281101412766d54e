"""The ranks that torchrun or srun started: who this process is among them, and the store they share.

found = launched()      # RankInfo(rank=1, local_rank=1, world_size=2, ...); None: ranks are ours to start

Only a complete and consistent set of variables counts. They are inherited by whatever is started in a step or an
interactive shell, so SLURM is asked whether the step that they name is there.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from blockshock.errors import ConfigError

STARTED_HERE = "BLOCKSHOCK_RANK_STARTED"  # set in our own ranks, which must not mistake themselves for launched ones
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")


@dataclass(frozen=True)
class RankInfo:
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    store_address: tuple[str, int] | None  # of the rendezvous store; None: torch.distributed's own env:// rendezvous
    store_listener: socket.socket | None = None  # rank 0's, which keeps the store: the others connect to it already


def launched() -> RankInfo | None:
    """The rank this process already is under torchrun or a multi-task srun; None when ranks are ours to start.

    One rank alone has nobody to join. Raises ConfigError for variables that contradict each other.
    """
    env = os.environ
    if STARTED_HERE in env:
        return None
    if all(env.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return _of_torchrun()
    if all(env.get(name) for name in (*_SRUN, "SLURM_JOB_ID")) and _number("SLURM_STEP_NUM_TASKS") > 1:
        step = f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}"
        if not _is_interactive() and _step_is_there(step):
            env |= _slurm_rendezvous()
            return _of_torchrun()
    return None


def forget_launch(own_step: bool) -> None:
    """Drop what torchrun or srun has told an ancestor of this process, so that `launched` can't be misled by it.

    `own_step`: srun has started this process itself, so its variables stay.
    """
    stale = [name for name in os.environ if name in _TORCHRUN or name.startswith(("TORCHELASTIC_", "SLURM_PTY_"))]
    stale += [] if own_step else [name for name in _SRUN if name in os.environ]
    for name in stale:
        del os.environ[name]


def _of_torchrun() -> RankInfo | None:
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    if not rank < world:
        raise ConfigError("RANK", rank, f"is no rank of WORLD_SIZE={world}; unset both to run without torchrun")
    if world == 1:
        return None
    local_world = _number("LOCAL_WORLD_SIZE", world)
    return RankInfo(rank, _number("LOCAL_RANK", rank), world, local_world, None)


def _number(name: str, otherwise: int | None = None) -> int:
    text = os.environ.get(name) or ("" if otherwise is None else str(otherwise))
    if not text.isdecimal():
        problem = "in the environment must be a whole number, as torchrun and srun set it; unset it to run without them"
        raise ConfigError(name, text, problem)
    return int(text)


def _is_interactive() -> bool:
    """Whether this is a shell that `srun --pty` has opened, or something started in it: the other tasks are idle."""
    if "SLURM_PTY_PORT" not in os.environ:
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:  # no terminal: a batch job that was submitted from such a shell, whose environment it has
        return False
    return True


@cache
def _step_is_there(step: str) -> bool:
    """Whether SLURM runs this step now. A batch script has the step's variables of the shell it was submitted from."""
    shown = _scontrol("--oneliner", "show", "step", step, check=False)  # of an array's job: "StepId=17_2.0"
    return "StepId=" in shown


def _slurm_rendezvous() -> dict[str, str]:
    """What torch.distributed's env:// rendezvous asks for, from this srun step's variables.

    The address is the one by which SLURM itself reaches the step's first node; the port follows from job and step, so
    that every rank finds the same and two steps on a node do not.
    """
    env = os.environ
    names = _scontrol("show", "hostnames", env["SLURM_STEP_NODELIST"]).split()
    address = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", names[0]))
    tasks = _number("SLURM_STEP_NUM_TASKS")
    digest = hashlib.sha256(f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}".encode()).digest()
    return {
        "MASTER_ADDR": address.group(1) if address else names[0],
        "MASTER_PORT": str(20000 + int.from_bytes(digest[:4], "big") % 40000),
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(-(-tasks // len(names))),
    }


def _scontrol(*arguments: str, check: bool = True) -> str:
    try:
        done = subprocess.run(["scontrol", *arguments], check=check, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        problem = f"srun has started this rank, and scontrol, which knows the other ranks, fails here ({error})"
        raise ConfigError("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_STEP_NUM_TASKS"), problem) from error
    return done.stdout


def share_run_id(own: str) -> str:
    """Under torchrun or srun: rank 0's `own` run id, on every rank. `own` where ranks are ours to start."""
    if launched() is None:
        return own
    import torch.distributed as dist

    global _joined_store
    _joined_store, _, _ = next(iter(dist.rendezvous("env://")))
    return from_first_launched("run_id", lambda: own)


def from_first_launched(name: str, value: Callable[[], str]) -> str:
    """What `value` returns on rank 0 of launched ranks, on each of them; of ranks that are ours to start, just that."""
    found = launched()
    if found is None:
        return value()
    if found.rank == 0:
        _joined_store.set(f"blockshock/{name}", value())
    return str(_joined_store.get(f"blockshock/{name}").decode())


_joined_store: Any = None


def joined_store() -> Any:
    """The rendezvous store of launched ranks, made once (a second rendezvous on its port would hang)."""
    return _joined_store
