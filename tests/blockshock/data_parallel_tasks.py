"""What ranks do in the tests of data parallelism."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.config import load_job
from blockshock.methods.shared.data_parallel import collectives_started, whole
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from tests.blockshock.rank_tasks import CPU, join


def one_step(info: RankInfo, config: dict[str, Any], say: Any) -> Outcome:
    """A step of the job's method, and one of a single copy of the model by the mean of the losses of all batches.

    How far the parameters are apart afterwards and how far the step moved them (the largest of each), whether the
    ranks' batches and random numbers differ, and whether each rank holds all of every parameter.
    """
    join(info)
    torch._dynamo.reset()
    job = load_job(config)
    task = job.workload.task(job, CPU)
    drawn = torch.rand(8)
    copy = job.workload.build(torch.float64, CPU, job.experiment.seed)
    before = [p.detach().clone() for p in copy.model.parameters()]
    step = job.method.build_step(task, job.phase.make_optimizer(list(task.model.parameters())))
    started = collectives_started()
    step(*task.batch)
    started = collectives_started() - started

    batches = list(zip(*(distributed.gather_tensors(value) for value in task.batch), strict=True))
    torch.stack([copy.loss_fn(copy.model, *batch) for batch in batches]).mean().backward()
    job.phase.make_optimizer(list(copy.model.parameters())).step()
    expected = [p.detach() for p in copy.model.parameters()]
    found = [whole(p.detach()) for p in task.model.parameters()]
    held = sum(distributed.local_part(p.detach()).numel() for p in task.model.parameters())
    return Outcome(
        value={
            "apart": _largest(found, expected),
            "moved": _largest(before, expected),
            "batches_differ": not torch.equal(batches[0][0], batches[1][0]),
            "numbers_differ": not torch.equal(*distributed.gather_tensors(drawn)),
            "share_held": held / sum(p.numel() for p in expected),
            "collectives": started,
        }
    )


def _largest(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
