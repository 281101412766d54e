"""The memory model equals what is alive, and its parts add up to the peak."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from profiler import GraphProfiler, NodeType, Region, TracedStep, analyse, simulate, trace_train_step
from profiler.costs.memory import CATEGORIES
from profiler.graph.step import running
from profiler.models import build
from tests.profiler.conftest import profiled, traced
from tests.profiler.eager_steps import LiveBytes, eager_step


def tensors_of_user(step: TracedStep, batch: tuple[Tensor, ...]) -> list[Tensor]:
    constants = [getattr(step.graph_module, str(node.target)) for node in step.graph.find_nodes(op="get_attr")]
    state = [v for s in step.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    return [*step.model.parameters(), *step.model.buffers(), *state, *batch, *constants]


def operator_ranks(step: TracedStep) -> list[int]:
    return [r for r, n in enumerate(step.nodes) if isinstance(n.target, torch._ops.OpOverload)]


def test_live_bytes_equal_an_independent_count_at_every_operator(tiny: str) -> None:
    problem, step = traced(tiny)
    step(*problem.batch)
    counter = LiveBytes(tensors_of_user(step, problem.batch))
    with counter:
        step(*problem.batch)
    curve = simulate(analyse(step))
    simulated = curve.table["live_bytes"].to_numpy()[operator_ranks(step)]
    assert np.array_equal(simulated, counter.counts)
    assert curve.peak_bytes == max(counter.counts)


def test_traced_step_keeps_no_more_alive_than_eager(tiny: str) -> None:
    problem, step = traced(tiny)
    step(*problem.batch)
    traced_count = LiveBytes(tensors_of_user(step, problem.batch))
    with traced_count:
        step(*problem.batch)
    eager_count = LiveBytes(tensors_of_user(step, problem.batch))
    with eager_count:
        eager_step(step.model, problem.loss_fn, step.optimizer, problem.batch)
    step.optimizer.zero_grad()
    assert max(traced_count.counts) <= max(eager_count.counts)


def test_fake_tensors_share_storages_exactly_as_real_ones(tiny: str) -> None:
    problem, step = traced(tiny)
    values: dict[fx.Node, object] = {}

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            values[n] = super().run_node(n)
            return values[n]

    with running():
        Keep(step.graph_module, garbage_collect_values=False).run(*step.arguments(problem.batch))
    real_of: dict[int, int] = {}
    fake_of: dict[int, int] = {}
    compared = 0
    for node in step.nodes[:-1]:
        fakes = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
        reals = [t for t in pytree.tree_leaves(values[node]) if isinstance(t, Tensor)]
        for fake, real in zip(fakes, reals, strict=True):
            f, r = fake.untyped_storage(), real.untyped_storage()
            assert real_of.setdefault(f._cdata, r._cdata) == r._cdata, node
            assert fake_of.setdefault(r._cdata, f._cdata) == f._cdata, node
            assert f.nbytes() == r.nbytes(), node
            compared += 1
    assert compared > len(step.nodes) / 2


def test_breakdown_adds_up_to_the_peak_exactly(tiny: str) -> None:
    _, profiler = profiled(tiny)
    breakdown = profiler.peak_breakdown()
    assert list(breakdown) == CATEGORIES
    assert sum(breakdown.values()) == profiler.memory().peak_bytes
    table = profiler.memory().table
    assert (table[CATEGORIES].sum(axis=1) == table["total_bytes"]).all()


def test_peak_equals_the_allocators(tiny: str) -> None:
    _, profiler = profiled(tiny)
    curve = profiler.memory()
    assert curve.peak_bytes == profiler.profile.step_peak_bytes
    ranks = profiler.measured_ranks
    assert np.array_equal(curve.table["live_bytes"].to_numpy()[ranks], profiler.profile.after_bytes[ranks])
    assert np.array_equal(curve.table["total_bytes"].to_numpy()[ranks], profiler.profile.peak_bytes[ranks])


def test_every_size_is_rounded_up_to_512_bytes_on_cuda(tiny: str) -> None:
    _, step = traced(tiny)
    analysis = analyse(step)
    table = simulate(analysis, rounding=512).table
    assert (table[CATEGORIES] % 512 == 0).all().all()
    parameters = analysis.bytes_by_name(NodeType.PARAM).values()
    assert table["parameters"].iloc[0] == sum(-(-size // 512) * 512 for size in parameters)


def test_every_activation_is_used_in_the_forward_before_the_backward(tiny: str) -> None:
    _, step = traced(tiny)
    nodes, activations = step.nodes, analyse(step).activations
    assert activations
    for activation in activations:
        assert activation.first_bw_use_rank > activation.last_fw_use_rank >= activation.creation_rank
        assert nodes[activation.creation_rank].meta["region"] in (Region.FORWARD, Region.LOSS)
        assert nodes[activation.first_bw_use_rank].meta["region"] is Region.BACKWARD
        assert nodes[activation.last_bw_use_rank].meta["region"] is Region.BACKWARD


def saved_by_autograd(loss: Tensor) -> Iterator[Tensor]:
    pending, seen = [loss.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            if name.startswith("_saved_"):
                yield from (t for t in pytree.tree_leaves(getattr(node, name)) if isinstance(t, Tensor))
        pending += [following for following, _ in node.next_functions]


def test_activations_are_what_autograd_saves(tiny: str) -> None:
    """What eager's autograd graph holds, compared by size, single numbers and the user's aside.

    Autograd wraps Python numbers into tensors, and the step reads the loss, which autograd does not save.
    """
    problem, step = traced(tiny)
    loss = problem.loss_fn(problem.model, *problem.batch)
    users = {t.untyped_storage()._cdata for t in tensors_of_user(step, problem.batch)}
    saved = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in saved_by_autograd(loss)}
    expected = sorted(size for key, size in saved.items() if key not in users and size > 8)
    assert sorted(a.storage.bytes for a in analyse(step).activations if a.storage.bytes > 8) == expected


def test_resnet152_has_229_6_mib_of_parameters_and_of_gradients() -> None:
    with FakeTensorMode():  # shapes alone: no weights are made and nothing runs
        problem = build("resnet152", batch_size=64)
    step = trace_train_step(
        problem.model, problem.loss_fn, torch.optim.SGD(problem.model.parameters(), lr=0.1), problem.batch
    )
    assert step.is_fake
    profiler = GraphProfiler(step)
    parameters = profiler.analysis.bytes_by_name(NodeType.PARAM)
    assert round(sum(parameters.values()) / 2**20, 1) == 229.6
    assert profiler.analysis.bytes_by_name(NodeType.GRAD) == parameters
    forecast = profiler.memory(rounding=512)
    assert sum(forecast.breakdown().values()) == forecast.peak_bytes
    assert forecast.peak_bytes > 10 * 2**30  # ResNet-152's activations for 64 images of 224 × 224 in fp32


def test_gradients_states_and_buffers_by_name(tiny: str) -> None:
    _, step = traced(tiny)
    analysis = analyse(step)
    of_model = {name: p.numel() * p.element_size() for name, p in step.model.named_parameters()}
    assert analysis.bytes_by_name(NodeType.PARAM) == of_model
    assert analysis.bytes_by_name(NodeType.GRAD).items() <= of_model.items()
    with_gradient = {n for n, p in step.model.named_parameters() if step.optimizer.state.get(p)}
    assert analysis.bytes_by_name(NodeType.GRAD).keys() == with_gradient
    buffers = {name: b.numel() * b.element_size() for name, b in step.model.named_buffers()}
    assert analysis.bytes_by_name(NodeType.BUFFER) == buffers
    states = [v for s in step.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    found = analysis.bytes_by_name(NodeType.OPT_STATE)
    assert len(found) == len(states) > 0
    assert sum(found.values()) == sum(v.numel() * v.element_size() for v in states)


def test_views_in_place_results_and_elements_belong_to_their_storage() -> None:
    class Aliasing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            y = y.relu_().view(2, 2, 8)  # the view and the in-place result are the linear layer's storage
            a, b = y.split(4, dim=2)
            return (a * b).tanh()

    torch.manual_seed(0)
    model, x = Aliasing(), torch.randn(4, 8)
    step = trace_train_step(model, lambda m, x: m(x).sum(), torch.optim.SGD(model.parameters(), lr=0.1), (x,))
    analysis = analyse(step)
    forward = [node for node in step.nodes if node.meta["region"] is Region.FORWARD]
    of = {str(node.target): analysis.held_by(node) for node in forward}
    (linear,) = of["aten.addmm.default"]
    assert of["aten.relu_.default"] == of["aten.view.default"] == of["aten.split.Tensor"] == [linear]
    storage = analysis.storages[linear]
    assert storage.node_type is NodeType.ACT
    assert storage.bytes == 4 * 8 * 4
    assert len(storage.writers) == 2  # addmm and relu_
    sizes = sorted(a.storage.bytes for a in analysis.activations if a.storage.bytes > 4)
    assert sizes == [4 * 4 * 4, 4 * 8 * 4]  # tanh's result, and the linear layer's


@pytest.mark.parametrize("same_storage", [True, False])
def test_tensors_of_the_batch_that_share_a_storage_count_once(same_storage: bool) -> None:
    model = nn.Linear(4, 4)
    base = torch.randn(16, 4)
    batch = (base[:4], base[4:8]) if same_storage else (base[:4].clone(), base[4:8].clone())
    step = trace_train_step(
        model, lambda m, x, y: (m(x) - y).square().mean(), torch.optim.SGD(model.parameters(), lr=0.1), batch
    )
    expected = base.untyped_storage().nbytes() if same_storage else 2 * 4 * 4 * 4
    assert simulate(analyse(step)).breakdown()["inputs"] == expected
