"""On a GPU: the traced step equals eager, the simulated peak the allocator's; every kernel has its node."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from profiler import GraphProfiler, sign_off_table, trace_train_step
from profiler.models import NAMES, build
from tests.profiler.eager_steps import assert_same_as_eager

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

TINY = [name for name in NAMES if name.startswith("tiny_")]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "foreach": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "fused": lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=True),
    "capturable": lambda groups: torch.optim.Adam(groups, lr=1e-3, capturable=True, amsgrad=True),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
}


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.usefixtures("deterministic")
def test_traced_step_equals_eager(name: str, optimizer: str) -> None:
    dropout = None if "resnet" in name else 0.2
    problem = build(name, batch_size=4, device="cuda", dropout=dropout)
    assert_same_as_eager(problem.model, problem.loss_fn, OPTIMIZERS[optimizer], [problem.batch] * 3)


@pytest.mark.parametrize("name", TINY)
def test_profile_signs_off_and_loses_no_kernel(name: str, tmp_path: Any) -> None:
    problem = build(name, batch_size=8, device="cuda")
    optimizer = OPTIMIZERS["fused"](problem.model.parameters())
    profiler = GraphProfiler(trace_train_step(problem.model, problem.loss_fn, optimizer, problem.batch))
    profiler.run(*problem.batch)
    profiler.save_stats_to_csv(tmp_path)
    checks = profiler.sign_off(tmp_path)
    assert all(check.passed for check in checks), sign_off_table(checks)
    assert profiler.profile.lost_s == 0
    assert 0 < profiler.profile.run_time_s.sum() <= profiler.profile.step_time_s


def test_step_runs_in_a_cuda_graph() -> None:
    losses = []
    for graphed in (False, True):
        problem = build("tiny_llama", device="cuda")
        step = trace_train_step(
            problem.model, problem.loss_fn, OPTIMIZERS["fused"](problem.model.parameters()), problem.batch
        )
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            step(*problem.batch)
        torch.cuda.current_stream().wait_stream(side)
        if graphed:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss = step(*problem.batch)
            graph.replay()
        else:
            loss = step(*problem.batch)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_profiled_process_launches_as_fast_as_before() -> None:
    """By CUPTI's own account: no subscriber is left, so that another one may come."""
    from profiler.torch_trace import torch_trace

    device = torch.device("cuda", 0)
    for _ in range(2):  # also the second time
        with torch_trace(device) as recorded:
            torch.ones(8, device=device).sum()
        assert recorded.profiler is not None
        torch.ones(8, device=device).sum().item()
        assert not cupti_subscribed()


def test_each_of_several_recordings_sees_the_kernels() -> None:
    """With nothing between them that calls CUDA."""
    from profiler.torch_trace import torch_trace

    x = torch.ones(1000, device="cuda")
    found = []
    for _ in range(4):
        with torch_trace(x.device) as recorded:
            for _ in range(3):
                x * 2
        assert recorded.profiler is not None
        events = recorded.profiler.kineto_results.events()
        found.append(sum(event.name().startswith("void") for event in events))
    assert found == [3] * 4


def cupti_subscribed() -> bool:
    """Whether CUPTI says that this process has a subscriber already."""
    import ctypes

    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libcupti" in line)
    cupti, handle = ctypes.CDLL(library), ctypes.c_void_p()
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)(lambda *_: None)
    status = cupti.cuptiSubscribe(ctypes.byref(handle), callback, None)
    if status == 0:
        cupti.cuptiUnsubscribe(handle)
    return bool(status)
