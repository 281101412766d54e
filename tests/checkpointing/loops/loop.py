"""Small loops that train copies of a model by the planned and by the unplanned step, and must agree bitwise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

import checkpointing
from tests.profiler.eager_steps import assert_equal

Loop = Callable[[nn.Module, Any], list[Tensor]]  # trains the model by a backend; the losses
WIDTH, CLASSES = 16, 5


def in_processes(work: Callable[..., None], arguments: tuple[Any, ...], count: int = 1) -> None:
    """Run `work(number, *arguments)` in so many new processes. The server that forks them (conftest's fixture
    `forking_server`) has imported PyTorch and its compiler, which takes a process of its own five seconds."""
    mp.start_processes(work, arguments, count, start_method="forkserver")


class Encoder(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))
            for _ in range(count)
        )
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(x)


class Classifier(nn.Module):
    """Two encoders, each of one layer: what a loop is about does not take more, and compiling takes half as long."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.encoder = Encoder(layers)
        self.head = nn.Sequential(Encoder(layers), nn.Linear(WIDTH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Deep(Classifier):
    """For what treats layers differently."""

    def __init__(self) -> None:
        super().__init__(layers=3)


def batches(count: int, rows: int = 256) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(rows, WIDTH, generator=draw), torch.randint(CLASSES, (rows,), generator=draw))
        for _ in range(count)
    ]


def loss_of(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model(x), labels)


def backend(memory_budget: float = 0.85, solver: str = "optimal") -> Any:
    return checkpointing.backend(memory_budget, execution="eager", solver=solver)


def assert_trains_as_unplanned(
    loop: Loop, model: nn.Module, planned: Any = None, unplanned: Any = "aot_eager"
) -> nn.Module:
    """Train copies of the model by both; the planned one."""
    results = []
    for by in (planned if planned is not None else backend(), unplanned):
        torch._dynamo.reset()
        trained = copy.deepcopy(model)
        torch.manual_seed(3)
        results.append((trained, loop(trained, by)))
    (found, losses), (expected, true_losses) = results
    assert [loss.item() for loss in losses] == [loss.item() for loss in true_losses]
    assert_equal(found.state_dict(), expected.state_dict(), "")
    assert_equal(gradients(found), gradients(expected), "")
    assert any(not torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())
    return found


def train(
    model: nn.Module,
    by: Any,
    loss_fn: Callable[..., Tensor] = loss_of,
    data: Sequence[tuple[Tensor, Tensor]] | None = None,
    make: Callable[[nn.Module], Sequence[Optimizer]] = lambda model: [AdamW(model.parameters(), lr=1e-2)],
    after_backward: Callable[[], None] = lambda: None,
    after_step: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """A plain loop, by default three steps of AdamW; the losses."""
    compiled = torch.compile(loss_fn, backend=by, dynamic=False)
    optimizers = make(model)
    losses = []
    for batch in data if data is not None else batches(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = compiled(model, *batch)
        loss.backward()
        after_backward()
        for optimizer in optimizers:
            optimizer.step()
        after_step()
        losses.append(loss.detach())
    return losses


def plain_loop(loss_fn: Callable[..., Tensor]) -> Loop:
    return lambda model, by: train(model, by, loss_fn)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def model_of(kind: type[nn.Module] = Classifier) -> nn.Module:
    torch.manual_seed(0)
    return kind()
