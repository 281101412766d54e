"""Floating-point operations of an operator, by the formulas of `torch.utils.flop_counter`."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import flop_registry


def flops_of(node: fx.Node) -> int:
    """2 × multiply-adds of a matrix product, convolution or attention, from its shapes; 0 for all else.

    Element-wise operators and reductions count as 0: memory bounds them, not arithmetic.
    """
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in flop_registry:
        return 0
    args: Any = fx.node.map_arg(node.args, lambda argument: argument.meta["val"])
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda argument: argument.meta["val"])
    return formula_flops(packet, args, kwargs, node.meta["val"])


def formula_flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """The registry's count for one call of an operator that is in it."""
    if "scaled_dot_product" in str(packet):
        args = _with_all_heads(args)
    return int(flop_registry[packet](*args, **kwargs, out_val=out))


def _with_all_heads(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Attention's operands with as many key and value heads as query heads [B, H, S, D].

    In grouped-query attention several query heads share one key head; each still multiplies by it, and the formulas
    of torch 2.11 know no sharing.
    """
    heads = max(argument.shape[1] for argument in args[:4] if isinstance(argument, Tensor) and argument.dim() == 4)

    def widen(argument: Any) -> Any:
        if isinstance(argument, Tensor) and argument.dim() == 4 and heads % argument.shape[1] == 0:
            return torch.empty(argument.shape[0], heads, *argument.shape[2:], dtype=argument.dtype, device="meta")
        return argument

    return tuple(widen(argument) if place < 4 else argument for place, argument in enumerate(args))
