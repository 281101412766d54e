"""A whole model and a synthetic batch, for the phases that work on a training step.

Built by `profiler.models` from transformers' configurations with random weights; nothing is downloaded. With a method
that builds layers, the model's MLPs or attention are that method's pairs over the ranks; all else is on every rank.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from blockshock.config import kind
from blockshock.dtypes import DTYPES
from blockshock.errors import ConfigError, at_least, one_of
from blockshock.masks import prunes
from blockshock.methods.shared import data_parallel
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.methods.pairs.model import ModelProblem
    from blockshock.methods.pairs.sites import Site
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
    layers: str | None = None  # mlp | attention | mlp+attention: what a method of layers builds; None: mlp, by `check`
    layers_by: Any = None  # such a method with its options, where the job's own is one of the whole step
    data_parallel: str = "none"  # none | ddp | ddp_buckets | fsdp2: every rank trains on a batch of its own

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
        data_parallel.check(job)
        if kind(job) == "layer":
            if self.layers_by is not None:
                problem = f"method={job.method.name} builds the layers itself; leave it out"
                raise ConfigError("method@workload.layers_by", self.layers_by.get("name"), problem)
            self._check_layers(job)
            return
        if self.layers_by is not None:
            from blockshock.methods.pairs.in_step import checked

            self.layers_by = checked(job, self._check_layers)
            return
        if self.layers is not None:
            problem = f"method={job.method.name} is for the whole step; leave workload.layers=null"
            raise ConfigError("workload.layers", self.layers, problem)
        if job.hardware.world_size != 1 and self.data_parallel == data_parallel.NONE:
            raise ConfigError(
                "hardware.world_size",
                job.hardware.world_size,
                "a model's step runs on one rank; set it to 1, or let a method build its layers over ranks, as "
                "method@workload.layers_by=dense_tp_row, or train with workload.data_parallel=ddp or fsdp2",
            )

    def _check_layers(self, job: Job) -> None:
        """What a model must have for a method's layers to take the place of its own."""
        from blockshock.methods.pairs.sites import LAYERS

        self.layers = self.layers or "mlp"
        one_of("workload.layers", self.layers, LAYERS)
        model = _shapes(self.name)
        sites = _sites(self.name, self.layers)
        if not sites:
            problem = "has no MLP and no attention that a method could build; use gpt2, llama, bert or vit"
            raise ConfigError("workload", self.name, problem)
        if prunes(job.mask):
            raise ConfigError(
                "mask", job.mask.name, "a model's weights are not pruned; use workload=mlp_block or a layer"
            )
        if self.autocast is not None:
            raise ConfigError("workload.autocast", self.autocast, "layers have one dtype; use model.dtype=bf16")
        if any(module.p > 0 for module in _shapes(self.name, self.dropout).modules() if isinstance(module, nn.Dropout)):
            problem = "the dense model that a method's is compared with would draw other masks; set workload.dropout=0"
            raise ConfigError("workload.dropout", "null" if self.dropout is None else self.dropout, problem)
        job.model.N = job.model.K = sites[0].features  # what records say of it
        job.model.B = self.batch_size * _rows_per_sample(model, self._length())

    def check_method(self, job: Job) -> None:
        """Whether the method's layers can be paired at the sizes of the model's own."""
        from blockshock.methods.pairs.choice import pairing_of

        assert self.layers is not None
        for between in {site.KIND: site.between for site in _sites(self.name, self.layers)}.values():
            try:
                pairing_of(job).check(job, between)
            except ConfigError as error:
                if not error.key.startswith(("workload.hidden", "model.")):
                    raise
                problem = f"its MLPs, of {job.model.K} and {between.hidden} features, can't be split: {error}"
                raise ConfigError("workload", self.name, problem) from error

    def problem(self, job: Job, device: torch.device) -> ModelProblem:
        """The model whose layers the method builds; a batch of its own at every step."""
        from blockshock.methods.pairs.choice import pairing_of
        from blockshock.methods.pairs.model import ModelProblem

        model, seed, length = job.model, job.experiment.seed, self._length()
        config = _shapes(self.name).config
        text = hasattr(config, "vocab_size")
        classes = config.vocab_size if text else config.num_labels

        def build_model(dtype: torch.dtype, device: torch.device) -> nn.Module:
            if device.type == "meta":
                return _shapes(self.name, self.dropout)
            return _copied(_drawn(self.name, length, dtype, seed, self.dropout), device)

        def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            on: dict[str, Any] = {"generator": generator, "device": generator.device}
            if text:
                ids, labels = (torch.randint(classes, (self.batch_size, length), **on) for _ in range(2))
                return ids, labels
            images = torch.randn(self.batch_size, 3, config.image_size, config.image_size, **on)
            return images, torch.randint(classes, (self.batch_size,), **on)

        assert self.layers is not None
        return ModelProblem(
            N=model.N,
            K=model.K,
            B=model.B,
            dtype=DTYPES[model.dtype],
            device=device,
            seed=seed,
            workload=None,
            mask=job.mask,
            layers=self.layers,
            pairing=pairing_of(job),
            build_model=build_model,
            draw=draw,
            classes=classes,
            described=f"{self.name} batch_size={self.batch_size} seq_len={length} dropout={self.dropout}",
        )

    def _length(self) -> int:
        return self.seq_len or 16  # profiler.models' own default

    def task(self, job: Job, device: torch.device) -> TrainingTask:
        """What `build` makes, with this rank's part of the layers where `layers_by` names a method for them; under
        data parallelism with a batch of this rank's own."""
        task = self.build(DTYPES[job.model.dtype], device, job.experiment.seed)
        if self.data_parallel != data_parallel.NONE:
            batch = tuple(value.roll(distributed.rank(), dims=-1) for value in task.batch)
            task = replace(task, batch=batch, within=data_parallel.wrapped(task.model, self.data_parallel, device))
        if self.layers_by is not None:
            from blockshock.methods.pairs.in_step import put_layers

            put_layers(job, task.model, device)
        return task

    def record_fields(self, job: Job) -> dict[str, Any]:
        """What records of a step say: a layer's sizes and mask where a method builds layers, else none."""
        if self.layers_by is None:
            return {"N": None, "K": None, "B": self.batch_size, "mask": None}
        return {"B": self.batch_size, "layers": self.layers_by["name"]}

    def build(self, dtype: torch.dtype, device: torch.device, seed: int) -> TrainingTask:
        """The model in train mode, its loss and one batch, the same for the same seed."""
        from profiler.models import build

        length = {} if self.seq_len is None else {"seq_len": self.seq_len}
        task = build(self.name, self.batch_size, dtype=dtype, device=device, seed=seed, dropout=self.dropout, **length)
        return task if self.autocast is None else under_autocast(task, DTYPES[self.autocast], device.type)


@cache
def _shapes(name: str, dropout: float | None = None) -> Any:
    """The model without memory for its weights."""
    from profiler.models import TEXT, VISION

    with torch.device("meta"):
        return (TEXT | VISION)[name.removeprefix("tiny_")](tiny=name.startswith("tiny_"), dropout=dropout)


@lru_cache(maxsize=1)
def _drawn(name: str, length: int, dtype: torch.dtype, seed: int, dropout: float | None) -> nn.Module:
    """The model with its weights, on the host: to draw Llama's takes a core 20 s, and a job needs them three times."""
    from profiler.models import build

    return build(name, 1, length, dtype, "cpu", seed, dropout).model


def _copied(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy on `device`, without one on the host in between."""
    there: dict[int, Tensor] = {}
    for parameter in model.parameters():
        there[id(parameter)] = nn.Parameter(parameter.detach().to(device, copy=True), parameter.requires_grad)
    for buffer in model.buffers():
        there[id(buffer)] = buffer.to(device, copy=True)
    return copy.deepcopy(model, there)


@cache
def _sites(name: str, layers: str) -> list[Site]:
    from blockshock.methods.pairs.sites import find_sites

    return find_sites(_shapes(name), layers)


def _rows_per_sample(model: Any, length: int) -> int:
    """Rows that a pair reads of one sample: tokens, or an image's patches and the class token."""
    config = model.config
    return length if hasattr(config, "vocab_size") else (config.image_size // config.patch_size) ** 2 + 1


def under_autocast(task: TrainingTask, dtype: torch.dtype, device: str) -> TrainingTask:
    """The same task; its loss function enters autocast by itself, so that every method runs it alike."""

    def loss_fn(model: nn.Module, *batch: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            return task.loss_fn(model, *batch)

    return replace(task, loss_fn=loss_fn, autocast=dtype)
