"""What ranks do in the tests of models whose MLPs or attention are a method's pairs."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from blockshock.config import load_job
from blockshock.jobs import correctness, training_run
from blockshock.jobs.agreement import compare_ranks
from blockshock.jobs.training_run import TrainingRuns
from blockshock.methods.pairs.model import ModelProblem, dense_tensors, pairs_of
from blockshock.methods.pairs.sites import find_mlps, find_sites
from blockshock.problem import problem_of
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from profiler import models
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


def three_steps(info: RankInfo, config: dict[str, Any], say: Any) -> Outcome:
    """Three steps of SGD with momentum of the model over ranks, and of the model as profiler.models builds it: how far
    their losses and parameters are apart, over the largest change of a parameter; and that change."""
    join(info)
    job = load_job(config)
    problem, work = problem_of(job, CPU), job.workload
    length = {} if work.seq_len is None else {"seq_len": work.seq_len}
    dense = build(work.name, 1, dtype=torch.float64, seed=job.experiment.seed, dropout=work.dropout, **length).model
    start = [p.detach().clone() for p in dense.parameters()]
    parallel = problem.build(job.method, problem.weights())
    outputs = parallel, lambda x: dense(x).logits.flatten(0, -2)
    optimizers = [torch.optim.SGD(list(module.parameters()), lr=0.5, momentum=0.9) for module in (parallel, dense)]
    apart = 0.0
    for step in range(3):
        x, labels = problem.inputs(step), problem.target(step)
        losses = [cross_entropy(output(x), labels) for output in outputs]
        apart = max(apart, abs(float((losses[0] - losses[1]).detach())))
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        parallel.after_optimizer_step(step + 1)
    found = parallel.assemble_weights([p.detach() for p in parallel.parameters()])
    moved = max(float((p.detach() - before).norm()) for p, before in zip(dense.parameters(), start, strict=True))
    errors = [float((mine - p.detach()).norm()) / moved for mine, p in zip(found, dense.parameters(), strict=True)]
    return Outcome(value={"errors": distributed.max_over_ranks([apart, *errors]), "moved": moved})


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


def step_as_dense(info: RankInfo, config: dict[str, Any], say: Any) -> Outcome:
    """A step of the job's method with layers over ranks, and an eager one of the dense model from the same parameters:
    the largest difference of the parameters afterwards, by their names in the dense model, over the largest change."""
    join(info)
    job = load_job(config)
    work = job.workload
    task = work.task(job, CPU)
    dense = work.build(torch.float64, CPU, job.experiment.seed)
    before = {name: p.detach().clone() for name, p in dense.model.named_parameters()}
    step = job.method.build_step(task, job.phase.make_optimizer(list(task.model.parameters())))
    loss = float(step(*task.batch))
    expected = dense.loss_fn(dense.model, *dense.batch)
    expected.backward()
    job.phase.make_optimizer(list(dense.model.parameters())).step()
    after = dict(dense.model.named_parameters())
    sites, found = find_sites(before_pairs(job), work.layers), dict(task.model.named_parameters())
    found = dense_tensors(sites, pairs_of(task.model), found)
    moved = {name: float((after[name] - start).detach().norm()) for name, start in before.items()}
    errors = {name: float((found[name] - p).detach().norm()) / max(moved.values()) for name, p in after.items()}
    errors["loss"] = abs(loss - float(expected.detach()))
    worst = distributed.max_over_ranks(list(errors.values()))
    plan = step.compiled_plan if hasattr(step, "compiled_plan") else None
    ranks = compare_ranks(task.model, plan)
    recomputed = 0 if plan is None else int((plan.table()["decision"] == "recompute").sum())
    errors = dict(zip(errors, worst, strict=True))
    return Outcome(value={"errors": errors, "moved": max(moved.values()), "ranks": ranks, "recomputed": recomputed})


def step_of_one_layer_as_dense(info: RankInfo, config: dict[str, Any], say: Any) -> Outcome:
    """`step_as_dense` of a ViT of one layer: its kernels compile in half the time."""
    whole = models.VISION["vit"]

    def first_layer(**options: Any) -> Any:
        model: Any = whole(**options)
        del model.vit.layers[1:]
        return model

    models.VISION["vit"] = first_layer
    try:
        return step_as_dense(info, config, say)
    finally:
        models.VISION["vit"] = whole


def before_pairs(job: Any) -> Any:
    """The model with its MLPs still in it, without memory for its weights."""
    return build(job.workload.name, 1, device="meta", dropout=job.workload.dropout).model


KINDS = {
    "all_reduce": "c10d::allreduce_",
    "all_gather": "c10d::_allgather_base_",
    "reduce_scatter": "c10d::_reduce_scatter_base_",
}


def traced_collectives(info: RankInfo, config: dict[str, Any], say: Any) -> Outcome:
    """How many collectives of each kind PyTorch's profiler sees in the forward and in the backward pass, and what the
    record says."""
    join(info)
    job = load_job(config)
    problem = problem_of(job, CPU)
    parallel = problem.build(job.method, problem.weights())
    x, labels = problem.inputs(), problem.target()
    seen: dict[str, dict[str, int]] = {}
    losses: list[Any] = []
    passes = {
        "forward": lambda: losses.append(cross_entropy(parallel(x), labels)),
        "backward": lambda: losses.pop().backward(),
    }
    for name, run in passes.items():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
            run()
        names = [event.name for event in trace.events()]
        seen[name] = {kind: names.count(op) for kind, op in KINDS.items() if op in names}
    return Outcome(value={"seen": seen, "said": parallel.describe()["collectives"]})


def tell_apart(info: RankInfo, config: dict[str, Any], say: Any) -> Outcome:
    """What ranks are told of a model that they share, and of one in which rank 1 differs."""
    join(info)
    job = load_job(config)
    model = job.workload.task(job, CPU).model
    found = {"same": compare_ranks(model), "failed": compare_ranks(model, passed=info.rank == 0)}
    parts = {"of_a_layer": next(p for name, p in model.named_parameters() if ".pair." in name)}
    parts["moved"] = model.transformer.wte.weight
    for name, parameter in parts.items():
        with torch.no_grad():
            parameter.view(-1)[0] += info.rank
        found[name] = compare_ranks(model)
    return Outcome(value=found)


def training_losses(info: RankInfo, config: dict[str, Any], steps: int, say: Any) -> Outcome:
    """Losses of SGD steps of the model over ranks."""
    join(info)
    problem = problem_of(job := load_job(config), CPU)
    return Outcome(value=_losses(problem, problem.build(job.method, problem.weights()), steps))


def dense_losses(info: RankInfo, config: dict[str, Any], steps: int, orders: int, say: Any) -> Outcome:
    """Losses of SGD steps: of the dense model, and of it with its hidden units in `orders` other orders, which changes
    nothing but the order of sums."""
    join(info)
    problem = problem_of(load_job(config), CPU)
    found = [_losses(problem, problem.dense(problem.dtype), steps)]
    for number in range(orders):
        dense = problem.dense(problem.dtype)
        for site in find_mlps(dense.model):
            up, down = site.part(site.names.up), site.part(site.names.down)
            order = torch.randperm(up.bias.numel(), generator=torch.Generator().manual_seed(number))
            with torch.no_grad():  # GPT-2's Conv1D: weights are (in, out)
                up.weight.copy_(up.weight[:, order])
                up.bias.copy_(up.bias[order])
                down.weight.copy_(down.weight[order])
        found.append(_losses(problem, dense, steps))
    return Outcome(value=found)


def _losses(problem: Any, module: Any, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    seen = []
    for step in range(steps):
        loss = cross_entropy(module(problem.inputs(step)), problem.target(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    return seen


def exact_run(info: RankInfo, config: dict[str, Any], cache: str, compared: int, say: Any) -> Outcome:
    """What a drift job has of its float64 run: losses, outputs and weights by step; how many models that took; whether
    the ranks have the same; what is logged. `compared`: elements of the outputs, and of the weights."""
    join(info)
    job = load_job(config)
    problem, said, built = problem_of(job, CPU), list[str](), list[torch.dtype]()
    dense = ModelProblem.dense

    def counted(self: ModelProblem, dtype: torch.dtype) -> torch.nn.Module:
        built.append(dtype)
        return dense(self, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        patch.setattr(ModelProblem, "dense", counted)
        patch.setattr(training_run, "ENOUGH", compared)
        for level in ("info", "warning"):
            patch.setattr(logging.getLogger("blockshock"), level, lambda text, *values: said.append(text % values))
        seen = list(TrainingRuns(problem, job.phase, job.phase.steps).exact())
    curves = [torch.tensor([one.loss for one in seen], dtype=torch.float64)]
    curves += [torch.stack([one.y for one in seen]), torch.stack([one.weights for one in seen])]
    alike = all(torch.equal(curve, other) for curve in curves for other in distributed.gather_tensors(curve))
    return Outcome(value={"curves": curves, "built": len(built), "alike": alike, "said": said})
