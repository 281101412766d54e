"""On a GPU the allocator is the judge: peaks as predicted, under the budget, and the same training."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import checkpointing
from checkpointing import plan_of

pytestmark = pytest.mark.gpu

MIB = 2**20


class Block(nn.Module):
    """A residual MLP with dropout on hidden states [B, 1024]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(1024), nn.Linear(1024, 4096), nn.Linear(4096, 1024)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.up(self.norm(x)))
        return x + nn.functional.dropout(self.down(hidden), 0.1, self.training)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).float().square().mean()


def measured(memory_budget: float | str | None) -> tuple[int, list[float], nn.Module]:
    """(peak bytes of the fourth step, losses, model) under a budget; None: inductor alone."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(6))).to("cuda", torch.bfloat16)
    x = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    backend = "inductor" if memory_budget is None else checkpointing.backend(memory_budget)
    step = torch.compile(loss_of, backend=backend, dynamic=False)
    torch.manual_seed(1)
    losses = []
    for number in range(4):
        if number == 3:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        loss = step(model, x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.cuda.max_memory_allocated(), losses, model


def test_peaks_are_as_predicted_under_the_budget_and_monotone() -> None:
    unplanned, expected, _ = measured(None)
    peaks = []
    for fraction in (1.0, 0.9, 0.8, 0.7, 0.6):
        peak, losses, model = measured(fraction)
        plan = plan_of(model)
        assert peak <= plan.budget_bytes
        assert peak == pytest.approx(plan.predicted_peak_bytes, rel=0.01)
        assert losses == pytest.approx(expected, rel=1e-2)
        peaks.append(peak)
    assert peaks[0] == pytest.approx(unplanned, rel=0.01)
    assert all(lower <= higher for higher, lower in itertools.pairwise(peaks))


def test_a_step_that_does_not_fit_unplanned_trains_under_a_budget() -> None:
    """The allocator is limited to less than the unplanned step needs, and the planned step never needs that much."""
    unplanned, _, _ = measured(None)
    limit = int(0.8 * unplanned)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((limit + 64 * MIB) / total)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            measured(None)
        torch.cuda.empty_cache()
        peak, _, _ = measured(f"{limit}B")
        assert peak <= limit
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
