"""What ranks do in the tests of models whose MLPs are a method's pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from blockshock.config import load_job
from blockshock.jobs import correctness
from blockshock.problem import problem_of
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from profiler.models import build
from tests.blockshock.rank_tasks import CPU, join


def compare_with_dense(info: RankInfo, config: dict[str, Any], say: Any) -> Outcome:
    """The logits and every gradient against the model as profiler.models builds it, in float64, the worst rank's.

    A gradient's error is over the largest gradient of the model: some, as of a bias of keys, are nothing but rounding.
    """
    join(info)
    job = load_job(config)
    problem = problem_of(job, CPU)
    parallel = problem.build(job.method, problem.weights())
    x, labels = problem.inputs(), problem.target()
    y = parallel(x)
    cross_entropy(y, labels).backward()
    found = parallel.assemble_weights([p.grad for p in parallel.parameters()])

    work = job.workload
    length = {} if work.seq_len is None else {"seq_len": work.seq_len}
    dense = build(work.name, 1, dtype=torch.float64, seed=job.experiment.seed, dropout=work.dropout, **length).model
    logits = dense(x).logits.flatten(0, -2)
    cross_entropy(logits, labels).backward()
    names = [name for name, _ in dense.named_parameters()]
    expected = [p.grad for p in dense.parameters()]
    largest = max(float(grad.norm()) for grad in expected)
    errors = [float((y - logits).detach().norm() / logits.detach().norm())]
    errors += [float((mine - grad).norm()) / largest for mine, grad in zip(found, expected, strict=True)]
    held = parallel.assemble_weights([p.detach() for p in parallel.parameters()])
    same = all(torch.equal(mine, p.detach()) for mine, p in zip(held, dense.parameters(), strict=True))
    mlps = sum(1 for quantity in problem.weight_quantities() if quantity == "dW_mlp")
    return Outcome(value={"errors": distributed.max_over_ranks(errors), "names": names, "same": same, "mlps": mlps})


def judge(info: RankInfo, config: dict[str, Any], say: Any) -> Outcome:
    """The verdicts of the phases' own check."""
    join(info)
    job = load_job(config)
    problem = problem_of(job, CPU)
    return Outcome(value=correctness.check(problem, problem.build(job.method, problem.weights()), ("Y", "dW")))


def train(info: RankInfo, config: dict[str, Any], steps: int, say: Any) -> Outcome:
    """Losses of AdamW steps of the model over ranks and of the dense one; whether what every rank holds alike has
    stayed alike to the bit; bytes that a rank holds, and the dense model's."""
    join(info)
    job = load_job(config)
    problem = problem_of(job, CPU)
    parallel, dense = problem.build(job.method, problem.weights()), problem.dense(torch.float64)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=1e-3) for module in (parallel, dense)]
    losses: list[list[float]] = [[], []]
    for step in range(steps):
        for module, optimizer, seen in zip((parallel, dense), optimizers, losses, strict=True):
            loss = cross_entropy(module(problem.inputs(step)), problem.target(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(float(loss.detach()))
        parallel.after_optimizer_step(step + 1)
    rest = [p for name, p in parallel.named_parameters() if ".pair." not in name]
    alike = all(
        torch.equal(each, rest_p.detach()) for rest_p in rest for each in distributed.gather_tensors(rest_p.detach())
    )
    sizes = [parallel.weight_bytes(), distributed.local_bytes(dense.parameters())]
    return Outcome(value={"losses": losses, "alike": alike, "replicated": len(rest), "bytes": sizes})
