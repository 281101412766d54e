"""On a GPU: the recomputed step is the step, and the allocator's peak is the predicted one, within the budget."""

import gc

import pytest
import torch

from checkpointing import BudgetError, apply_activation_checkpointing
from profiler.models import build

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

FEW_KIB = 8 * 2**10  # blocks of a few hundred KiB in all: a handful of 512-byte roundings is above 0.3%


def measured_peak(step, batch) -> int:
    step(*batch)  # libraries take their workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step(*batch)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def feasible(model: str, fraction: float, solver: str):
    """A step at `fraction` of the activation memory, or at the nearest above it that this solver can meet."""
    batch = 16 if model == "resnet152" else 32
    problem = build(model, batch_size=batch, device="cuda", dropout=0.1 if model == "tiny_gpt2" else None)
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=1e-3, fused=True)
    while True:
        try:
            step = apply_activation_checkpointing(
                problem.model, problem.loss_fn, optimizer, problem.batch, memory_budget=fraction, solver=solver
            )
            return problem, step
        except BudgetError:
            fraction += 0.05
            assert fraction < 1, "no budget below the step's own peak can be met"


@pytest.mark.parametrize("solver", ["optimal", "greedy"])
@pytest.mark.parametrize("model", ["resnet152", "tiny_gpt2", "tiny_llama"])
def test_the_step_is_the_same_and_its_peak_the_predicted_one(model: str, solver: str) -> None:
    gc.collect()
    problem, step = feasible(model, 0.7, solver)
    plan = step.plan
    assert plan.recomputed
    proof = step.verify(problem.batch)
    assert proof.passed, proof.summary()
    peak = measured_peak(step, problem.batch)
    assert peak <= plan.budget_bytes
    torch.cuda.empty_cache()  # which blocks it hands out depends on what it has cached
    assert measured_peak(step, problem.batch) <= plan.budget_bytes
    assert abs(peak - plan.predicted_peak_bytes) <= max(0.003 * peak, FEW_KIB)


def test_a_lower_budget_never_measures_a_higher_peak() -> None:
    peaks = []
    for fraction in (0.9, 0.75, 0.6):
        gc.collect()
        problem, step = feasible("tiny_llama", fraction, "optimal")
        peaks.append(measured_peak(step, problem.batch))
        del problem, step
    assert peaks == sorted(peaks, reverse=True)


def test_dropout_masks_are_the_same_on_the_device() -> None:
    problem, step = feasible("tiny_gpt2", 0.7, "greedy")
    generator = torch.cuda.get_rng_state()
    torch.cuda.set_rng_state(generator)
    step(*problem.batch)
    after = torch.cuda.get_rng_state()
    torch.cuda.set_rng_state(generator)
    step.baseline(*problem.batch)
    assert torch.equal(after, torch.cuda.get_rng_state())  # no more is drawn than in the plain step
    assert step.verify(problem.batch).passed
