"""Two ranks over gloo: one plan, each rank within the budget, sharded parameters (FSDP2), and no rank left waiting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

import checkpointing
from checkpointing import plan_of
from checkpointing.compiled import execution
from checkpointing.compiled.costs.costs import Costs
from checkpointing.compiled.decisions import ranks
from checkpointing.errors import BudgetError, CheckpointingError, GraphBreakError
from tests.checkpointing.compiled.training import Blocks, square
from tests.checkpointing.loops.loop import Deep, backend, batches, in_processes, loss_of, model_of
from tests.profiler.eager_steps import LiveBytes, assert_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test waits for the works of all


@pytest.fixture(scope="module")
def on_two_ranks(
    tmp_path_factory: pytest.TempPathFactory, forking_server: None
) -> Callable[[Callable[[int], Any]], list[Any]]:
    """`on_two_ranks(work)`: what `work(rank)` returned on each of two ranks. Two processes do all the works, one after
    another. `disagreements` is first, since no rank has measured then."""
    folder = tmp_path_factory.mktemp("ranks")
    in_processes(
        _on_rank, (folder, (disagreements, loss_in_chunks, both_orders, blocks_sharded, gathering, absence)), 2
    )
    return lambda work: [torch.load(folder / f"{work.__name__}-{rank}.pt", weights_only=False) for rank in range(2)]


def _on_rank(rank: int, folder: Path, works: Sequence[Callable[[int], Any]]) -> None:
    meeting = folder / "meeting"
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)
    torch.set_num_threads(1)
    plain = execution._interpreted
    for work in works:
        torch._dynamo.reset()
        torch.save(work(rank), folder / f"{work.__name__}-{rank}.pt")
        execution._interpreted = plain  # without the modes of the work before
        dist.barrier()
    dist.destroy_process_group()


def watch_halves(make: Callable[[list[Any]], Any]) -> list[Any]:
    """Modes made from the arguments of each half that runs, of those compiled from now on; each is active within."""
    modes: list[Any] = []
    interpreted = execution._interpreted

    def watching(module: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        run = interpreted(module, inputs)

        def watched(arguments: list[Any]) -> Any:
            modes.append(make(arguments))
            with modes[-1]:
                return run(arguments)

        watched._boxed_call = True  # type: ignore[attr-defined]
        return watched

    execution._interpreted = watching
    return modes


def live_bytes(arguments: list[Any]) -> LiveBytes:
    return LiveBytes([value for value in arguments if isinstance(value, Tensor)])


def train_sharded(by: Any, order: str, rank: int) -> dict[str, Any]:
    """Three steps of a model whose parameters are sharded: losses, gradients of the last step as a whole, peak."""
    torch._dynamo.reset()
    modes = watch_halves(live_bytes)
    model = model_of(Deep)
    if order == "compiled inside":
        model.compile(backend=by, dynamic=False)
        outer = fully_shard(model)
    else:
        outer = torch.compile(fully_shard(model), backend=by, dynamic=False)  # type: ignore[assignment]
    optimizer = SGD(model.parameters(), lr=1e-2, momentum=0.9)
    torch.manual_seed(rank)
    losses = []
    for x, labels in batches(3):
        optimizer.zero_grad()
        loss = cross_entropy(outer(x + rank), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(isinstance(p, DTensor) for p in model.parameters())
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}  # type: ignore[union-attr]
    plan = None if isinstance(by, str) else plan_of(model)
    assert plan is None or plan is by.plans[-1]
    return {
        "losses": losses,
        "gradients": gradients,
        "peak": max((count for mode in modes for count in mode.counts), default=0),
        "state": (plan.optimizer_state_bytes if plan else 0, _state_bytes(optimizer)),
        "plan": plan and (sorted(plan.plan.kept), plan.is_empty, plan.budget_bytes, plan.predicted_peak_bytes),
    }


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of this rank's shards."""
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.to_local().nbytes if isinstance(value, DTensor) else value.nbytes for value in kept)


def both_orders(rank: int) -> dict[str, Any]:
    found = {}
    for order in ("compiled inside", "compiled around"):
        for by in (backend(0.9), backend(1.0), "aot_eager"):
            found[order, getattr(by, "memory_budget", by)] = train_sharded(by, order, rank)
    return found


def test_sharded_ranks_have_one_plan_meet_the_budget_and_have_the_gradients_of_the_unplanned_step(
    on_two_ranks: Any,
) -> None:
    found = on_two_ranks(both_orders)
    for order in ("compiled inside", "compiled around"):
        for rank in range(2):
            planned, roomy, unplanned = (found[rank][order, by] for by in (0.9, 1.0, "aot_eager"))
            assert planned["losses"] == unplanned["losses"]
            assert_equal(planned["gradients"], unplanned["gradients"], "")
            _, is_empty, budget, predicted = planned["plan"]
            assert not is_empty
            assert planned["peak"] + planned["state"][0] <= predicted <= budget < roomy["peak"] + roomy["state"][0]
            most = max(found[other][order, 0.9]["state"][1] for other in range(2))  # one rank's shards are smaller
            assert planned["state"][0] == most > 0
        assert found[0][order, 0.9]["plan"] == found[1][order, 0.9]["plan"]
        assert found[0][order, 0.9]["losses"] != found[1][order, 0.9]["losses"]
        assert_equal(found[0][order, 0.9]["gradients"], found[1][order, 0.9]["gradients"], "")


def blocks_sharded(rank: int) -> str:
    model: Any = model_of(Deep)
    for module in (model.encoder, model.head[0], model):
        fully_shard(module)
    with pytest.raises(GraphBreakError) as error:
        train_once(model, backend())
    return str(error.value)


def train_once(model: nn.Module, by: Any, batch: Sequence[Tensor] = (), loss_fn: Any = loss_of) -> Tensor:
    loss = torch.compile(loss_fn, backend=by, dynamic=False)(model, *(batch or batches(1)[0]))
    loss.backward()
    return loss.detach()


def test_blocks_that_are_sharded_apart_are_graph_breaks(on_two_ranks: Any) -> None:
    assert all("several graphs" in said for said in on_two_ranks(blocks_sharded))


def told(by: Any, model: nn.Module | None = None) -> tuple[str, str]:
    """The error of a step that is compiled by `by`: its type and text; two empty strings if there is none."""
    torch._dynamo.reset()
    try:
        train_once(model or model_of(Deep), by)
    except CheckpointingError as error:
        return type(error).__name__, str(error)
    return "", ""


def with_bytes_of_gradients() -> nn.Module:
    model = model_of(Deep)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def disagreements(rank: int) -> dict[str, Any]:
    """Ranks that differ in one thing after another: what each is told, or plans."""
    found: dict[str, Any] = {}

    def forbidden(*_: Any) -> None:
        raise AssertionError("rank 1 has measured")

    measure = Costs.measure
    if rank == 1:
        Costs.measure = forbidden  # type: ignore[method-assign, assignment]
    by = backend(0.85)
    found["measured by rank 0"] = told(by)
    found["kept"] = sorted(by.plans[-1].plan.kept)

    torch._dynamo.reset()
    Costs.measure = measure  # type: ignore[method-assign]
    with pytest.raises(BudgetError) as lowest:
        train_once(model_of(Deep), checkpointing.backend("1B", execution="eager", ranks="own"))
    least = lowest.value.minimum_bytes
    assert least is not None
    mine = with_bytes_of_gradients() if rank else model_of(Deep)
    found["alone"] = told(checkpointing.backend(least, execution="eager", ranks="own"), mine)
    found["one lacks room"] = told(checkpointing.backend(least, execution="eager"), mine)
    roomy = checkpointing.backend(least + sum(p.nbytes for p in model_of(Deep).parameters()), execution="eager")
    found["both have room"] = told(roomy, mine)
    found["peak"] = roomy.plans[-1].predicted_peak_bytes

    found["budgets"] = told(backend(0.9 if rank else 0.85))
    found["after an error"] = told(backend(0.85))
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("checkpointing").addHandler(handler)
    torch._dynamo.reset()
    by = backend(0.9)
    model = Blocks() if rank else model_of(Deep)
    train_once(model, by, [torch.randn(64, 16)] if rank else [], square if rank else loss_of)
    logging.getLogger("checkpointing").removeHandler(handler)
    found["different steps"] = (len(by.plans), messages)
    return found


def loss_in_chunks(rank: int) -> dict[str, Any]:
    """The number of chunks is a choice, and rank 1 has less room: what each has compiled, and its gradients."""

    def forbidden(*_: Any) -> None:
        raise AssertionError("rank 1 has measured")

    def made() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(64, 8), nn.Tanh(), nn.Linear(8, 1024, bias=False)).double()
        for parameter in model.parameters() if rank else ():
            parameter.grad = torch.zeros_like(parameter)
        return model

    def loss_of_tokens(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(tokens), labels)

    torch.manual_seed(rank)
    tokens, labels = torch.randint(64, (512,)), torch.randint(1024, (512,))
    found: dict[str, Any] = {}
    measure = Costs.measure
    if rank == 1:
        Costs.measure = forbidden  # type: ignore[method-assign, assignment]
    by = checkpointing.backend(0.5, execution="eager", chunked_loss="auto")
    for name, compiler in (("planned", by), ("unplanned", "aot_eager")):
        torch._dynamo.reset()
        model = made()
        found[name, "loss"] = train_once(model, compiler, [tokens, labels], loss_of_tokens)
        found[name] = {key: p.grad for key, p in model.named_parameters()}
    Costs.measure = measure  # type: ignore[method-assign]
    [plan] = by.plans
    found["plan"] = (plan.options["chunked_loss"], sorted(plan.plan.kept), plan.budget_bytes)
    found["said"] = plan.loss
    return found


def test_ranks_have_their_loss_in_as_many_chunks_as_rank_0_chose(on_two_ranks: Any) -> None:
    found = on_two_ranks(loss_in_chunks)
    assert found[0]["plan"] == found[1]["plan"]
    assert found[0]["plan"][0] in (2, 4, 8, 16, 32)
    assert found[1]["said"].endswith("rank 0 decided")
    for rank in range(2):
        torch.testing.assert_close(found[rank]["planned"], found[rank]["unplanned"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[rank]["planned", "loss"], found[rank]["unplanned", "loss"], rtol=1e-13, atol=0)


def absence(rank: int) -> tuple[str, str]:
    """What rank 0 is told when rank 1 compiles nothing. The last work: one rank has called once more than the other."""
    ranks.TIMEOUT = timedelta(seconds=2)
    dist.barrier()
    return told(backend(0.85)) if rank == 0 else ("", "")


def test_ranks_that_differ_are_told_so_and_none_waits_for_ever(on_two_ranks: Any) -> None:
    first, second = on_two_ranks(disagreements)
    assert first["measured by rank 0"] == second["measured by rank 0"] == ("", "")
    assert first["kept"] == second["kept"]

    assert first["alone"] == ("", "")
    assert second["alone"][0] == BudgetError.__name__
    assert first["one lacks room"][0] == second["one lacks room"][0] == BudgetError.__name__
    assert "below the minimum" in first["one lacks room"][1]
    assert second["one lacks room"][1] == f"rank 0: {first['one lacks room'][1]}"
    assert first["both have room"] == second["both have room"] == ("", "")
    assert first["peak"] == second["peak"]

    assert "rank 1 compiles with" in first["budgets"][1]
    assert "rank 0 compiles with" in second["budgets"][1]
    assert first["after an error"] == second["after an error"] == ("", "")
    for found in (first, second):
        plans, messages = found["different steps"]
        assert plans == 1
        assert any("each has a plan of its own" in message for message in messages)
    assert "rank 0 compiles a step, and rank 1 did not within 0:00:02" in on_two_ranks(absence)[0][1]


class Gathered(nn.Module):
    """Gathers its hidden values over the ranks, between layers that a plan recomputes."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = Deep(), nn.Sequential(nn.Linear(5, 64), nn.GELU(), nn.Linear(64, 5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.before(x))
        return self.after(collectives.all_gather_tensor_autograd(hidden, 0, dist.group.WORLD))


class CountedCollectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace and "wait" not in func.__name__:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def gathering(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    modes = watch_halves(lambda _: CountedCollectives())
    again = {"recompute": ["_c10d_functional.all_gather_into_tensor", "_c10d_functional.wait_tensor"]}
    for name, options in (("kept", {}), ("told", again), ("roomy", {"memory_budget": 1.0})):
        torch._dynamo.reset()
        model = model_of(Gathered)
        by = checkpointing.backend(**{"memory_budget": 0.9, "execution": "eager", **options})  # type: ignore[arg-type]
        compiled = torch.compile(lambda m, x: m(x).square().mean(), backend=by, dynamic=False)
        torch.manual_seed(rank)
        modes.clear()
        compiled(model, batches(1)[0][0]).backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        found[name] = ([name for mode in modes for name in mode.names], gradients, by.plans[-1].is_empty)
    return found


def test_a_collective_is_not_repeated_unless_told(on_two_ranks: Any) -> None:
    for found in on_two_ranks(gathering):
        (kept, gradients, is_empty), (told, told_gradients, _), (unplanned, expected, was_empty) = (
            found[name] for name in ("kept", "told", "roomy")
        )
        assert not is_empty
        assert was_empty
        assert kept == unplanned == ["all_gather_into_tensor", "reduce_scatter_tensor"]
        assert told == ["all_gather_into_tensor", "all_gather_into_tensor", "reduce_scatter_tensor"]
        assert_equal(gradients, expected, "")
        assert_equal(told_gradients, expected, "")
