"""A learning-rate schedule with plain floats is followed: every step equals eager's, bit for bit."""

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from checkpointing import apply_activation_checkpointing
from profiler import StaleStepError, trace_train_step
from tests.profiler.eager_steps import eager_step

OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p: AdamW(p, lr=0.01),
    "adam, foreach": lambda p: Adam(p, lr=0.01, foreach=True, amsgrad=True, weight_decay=0.2),
    "sgd": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "two groups": lambda p: AdamW([{"params": [q], "lr": 0.01 / (i + 1)} for i, q in enumerate(p)]),
}
SCHEDULES: dict[str, Any] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6, cycle_momentum=not isinstance(o, SGD)),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


@pytest.mark.filterwarnings("error:Detected call of .lr_scheduler:UserWarning")
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_of_a_schedule_equals_eager(name: str, schedule: str, recomputed: bool) -> None:
    assert_schedule_is_followed(OPTIMIZERS[name], SCHEDULES[schedule], recomputed)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_schedule_of_a_capturable_optimizer_equals_eager(foreach: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes betas to the power of a tensor. PyTorch offers it on GPUs; the arithmetic is the same on a CPU."""
    monkeypatch.setattr(sys.modules[Adam.__module__], "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])

    def optimizer_of(parameters: Any) -> Adam:
        return Adam(parameters, lr=0.01, capturable=True, amsgrad=True, foreach=foreach)

    assert_schedule_is_followed(optimizer_of, SCHEDULES["one cycle"], recomputed=False)


def assert_schedule_is_followed(optimizer_of: Any, schedule_of: Any, recomputed: bool) -> None:
    """Four steps under a schedule, traced and in eager: equal losses and parameters."""
    x, left = torch.randn(16, 6), []
    for traced in (False, True):
        model = net()
        optimizer = optimizer_of(model.parameters())
        scheduler = schedule_of(optimizer)
        if traced and recomputed:
            step: Any = apply_activation_checkpointing(model, loss_of, optimizer, (x,), 1.0, "greedy")
        elif traced:
            step = trace_train_step(model, loss_of, optimizer, (x,))
        losses = []
        for _ in range(4):
            loss = step(x) if traced else eager_step(model, loss_of, optimizer, (x,))
            losses.append(loss.detach().clone())
            scheduler.step()
        left.append([*losses, *(p.detach() for p in model.parameters())])
    assert all(map(torch.equal, *left))


def test_a_momentum_that_changes_is_still_an_error() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = trace_train_step(model, loss_of, optimizer, (torch.randn(16, 6),))
    optimizer.param_groups[0]["momentum"] = 0.8
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StaleStepError, match=r"momentum of parameter group 0 was 0\.9 .* 0\.8"):
        step(torch.randn(16, 6))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_two_traces_of_one_step_name_their_operators_alike() -> None:
    """A plan that was saved in another process is for the same graph."""
    named = []
    for _ in range(2):
        model = net()
        step = trace_train_step(model, loss_of, AdamW(model.parameters(), lr=0.01), (torch.randn(16, 6),))
        named.append([str(node.target) for node in step.nodes])
    assert named[0] == named[1]
    assert not any(" at 0x" in name for name in named[0])
