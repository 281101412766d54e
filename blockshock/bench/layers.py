"""Parts `forward`, `train` and `law`: whole layers over the ranks, each method as a user would configure it.

A contender is a method and its options; all of a cell are built side by side, checked against float64, and take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from blockshock.bench.cells import Cell, Row, measure
from blockshock.config import Job, load_job
from blockshock.jobs import correctness
from blockshock.methods import ParallelLinear
from blockshock.methods.shared.halves import HalvesLinear
from blockshock.phases import TrainingOptions
from blockshock.problem import Problem
from blockshock.ranks import distributed

BLOCK = "mask=complement_1100_0011"
PLAIN = ("method.collective=nccl", "method.overlap_chunks=1")
ROW = ("method=dense_tp_row",)
PEERS = {
    "dtensor_row": ("method=dtensor_row",),
    "dtensor_column": ("method=dtensor_column",),
    "dense_tp_row": ROW,
    "dense_tp_column": ("method=dense_tp_column",),
    "torch_semi_structured": ("method=torch_semi_structured", BLOCK),
}
OURS = {
    "block_shock/1100": ("method=block_shock", BLOCK),
    "block_shock/checkerboard": ("method=block_shock", "mask=checkerboard"),
    "block_shock/random": ("method=block_shock", "mask=random_2of4"),
    "block_shock/outputs": ("method=block_shock", BLOCK, "method.shard=outputs"),
}

# What is compared on two and more ranks, by part: {name: overrides}. The second word of a name is a variant.
CONTENDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "forward": {
        **PEERS,
        "torch_semi_structured/frozen": ("method=torch_semi_structured", "method.recompress=false", BLOCK),
        **OURS,
        "dense_tp_row/nccl": (*ROW, *PLAIN),
        "block_shock/nccl": ("method=block_shock", BLOCK, *PLAIN),
    },
    "train": {**PEERS, **OURS},
    "law": {
        "dense_tp_row": (*ROW, *PLAIN),
        "block_shock": ("method=block_shock", "method.kernel=cusparselt", BLOCK, *PLAIN),
    },
}


def forward(cell: Cell, configs: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Y on every rank from this rank's input, and of some methods the part before the collective."""
    steps: dict[str, Callable[[], Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, _, layer, problem in _built(cell, configs, about, ("Y",)):
        layer.requires_grad_(False)
        steps[name] = partial(_without_gradients, layer, layer.shard_input(problem.inputs()))
    yield from measure(cell, "forward", steps, about)


def train(cell: Cell, configs: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Forward, mean squared error, dX and dW, a capturable fused AdamW."""
    steps: dict[str, Callable[[], Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, _, layer, problem in _built(cell, configs, about, correctness.QUANTITIES):
        step, optimizers[name] = TrainingOptions().make_step(layer, problem)
        step()  # so that there is optimizer state to count
        about[name]["state_bytes"] = (
            layer.weight_bytes() + distributed.local_bytes(layer.parameters()) + _state_bytes(optimizers[name])
        )
        about[name]["dense_state_bytes"] = 4 * cell.N * cell.K * cell.dtype.itemsize  # weight, gradient, two moments
        steps[name] = step
    yield from measure(cell, "train", steps, about)


def law(cell: Cell, configs: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """What the law relates: both methods with a plain NCCL all-reduce, their products alone, the all-reduce alone."""
    steps: dict[str, Callable[[], Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, _, layer, problem in _built(cell, configs, about, ("Y",)):
        layer.requires_grad_(False)
        x = layer.shard_input(problem.inputs())
        steps[name] = partial(_without_gradients, layer, x)
        if isinstance(layer, HalvesLinear):
            steps["sparse_half"] = partial(_no_grad, layer.product, x)
        else:
            weight = problem.weight()
            steps["dense"] = partial(torch.mm, problem.inputs(), weight.t())
            steps["half_k_dense"] = partial(torch.mm, x, weight[:, : x.shape[1]].contiguous().t())
    total = torch.randn(cell.B, cell.N, **_like(cell)).mul_(1e-3)  # it is summed in place again and again
    steps["all_reduce"] = partial(distributed.allreduce_sum, total)
    for name in steps:
        about.setdefault(name, {})
    yield from measure(cell, "law", steps, about)


def _like(cell: Cell) -> dict[str, Any]:
    return {"dtype": cell.dtype, "device": cell.device}


@torch.no_grad()
def _no_grad(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


def _built(
    cell: Cell, configs: dict[str, dict[str, Any]], about: dict[str, dict[str, Any]], quantities: tuple[str, ...]
) -> Iterator[tuple[str, Job, ParallelLinear, Problem]]:
    for name, config in configs.items():
        job = load_job(config)
        problem = Problem.of(job, cell.device)
        layer = job.method.build(problem, problem.weight())
        verdicts = correctness.check(problem, layer, quantities)
        wrong = correctness.failure(verdicts)
        if wrong:
            raise correctness.CheckFailed(f"{name}: {wrong}")
        worst = max(verdicts.values(), key=lambda verdict: verdict["relative_error"] / verdict["limit"])
        about[name] = {
            "kernel": getattr(job.method, "kernel", ""),
            "mask": job.mask.name if isinstance(layer, HalvesLinear) else "",
            "detail": layer.describe(),
            "relative_error": worst["relative_error"],
            "dense_relative_error": worst["dense_relative_error"],
        }
        yield name, job, layer, problem


@torch.no_grad()
def _without_gradients(layer: ParallelLinear, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = layer(x)
    return y


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = (t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor))
    return distributed.local_bytes(tensors)
