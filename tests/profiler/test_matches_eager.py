"""`matches_eager` finds what a trace does not hold, agrees where it holds everything, and leaves no mark."""

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from profiler import TraceError, trace_train_step
from profiler.models import build


class Net(nn.Module):
    """Dropout, batch norm, a counter, a list that grows, and a buffer that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        h = nn.functional.dropout(torch.relu(self.norm(self.first(x))), 0.5)
        return self.last(h)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    numbers = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    gradients = [p.grad for p in model.parameters()]
    attributes = {k: v for k, v in vars(model).items() if not k.startswith("_")}
    parts = (model.state_dict(), optimizer.state_dict(), numbers, gradients, attributes)
    return [copy.deepcopy(part) for part in parts]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.5),
    ],
)
def test_a_faithful_step_matches_and_everything_is_put_back(make) -> None:
    model, batch = Net(), (torch.randn(16, 6),)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    optimizer = make(model.parameters())
    step = trace_train_step(model, loss_of, optimizer, batch, check=True)
    for _ in range(2):
        before = state_of(model, optimizer)
        kept = [*model.parameters(), *model.buffers(), model.first.weight.grad]
        match = step.matches_eager(batch)
        assert match, match.summary()
        assert "bitwise" in match.summary()
        assert same(before, state_of(model, optimizer))
        now = [*model.parameters(), *model.buffers(), model.first.weight.grad]
        assert all(a is b for a, b in zip(kept, now, strict=True))
        step(*batch)


def test_another_learning_of_the_graph_is_found_and_named() -> None:
    model, batch = Net(), (torch.randn(16, 6),)
    step = trace_train_step(model, loss_of, torch.optim.SGD(model.parameters(), lr=0.05), batch)
    (node,) = (n for n in step.nodes if "relu" in str(n.target))
    node.target = torch.ops.aten.abs.default
    step.graph_module.recompile()
    match = step.matches_eager(batch)
    assert not match
    assert "the loss" in match.differing
    assert "first.weight" in match.differing
    assert match.summary().startswith("the traced step differs from an eager one in the loss and ")


def test_an_operator_that_does_not_run_as_traced_is_named_with_its_module() -> None:
    model, batch = Net(), (torch.randn(16, 6),)
    step = trace_train_step(model, loss_of, torch.optim.SGD(model.parameters(), lr=0.05), batch)
    (node,) = (n for n in step.nodes if "relu" in str(n.target))
    node.target, node.args = torch.ops.aten.view.default, (node.args[0].args[0], [3, 7])
    step.graph_module.recompile()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TraceError, match=r"in the forward, module \(model\): aten\.view\.default does not run"):
        step.matches_eager(batch)
    assert same(before, model.state_dict())


def test_a_model_of_transformers_matches() -> None:
    task = build("tiny_gpt2")
    step = trace_train_step(task.model, task.loss_fn, torch.optim.AdamW(task.model.parameters()), task.batch)
    assert step.matches_eager(task.batch)


def test_a_step_is_shown_in_one_line() -> None:
    model = Net()
    step = trace_train_step(model, loss_of, torch.optim.SGD(model.parameters(), lr=0.05), (torch.randn(16, 6),))
    assert repr(step) == f"<TracedStep of Net, SGD: {len(step.nodes)} nodes on cpu>"


def test_check_rejects_a_model_that_takes_another_path_while_it_is_traced() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * (2 if isinstance(x, FakeTensor) else 1)

    model, batch = Asks(), (torch.randn(4, 6),)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TraceError, match="differs from an eager one in the loss"):
        trace_train_step(model, loss_of, optimizer, batch, check=True)
    assert same(before, model.state_dict())
