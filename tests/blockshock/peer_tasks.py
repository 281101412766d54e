"""What ranks do in the tests of PyTorch's own layers beside ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from blockshock.measure.timing import capture
from blockshock.phases.phase3_train_step import TrainStep
from blockshock.problem import Problem
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from profiler.traces import count_flops
from tests.blockshock.rank_tasks import join, method_yaml, problem_of


def holdings(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """What rank 0 holds and hands out after a training step: bytes, the types of Y and dX, the FLOPs of a step."""
    join(info)
    problem = problem_of(spec)
    weight = problem.weight()
    before = weight.clone()
    layer = method_yaml(spec["method"]).build(problem, weight)
    phase = TrainStep("phase3_train_step")
    step, optimizer = phase.make_step(layer, problem)
    step()
    x = layer.shard_input(problem.inputs()).detach().requires_grad_()
    y = layer(x)
    y.sum().backward()
    states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    with torch.no_grad():
        frozen = layer(x)
    return Outcome(
        value={
            "weight_bytes": layer.weight_bytes(),
            "gradient_bytes": distributed.local_bytes(p.grad for p in layer.parameters()),
            "state_bytes": distributed.local_bytes(states),
            "storage_bytes": sum(distributed.local_part(p).untyped_storage().nbytes() for p in layer.parameters()),
            "types": [type(t).__name__ for t in (y, frozen, x.grad)],
            "given_weight_is_untouched": torch.equal(weight, before),
            "flops": sum(count_flops(layer, step).values()),
            "costs": {name: vars(cost) for name, cost in layer.costs().items()},
            "roundings": layer.roundings(),
        }
    )


def graph_beside_eager(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """`replay_beside_eager` on as many GPUs as there are ranks, over NCCL."""
    device = distributed.initialize(info, "cuda", "nccl", threads=1, timeout_s=60)
    problem = dataclasses.replace(problem_of(spec), device=device)
    return Outcome(value=replay_beside_eager(problem, spec))


def replay_beside_eager(problem: Problem, spec: dict[str, Any]) -> dict[str, Any]:
    """Three training steps run eagerly and three replayed from a CUDA graph, after two of either kind to warm up; then
    a forward from a graph captured *before* the weights changed once more.

    The largest differences, relative, and how far the weights have moved.
    """
    weight = problem.weight()
    phase = TrainStep("phase3_train_step", lr=1e-2)
    layers = [method_yaml(spec["method"], **spec.get("options", {})).build(problem, weight) for _ in range(2)]
    (eager, _), (captured, _) = (phase.make_step(layer, problem) for layer in layers)
    side = torch.cuda.Stream()
    for step in (eager, captured):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(), step()
        torch.cuda.current_stream().wait_stream(side)
    losses: list[torch.Tensor] = []
    graph = capture(lambda: losses.append(captured()))
    eager_losses = []
    graph_losses = []
    for _ in range(3):
        eager_losses.append(float(eager()))
        graph.replay()
        graph_losses.append(float(losses[0]))
    trained = [layer.assemble_weight([p.detach() for p in layer.parameters()]) for layer in layers]

    layer = layers[1]
    x = layer.shard_input(problem.inputs())
    outputs: list[torch.Tensor] = []
    with torch.no_grad():
        layer(x)
        forward = capture(lambda: outputs.append(layer(x)))
        graph.replay()  # an update that the captured forward must see
        forward.replay()
        expected = layer(x)
    torch.cuda.synchronize()
    return {
        "losses": [eager_losses, graph_losses],
        "weights_differ": _relative(trained[1], trained[0]),
        "weights_moved": _relative(trained[0], weight),
        "forward_differs": _relative(outputs[0], expected),
        "plain_output": type(outputs[0]) is torch.Tensor,
    }


def _relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def allocated(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """Bytes of GPU memory that a layer holds once the weight that it was built from is gone."""
    device = distributed.initialize(info, "cuda", "nccl", threads=1, timeout_s=60)
    problem = dataclasses.replace(problem_of(spec), device=device)
    distributed.barrier()  # NCCL has what it needs
    before = torch.cuda.memory_allocated(device)
    layer = method_yaml(spec["method"]).build(problem, problem.weight())
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device) - before
    return Outcome(value={"layer_bytes": held, "weight_bytes": layer.weight_bytes()})
