"""What ranks do in the tests of pruned weights that they hold as windows."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear, mse_loss

from blockshock.jobs import correctness
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from tests.blockshock.rank_tasks import join, method_yaml, problem_of


def compare_with_pruned(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """Relative errors of Y, dX and dW against float64 autograd on the pruned dense weight, the worst rank's; and the
    facts about what is held."""
    join(info)
    problem = problem_of(spec)
    weight, x, upstream = problem.weight(), problem.inputs(), problem.upstream_gradient()
    layer = method_yaml("block_shock", **spec.get("options", {})).build(problem, weight)
    local = layer.shard_input(x).detach().requires_grad_()
    y = layer(local)
    y.backward(upstream)
    grad = layer.assemble_weight([p.grad for p in layer.parameters()])
    got = [y, layer.assemble_input_grad(local.grad), grad]
    exact_w, exact_x = weight.double().requires_grad_(), x.double().clone().requires_grad_()
    exact_y = linear(exact_x, exact_w)
    exact_y.backward(upstream.double())
    kept = weight != 0  # no kept weight of these is exactly zero
    expected = [exact_y.detach(), exact_x.grad, exact_w.grad * kept]
    errors = [float((g.detach().double() - e).norm() / e.norm()) for g, e in zip(got, expected, strict=True)]
    own_dx = local.grad
    same_dx = torch.equal(own_dx, layer.shard_input(got[1])) if distributed.world_size() > 1 else True
    return Outcome(
        value={
            "errors": distributed.max_over_ranks(errors),
            "same_weight": torch.equal(layer.assemble_weight([p.detach() for p in layer.parameters()]), weight),
            "outside": float(grad[~kept].abs().sum()),
            "dx_where_x_is_read": same_dx,
            "values": sum(p.numel() for p in layer.parameters()),
            "flops": layer.costs()["forward"].flops,
            "memory": layer.costs()["forward"].memory_bytes,
        }
    )


def train_beside_pruned(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """Ten AdamW steps of the windows, and of a dense weight whose pruned elements get no gradient."""
    join(info)
    problem = problem_of(spec)
    weight = problem.weight()
    layer = method_yaml("block_shock").build(problem, weight)
    dense = torch.nn.Parameter(weight.clone())
    kept = weight != 0
    optimizers = [torch.optim.AdamW(list(p), lr=1e-2, weight_decay=0.1) for p in (layer.parameters(), [dense])]
    for step in range(1, 11):
        x, target = problem.inputs(step), problem.target(step)
        for optimizer, y in zip(optimizers, (layer(layer.shard_input(x)), linear(x, dense * kept)), strict=True):
            optimizer.zero_grad()
            mse_loss(y, target).backward()
            optimizer.step()
    found = layer.assemble_weight([p.detach() for p in layer.parameters()])
    moved = float((dense.detach() - weight).norm() / weight.norm())
    return Outcome(value=(float((found - dense.detach()).norm() / dense.detach().norm()), moved))


def judge(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    join(info)
    problem = problem_of(spec)
    layer = method_yaml(spec["method"]).build(problem, problem.weights())
    return Outcome(value=correctness.check(problem, layer))
