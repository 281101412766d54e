"""Nodes added to a joint graph, with the fake values, modules and stack traces that the planner and inductor read.

new = NewNodes(before, like=node)               # they belong to the module and the line of `node`
total = new.add(torch.ops.aten.sum.default, losses)
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

_INHERITED = (
    "nn_module_stack",
    "fwd_nn_module_stack",
    "source_fn_stack",
    "fwd_source_fn_stack",
    "stack_trace",
    "original_aten",
    "from_node",
    "seq_nr",
    "custom",
    "partitioner_tag",
)


class NewNodes:
    """Adds nodes before a node. `like` is the node in whose place they stand, `in_backward` what partitioners are told
    of them, if it is not the same as of `like`."""

    def __init__(self, before: fx.Node, like: fx.Node, name: str = "", in_backward: bool | None = None) -> None:
        self.before, self.like, self.name = before, like, name or like.name
        self.meta = {key: like.meta[key] for key in _INHERITED if key in like.meta}
        if in_backward is not None:
            self.meta["partitioner_tag"] = "is_backward" if in_backward else "is_forward"

    def add(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of `target`; its fake result is computed from those of its operands."""
        with self.before.graph.inserting_before(self.before):
            node = self.before.graph.create_node("call_function", target, args, kwargs, name=self.name)
        node.meta = dict(self.meta)
        values: Any = fx.node.map_arg(args, lambda n: n.meta["val"])
        keywords: Any = fx.node.map_arg(kwargs, lambda n: n.meta["val"])
        with _fake_mode(self.like), torch.no_grad():
            node.meta["val"] = target(*values, **keywords)
        return node

    def cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        """`node` in `dtype`: itself if it is."""
        if node.meta["val"].dtype == dtype:
            return node
        return self.add(torch.ops.prims.convert_element_type.default, node, dtype)

    def contiguous(self, node: fx.Node) -> fx.Node:
        """`node` without gaps: a copy, if it is a part of something."""
        if node.meta["val"].is_contiguous():
            return node
        return self.add(torch.ops.aten.clone.default, node, memory_format=torch.contiguous_format)

    def view(self, node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        """`node` in `shape`: itself if it has it."""
        return node if node.meta["val"].shape == shape else self.add(torch.ops.aten.view.default, node, list(shape))

    def slice(self, node: fx.Node, dim: int, start: int, stop: int) -> fx.Node:
        """The elements from `start` to before `stop` along `dim`: the node itself if that is all of them."""
        if (start, stop) == (0, node.meta["val"].shape[dim]):
            return node
        return self.add(torch.ops.aten.slice.Tensor, node, dim, start, stop)


def _fake_mode(node: fx.Node) -> contextlib.AbstractContextManager[Any]:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple | list) and value else value
    return value.fake_mode if isinstance(value, FakeTensor) else contextlib.nullcontext()


def is_matrix(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dim() == 2
