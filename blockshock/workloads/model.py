"""A whole model and a synthetic batch, for the phases that work on a training step.

Built by `profiler.models` from transformers' configurations with random weights; nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from blockshock.dtypes import DTYPES
from blockshock.errors import ConfigError, at_least, one_of

if TYPE_CHECKING:
    from blockshock.config import Job
    from profiler.models import TrainingTask


@dataclass
class ModelWorkload:
    """`name` is a model of `profiler.models`: ResNet-152, BERT base, GPT-2 small, Llama 1B, ViT base, or a tiny one."""

    acts_on: ClassVar[str] = "model"

    name: str
    batch_size: int = 8
    seq_len: int | None = None  # tokens of a sample; only text models have it
    dropout: float | None = None  # None: what the model's configuration says
    autocast: str | None = None  # bf16: the forward and the loss run under torch.autocast

    def check(self, job: Job) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise ConfigError("workload", self.name, "needs transformers: pip install 'block-shock[models]'")
        at_least("workload.batch_size", self.batch_size, 1)
        if self.seq_len is not None:
            at_least("workload.seq_len", self.seq_len, 1)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError("workload.dropout", self.dropout, "must be at least 0 and below 1, or null")
        if self.autocast is not None:
            one_of("workload.autocast", self.autocast, ("bf16",))
        if job.hardware.world_size != 1:
            raise ConfigError(
                "hardware.world_size", job.hardware.world_size, "a model's step runs on one rank; set it to 1"
            )

    def build(self, dtype: torch.dtype, device: torch.device, seed: int) -> TrainingTask:
        """The model in train mode, its loss and one batch, the same for the same seed."""
        from profiler.models import build

        length = {} if self.seq_len is None else {"seq_len": self.seq_len}
        task = build(self.name, self.batch_size, dtype=dtype, device=device, seed=seed, dropout=self.dropout, **length)
        return task if self.autocast is None else _under_autocast(task, DTYPES[self.autocast], device.type)


def _under_autocast(task: TrainingTask, dtype: torch.dtype, device: str) -> TrainingTask:
    """The same task; its loss function enters autocast by itself, so that every method runs it alike."""

    def loss_fn(model: nn.Module, *batch: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            return task.loss_fn(model, *batch)

    return replace(task, loss_fn=loss_fn, autocast=dtype)
