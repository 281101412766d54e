"""What a plan may not decide: values that must be kept, and values that must be recomputed.

rules = Rules(keep=("transformer.h.0.*",), recompute=("aten.gelu",))
rules.check(forward_kernels)            # a pattern that matches nothing is an error
rules.pinned(node), rules.is_forced(node)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from checkpointing.compiled.joint_step import module_of
from checkpointing.compiled.loss.ordered_matmuls import is_addition
from checkpointing.compiled.partition import IN_FORWARD
from checkpointing.errors import CheckpointingError

_SAVE = (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)
_RECOMPUTE = (CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE)
_SHOWN = 6  # names in a message


@dataclass(frozen=True)
class Rules:
    """Patterns (`fnmatch`) of a module's path, at any depth below it, or of an operator: "aten.mm", "mm"."""

    keep: tuple[str, ...] = ()
    recompute: tuple[str, ...] = ()

    def options(self) -> dict[str, list[str]]:
        """The patterns as options of the backend."""
        return {"keep": list(self.keep), "recompute": list(self.recompute)}

    def check(self, nodes: Iterable[fx.Node]) -> None:
        """Raise CheckpointingError for a pattern that matches none of the forward's kernels."""
        nodes = list(nodes)
        for option in ("keep", "recompute"):
            for pattern in getattr(self, option):
                if not any(_matches(pattern, node) for node in nodes):
                    modules = list(dict.fromkeys(filter(None, map(module_of, nodes))))[:_SHOWN]
                    operators = list(dict.fromkeys(str(node.target) for node in nodes))[:_SHOWN]
                    raise CheckpointingError(
                        f"{option}={pattern!r} matches no module and no operator of the compiled forward: "
                        f"modules are {', '.join(modules)}, ..., operators {', '.join(operators)}, ..."
                    )

    def pinned(self, node: fx.Node) -> str:
        """Why the node's results must be kept; "" if they need not."""
        target = node.target
        if isinstance(target, torch._ops.HigherOrderOperator) and not is_addition(node):
            return "is a higher-order operator's, which is not repeated"
        if isinstance(target, torch._ops.OpOverload) and "c10d" in target.namespace:
            told = any(_matches(pattern, node) for pattern in self.recompute)
            return "" if told else "is a collective's, which is not repeated"
        if target is torch.ops.prims.inductor_seeds.default:
            return "holds the seeds of random numbers"
        if node.meta.get(IN_FORWARD):
            return "is a gradient that the forward computes along with the loss"
        if node.meta.get("recompute") in _SAVE:
            return "is saved by the model's own checkpoint policy"
        if any(_matches(pattern, node) for pattern in self.keep):
            return "is kept on request"
        return ""

    def is_forced(self, node: fx.Node) -> bool:
        """Whether the results must be recomputed: on request, or by a checkpoint in the model itself."""
        return node.meta.get("recompute") in _RECOMPUTE or any(_matches(pattern, node) for pattern in self.recompute)


def _matches(pattern: str, node: fx.Node) -> bool:
    path = module_of(node).split(".")
    if any(fnmatchcase(".".join(path[:depth]), pattern) for depth in range(1, len(path) + 1)):
        return True
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    packet = str(target.overloadpacket)
    return any(fnmatchcase(name, pattern) for name in (str(target), packet, packet.rsplit(".", 1)[-1]))
