"""What the partitioner makes of a plan: recomputation where the backward first needs it, and saved values as it reads
them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import checkpointing
from checkpointing import plan_of, prove_compiled
from checkpointing.compiled import compiled_step
from tests.checkpointing.compiled.training import Blocks, ConvNeXtBlock, square


def compiled_once(monkeypatch: pytest.MonkeyPatch, execution: str) -> tuple[Any, list[Any]]:
    """(the plan, the backward graphs) of eight equal blocks at a budget that recomputes in most of them."""
    torch._dynamo.reset()
    backwards: list[Any] = []
    split = compiled_step.split

    def recorded(*args: Any) -> Any:
        forward, backward = split(*args)
        backwards.append(backward)
        return forward, backward

    monkeypatch.setattr(compiled_step, "split", recorded)
    torch.manual_seed(0)
    model, x = Blocks(count=8, width=64, dropout=0.0), torch.randn(2048, 64)
    backend = checkpointing.backend(0.6, execution=execution)
    torch.compile(square, backend=backend, dynamic=False)(model, x).backward()
    return plan_of(model), backwards


def test_each_block_is_recomputed_after_the_backward_of_the_block_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, [backward] = compiled_once(monkeypatch, "eager")
    forward = {
        name for name, region in zip(plan.problem.names, plan.problem.regions, strict=True) if region == "forward"
    }
    order = [node.name in forward for node in backward.graph.nodes if node.op == "call_function"]
    assert any(order)
    # hoisted, all that is recomputed would come first; here pieces of the backward lie between
    changes = sum(first != second for first, second in itertools.pairwise(order))
    assert changes >= 8


@pytest.mark.slow
def test_inductor_does_not_hoist_what_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = compiled_once(monkeypatch, "inductor")
    recomputed = sum(plan.problem.size[index] for index in plan.plan.recomputed)
    largest = max(plan.problem.size)
    assert recomputed > 5 * largest
    # the code's peak; with everything recomputed at the start of the backward it would be higher by all of `recomputed`
    assert plan.predicted_peak_bytes <= plan.budget_bytes
    assert plan.predicted_peak_bytes - plan.plan.predicted_peak_bytes < recomputed / 4


def test_images_that_are_only_read_permuted_are_saved_permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    split = compiled_step.split

    def recorded(joint: Any, nodes: Any, *others: Any) -> Any:
        saved.extend(nodes)
        return split(joint, nodes, *others)

    monkeypatch.setattr(compiled_step, "split", recorded)
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, images = ConvNeXtBlock(), torch.randn(4, 3, 64, 64)
    rules = ["aten.add.Tensor", "aten.convolution"]  # what the norms make, and what they read
    proof = prove_compiled(square, model, (images,), 0.9, execution="inductor", keep=rules)
    assert proof.passed
    permuted = [node for node in saved if node.target is torch.ops.aten.permute.default]
    assert (4, 8, 16, 16) in {node.meta["val"].shape for node in permuted}
    assert not {node.args[0] for node in permuted} & set(saved)
