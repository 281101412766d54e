"""Training loops as users write them, around a step that is compiled by a given backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpointing.compiled import execution
from profiler.models import build
from tests.profiler.eager_steps import LiveBytes, state_by_name

STEPS = 3
TINY = ("tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_resnet152", "tiny_vit")

LossFn = Callable[..., Tensor]


class Blocks(nn.Module):
    """Residual blocks of linear, GELU, linear and dropout, all alike."""

    def __init__(self, count: int = 4, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))
            for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class ConvNeXtBlock(nn.Module):
    """Patches of images [B, 3, S, S], normed as [B, H, W, C], and the block of ConvNeXt (Liu et al. 2022, figure 4)."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, stride=4)
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.first_norm, self.norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first_norm(self.patches(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        rows = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(nn.functional.gelu(self.up(rows))).permute(0, 3, 1, 2)


def square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


@dataclass
class Trained:
    """What a loop leaves: losses by step, and everything that training moves, by name."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: LossFn  # compiled
    losses: list[Tensor]

    @property
    def state(self) -> dict[str, Tensor]:
        return {**self.model.state_dict(), **state_by_name(self.model, self.optimizer)}


def train(model: nn.Module, loss_fn: LossFn, batch: Sequence[Tensor], backend: Any, steps: int = STEPS) -> Trained:
    """`steps` steps of AdamW with clipping and a schedule, from the same seed whatever the backend."""
    torch._dynamo.reset()
    compiled = torch.compile(loss_fn, backend=backend, dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    torch.manual_seed(7)
    losses = []
    for _ in range(steps):
        loss = compiled(model, *batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return Trained(model, optimizer, compiled, losses)


def train_tiny(name: str, backend: Any, steps: int = STEPS) -> Trained:
    task = build(name, batch_size=4, seq_len=32)
    return train(task.model, task.loss_fn, task.batch, backend, steps)


class CountedHalves:
    """Counts the bytes of living storages at every operator of both halves of the steps compiled inside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counter: LiveBytes | None = None
        interpreted = execution._interpreted

        def counted(module: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
            run = interpreted(module, inputs)

            def counting(arguments: list[Any]) -> Any:
                with self.counter or contextlib.nullcontext():
                    return run(arguments)

            counting._boxed_call = True  # type: ignore[attr-defined]
            return counting

        monkeypatch.setattr(execution, "_interpreted", counted)

    def peak(self, trained: Trained, batch: Sequence[Tensor]) -> int:
        """Bytes at the fullest operator of one more step, the optimizer's state included."""
        state = [value for values in trained.optimizer.state.values() for value in values.values()]
        self.counter = LiveBytes([*trained.model.state_dict().values(), *batch, *state])
        trained.loss_fn(trained.model, *batch).backward()
        trained.optimizer.zero_grad()
        return max(self.counter.counts)
