"""What it takes to make an activation again: the named nodes are enough, and each counts once."""

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from profiler import Region, StorageAnalysis, analyse, recompute_cost, trace_train_step
from profiler.graph.step import running
from profiler.models import build
from tests.profiler.conftest import profiled


def contents(tensor: Tensor) -> Tensor:
    whole = torch.empty(0, dtype=torch.uint8)
    return whole.set_(tensor.untyped_storage()).clone()  # type: ignore[call-overload]


def run(node: fx.Node, values: dict[fx.Node, object], module: fx.GraphModule) -> object:
    if node.op == "get_attr":
        return getattr(module, str(node.target))
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def tensor_of(values: dict[fx.Node, object], analysis: StorageAnalysis, index: int) -> Tensor:
    """A tensor that aliases storage `index`: the one at the place where the fake tensors have it."""
    for rank in analysis.storages[index].holders:
        node = analysis.nodes[rank]
        if node in values:
            seen: list[int] = []
            leaves = (pytree.tree_leaves(node.meta["val"]), pytree.tree_leaves(values[node]))
            for fake, real in zip(*leaves, strict=True):
                if isinstance(fake, Tensor) and fake.untyped_storage()._cdata not in seen:
                    seen.append(fake.untyped_storage()._cdata)
                    if analysis.held[rank][len(seen) - 1] == index:
                        return real
    raise AssertionError(f"no value holds storage {index}")


@pytest.mark.parametrize("kept_share", [1.0, 0.5, 0.0])
def test_running_the_named_nodes_again_gives_the_activation_to_the_bit(tiny: str, kept_share: float) -> None:
    problem = build(tiny, dropout=0.0)  # with dropout, another run draws another mask
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    step = trace_train_step(problem.model, problem.loss_fn, optimizer, problem.batch)
    analysis = analyse(step)
    values: dict[fx.Node, object] = {}
    arguments = iter(step.arguments(problem.batch))
    forward = [n for n in step.nodes if n.meta["region"] in (Region.INPUT, Region.FORWARD, Region.LOSS)]
    with running():
        for node in forward:
            values[node] = next(arguments) if node.op == "placeholder" else run(node, values, step.graph_module)
        targets = [a.storage for a in analysis.activations]
        kept = {s.index for i, s in enumerate(targets) if (i * 7) % 10 < 10 * kept_share}
        remade = 0
        for target in targets:
            expected = contents(tensor_of(values, analysis, target.index))
            cost = recompute_cost(analysis, target, kept, [1.0] * len(step.nodes))
            assert cost.ranks == sorted(set(cost.ranks))
            assert cost.seconds == len(cost.ranks)
            available = {
                node: value
                for node, value in values.items()
                if all(
                    analysis.storages[i].owned_by_user or (i in kept and i != target.index)
                    for i in analysis.held_by(node)
                )
                and (node.op == "placeholder" or analysis.held_by(node))
            }
            for rank in cost.ranks:
                available[step.nodes[rank]] = run(step.nodes[rank], available, step.graph_module)
            again = {step.nodes[rank]: available[step.nodes[rank]] for rank in cost.ranks}
            assert torch.equal(contents(tensor_of(again, analysis, target.index)), expected), target.name
            remade += 1
    assert remade == len(targets) > 5


def diamond() -> tuple[StorageAnalysis, dict[str, int]]:
    """x → exp → (sin, cos) → sin · cos, where sigmoid keeps its own result for the backward."""

    class Diamond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 64))

        def forward(self, x: Tensor) -> Tensor:
            shared = torch.floor(x)  # needs no gradient: it is freed in the forward unless it is kept
            return (self.weight * (torch.sin(shared) + torch.cos(shared))).sigmoid()

    model = Diamond()
    step = trace_train_step(
        model, lambda m, x: m(x).sum(), torch.optim.SGD(model.parameters(), lr=0.1), (torch.randn(4, 64),)
    )
    analysis = analyse(step)
    ranks = {str(node.target).split(".")[1]: rank for rank, node in enumerate(step.nodes) if "aten" in str(node.target)}
    return analysis, ranks


def test_a_shared_ancestor_is_counted_once_and_memory_is_the_peak_of_running_again() -> None:
    analysis, ranks = diamond()
    forward = {name: rank for name, rank in ranks.items() if name in ("floor", "sin", "cos")}
    addition = next(r for r, n in enumerate(analysis.nodes) if str(n.target) == "aten.add.Tensor")
    (target,) = (analysis.storages[i] for i in analysis.held[addition])
    cost = recompute_cost(analysis, target, kept=[], run_time_s=[1.0] * len(analysis.nodes))
    assert cost.ranks == sorted([*forward.values(), addition])
    assert cost.memory_bytes == 3 * 4 * 64 * 4  # sin, cos and their sum; floor is gone by then
    sigmoid = ranks["sigmoid"]
    (last,) = (analysis.storages[i] for i in analysis.held[sigmoid])
    alone = recompute_cost(analysis, last, kept=[target.index], run_time_s=[1.0] * len(analysis.nodes))
    assert [str(analysis.nodes[r].target) for r in alone.ranks] == ["aten.mul.Tensor", "aten.sigmoid.default"]


def test_columns_of_the_table_are_these_costs() -> None:
    _, profiler = profiled("tiny_llama")
    table = profiler.activation_stats()
    kept = [a.storage.index for a in profiler.analysis.activations]
    times = profiler.profile.run_time_s
    for row, activation in zip(table.itertuples(), profiler.analysis.activations, strict=True):
        cost = recompute_cost(profiler.analysis, activation.storage, kept, times, profiler.profile.memory)
        assert row.recomp_time_s == cost.seconds == pytest.approx(times[cost.ranks].sum())
        assert row.recomp_memory_bytes == cost.memory_bytes >= activation.storage.bytes
