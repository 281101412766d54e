"""The ranks that torchrun or srun started: who this process is among them, and the store they share."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Any

STARTED_HERE = "BLOCKSHOCK_RANK_STARTED"  # set in our own ranks, which must not mistake themselves for launched ones


@dataclass(frozen=True)
class RankInfo:
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    store_address: tuple[str, int] | None  # of the rendezvous store; None: torch.distributed's own env:// rendezvous


def launched() -> RankInfo | None:
    """The rank this process already is under torchrun or a multi-task srun; None when ranks are ours to start."""
    env = os.environ
    if STARTED_HERE in env:
        return None
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        world = int(env["WORLD_SIZE"])
        local = int(env.get("LOCAL_RANK", env["RANK"]))
        return RankInfo(int(env["RANK"]), local, world, int(env.get("LOCAL_WORLD_SIZE", world)), None)
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
        env |= _slurm_rendezvous()
        return launched()
    return None


def _slurm_rendezvous() -> dict[str, str]:
    """What torch.distributed's env:// rendezvous asks for, from this srun step's variables.

    The address is the one by which SLURM itself reaches the step's first node; the port follows from job and step, so
    that every rank finds the same and two steps on a node do not.
    """
    env = os.environ
    names = _scontrol("show", "hostnames", env["SLURM_STEP_NODELIST"]).split()
    address = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", names[0]))
    tasks = int(env["SLURM_STEP_NUM_TASKS"])
    digest = hashlib.sha256(f"{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}".encode()).digest()
    return {
        "MASTER_ADDR": address.group(1) if address else names[0],
        "MASTER_PORT": str(20000 + int.from_bytes(digest[:4], "big") % 40000),
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(-(-tasks // len(names))),
    }


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout


def share_run_id(own: str) -> None:
    """Under torchrun or srun: put rank 0's `own` run id into every rank's BLOCKSHOCK_RUN_ID."""
    found = launched()
    if found is None:
        return
    import torch.distributed as dist

    global _joined_store
    _joined_store, _, _ = next(iter(dist.rendezvous("env://")))
    if found.rank == 0:
        _joined_store.set("blockshock/run_id", own)
    os.environ["BLOCKSHOCK_RUN_ID"] = _joined_store.get("blockshock/run_id").decode()


_joined_store: Any = None


def joined_store() -> Any:
    """The rendezvous store of launched ranks, made once (a second rendezvous on its port would hang)."""
    return _joined_store
