"""A training step on every rank, with a batch of its own: DistributedDataParallel or FSDP2 around the model.

within = wrapped(task.model, "ddp", device)     # before an optimizer holds the parameters: FSDP2 shards them
within(loss, *batch).backward()                 # `loss(*batch)` inside of the hooks that reduce or gather
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blockshock.errors import ConfigError, one_of

if TYPE_CHECKING:
    from blockshock.config import Job

KEY = "workload.data_parallel"
NONE, DDP, BUCKETS, FSDP2 = "none", "ddp", "ddp_buckets", "fsdp2"
KINDS = (NONE, DDP, BUCKETS, FSDP2)
Loss = Callable[..., Tensor]


def check(job: Job) -> None:
    """Raise ConfigError where the job's step cannot run on several ranks with a batch each.

    Phases and methods that can say so by `data_parallel`: True, or the KINDS that a method takes.
    """
    kind, method, phase = job.workload.data_parallel, job.method, job.phase
    one_of(KEY, kind, KINDS)
    if kind == NONE:
        return
    if hasattr(method, "build") or job.workload.layers_by is not None:
        name = method.name if hasattr(method, "build") else job.workload.layers_by["name"]
        raise ConfigError(KEY, kind, f"{name} splits each layer over the ranks; leave {KEY}=none")
    if not getattr(phase, "data_parallel", False):
        raise ConfigError(KEY, kind, f"phase={phase.name} runs a step of one rank; use phase=checkpoint")
    taken = getattr(method, "data_parallel", ())
    if not taken:
        problem = f"method={method.name} traces a step of one rank; use recompute_compiled or torch_compile"
        raise ConfigError(KEY, kind, problem)
    if kind not in taken:
        problem = f"method={method.name} needs the step as one graph, not one per bucket of gradients; use ddp or fsdp2"
        raise ConfigError(KEY, kind, problem)
    if getattr(method, "mode", "default") != "default":
        problem = f"CUDA graphs are for one rank; use method.mode=default, or {KEY}=none"
        raise ConfigError("method.mode", method.mode, problem)
    if job.hardware.world_size == 1:
        problem = f"{KEY}={kind} is for several ranks; set it to 2 or more, or {KEY}=none"
        raise ConfigError("hardware.world_size", 1, problem)


def wrapped(model: nn.Module, kind: str, device: torch.device) -> Loss:
    """`within(loss, *batch)` is `loss(*batch)`, whose backward leaves gradients that are means over the ranks.

    `kind` is one of KINDS but "none". FSDP2 puts shards in the place of the model's parameters. `ddp_buckets` is what
    torch.compile does by itself under DDP: a graph per bucket of gradients, reduced while the backward goes on. From
    now on the ranks draw different dropout masks. A collective.
    """
    torch.manual_seed((torch.initial_seed() + dist.get_rank()) % 2**63)
    outer: nn.Module = _AnyLoss(model)
    if kind == FSDP2:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        sharded: Any = fully_shard(outer, mesh=DeviceMesh.from_group(_all_ranks(), device.type))
        return cast(Loss, sharded)
    outer = nn.parallel.DistributedDataParallel(outer)

    def within(loss: Loss, *batch: Any) -> Tensor:
        one_graph = torch._dynamo.config.patch(optimize_ddp=False) if kind == DDP else nullcontext()
        with one_graph:
            found: Tensor = outer(loss, *batch)
        return found

    return within


class _AnyLoss(nn.Module):
    """The hooks are those of a module's forward, and the loss must be computed inside of it to be compiled along."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Loss, *batch: Any) -> Tensor:
        return loss(*batch)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded over the ranks. A collective where it is."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def collectives_started() -> int:
    """How many collectives this rank has started among all ranks so far; 0 where there is one rank."""
    return _all_ranks()._get_sequence_number_for_group() if dist.is_initialized() else 0


def _all_ranks() -> Any:
    return dist.group.WORLD
