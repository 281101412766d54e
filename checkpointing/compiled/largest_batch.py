"""The largest batch that a model trains with in a given memory, and its throughput.

found = largest_batch(make_batch, model, loss_fn, optimizer=optimizer, memory="22GB")
found.batch_size, found.samples_per_s; print(found.summary())

A batch is tried by planning alone: Dynamo traces the step on fake tensors, and the planner answers what it needs at
least. Only the batch that is found runs, so nothing runs out of memory on the way.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from checkpointing import budget as budgets
from checkpointing.compiled.backend import backend
from checkpointing.compiled.compiled_plan import CompiledPlan
from checkpointing.compiled.proof.one_step import LossFn, OneStep, undone
from checkpointing.errors import BudgetError, CheckpointingError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FRACTION = 0.92  # of a device's memory, by default: the allocator reserves more than is allocated
WARM_UP = 4  # steps: the first ones may be compiled again
TIMED = 10  # steps
AGAIN = 4  # smaller batches at most, where the one that was planned takes more in fact
BACK = 0.03  # of the batch, by which each of these is smaller

MakeBatch = Callable[[int], Sequence[Any]]


@dataclass(frozen=True)
class LargestBatch:
    """`tried` has a row per batch: `batch_size`, `lowest_bytes`, the least peak that a plan reaches, and `fits`."""

    batch_size: int  # samples
    samples_per_s: float
    step_s: float
    memory_bytes: int  # that the step may use
    peak_bytes: int | None  # as the allocator measured it; None on a CPU
    plan: CompiledPlan = field(repr=False)
    tried: pd.DataFrame = field(repr=False)

    def summary(self) -> str:
        """The batch, its throughput and memory, and what the plan does for it."""
        memory = f"{(self.peak_bytes or self.plan.predicted_peak_bytes) / 2**20:.1f}"
        return "\n".join(
            [
                f"batch          {self.batch_size}, in {memory} of {self.memory_bytes / 2**20:.1f} MiB",
                f"throughput     {self.samples_per_s:.1f} samples/s, {self.step_s * 1e3:.2f} ms per step",
                f"added          {self.plan.predicted_added_s * 1e3:.2f} ms of recomputation a step",
                f"tried          {', '.join(str(size) for size in self.tried['batch_size'])}",
            ]
        )


def largest_batch(
    make_batch: MakeBatch,
    model: nn.Module,
    loss_fn: LossFn | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    memory: float | str | None = None,
    at_least: int = 1,
    at_most: int | None = None,
    multiple_of: int = 1,
    execution: str = "inductor",
    solver: str = "optimal",
) -> LargestBatch:
    """The largest batch whose training step has a plan within `memory`, run and timed.

    `make_batch(n)` returns the arguments of a step with n samples, on the model's device; `loss_fn(model, *batch)` the
    loss, a scalar (None: `model(*batch)` does). `optimizer` is the loop's: its state counts, and its step is timed.
    `memory` is a peak in bytes, or as "22GB", or a fraction of the device's memory (default 0.92; a CPU needs bytes).
    Parameters, buffers, gradients, optimizer and generators are put back.

    Raises BudgetError if not even `at_least` samples fit, with what they need; CheckpointingError for what cannot be
    searched or compiled.
    """
    allowed = _allowed(memory, model)
    low = _units(at_least, at_most, multiple_of)
    high = None if at_most is None else at_most // multiple_of + 1
    search = _Search(make_batch, model, loss_fn or _own_loss, allowed, multiple_of, execution, solver)
    with _put_back(model, optimizer):
        found = search.between(low, high)
        for _ in range(AGAIN):
            size = found * multiple_of
            try:
                plan, step_s, peak = search.run(size, optimizer)
            except (BudgetError, torch.OutOfMemoryError) as error:
                search.tried[size] = (search.tried[size][0], False)
                log.info("a batch of %d takes more than planned: %s", size, str(error).splitlines()[0])
                found = min(found - 1, int(found * (1 - BACK)))
                if found < low:
                    break
                continue
            return LargestBatch(size, size / step_s, step_s, allowed, peak, plan, search.table())
    raise BudgetError(
        f"memory={allowed / 2**20:.0f}MiB: no batch from {low * multiple_of} on kept to its plan; give more memory"
    )


class _Search:
    """Batches in units of `multiple_of` samples."""

    def __init__(
        self,
        make_batch: MakeBatch,
        model: nn.Module,
        loss_fn: LossFn,
        allowed: int,
        multiple_of: int,
        execution: str,
        solver: str,
    ) -> None:
        self.make_batch, self.model, self.loss_fn = make_batch, model, loss_fn
        self.allowed, self.multiple_of = allowed, multiple_of
        self.execution, self.solver = execution, solver
        self.tried: dict[int, tuple[int, bool]] = {}  # samples → lowest bytes, and whether they fit

    def table(self) -> pd.DataFrame:
        import pandas as pd

        rows = [(size, lowest, fits) for size, (lowest, fits) in self.tried.items()]
        return pd.DataFrame(rows, columns=["batch_size", "lowest_bytes", "fits"])

    def between(self, low: int, high: int | None) -> int:
        """The most units from `low` on, below `high`, that fit. Needs grow nearly evenly with the batch, so a line
        through two of them says where to look; every third time the middle is tried."""
        need = self._need(low)
        if need > self.allowed:
            raise BudgetError(
                f"memory={self.allowed / 2**20:.0f}MiB: a batch of {low * self.multiple_of} needs at least "
                f"{budgets.written(need)}; give more memory, or a smaller at_least"
            )
        last = (low, need)
        count, guess = 0, 2 * low
        while high is None or high - low > 1:
            count += 1
            if high is not None:
                guess = min(max(guess, low + 1), high - 1) if count % 3 else (low + high) // 2
            need = self._need(guess)
            slope = (need - last[1]) / (guess - last[0]) if guess != last[0] else 0.0
            last = (guess, need)
            if need <= self.allowed:
                low = guess
            else:
                high = guess
            ahead = int((self.allowed - need) / slope) if slope > 0 else guess
            guess = max(guess + ahead, low + 1) if high is not None else guess + max(ahead, 1)
        return low

    def _need(self, units: int) -> int:
        """Bytes at the least peak that a plan for this batch reaches, whatever it costs."""
        size = units * self.multiple_of
        if size not in self.tried:
            try:
                step = OneStep(self.loss_fn, self.model, self._batch(size), 0)
                step.compiled(backend("1B", execution=self.execution, solver="greedy"))(self.model, *step.batch)
                raise CheckpointingError("the step has no backward: nothing is kept, and any batch fits")
            except BudgetError as error:
                need = error.minimum_bytes
            except torch.OutOfMemoryError:  # the batch itself
                need = self.allowed + 1
            assert need is not None
            self.tried[size] = (need, need <= self.allowed)
            log.info("a batch of %d needs %.1f of %.1f MiB", size, need / 2**20, self.allowed / 2**20)
        return self.tried[size][0]

    def run(self, size: int, optimizer: torch.optim.Optimizer | None) -> tuple[CompiledPlan, float, int | None]:
        """The plan, seconds of the median step, and the allocator's peak, of a few steps."""
        chosen = backend(self.allowed, execution=self.execution, solver=self.solver)
        batch = self._batch(size)
        compiled = OneStep(self.loss_fn, self.model, batch, 0).compiled(chosen)
        device = next(self.model.parameters()).device
        cuda = device.type == "cuda"
        seconds = []
        for number in range(WARM_UP + TIMED):
            if cuda and number == WARM_UP:
                torch.cuda.reset_peak_memory_stats(device)
            started = time.perf_counter()
            compiled(self.model, *batch).backward()
            if optimizer is not None:
                optimizer.step()
            self.model.zero_grad()
            if cuda:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated(device) if cuda else None
        return chosen.plans[-1], statistics.median(seconds[WARM_UP:]), peak

    def _batch(self, size: int) -> tuple[Any, ...]:
        made = self.make_batch(size)
        return (made,) if isinstance(made, Tensor) else tuple(made)


def _own_loss(model: nn.Module, *batch: Any) -> Tensor:
    loss: Tensor = model(*batch)
    return loss


def _allowed(memory: float | str | None, model: nn.Module) -> int:
    """Bytes that the step may use. Raises BudgetError for what cannot be read."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if memory is None:
        memory = FRACTION
    budgets.check(memory)
    if isinstance(memory, str) or memory > 1:
        return budgets.in_bytes(memory, 0, 0)
    if device.type != "cuda":
        raise BudgetError(
            f'memory={memory!r}: a CPU has no memory of its own to take a fraction of; give bytes ("8GB")'
        )
    return int(memory * torch.cuda.mem_get_info(device)[1])


def _units(at_least: int, at_most: int | None, multiple_of: int) -> int:
    """The least units to try."""
    for name, value in (("at_least", at_least), ("at_most", at_most), ("multiple_of", multiple_of)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise CheckpointingError(f"{name}={value!r}: give a whole number of samples, 1 or more")
    low = -(-at_least // multiple_of)
    if at_most is not None and low * multiple_of > at_most:
        raise CheckpointingError(
            f"at_most={at_most}: no multiple of {multiple_of} lies between {at_least} and {at_most}; raise at_most"
        )
    return low


@contextlib.contextmanager
def _put_back(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Everything that training moves is afterwards as it was."""
    tensors = [*model.parameters(), *model.buffers()]
    copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    state = copy.deepcopy(optimizer.state_dict()) if optimizer is not None else None
    with undone(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, copies, strict=True):
                    tensor.copy_(value)
            if optimizer is not None and state is not None:
                optimizer.state.clear()
                optimizer.load_state_dict(state)
