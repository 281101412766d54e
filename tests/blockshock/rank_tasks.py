"""What ranks do in tests: importable, as a task for RankPool must be."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from blockshock.cli.main import CONF
from blockshock.jobs import correctness
from blockshock.measure import nvml
from blockshock.measure.clocks import ClockLog
from blockshock.measure.timing import Timer, region
from blockshock.problem import Problem
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from tests.blockshock.fake_nvml import HEAT, POWER, FakeNvml

CPU = torch.device("cpu")


def join(info: RankInfo, device: str = "cpu") -> torch.device:
    return distributed.initialize(info, device, "nccl" if device == "cuda" else "gloo", threads=1, timeout_s=60)


def hello(info: RankInfo, say: Any) -> Outcome:
    join(info)
    print(f"hello from rank {distributed.rank()} of {distributed.world_size()}")
    total = distributed.allreduce_sum(torch.tensor(float(distributed.rank() + 1)))
    distributed.barrier()
    return Outcome(value=(float(total), distributed.is_distributed(), distributed.world_size()))


def misbehave(info: RankInfo, how: str, say: Any) -> Outcome:
    """Rank 1 fails as told while rank 0 waits for it in an all-reduce."""
    join(info)
    if info.rank == 1:
        if how == "raise":
            raise ValueError("boom on rank 1")
        if how == "exit":
            os._exit(7)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(600)
    distributed.allreduce_sum(torch.ones(1))
    return Outcome()


def wait_forever(info: RankInfo, path: str, say: Any) -> Outcome:
    with open(f"{path}/rank{info.rank}", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
    return Outcome()


def slow_rank(info: RankInfo, say: Any) -> Outcome:
    """Rank 0 sleeps 10 ms in even iterations, rank 1 in odd ones: the slowest rank always takes 10."""
    join(info)
    count = 0

    def step() -> None:
        nonlocal count
        with region("forward"):
            time.sleep(0.010 if count % 2 == info.rank else 0.001)
        count += 1

    samples = Timer("sync", torch.device("cpu")).measure("total_step", step, 2, 6)
    return Outcome(value=(samples["forward"], distributed.max_over_ranks(samples["forward"])))


def method_yaml(name: str, **options: Any) -> Any:
    return instantiate({**OmegaConf.load(CONF / "method" / f"{name}.yaml"), **options})


def problem_of(spec: dict[str, Any], device: torch.device = CPU) -> Problem:
    mask = instantiate(OmegaConf.load(CONF / "mask" / f"{spec['mask']}.yaml"))
    workload = instantiate(OmegaConf.load(CONF / "workload" / "gaussian.yaml"))
    dtype = getattr(torch, spec["dtype"])
    return Problem(spec["N"], spec["K"], spec["B"], dtype, device, spec["seed"], workload, mask)


def compare_with_dense(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """Relative errors of Y, dX and dW against float64 autograd on a dense layer; the worst rank's."""
    problem = problem_of(spec, join(info, spec.get("device", "cpu")))
    weight, x, upstream = problem.weight(), problem.inputs(), problem.upstream_gradient()
    layer = method_yaml(spec["method"], **spec.get("options", {})).build(problem, weight)
    local = layer.shard_input(x).detach().requires_grad_()
    y = layer(local)
    y.backward(upstream)
    got = [y, layer.assemble_input_grad(local.grad), layer.assemble_weight([p.grad for p in layer.parameters()])]

    exact_w, exact_x = weight.double().requires_grad_(), x.double().requires_grad_()
    exact_y = torch.nn.functional.linear(exact_x, exact_w)
    exact_y.backward(upstream.double())
    exact = [exact_y.detach(), exact_x.grad, exact_w.grad]
    errors = [float((g.detach().double() - e).norm() / e.norm()) for g, e in zip(got, exact, strict=True)]
    same_weight = torch.equal(layer.assemble_weight([p.detach() for p in layer.parameters()]), weight)
    return Outcome(value=(distributed.max_over_ranks(errors), same_weight))


def train_beside_dense(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """Ten optimizer steps of a method and of a dense layer: the largest difference of their weights, relative."""
    join(info)
    problem = problem_of(spec)
    weight = problem.weight()
    layer = method_yaml(spec["method"], **spec.get("options", {})).build(problem, weight)
    dense = torch.nn.Parameter(weight.clone())
    make = getattr(torch.optim, spec["optimizer"])
    ours, theirs = make(layer.parameters(), **spec["settings"]), make([dense], **spec["settings"])
    for step in range(1, 11):
        x, target = problem.inputs(step), problem.target(step)
        for optimizer, y in ((ours, layer(layer.shard_input(x))), (theirs, x @ dense.t())):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(y, target).backward()
            optimizer.step()
        layer.after_optimizer_step(step)
    full = layer.assemble_weight([p.detach() for p in layer.parameters()])
    moved = float((dense.detach() - weight).norm() / weight.norm())
    return Outcome(value=(float((full - dense.detach()).norm() / dense.detach().norm()), moved))


def print_and_crash(info: RankInfo, say: Any) -> Outcome:
    sys.stderr.write("last words\n")
    raise RuntimeError("crash")


def clocks_of_two(info: RankInfo, say: Any) -> Outcome:
    """The summary over two ranks, of which one is slow by heat in one of two samples and the other at its power cap."""
    join(info)
    mine = [((1980, 690_000, 80, POWER),), ((1410, 700_000, 50, HEAT), (1410, 700_000, 50, 0))][info.rank]
    vars(nvml).update(pynvml=FakeNvml(*mine), handle_of=lambda device: "handle")
    log = ClockLog(CPU)
    for _ in range(2):
        log.sample()
    return Outcome(value=log.summary())


def check_method(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """The verdicts on a method's layer."""
    problem = problem_of(spec, join(info, spec.get("device", "cpu")))
    layer = method_yaml(spec["method"], **spec.get("options", {})).build(problem, problem.weight())
    return Outcome(value=correctness.check(problem, layer))


@torch.no_grad()
def fp8_after_an_update(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """Whether what multiplies is the parameter rounded, before and after it is told of an update."""
    problem = problem_of(spec, join(info))
    layer = method_yaml("dense_tp_row_fp8").build(problem, problem.weight())
    storage = layer.weight8.data_ptr()
    layer.weight.mul_(-3)

    def is_rounded() -> bool:
        held = layer.weight8.float() * layer.scale
        return bool((held - layer.weight.float()).norm() < 0.05 * layer.weight.float().norm())

    before = is_rounded()
    layer.after_optimizer_step(1)
    return Outcome(value={"before": before, "after": is_rounded(), "same_storage": layer.weight8.data_ptr() == storage})
