"""The largest batch within a memory, and a model that is fitted into one, in one line each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import checkpointing
from checkpointing import BudgetError, CheckpointingError, largest_batch
from tests.checkpointing.compiled.training import Blocks, CountedHalves, Trained, square

WIDTH = 16


def rows(count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))


def blocks() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Blocks(count=4, width=WIDTH)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def found_in(memory: str, **options: Any) -> checkpointing.LargestBatch:
    model, optimizer = blocks()
    return largest_batch(rows, model, square, optimizer=optimizer, memory=memory, execution="eager", **options)


@pytest.mark.slow
def test_the_batch_that_is_found_trains_within_the_memory_and_one_more_has_no_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = found_in("400kB")
    assert found.batch_size > 8
    counted = CountedHalves(monkeypatch)
    for size in (found.batch_size, found.batch_size + 1):
        model, optimizer = blocks()
        planned = checkpointing.backend("400kB", execution="eager")
        step = torch.compile(square, backend=planned, dynamic=False)
        if size > found.batch_size:
            with pytest.raises(BudgetError):
                step(model, rows(size))
            continue
        step(model, rows(size)).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert counted.peak(Trained(model, optimizer, step, []), [rows(size)]) <= 400_000


@pytest.mark.slow
def test_what_was_tried_tells_what_fits_and_the_summary_what_it_gives() -> None:
    found = found_in("400kB", multiple_of=8)
    assert found.batch_size % 8 == 0
    tried = found.tried.set_index("batch_size")
    assert tried.loc[found.batch_size, "fits"]
    assert not tried.loc[found.batch_size + 8, "fits"]
    assert ((tried["lowest_bytes"] <= 400_000) == tried["fits"]).all()
    assert found.samples_per_s == pytest.approx(found.batch_size / found.step_s)
    assert found.plan.predicted_peak_bytes <= found.memory_bytes == 400_000
    assert f"{found.batch_size}, in " in found.summary()


@pytest.mark.slow
def test_nothing_of_the_users_has_moved() -> None:
    model, optimizer = blocks()
    square(model, rows(4)).backward()
    optimizer.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad for parameter in model.parameters()]
    states = {key: value.clone() for p in model.parameters() for key, value in optimizer.state[p].items()}
    generator = torch.get_rng_state()
    largest_batch(rows, model, square, optimizer=optimizer, memory="200kB", at_most=16, execution="eager")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(a is b.grad for a, b in zip(gradients, model.parameters(), strict=True))
    after = {key: value for p in model.parameters() for key, value in optimizer.state[p].items()}
    assert after.keys() == states.keys()
    assert all(torch.equal(after[key], states[key]) for key in states)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.slow
def test_at_most_is_taken_where_memory_has_room_and_a_module_may_hold_its_own_loss() -> None:
    class WithLoss(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square().mean()

    found = largest_batch(rows, WithLoss(width=WIDTH), memory="1GB", at_most=6, execution="eager")
    assert found.batch_size == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": "8 apples"}, "cannot be read"),
        ({"memory": 0.5}, "a CPU has no memory of its own"),
        ({}, "a CPU has no memory of its own"),
        ({"memory": "1GB", "at_least": 0}, "at_least=0: give a whole number"),
        ({"memory": "1GB", "multiple_of": 2.5}, "multiple_of=2.5: give a whole number"),
        ({"memory": "1GB", "at_least": 9, "at_most": 12, "multiple_of": 8}, "no multiple of 8 lies between 9 and 12"),
        ({"memory": "1GB", "execution": "fast"}, "execution='fast'"),
    ],
)
def test_what_cannot_be_searched_is_refused(options: dict[str, Any], said: str) -> None:
    model, _ = blocks()
    with pytest.raises(CheckpointingError, match=said):
        largest_batch(rows, model, square, **{"execution": "eager", **options})


def test_a_memory_that_holds_no_batch_is_refused_with_what_the_smallest_needs() -> None:
    with pytest.raises(BudgetError, match=r"a batch of 64 needs at least \"0\.\d+MiB\""):
        found_in("100kB", at_least=64)


@pytest.mark.slow
def test_a_fitted_model_is_the_same_module_and_trains_to_the_bit_as_without() -> None:
    """In a loop of the user's own, that knows nothing of the compiler."""
    torch._dynamo.reset()  # other tests' shapes of the same code count towards its limit

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        torch.manual_seed(7)
        for number in range(3):
            model(rows(512 + number)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    expected, optimizer = blocks()
    expected.compile(backend="aot_eager", dynamic=False)
    wanted = train(expected, optimizer)
    model, optimizer = blocks()
    assert checkpointing.fit(model, 0.8, execution="eager") is model
    found = train(model, optimizer)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    plans = checkpointing.plans_of(model)
    assert len(plans) == 3
    assert not any(plan.is_empty for plan in plans)


def test_only_a_module_that_is_not_compiled_yet_can_be_fitted() -> None:
    model, _ = blocks()
    with pytest.raises(BudgetError, match="8 apples"):
        checkpointing.fit(model, "8 apples")
    with pytest.raises(CheckpointingError, match=r"takes a torch\.nn\.Module, not function"):
        checkpointing.fit(square, "8GB")  # type: ignore[arg-type]
    with pytest.raises(CheckpointingError, match="compiled already"):
        checkpointing.fit(torch.compile(model), "8GB")
    checkpointing.fit(model, "8GB", execution="eager")
    with pytest.raises(CheckpointingError, match="compiled already"):
        checkpointing.fit(model, "8GB", execution="eager")
