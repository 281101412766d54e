"""The loss in chunks on a GPU: the allocator sees the logits' memory go, and gradients stay as near to float64."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import checkpointing
from checkpointing import plan_of

pytestmark = pytest.mark.gpu

ROWS, WIDTH, VOCABULARY = 8192, 1024, 32003  # a vocabulary that no tile divides


def loss_of(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model(x).float(), labels)


def head() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, VOCABULARY, bias=False))
    return nn.Sequential(*layers).to("cuda", torch.bfloat16)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16, generator=generator)
    return x, torch.randint(VOCABULARY, (ROWS,), device="cuda", generator=generator)


def measured(chunks: int | None) -> tuple[int, nn.Module]:
    """(peak bytes of the third step, the model with the gradients of one step)."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    model, given = head(), batch()
    step = torch.compile(loss_of, backend=checkpointing.backend(1.0, chunked_loss=chunks), dynamic=False)
    for _ in range(3):
        model.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step(model, *given).backward()
    return torch.cuda.max_memory_allocated(), model


def exact_gradients(model: nn.Module) -> list[Tensor]:
    """In float64, on the CPU's side of memory as they come, from the same bf16 weights."""
    exact, (x, labels) = copy.deepcopy(model).double(), batch()
    exact.zero_grad()
    for rows, their in zip(x.double().split(1024), labels.split(1024), strict=True):
        (cross_entropy(exact(rows), their, reduction="sum") / ROWS).backward()
    return [parameter.grad.cpu() for parameter in exact.parameters() if parameter.grad is not None]


def distances(model: nn.Module) -> list[float]:
    pairs = zip(model.parameters(), exact_gradients(model), strict=True)
    return [float((p.grad.double().cpu() - true).norm() / true.norm()) for p, true in pairs if p.grad is not None]


def test_the_peak_falls_by_the_logits_as_predicted_and_gradients_are_as_near_to_float64() -> None:
    whole_peak, whole = measured(None)
    peak, chunked = measured(8)
    plan = plan_of(chunked)
    assert "in 8 chunks" in plan.loss
    assert plan.loss.endswith("each by one kernel")
    assert peak == pytest.approx(plan.predicted_peak_bytes, rel=0.01)
    assert whole_peak == pytest.approx(plan_of(whole).predicted_peak_bytes, rel=0.01)
    logits = ROWS * VOCABULARY * 2
    assert whole_peak - peak > logits / 2
    for near, of_whole in zip(distances(chunked), distances(whole), strict=True):
        assert near <= 1.2 * of_whole
