"""What planning does no more than once: for what isn't chosen, and for a step that is planned again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._functorch import partitioners as torch_partitioners
from torch.nn import functional as F

import checkpointing
from checkpointing import BudgetError, plan_of, plans_of
from checkpointing.compiled import compiled_step
from checkpointing.compiled.costs import costs
from checkpointing.compiled.costs.costs import Costs
from checkpointing.compiled.decisions.graph_key import graph_digest
from checkpointing.compiled.joint_problem import _measured_seconds
from checkpointing.compiled.loss import candidates
from checkpointing.compiled.loss.candidates import Candidates
from checkpointing.compiled.memory.device_memory import FirstSteps
from checkpointing.compiled.partition import default_split, own_copy
from checkpointing.errors import CostError
from tests.checkpointing.compiled.loss.joint_graphs_of import traced
from tests.checkpointing.compiled.recorded_graphs import recorded
from tests.checkpointing.compiled.test_backend import Overrun
from tests.checkpointing.compiled.training import Blocks, square, train

BATCH = (torch.randn(64, 16),)


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """The results of each call of `owner.name`."""
    function, results = getattr(owner, name), []

    def counting(*args: Any, **options: Any) -> Any:
        results.append(function(*args, **options))
        return results[-1]

    monkeypatch.setattr(owner, name, counting)
    return results


def test_the_compilers_own_halves_are_made_when_they_are_taken_and_from_the_same_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = recorded("gpt2")
    options: dict[str, Any] = {
        "num_fwd_outputs": graph.num_fwd_outputs,
        "static_lifetime_input_indices": graph.static_inputs,
    }
    forward, backward = torch_partitioners.min_cut_rematerialization_partition(own_copy(graph.module), [], **options)
    cuts = counted(monkeypatch, torch_partitioners, "solve_min_cut")
    extracted = counted(monkeypatch, torch_partitioners, "_extract_fwd_bwd_modules")
    default = default_split(own_copy(graph.module), [], graph.num_fwd_outputs, graph.static_inputs, fused=True)
    assert (len(cuts), len(extracted)) == (1, 0)
    [output] = forward.graph.find_nodes(op="output")
    handed_over = [node.name for node in output.args[0][graph.num_fwd_outputs :] if node.op == "call_function"]
    assert {node.name for node in default.saved} == set(handed_over)
    assert [str(half.graph) for half in default.halves()] == [str(forward.graph), str(backward.graph)]
    assert (len(cuts), len(extracted)) == (1, 1)


def test_a_step_that_is_planned_again_keeps_its_graphs_and_its_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as its first steps are read: then they are let go."""
    by = checkpointing.backend(1.0, execution="eager")
    need = plan_of(train(Blocks(8), square, BATCH, by, steps=1).model).unplanned_peak_bytes
    Overrun(monkeypatch, excess=4096, times=1)
    monkeypatch.setattr(FirstSteps, "are_over", False)
    made = counted(monkeypatch, candidates, "candidate")
    asked = counted(monkeypatch, candidates, "measured_problem")
    split = counted(monkeypatch, compiled_step, "split")
    model = train(Blocks(8), square, BATCH, checkpointing.backend(int(0.95 * need), execution="eager")).model
    first, second = plans_of(model)
    assert len(first.plan.recomputed) < len(second.plan.recomputed)
    assert (len(made), len(asked), len(split)) == (1, 1, 2)


def test_graphs_are_let_go_when_no_further_step_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = counted(monkeypatch, Candidates, "forget")
    begun = counted(monkeypatch, Candidates, "begin")
    train(Blocks(), square, BATCH, checkpointing.backend(0.9, execution="eager"), steps=1)
    assert len(forgotten) > len(begun) == 1  # a CPU has no allocator whose peak is read


def joint_of(rows: int, loss: Callable[[Tensor, Tensor], Tensor]) -> fx.GraphModule:
    step = traced(loss, (torch.randn(rows, 8), torch.randn(4, 8, requires_grad=True)), None, decomposed=False)
    step.run()
    assert step.joint is not None
    return step.joint


def test_another_graph_has_candidates_of_its_own() -> None:
    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight).square().sum()

    found = Candidates(fused=False, kernel=None)

    def made(joint: fx.GraphModule) -> Any:
        found.begin(joint, [], 1, [])
        return found.make(None)

    first = joint_of(16, loss)
    assert made(first) is made(first)
    assert made(joint_of(8, loss)) is not made(joint_of(16, loss))
    assert made(first) is not made(joint_of(16, lambda x, weight: loss(x, weight) + 1))


def test_a_split_leaves_the_joint_graph_and_its_marks_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random operators that run again are marked for torch's partitioner, and may be kept by the next plan."""
    original = compiled_step.split
    seen: list[tuple[str, list[object]]] = []

    def marks(joint: fx.GraphModule) -> tuple[str, list[object]]:
        return graph_digest(joint.graph), [node.meta.get("recompute") for node in joint.graph.nodes]

    def watched(joint: fx.GraphModule, *args: Any) -> Any:
        seen.append(marks(joint))
        halves = original(joint, *args)
        seen.append(marks(joint))
        return halves

    monkeypatch.setattr(compiled_step, "split", watched)
    by = checkpointing.backend("1GB", execution="eager", recompute=["aten.native_dropout"])
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.Dropout(0.5), nn.Linear(64, 16)) for _ in range(4)))
    train(model, square, BATCH, by, steps=1)
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_no_garbage_is_collected_while_a_step_is_planned_and_it_is_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    function, enabled = candidates.candidate, []

    def watched(*args: Any) -> Any:
        enabled.append(gc.isenabled())
        return function(*args)

    monkeypatch.setattr(candidates, "candidate", watched)
    train(Blocks(), square, BATCH, checkpointing.backend(0.9, execution="eager"), steps=1)
    assert gc.isenabled()
    with pytest.raises(BudgetError):
        train(Blocks(), square, BATCH, checkpointing.backend(0.01, execution="eager"), steps=1)
    assert gc.isenabled()
    gc.disable()
    try:
        train(Blocks(), square, BATCH, checkpointing.backend(0.9, execution="eager"), steps=1)
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert enabled == [False] * len(enabled)


def test_what_could_not_be_measured_is_let_go_without_the_collector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    held: list[weakref.ref[Tensor]] = []

    def failing(call: Any, device: torch.device) -> Any:
        large = torch.empty(8)
        held.append(weakref.ref(large))
        raise CostError(f"{call} cannot be run on its own")

    monkeypatch.setattr(costs, "cost_of", failing)
    graph = joint_of(16, lambda x, weight: F.linear(x, weight).square().sum()).graph
    matmuls = graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    gc.disable()
    try:
        assert _measured_seconds(Costs(torch.device("cpu")), matmuls, matmuls) == {}
    finally:
        gc.enable()
    assert held
    assert not any(tensor() is not None for tensor in held)
