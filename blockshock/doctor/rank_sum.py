"""Checks of several ranks: processes that find one another, and GPUs that read one another's memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from blockshock.doctor.finding import BROKEN, LIMITED, MISSING, WORKS, Check, Finding
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from blockshock.ranks.pool import RankPool

RANKS = 2
ANSWER_S = 120.0


def ranks() -> Finding:
    """Two ranks on this host sum by gloo."""
    return _sum("cpu", "gloo", "gloo")


def nccl() -> Finding:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < RANKS:
        return Finding(MISSING, f"{count or 'no'} GPU", "a sum over GPUs needs two")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return _sum("cuda", "nccl", f"NCCL {version}")


def peers() -> Finding:
    """Whether every GPU reads the memory of every other: what the one-shot and two-shot sums need."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < RANKS:
        return Finding(MISSING, f"{count or 'no'} GPU", "peer access is between two")
    pairs = list(itertools.permutations(range(count), 2))
    apart = [f"{a} of {b}" for a, b in pairs if not torch.cuda.can_device_access_peer(a, b)]
    if apart:
        return Finding(
            LIMITED, f"GPU {apart[0]} can't read", "sums go through NCCL; one_shot and two_shot are left out"
        )
    return Finding(WORKS, f"between all {count} GPUs")


def _sum(device: str, backend: str, name: str) -> Finding:
    with RankPool(RANKS) as pool:
        outcome = pool.run(_add, device, backend, timeout_s=ANSWER_S)
    if outcome.status != "ok":
        return Finding(BROKEN, f"{name}: {outcome.reason}", "a job of several ranks will fail in the same way")
    expected = sum(range(1, RANKS + 1))
    if outcome.value != expected:
        return Finding(BROKEN, f"{name} sums to {outcome.value}, not {expected}", "install PyTorch anew")
    return Finding(WORKS, f"{name}, {RANKS} ranks")


def _add(info: RankInfo, device: str, backend: str, say: Callable[[str], None]) -> Outcome:
    where = distributed.initialize(info, device, backend, 1, ANSWER_S)
    total = distributed.allreduce_sum(torch.full((1,), info.rank + 1.0, device=where))
    return Outcome("ok", value=float(total))


CHECKS = [
    Check("ranks", ranks, needed=True, remedy="ranks find one another at 127.0.0.1: bring the loopback interface up"),
    Check("NCCL", nccl),
    Check("peer access", peers),
]
