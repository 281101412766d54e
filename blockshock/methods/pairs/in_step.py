"""Layers of one method in a training step that another one runs: `method@workload.layers_by=block_shock`.

    self.layers_by = checked(job, check_layers)      # the method's options, with every `auto` that a graph settles
    put_layers(job, task.model, device)              # its MLPs or attention are that method's pairs over the ranks

The step is one graph, so a layer must be made of operators that a graph can have: PyTorch's own, and its functional
collectives (collectives/in_graph.py). A method says by `check_in_step(job)` which of its options are, and settles
them; one without it is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blockshock.config import check_mask, typed_option
from blockshock.errors import ConfigError
from blockshock.methods.pairs.choice import pairing_of
from blockshock.methods.pairs.model import put_pairs
from blockshock.methods.pairs.pair import ParallelPair
from blockshock.methods.pairs.sites import Site
from blockshock.problem import Problem

if TYPE_CHECKING:
    from blockshock.config import Job

KEY = "workload.layers_by"


def layers_job(job: Job) -> Job:
    """The job as the method of its layers sees it."""
    return replace(job, method=typed_option(job.workload.layers_by, "method", KEY))


def checked(job: Job, check_layers: Callable[[Job], None]) -> dict[str, Any]:
    """The options of the method of layers, checked for the model and for a step that is one graph.

    Raises ConfigError with the key that a user would set.
    """
    layered = layers_job(job)
    if not hasattr(layered.method, "build"):
        problem = "builds no layers; use block_shock, masked_split_dense or a dense_tp_* or dtensor_*"
        raise ConfigError(f"method@{KEY}", layered.method.name, problem)
    check_layers(layered)
    check_mask(layered)
    try:
        getattr(layered.method, "check_in_step", lambda job: None)(job)
        job.workload.check_method(layered)
    except ConfigError as error:
        head, _, option = error.key.partition(".")
        if head != "method":
            raise
        raise ConfigError(f"{KEY}.{option}" if option else f"method@{KEY}", error.value, error.problem) from error
    return {"_target_": job.workload.layers_by["_target_"], **asdict(layered.method)}


def put_layers(job: Job, model: nn.Module, device: torch.device) -> None:
    """Let `model` run this rank's part of what the method of layers builds. A collective where it measures."""
    layered = layers_job(job)
    problem, pairing = layered.workload.problem(layered, device), pairing_of(layered)

    def pair(site: Site) -> ParallelPair:
        own: Problem = problem.of_layer(site.path, problem.N, problem.K)
        return pairing(own, layered.method, site.between, site.activate, site.weights())

    put_pairs(model, job.workload.layers, pair)
