"""The baselines of compiled training: `torch.compile`, and each way that PyTorch offers to lower its peak.

The loss is compiled, and the optimizer stays outside, as in most training loops. Compiled steps of one run differ in
how they fuse and so in rounding: a step is compared with `torch.compile` alone, from the same state and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from blockshock.errors import ConfigError, WrongValue, one_of
from blockshock.methods.shared.checkpointed_blocks import (
    BLOCKS,
    SAVED,
    Forwards,
    blocks_of,
    checkpointed_forwards,
    replaced_forwards,
)
from blockshock.methods.shared.eager_step import EagerStep, compiled_alone

if TYPE_CHECKING:
    from blockshock.config import Job
    from profiler.models import TrainingTask

LOSSES = ("plain", "auto_chunker", "linear_cross_entropy", "liger")


@dataclass
class TorchCompile:
    """Every way is off by default, and they combine as far as PyTorch lets them."""

    acts_on: ClassVar[str] = "model"
    exact: ClassVar[bool] = False  # a baseline: how far it is from torch.compile alone is recorded, not required
    data_parallel: ClassVar = ("ddp", "ddp_buckets", "fsdp2")

    name: str
    backend: str = "inductor"  # inductor: fused kernels | aot_eager: operators one by one
    mode: str = "default"  # default | reduce-overhead (CUDA graphs)
    memory_budget: float = 1.0  # torch._functorch.config.activation_memory_budget: a fraction of the saved bytes
    checkpoint: str = "none"  # none | blocks: torch.utils.checkpoint around the model's repeated blocks
    blocks: float | None = None  # how many of them, or below 1 what share, spread evenly; null: all
    saved: list[str] = field(default_factory=list)  # selective: what a checkpointed block keeps, among SAVED
    loss: str = "plain"  # plain | auto_chunker | linear_cross_entropy | liger: the logits in chunks

    def check(self, job: Job) -> None:
        one_of("method.backend", self.backend, ("inductor", "aot_eager"))
        one_of("method.mode", self.mode, ("default", "reduce-overhead"))
        one_of("method.checkpoint", self.checkpoint, ("none", "blocks"))
        one_of("method.loss", self.loss, LOSSES)
        if not 0 <= self.memory_budget <= 1:
            raise ConfigError("method.memory_budget", self.memory_budget, "the compiler's budget is between 0 and 1")
        if self.blocks is not None and not (0 < self.blocks < 1 or (self.blocks >= 1 and self.blocks % 1 == 0)):
            raise WrongValue("method.blocks", self.blocks, "must be a whole number of blocks, or a share below 1")
        for name in self.saved:
            one_of("method.saved", name, SAVED)
        if self.checkpoint == "none" and (self.saved or self.blocks is not None):
            key = "saved" if self.saved else "blocks"
            raise ConfigError(
                f"method.{key}", getattr(self, key), "is of checkpointed blocks; add method.checkpoint=blocks"
            )
        if self.backend != "inductor" and (self.mode != "default" or self.loss == "auto_chunker"):
            key = "mode" if self.mode != "default" else "loss"
            raise ConfigError(f"method.{key}", getattr(self, key), "is inductor's own; use method.backend=inductor")
        if self.mode == "reduce-overhead" and job.hardware.device != "cuda":
            raise ConfigError("method.mode", self.mode, "replays CUDA graphs; on a CPU use method.mode=default")
        if self.loss in _OF_HIDDEN_STATES and getattr(job.workload, "autocast", None):
            raise ConfigError(
                "method.loss", self.loss, "replaces the loss that enters autocast; use workload.autocast=null"
            )
        if self.loss == "linear_cross_entropy" and not hasattr(functional, "linear_cross_entropy"):
            raise ConfigError("method.loss", self.loss, f"needs torch 2.13 or later; this is {torch.__version__}")
        if self.loss == "liger" and find_spec("liger_kernel") is None:
            raise ConfigError("method.loss", self.loss, "needs Liger's kernels: pip install liger-kernel")
        if self.loss == "liger" and job.hardware.device != "cuda":
            raise ConfigError("method.loss", self.loss, "runs Triton kernels on a GPU; here use linear_cross_entropy")
        if self.loss == "auto_chunker" and not hasattr(_inductor_config(), "auto_chunker"):
            raise ConfigError("method.loss", self.loss, f"needs torch 2.11 or later; this is {torch.__version__}")

    def build_step(self, problem: TrainingTask, optimizer: torch.optim.Optimizer) -> EagerStep:
        """The first call compiles. Raises ConfigError where the model lacks what an option speaks of."""
        forwards = checkpointed_forwards(self._blocks(problem.model), self.saved)
        of_hidden_states = _OF_HIDDEN_STATES.get(self.loss)
        head = _head(problem.model) if of_hidden_states else None
        if of_hidden_states and head is None:
            raise ConfigError("method.loss", self.loss, "needs a language model, whose logits are a linear layer's")
        if head is not None:  # the model then returns what its last layer would multiply
            forwards.append((head, nn.Identity().forward))
        torch._dynamo.reset()  # a step compiled before with other settings would be taken again
        loss_fn = of_hidden_states or problem.loss_fn
        mode = None if self.mode == "default" else self.mode
        compiled = torch.compile(loss_fn, backend=self.backend, dynamic=False, mode=mode)

        def loss(*batch: Any) -> Tensor:
            with self._settings(forwards):
                return compiled(problem.model, *batch)

        return EagerStep(problem, optimizer, loss, compiled_alone(problem, self.backend), self.variant())

    def variant(self) -> str:
        """What is added to torch.compile, in words; the budget stands in a column of its own."""
        words = [self.mode] if self.mode != "default" else []
        if self.checkpoint == "blocks":
            of = "of the blocks" if self.blocks and self.blocks < 1 else "blocks"
            words.append("per block" if self.blocks is None else f"{self.blocks:g} {of}")
        words += [f"saving {'+'.join(self.saved)}"] if self.saved else []
        return ", ".join([*words, *([self.loss] if self.loss != "plain" else [])])

    def _blocks(self, model: nn.Module) -> list[nn.Module]:
        if self.checkpoint == "none":
            return []
        blocks = blocks_of(model, self.blocks)
        if not blocks:
            raise ConfigError("method.checkpoint", self.checkpoint, f"the model has no block among {', '.join(BLOCKS)}")
        kind = type(blocks[0]).__name__
        for name in self.saved:
            if not BLOCKS[kind] or (name != "attention" and name not in BLOCKS[kind]):
                raise ConfigError("method.saved", name, f"a {kind} has no operator of this name")
        return blocks

    @contextmanager
    def _settings(self, forwards: Forwards) -> Iterator[None]:
        """Read when the first call compiles."""
        import torch._functorch.config as functorch_config

        with ExitStack() as stack:
            stack.enter_context(functorch_config.patch(activation_memory_budget=self.memory_budget))
            if self.loss == "auto_chunker":
                stack.enter_context(_inductor_config().patch({"auto_chunker.enable": True}))
            stack.enter_context(replaced_forwards(forwards))
            yield


def _head(model: nn.Module) -> nn.Linear | None:
    """The linear layer that makes a language model's logits."""
    embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    return embeddings if isinstance(embeddings, nn.Linear) else None


def _linear_cross_entropy(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the logits (B·S, V), which never are in memory at once."""
    hidden, head = model(ids).logits, _head(model)
    assert head is not None
    return functional.linear_cross_entropy(
        hidden.flatten(0, 1),
        head.weight,
        labels.flatten(),
        linear_bias=head.bias,
        options=nn.LinearCrossEntropyOptions(),
    )


def _liger(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """The same by Liger's fused kernel (Hsu et al. 2024), which computes the gradients along with the loss."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    hidden, head = model(ids).logits, _head(model)
    assert head is not None
    loss: Tensor = LigerFusedLinearCrossEntropyLoss()(head.weight, hidden.flatten(0, 1), labels.flatten(), head.bias)
    return loss


_OF_HIDDEN_STATES: dict[str, Callable[..., Tensor]] = {"linear_cross_entropy": _linear_cross_entropy, "liger": _liger}


def _inductor_config() -> Any:
    import torch._inductor.config as inductor_config

    return inductor_config
