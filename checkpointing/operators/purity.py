"""How an operator that is not a pure function of its arguments can still be run a second time.

Two kinds occur in the forward of a training step. A random operator (dropout, attention with dropout) gives the
same numbers when it starts from the same state of the generator: the rewritten step remembers that state at the
first run and goes back to it for the second. A custom operator is treated as if it were random. Batch norm in training
updates its running statistics as it goes; without them it computes the same output and the same batch statistics, so
the second run is given none.
"""

from typing import Any

import torch
from torch import fx

from profiler.costs.storage import BATCH_NORMS
from profiler.graph.fake_tensors import communicates, draws_random_numbers

_PYTORCHS_OWN = ("aten", "prims", "prim")


def draws_from_own_generator(node: fx.Node) -> bool:
    """Whether the node draws from a generator that the user made, and not from the device's."""
    return node.kwargs.get("generator") is not None


def of_pytorch(node: fx.Node) -> bool:
    """Whether the node is one of PyTorch's own operators, or plain Python such as taking an element out of a tuple.

    Tags and schemas of those are kept by PyTorch; what a custom operator says of itself may not be so.
    """
    return getattr(node.target, "namespace", "aten") in _PYTORCHS_OWN


def may_draw(node: fx.Node) -> bool:
    """Whether the node draws random numbers, or is a custom operator, which may do so without a tag that says it."""
    custom = node.op == "call_function" and not of_pytorch(node) and not communicates(node)
    return draws_random_numbers(node) or custom


def updates_running_statistics(node: fx.Node) -> bool:
    """Whether the node is a batch norm that updates running statistics."""
    if node.target not in BATCH_NORMS:
        return False
    mean, _, training = BATCH_NORMS[node.target]
    return node.args[mean] is not None and (training < 0 or bool(node.args[training]))


def without_running_statistics(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """Operator and arguments of the same batch norm that leaves the running statistics alone."""
    mean, variance, training = BATCH_NORMS[node.target]
    args = list(node.args)
    args[mean] = args[variance] = None
    if training < 0:  # with_update has no flag: its functional sibling takes one
        return torch.ops.aten._native_batch_norm_legit.no_stats, (*args[:3], True, *args[5:])
    if node.target is torch.ops.aten._native_batch_norm_legit.default:
        return torch.ops.aten._native_batch_norm_legit.no_stats, (*args[:3], True, *args[6:])
    return node.target, tuple(args)
