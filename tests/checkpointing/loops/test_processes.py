"""Loops over several processes: one that is resumed in a fresh one, and data parallelism over two."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import checkpointing
from checkpointing import plan_of
from checkpointing.errors import GraphBreakError
from tests.checkpointing.loops.loop import (
    CLASSES,
    WIDTH,
    Classifier,
    backend,
    batches,
    in_processes,
    loss_of,
    model_of,
)
from tests.profiler.eager_steps import assert_equal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forking_server")]

STEPS = 4


def train_part(_: int, folder: Path, first: int, last: int) -> None:
    """Steps `first` to `last`, from the state that the steps before have saved; saves state and plan."""
    torch.set_num_threads(1)
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    torch.manual_seed(3)
    if first:
        saved = torch.load(folder / f"{first}.pt")
        for part, state in zip((model, optimizer, schedule), saved["parts"], strict=True):
            part.load_state_dict(state)  # type: ignore[attr-defined]
        torch.set_rng_state(saved["generator"])
    compiled = torch.compile(loss_of, backend=backend(900_000), dynamic=False)
    for batch in batches(STEPS)[first:last]:
        optimizer.zero_grad()
        compiled(model, *batch).backward()
        optimizer.step()
        schedule.step()
    parts = [part.state_dict() for part in (model, optimizer, schedule)]  # type: ignore[attr-defined]
    torch.save({"parts": parts, "generator": torch.get_rng_state()}, folder / f"{last}.pt")
    plan_of(model).to_csv(folder / f"{first}-{last}.csv")


def test_a_loop_that_is_resumed_in_a_fresh_process_has_the_same_plan_and_ends_the_same(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    in_processes(train_part, (tmp_path / "whole", 0, STEPS))
    for first, last in ((0, 2), (2, STEPS)):
        in_processes(train_part, (tmp_path, first, last))
    whole, resumed = (torch.load(folder / f"{STEPS}.pt")["parts"] for folder in (tmp_path / "whole", tmp_path))
    assert_equal(resumed[0], whole[0], "")
    assert resumed[2] == whole[2]
    tables = [(tmp_path / name).read_text() for name in ("0-2.csv", f"2-{STEPS}.csv", f"whole/0-{STEPS}.csv")]
    decisions = [[line.split(",")[:4] for line in table.splitlines()] for table in tables]
    assert decisions[0] == decisions[1] == decisions[2]
    assert "recompute" in tables[0]


class SeveralBuckets(nn.Module):
    """Gradients of more than two MiB: DistributedDataParallel's first bucket has one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 512), nn.Linear(512, CLASSES)
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = nn.functional.dropout(nn.functional.gelu(layer(x)), 0.1)
        return self.last(x)


ORDERS = ("fitted inside", "compiled inside", "compiled around")


def train_rank(rank: int, folder: Path) -> None:
    """Every order, planned and not, one after another."""
    meeting = folder / "meeting"
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {(order, planned): train_in(order, planned, rank) for order in ORDERS for planned in (True, False)}
    torch.save((found, train_in_several_buckets()), folder / f"{rank}.pt")
    dist.destroy_process_group()


def train_in(order: str, planned: bool, rank: int) -> dict[str, Any]:
    """Two accumulated micro-batches a step, their gradients reduced with the second: gradients, losses, plan.

    Gradients of a model that is compiled inside are in one bucket, and those of one that is fitted in several, for
    each of which Dynamo by itself compiles a graph.
    """
    torch._dynamo.reset()
    by: Any = backend() if planned else "aot_eager"
    model = model_of(SeveralBuckets if order == "fitted inside" else Classifier)
    with torch._dynamo.config.patch(optimize_ddp=order != "compiled around"):
        if order == "fitted inside":
            if planned:
                checkpointing.fit(model, memory_budget=0.9, execution="eager")
            else:
                model.compile(backend=by, dynamic=False)
            outer: nn.Module = DistributedDataParallel(model)
        elif order == "compiled inside":
            outer = DistributedDataParallel(torch.compile(model, backend=by, dynamic=False))  # type: ignore[arg-type]
        else:
            outer = torch.compile(DistributedDataParallel(model), backend=by, dynamic=False)  # type: ignore[assignment]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(rank)
        losses: list[Tensor] = []
        for index, (x, labels) in enumerate(batches(4, rows=1024)):
            with nullcontext() if index % 2 else outer.no_sync():
                loss = cross_entropy(outer(x + rank), labels)
                loss.backward()
            losses.append(loss.detach())
            if index == 1:
                optimizer.step()
                optimizer.zero_grad()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    plan = plan_of(model) if planned else None
    return {"gradients": found, "losses": losses, "kept": plan and (sorted(plan.plan.kept), plan.is_empty)}


def train_in_several_buckets() -> str:
    """What a backend says that gets a graph for each bucket."""
    torch._dynamo.reset()
    compiled: Any = torch.compile(model_of(SeveralBuckets), backend=backend(), dynamic=False)
    outer = DistributedDataParallel(compiled)
    with pytest.raises(GraphBreakError) as error:
        cross_entropy(outer(batches(1)[0][0]), batches(1)[0][1])
    return str(error.value)


@pytest.fixture(scope="module")
def data_parallel(
    tmp_path_factory: pytest.TempPathFactory, forking_server: None
) -> list[tuple[dict[tuple[str, bool], dict[str, Any]], str]]:
    """What each of two ranks found, by order and whether it was planned."""
    folder = tmp_path_factory.mktemp("data_parallel")
    in_processes(train_rank, (folder,), 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("order", ORDERS)
def test_data_parallel_ranks_have_one_plan_and_the_gradients_of_the_unplanned_step(
    data_parallel: list[tuple[dict[tuple[str, bool], dict[str, Any]], str]], order: str
) -> None:
    planned, unplanned = ([found[order, is_planned] for found, _ in data_parallel] for is_planned in (True, False))
    for found, expected in zip(planned, unplanned, strict=True):
        assert found["losses"] == expected["losses"]
        assert_equal(found["gradients"], expected["gradients"], "")
    assert_equal(planned[0]["gradients"], planned[1]["gradients"], "")
    assert planned[0]["losses"] != planned[1]["losses"]
    kept, is_empty = planned[0]["kept"]
    assert planned[1]["kept"] == (kept, is_empty)
    assert not is_empty


def test_graphs_of_several_buckets_are_rejected_with_the_remedy(
    data_parallel: list[tuple[dict[tuple[str, bool], dict[str, Any]], str]],
) -> None:
    for _, said in data_parallel:
        assert "optimize_ddp = False" in said
        assert "checkpointing.fit(model, ...) in its place" in said
        assert ":0 ()" not in said  # a graph of a bucket has no line
