"""Floating-point operations of a node, by the formulas of `torch.utils.flop_counter`."""

from typing import Any

from torch import fx
from torch.utils.flop_counter import flop_registry


def flops_of(node: fx.Node) -> int:
    """2 × multiply-adds of a matrix product, convolution or attention, from its shapes; 0 for all else.

    Element-wise operators and reductions count as 0: memory bounds them, not arithmetic.
    """
    formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if formula is None:
        return 0
    args: Any = fx.node.map_arg(node.args, lambda argument: argument.meta["val"])
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda argument: argument.meta["val"])
    return int(formula(*args, **kwargs, out_val=node.meta["val"]))
