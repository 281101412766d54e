"""What ranks do in the tests of an MLP's pair of layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import functional

from blockshock.collectives import gradients
from blockshock.config import ModelConfig
from blockshock.jobs import correctness
from blockshock.methods import ParallelModule
from blockshock.methods.pairs.choice import pairing_of
from blockshock.methods.pairs.mlp import ACTIVATIONS, Mlp, MlpProblem
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from tests.blockshock.rank_tasks import join, method_yaml, problem_of


def pair_of(spec: dict[str, Any]) -> tuple[MlpProblem, ParallelModule]:
    method = method_yaml(spec["method"], **spec.get("options", {}))
    layer = problem_of(spec)
    mlp = Mlp(spec["hidden"], ACTIVATIONS[spec.get("activation", "gelu")], spec.get("gated", False))
    hardware = SimpleNamespace(world_size=distributed.world_size(), backend="gloo", device="cpu")
    model = ModelConfig(spec["N"], spec["K"], spec["B"], "fp64")
    job: Any = SimpleNamespace(method=method, mask=layer.mask, hardware=hardware, model=model)
    pairing = pairing_of(job, spec.get("pairing", "auto"))
    problem = MlpProblem(**vars(layer), mlp=mlp, pairing=pairing)
    return problem, problem.build(method, problem.weights())


def written_out(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, spec: dict[str, Any]) -> torch.Tensor:
    """The MLP in torch's own functions."""
    act = {
        "gelu": functional.gelu,
        "gelu_tanh": lambda u: functional.gelu(u, approximate="tanh"),
        "relu": torch.relu,
        "silu": functional.silu,
    }[spec.get("activation", "gelu")]
    if not spec.get("gated"):
        return functional.linear(act(functional.linear(x, up)), down)
    gate, other = up[: spec["hidden"]], up[spec["hidden"] :]
    return functional.linear(act(functional.linear(x, gate)) * functional.linear(x, other), down)


def compare_with_dense(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """Relative errors of Y, dX and both dW against float64 autograd, the worst rank's; whether the weights are the
    dense ones to the bit; the pairing."""
    join(info)
    problem, pair = pair_of(spec)
    weights, x, upstream = problem.weights()[:2], problem.inputs(), problem.upstream_gradient()
    local = pair.shard_input(x).detach().requires_grad_()
    y = pair(local)
    y.backward(upstream)
    grads = [p.grad for p in pair.parameters()]
    got = [y, pair.assemble_input_grad(local.grad), *pair.assemble_weights(grads)]

    exact = [t.double().requires_grad_() for t in (x, *weights)]
    exact_y = written_out(*exact, spec)
    exact_y.backward(upstream.double())
    expected = [exact_y.detach(), *(t.grad for t in exact)]
    errors = [float((g.detach().double() - e).norm() / e.norm()) for g, e in zip(got, expected, strict=True)]
    held = pair.assemble_weights([p.detach() for p in pair.parameters()])
    same = all(torch.equal(mine, dense) for mine, dense in zip(held, weights, strict=True))
    return Outcome(value=(distributed.max_over_ranks(errors), same, pair.describe()["pairing"]))


def train_beside_dense(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """Ten AdamW steps of the pair and of the MLP written out: the largest difference of their weights, relative, and
    how far they moved."""
    join(info)
    problem, pair = pair_of(spec)
    start = problem.weights()[:2]
    dense = [torch.nn.Parameter(weight.clone()) for weight in start]
    optimizers = [torch.optim.AdamW(list(p), lr=1e-2, weight_decay=0.1) for p in (pair.parameters(), dense)]
    for step in range(1, 11):
        x, target = problem.inputs(step), problem.target(step)
        for optimizer, y in zip(optimizers, (pair(x), written_out(x, *dense, spec)), strict=True):
            optimizer.zero_grad()
            functional.mse_loss(y, target).backward()
            optimizer.step()
        pair.after_optimizer_step(step)
    found = pair.assemble_weights([p.detach() for p in pair.parameters()])
    differ = [float((mine - d.detach()).norm() / d.detach().norm()) for mine, d in zip(found, dense, strict=True)]
    moved = [float((d.detach() - s).norm() / s.norm()) for d, s in zip(dense, start, strict=True)]
    return Outcome(value=(max(differ), min(moved)))


def judge(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """The verdicts of the phases' own check."""
    join(info)
    return Outcome(value=correctness.check(*pair_of(spec)))


Sent = list[tuple[str, int]]


@contextmanager
def listening(sent: Sent) -> Iterator[None]:
    """Note each collective of ours, and the elements of the larger of its two sides."""
    whole = {"all_reduce": (dist, "all_reduce", 0), "gather": (gradients, "all_gather", 0)}
    whole["reduce_scatter"] = (gradients, "reduce_scatter", 1)
    originals = {name: getattr(module, attribute) for name, (module, attribute, _) in whole.items()}

    def noting(name: str, place: int) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            sent.append((name, arguments[place].numel()))
            return originals[name](*arguments, **keywords)

        return call

    for name, (module, attribute, place) in whole.items():
        setattr(module, attribute, noting(name, place))
    try:
        yield
    finally:
        for name, (module, attribute, _) in whole.items():
            setattr(module, attribute, originals[name])


def collectives(info: RankInfo, spec: dict[str, Any], say: Any) -> Outcome:
    """What one forward and one backward pass send, and what the roofline says of it."""
    join(info)
    problem, pair = pair_of(spec)
    x = problem.inputs().requires_grad_()
    passes: dict[str, Sent] = {"forward": [], "backward": []}
    with listening(passes["forward"]):
        y = pair(x)
    with listening(passes["backward"]):
        y.backward(problem.upstream_gradient())
    link = {name: cost.link_bytes for name, cost in pair.costs().items()}
    flops = {name: cost.flops for name, cost in pair.costs().items()}
    with CommDebugMode() as theirs:
        y = pair(x)
        counts = [sum(theirs.get_comm_counts().values())]
        y.backward(problem.upstream_gradient())
        counts.append(sum(theirs.get_comm_counts().values()) - counts[0])
    return Outcome(value={"passes": passes, "link": link, "flops": flops, "counts": counts})


def same_bits(info: RankInfo, specs: list[dict[str, Any]], say: Any) -> Outcome:
    """Whether pairs give the same Y and gradients to the bit."""
    join(info)
    results = []
    for spec in specs:
        problem, pair = pair_of(spec)
        x = problem.inputs().requires_grad_()
        y = pair(x)
        y.backward(problem.upstream_gradient())
        grads = pair.assemble_weights([p.grad for p in pair.parameters()])
        results.append([y.detach(), x.grad, *grads])
    alike = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    return Outcome(value=alike and math.isfinite(float(results[0][0].norm())))
