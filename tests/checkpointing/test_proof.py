"""The proof passes what is right, fails what is wrong and names it; and leaves everything as it was."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from checkpointing import (
    CheckpointedStep,
    Plan,
    apply_activation_checkpointing,
    problem_from,
    rewrite_graph_with_recomputation,
)
from checkpointing.operators.replay import replay
from checkpointing.rewriting.proof import compare_runs
from profiler import analyse, trace_train_step
from profiler.costs.memory import MeasuredMemory
from profiler.models import build
from tests.checkpointing.steps import DROPOUT, TINY, adamw, everything, momentum, tiny_case


def without_dropout_masks(step: CheckpointedStep) -> None:
    """Replace each replayed random operator by a fresh one."""
    for node in step.graph.find_nodes(op="call_function", target=replay):
        node.target, node.args = node.args[2], node.args[3:]
    step.graph_module.recompile()


def perturb(step: CheckpointedStep, node: fx.Node) -> None:
    """Whoever reads the copy `node` gets a little more."""
    with step.graph.inserting_after(node):
        more = step.graph.call_function(torch.ops.aten.add.Tensor, (node, 1e-3))
    more.meta = dict(node.meta)
    node.replace_all_uses_with(more, delete_user_cb=lambda user: user is not more)
    step.graph_module.recompile()


@pytest.mark.parametrize("name", TINY)
def test_verify_passes_and_leaves_everything_as_it_was(name: str) -> None:
    case = tiny_case(name)
    case.restore()
    step = rewrite_graph_with_recomputation(case.step, case.plan(()))
    before = copy.deepcopy(everything(case.model, case.optimizer))
    generator = torch.get_rng_state()
    proof = step.verify(case.batch)
    assert proof.passed
    assert proof.identical
    assert proof.deterministic
    assert proof.summary().endswith("passed")
    assert set(proof.table["kind"]) >= {"loss", "gradient", "PARAM", "OPT_STATE"}
    parameters = [n for n, p in case.model.named_parameters()]
    assert proof.table.query("kind == 'PARAM'")["name"].tolist() == parameters
    assert set(proof.table.query("kind == 'BUFFER'")["name"]) == {n for n, _ in case.model.named_buffers()}
    after = everything(case.model, case.optimizer)
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_fresh_dropout_mask_is_found() -> None:
    case = tiny_case("tiny_gpt2")
    case.restore()
    step = rewrite_graph_with_recomputation(case.step, case.plan(()))
    without_dropout_masks(step)
    proof = step.verify(case.batch)
    assert not proof.passed
    loss = proof.table.query("kind == 'loss'")
    assert loss["identical"].all()  # the forward is right: a check of the loss alone would see nothing
    failing = proof.table[~proof.table["passed"]]
    assert {"gradient", "PARAM"} <= set(failing["kind"])
    first = failing.iloc[0]
    assert f"FAILED: {first['kind']} {first['name']} is off by" in proof.summary()


def test_a_perturbed_copy_is_found() -> None:
    case = tiny_case("tiny_llama")
    case.restore()
    found = []
    step = rewrite_graph_with_recomputation(case.step, case.plan(()))
    floats = [
        node
        for node in step.nodes
        if "recomputed_from" in node.meta
        and isinstance(node.meta.get("val"), Tensor)
        and node.meta["val"].is_floating_point()
        and any("recomputed_from" not in user.meta for user in node.users)
    ]
    for position in range(0, len(floats), max(1, len(floats) // 3)):
        step = rewrite_graph_with_recomputation(case.step, case.plan(()))
        (node,) = (n for n in step.nodes if n.name == floats[position].name)
        perturb(step, node)
        proof = step.verify(case.batch)
        found.append(proof.passed)
        assert "FAILED: gradient" in proof.summary() or "FAILED: PARAM" in proof.summary()
    assert len(found) >= 3
    assert not any(found)


def test_a_wrong_buffer_is_found() -> None:
    """A second run of batch norm that updates the running statistics changes nothing else in the step."""
    case = tiny_case("tiny_resnet152")
    case.restore()
    step = rewrite_graph_with_recomputation(case.step, case.plan(()))
    original = {node.name: node for node in step.nodes}
    twice = 0
    for node in step.nodes:
        if "recomputed_from" in node.meta and "batch_norm" in str(node.target):
            origin = original[node.meta["recomputed_from"]]
            node.args = (*node.args[:3], *origin.args[3:5], *node.args[5:])
            twice += 1
    step.graph_module.recompile()
    proof = step.verify(case.batch)
    failing = proof.table[~proof.table["passed"]]
    assert twice
    assert set(failing["kind"]) == {"BUFFER"}
    assert len(failing) == 2 * twice
    assert failing["name"].str.contains("running_").all()


@pytest.mark.parametrize(("name", "budget"), [("tiny_gpt2", 0.8), ("tiny_resnet152", 0.95)])
@pytest.mark.parametrize("solver", ["optimal", "greedy"])
def test_applying_leaves_model_optimizer_and_generators_untouched(name: str, budget: float, solver: str) -> None:
    problem = build(name, dropout=DROPOUT.get(name))
    make = momentum if "resnet" in name else adamw
    optimizer = make(problem.model.parameters())
    weights = copy.deepcopy(problem.model.state_dict())
    parameters = [id(p) for p in problem.model.parameters()]
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    generator = torch.get_rng_state()
    step = apply_activation_checkpointing(
        problem.model, problem.loss_fn, optimizer, problem.batch, memory_budget=budget, solver=solver
    )
    assert torch.equal(torch.get_rng_state(), generator)
    assert [id(p) for p in problem.model.parameters()] == parameters
    assert all(torch.equal(value, weights[key]) for key, value in problem.model.state_dict().items())
    assert all(p.grad is None for p in problem.model.parameters())
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == options
    assert all(not v.any() for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
    assert problem.model.training
    assert step.plan.recomputed
    assert step.plan.predicted_peak_bytes <= step.plan.budget_bytes
    loss = step(*problem.batch)
    assert torch.isfinite(loss)
    assert any(not torch.equal(value, weights[key]) for key, value in problem.model.state_dict().items())


def test_verify_agrees_after_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 2))
    batch = (torch.randn(64, 8),)
    step = apply_activation_checkpointing(
        model, lambda m, x: m(x).square().mean(), momentum(model.parameters()), batch, memory_budget=0.9
    )
    for _ in range(3):
        step(*batch)
    assert step.verify(batch).identical


class Complex(nn.Module):
    """A complex parameter, and a conjugate's imaginary part: a view that negates what lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8, dtype=torch.complex64))
        self.register_buffer("last", torch.zeros(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x.to(torch.complex64) @ self.weight)
        negated = y.conj().imag
        self.last.copy_(negated.detach())
        return (torch.sigmoid(negated) * torch.exp(y.real)).sum() + (y * y.conj()).real.mean()


def test_complex_numbers_and_negated_views_are_compared_bit_for_bit() -> None:
    model, batch = Complex(), (torch.randn(4, 6),)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = trace_train_step(model, lambda m, x: m(x), optimizer, batch)
    problem = problem_from(analyse(step), [1e-3] * len(step.nodes), MeasuredMemory())
    rewritten = rewrite_graph_with_recomputation(step, Plan(problem, "all that may", frozenset(problem.pinned)))
    assert rewritten.plan.recomputed
    proof = rewritten.verify(batch)
    assert proof.identical, proof.summary()
    assert ("PARAM", "weight") in set(zip(proof.table["kind"], proof.table["name"], strict=True))


def test_other_bits_of_a_complex_number_are_a_difference() -> None:
    one = {("PARAM", "w"): torch.tensor([1 + 2j])}
    other = {("PARAM", "w"): torch.tensor([1 - 2j])}
    proof = compare_runs([one], other)
    assert not proof.passed
    assert proof.table["difference"].tolist() == [4.0]
    assert compare_runs([one], {("PARAM", "w"): other["PARAM", "w"].conj()}).identical
