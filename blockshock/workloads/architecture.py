"""Any architecture of transformers or timm: `profiler.architectures`, for the phases that work on a training step.

blockshock phase=checkpoint workload=architecture workload.model=timm/convnext_base workload.batch_size=64
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from blockshock.config import kind
from blockshock.dtypes import DTYPES
from blockshock.errors import ConfigError, WrongValue, nearest
from blockshock.workloads.model import ModelWorkload, under_autocast

if TYPE_CHECKING:
    import torch

    from blockshock.config import Job
    from profiler.models import TrainingTask


@dataclass
class ArchitectureWorkload(ModelWorkload):
    """`model` is transformers/<model type> or timm/<model name>; `options` change its configuration."""

    model: str = ""
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.name = self.model

    def check(self, job: Job) -> None:
        if refusal := _refusal(self.model, json.dumps(self.options or {})):
            raise refusal
        if self.dropout is not None:
            raise ConfigError(
                "workload.dropout", self.dropout, "is a key of the architecture's own; use workload.options"
            )
        if kind(job) == "layer" or self.layers_by is not None:
            problem = "has no layers that a method could build; use workload=gpt2, llama, bert or vit"
            raise ConfigError("workload.model", self.model, problem)
        super().check(job)

    def build(self, dtype: torch.dtype, device: torch.device, seed: int) -> TrainingTask:
        """The model in train mode, its loss and one batch, the same for the same seed."""
        from profiler.architectures import SEQ_LEN, build

        length = self.seq_len or SEQ_LEN
        task = build(self.model, self.batch_size, length, dtype, device, seed, self.options)
        return task if self.autocast is None else under_autocast(task, DTYPES[self.autocast], device.type)


@cache
def _refusal(model: str, options: str) -> ConfigError | None:
    """What is wrong with the architecture, by building it without memory for its weights."""
    from profiler.architectures import LIBRARIES, empty, names
    from profiler.errors import MissingPackageError

    given = json.loads(options)
    library, _, own = model.partition("/")
    if library not in LIBRARIES or not own:
        return WrongValue("workload.model", model, "write transformers/<model type> or timm/<model name>")
    try:
        known = names(library)
        if own not in known:
            return WrongValue("workload.model", model, f"{library} has no such model{nearest(own, known)}")
        empty(model, given)
    except (MissingPackageError, ImportError) as error:
        return ConfigError("workload.model", model, str(error).splitlines()[0])
    except Exception as error:  # of any kind: whatever the library's own code makes of these options
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        key, value = ("workload.options", given) if given else ("workload.model", model)
        return ConfigError(key, value, f"can't be built: {said}")
    return None
