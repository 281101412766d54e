"""Do the ranks that train one model agree? The plan, the parameters that every rank holds, and what a proof found.

found = compare_ranks(model, plan, proof.passed)        # None for one rank; else {"alike": True, "compared": 31, ...}
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blockshock.methods import ParallelModule
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from checkpointing import CompiledPlan, Plan


def compare_ranks(
    model: nn.Module, plan: Plan | CompiledPlan | None = None, passed: bool = True, own_batches: bool = False
) -> dict[str, Any] | None:
    """What is not the same on all ranks, by name; None where there is one rank. A collective.

    Compared bitwise are the parameters and buffers outside of the layers over ranks, and the plan's decisions.
    `passed`: whether this rank's own proof did; on which it did not is told to all. `own_batches`: each rank trains on
    one, so that buffers, batch norm's statistics, are its own.
    """
    if distributed.world_size() == 1:
        return None
    own = {name: _digest(tensor) for name, tensor in replicated(model, own_batches).items()}
    count = len(own)
    if plan is not None:
        own["the plan"] = hashlib.sha256(repr(_decisions(plan)).encode()).hexdigest()
    ranks = distributed.of_each_rank((own, passed))
    digests = [found for found, _ in ranks]
    differing = [name for name in own if len({found.get(name) for found in digests}) > 1]
    failed = [rank for rank, (_, ok) in enumerate(ranks) if not ok]
    return {
        "alike": not differing,
        "compared": count,
        "differing": differing,
        "plans_alike": None if plan is None else "the plan" not in differing,
        "proof_failed_on": failed,
    }


def replicated(model: nn.Module, own_batches: bool = False) -> dict[str, Tensor]:
    """Parameters and, without `own_batches`, buffers of which every rank has all: what lies in no part of a layer over
    ranks, and is no shard."""
    parts = [f"{path}." for path, module in model.named_modules() if isinstance(module, ParallelModule)]
    tensors = {**dict(model.named_parameters()), **({} if own_batches else dict(model.named_buffers()))}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(tuple(parts)) and distributed.local_part(tensor) is tensor
    }


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + content).hexdigest()


def _decisions(plan: Plan | CompiledPlan) -> list[Any]:
    """By name, what is kept and what is recomputed."""
    from checkpointing import Plan

    if isinstance(plan, Plan):
        return sorted((name, str(decision)) for name, decision in plan.decisions.items())
    table = plan.table()
    return sorted(zip(table["value"], table["decision"], strict=True))
