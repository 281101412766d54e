"""Whether two traces of one step say the same, and which values of a trace are constants."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from profiler.graph.fake_tensors import draws_random_numbers


def comes_from_constants(node: fx.Node) -> bool:
    """Whether a value depends neither on an input of the graph nor on random numbers."""
    pending, seen = [node], set[fx.Node]()
    while pending:
        one = pending.pop()
        if one in seen:
            continue
        seen.add(one)
        if one.op == "placeholder" or (one.op == "get_attr" and not str(one.target).startswith("_tensor_constant")):
            return False
        if one.op == "call_function" and draws_random_numbers(one):
            return False
        pending.extend(one.all_input_nodes)
    return True


def same_graph(first: fx.GraphModule, second: fx.GraphModule) -> bool:
    """Whether two graphs have the same nodes with the same arguments, and equal constants."""
    a, b = list(first.graph.nodes), list(second.graph.nodes)
    if len(a) != len(b):
        return False
    place = {node: index for nodes in (a, b) for index, node in enumerate(nodes)}

    def written_down(node: fx.Node) -> Any:
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        return [
            ("node", place[leaf]) if isinstance(leaf, fx.Node) else (type(leaf), repr(leaf)) for leaf in leaves
        ], spec

    for one, other in zip(a, b, strict=True):
        if one.op != other.op or written_down(one) != written_down(other):
            return False
        if one.op == "get_attr":
            if not _same_constant(getattr(first, str(one.target)), getattr(second, str(other.target))):
                return False
        elif one.op == "call_function" and one.target != other.target:
            return False
    return True


def _same_constant(a: Any, b: Any) -> bool:
    if a is b or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    same: bool = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return same
