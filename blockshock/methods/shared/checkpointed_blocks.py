"""`torch.utils.checkpoint` around the repeated blocks of a model, whole or selective: what users write by hand today.

with checkpointed(blocks_of(model, 6), saved=("attention", "qkv")):     # 6 of the blocks, spread evenly
    loss = loss_fn(model, *batch)

Selective checkpointing (`torch.utils.checkpoint.create_selective_checkpoint_contexts`) keeps the results of the named
operators of a block and recomputes the rest. Its policy sees operators and not modules, so a matmul is named by its
place among the matmuls of its block's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

# The repeated block of each model of transformers -> the places of its matmuls in the order in which forward runs them.
BLOCKS: dict[str, dict[str, tuple[int, ...]]] = {
    "BertLayer": {"qkv": (0, 1, 2), "projection": (3,), "mlp_in": (4,), "mlp_out": (5,)},
    "ViTLayer": {"qkv": (0, 1, 2), "projection": (3,), "mlp_in": (4,), "mlp_out": (5,)},
    "GPT2Block": {"qkv": (0,), "projection": (1,), "mlp_in": (2,), "mlp_out": (3,)},
    "LlamaDecoderLayer": {"qkv": (0, 1, 2), "projection": (3,), "mlp_in": (4, 5), "mlp_out": (6,)},
    "ResNetBottleNeckLayer": {},
    "ResNetBasicLayer": {},
}
Forwards = list[tuple[nn.Module, Callable[..., Any]]]
SAVED = ("attention", "qkv", "projection", "mlp_in", "mlp_out")


def blocks_of(model: nn.Module, count: float | None = None) -> list[nn.Module]:
    """The model's repeated blocks, or `count` of them (below 1: that share, at least one) spread evenly over its depth,
    the first among them."""
    blocks = [module for module in model.modules() if type(module).__name__ in BLOCKS]
    if count is not None:
        count = max(1, round(count * len(blocks))) if count < 1 else int(count)
    if count is None or count >= len(blocks):
        return blocks
    return [blocks[index * len(blocks) // count] for index in range(count)]


@contextmanager
def checkpointed(blocks: Sequence[nn.Module], saved: Sequence[str] = ()) -> Iterator[None]:
    """Within it each block keeps its input and what `saved` names, and runs again in the backward."""
    with replaced_forwards(checkpointed_forwards(blocks, saved)):
        yield


def checkpointed_forwards(blocks: Sequence[nn.Module], saved: Sequence[str] = ()) -> Forwards:
    """Each block with the forward that it has within `checkpointed`.

    A compiled step has to be given the same functions in every call: Dynamo compiles it again for others.
    """
    from torch.utils.checkpoint import checkpoint

    found: Forwards = []
    for block in blocks:
        places = BLOCKS[type(block).__name__]
        matmuls = frozenset(place for name in saved for place in places.get(name, ()))
        selective: dict[str, Any] = (
            {"context_fn": partial(selective_contexts, "attention" in saved, matmuls)} if saved else {}
        )
        found.append((block, partial(checkpoint, block.forward, use_reentrant=False, **selective)))
    return found


@contextmanager
def replaced_forwards(forwards: Forwards) -> Iterator[None]:
    """Within it each module runs the function beside it instead of its class's own."""
    with ExitStack() as stack:
        for module, forward in forwards:
            stack.enter_context(replaced_forward(module, forward))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it the module runs `forward` instead of its class's own."""
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


def selective_contexts(attention: bool, matmuls: frozenset[int]) -> Any:
    """The context managers of one checkpointed forward. torch.compile takes a partial of a module's function only."""
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    return create_selective_checkpoint_contexts(_Policy(attention, matmuls))


ATTENTION = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
)
MATMULS = frozenset((torch.ops.aten.mm.default, torch.ops.aten.addmm.default))  # bmm: attention's own, where unfused


@dataclass
class _Policy:
    """Counts the matmuls of a block's forward, once as it runs first and once as it runs again."""

    attention: bool
    matmuls: frozenset[int]

    def __post_init__(self) -> None:
        self.seen = {False: 0, True: 0}  # is it the second run? -> matmuls so far

    def __call__(self, context: Any, operator: Any, *_: Any, **__: Any) -> Any:
        from torch.utils.checkpoint import CheckpointPolicy

        keep = operator in ATTENTION and self.attention
        if operator in MATMULS:
            keep = self.seen[context.is_recompute] in self.matmuls
            self.seen[context.is_recompute] += 1
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.MUST_RECOMPUTE
