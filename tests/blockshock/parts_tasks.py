"""What ranks do in the tests of a forward's parts."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from blockshock.collectives.matmul_all_reduce import MatmulAllReduce
from blockshock.collectives.parts import sum_parts
from blockshock.collectives.reductions import REDUCTIONS
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from tests.blockshock.rank_tasks import join, method_yaml, problem_of


@torch.no_grad()
def compare_with_forward(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """The relative difference of what the collective's part returns from what the forward does; the worst rank's."""
    problem = problem_of(spec, join(info, spec.get("device", "cpu")))
    layer = method_yaml(spec["method"], **spec.get("options", {})).build(problem, problem.weight())
    x = layer.shard_input(problem.inputs())
    parts = layer.parts(x)
    if parts is None:
        return Outcome(value=None)
    parts.matmul()
    twice = [parts.collective().clone() for _ in range(2)]
    y = layer(x)
    if parts.forward is not None:
        twice.append(parts.forward())
    differences = [float((part - y).norm() / y.norm()) for part in twice]
    return Outcome(value={"differences": distributed.max_over_ranks(differences), "chunks": parts.chunks})


@torch.no_grad()
def rows_multiplied(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """By the forward, by its matmul part and by its collective: the rows of each matmul, in order."""
    join(info)
    called: list[int] = []

    def multiply(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        called.append(len(x))
        return torch.mm(x, torch.ones(8, 16), out=out)

    assert dist.group.WORLD is not None
    total = MatmulAllReduce(REDUCTIONS["gloo"].build(dist.group.WORLD, 16, None), spec["chunks"])
    x = torch.ones(1024, 8)
    parts = sum_parts(total, x, multiply)
    assert parts is not None
    found = []
    for run in (lambda: total(x, multiply), parts.matmul, parts.collective):
        called.clear()
        run()
        found.append(list(called))
    return Outcome(value=found)
