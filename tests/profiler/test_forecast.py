"""A forecast needs no weights, no values and no device: the graph alone says what memory will hold."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from profiler import GraphProfiler, StaleStepError, TraceError, trace_train_step
from profiler.models import NAMES, build

# ViT's constructor reads values (of its drop path), so that it cannot be built from fake tensors
BUILT_FAKE = [name for name in NAMES if name.startswith("tiny_") and name != "tiny_vit"]
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", BUILT_FAKE)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_forecast_of_fake_tensors_is_that_of_real_ones(name: str, optimizer: str) -> None:
    tables = []
    for fake in (True, False):
        if fake:
            with FakeTensorMode():
                problem = build(name)
                chosen = OPTIMIZERS[optimizer](problem.model.parameters())
        else:
            problem = build(name)
            chosen = OPTIMIZERS[optimizer](problem.model.parameters())
        step = trace_train_step(problem.model, problem.loss_fn, chosen, problem.batch)
        assert step.is_fake == fake
        tables.append(GraphProfiler(step).memory(rounding=512).table)
    assert tables[0].equals(tables[1])


def test_fake_step_cannot_run() -> None:
    with FakeTensorMode():
        problem = build("tiny_gpt2")
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    step = trace_train_step(problem.model, problem.loss_fn, optimizer, problem.batch)
    with pytest.raises(StaleStepError, match="forecast, not run"):
        step(*problem.batch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_fake_cuda_parameters_without_a_gpu_are_refused() -> None:
    with FakeTensorMode():
        model = torch.nn.Linear(2, 2)
        for name in ("weight", "bias"):
            shape = getattr(model, name).shape
            setattr(model, name, torch.nn.Parameter(torch.empty_strided(shape, [1] * len(shape), device="cuda")))
        batch = (torch.empty_strided((3, 2), (2, 1), device="cuda"),)
    with pytest.raises(TraceError, match=r"no GPU here.*rounding=512"):
        trace_train_step(model, lambda m, x: m(x).sum(), torch.optim.SGD(model.parameters(), lr=0.1), batch)
