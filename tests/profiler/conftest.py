"""Traced and profiled tiny models, made once for all tests that only look at them."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from profiler import GraphProfiler, TracedStep, trace_train_step
from profiler.models import TrainingTask, build

OPTIMIZER: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "tiny_resnet152": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "tiny_bert": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "tiny_gpt2": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=True),
    "tiny_llama": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
    "tiny_vit": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, amsgrad=True),
}


@cache
def traced(name: str) -> tuple[TrainingTask, TracedStep]:
    problem = build(name)
    optimizer = OPTIMIZER[name](problem.model.parameters())
    return problem, trace_train_step(problem.model, problem.loss_fn, optimizer, problem.batch)


@cache
def profiled(name: str) -> tuple[TrainingTask, GraphProfiler]:
    problem, step = traced(name)
    profiler = GraphProfiler(step)
    profiler.run(*problem.batch)
    return problem, profiler


@pytest.fixture(params=sorted(OPTIMIZER))
def tiny(request: pytest.FixtureRequest) -> str:
    return str(request.param)
