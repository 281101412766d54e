"""A traced step whose 16-bit matmuls run on sizes that the device multiplies fast.

    step = with_aligned_matmuls(trace_train_step(...))      # GPT-2's vocabulary: 50304 in the place of 50257

16-bit matmuls take several times as long where the rows of an operand are no whole units of 16 bytes. Long dimensions
of other sizes are padded with zeros and the result is cut, so that nothing else in the graph sees it: a padded weight
is shared by the matmuls that read it. Another size is another kernel, which rounds otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from checkpointing.errors import CheckpointingError
from profiler import TracedStep

aten = torch.ops.aten

UNIT = 8  # elements of 16 bits: rows that are multiples of it are multiplied fast
TILE = 64  # to a multiple of which others are padded, as they are copied anyway
LONG = 512  # a copy of a shorter dimension costs more than the matmul gains
_TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default)


def with_aligned_matmuls(step: TracedStep) -> TracedStep:
    """A step of its own; `step` itself if all its matmuls are aligned."""
    if not any(_is_unaligned(node) for node in step.nodes):
        return step
    if step.first_graph_module is not None:
        raise CheckpointingError(
            "the first step of this optimizer differs from the others (SGD with dampening): run one eager step first"
        )
    graph = _Aligned()
    copies = {node: graph.copied(node) for node in step.nodes}
    graph.new.lint()
    module = fx.GraphModule(step.graph_module, graph.new)
    gradients = {name: copies[node] for name, node in step.gradients.items()}
    return replace(step, graph_module=module, gradients=gradients, steps_run=0)


def _is_unaligned(node: fx.Node) -> bool:
    if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
        return False
    *bias, left, right = (source.meta["val"] for source in _operands(node))
    fits = not bias or bias[0].shape == right.shape[1:]
    return fits and left.element_size() == right.element_size() == 2 and any(map(_missing, (*left.shape, *right.shape)))


def _operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """Of a matmul: its bias, if it has one, and both matrices."""
    return tuple(source for source in node.args if isinstance(source, fx.Node))


def _missing(size: int) -> int:
    """How many elements a dimension is padded by."""
    return -size % TILE if size >= LONG and size % UNIT else 0


class _Aligned:
    """The new graph, node by node. What is padded is kept for the next reader until something is written in place."""

    def __init__(self) -> None:
        self.new = fx.Graph()
        self.of: dict[fx.Node, fx.Node] = {}
        self.padded: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = {}

    def copied(self, node: fx.Node) -> fx.Node:
        made = self._matmul(node) if _is_unaligned(node) else self.new.node_copy(node, self.of.__getitem__)
        made.name = node.name
        self.of[node] = made
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            self.padded.clear()
        return made

    def _matmul(self, node: fx.Node) -> fx.Node:
        padded = self._add(node, node.target, *(self._pad(source, node) for source in _operands(node)))
        value, made = node.meta["val"], padded.meta["val"]
        sizes = reversed(list(zip(made.shape, value.shape, strict=True)))
        cut = [m for whole, size in sizes for m in (0, size - whole)]  # as negative padding, the last dimension first
        if not any(cut):
            padded.meta["val"] = value
            return padded
        result = self._add(node, aten.constant_pad_nd.default, padded, cut)  # a copy without gaps
        result.meta["val"] = value  # whose storage the views of it share
        return result

    def _pad(self, source: fx.Node, like: fx.Node) -> fx.Node:
        """`source`, an operand in the old graph, with zeros at the end of its long dimensions."""
        missing = tuple(map(_missing, source.meta["val"].shape))
        if not any(missing):
            return self.of[source]
        key = source, missing
        if key not in self.padded:
            origin = source.args[0] if source.target in _TRANSPOSES else None
            if isinstance(origin, fx.Node) and origin.meta["val"].shape == source.meta["val"].shape[::-1]:
                made = self._add(like, aten.permute.default, self._pad(origin, like), [1, 0])
            else:
                zeros = [m for amount in reversed(missing) for m in (0, amount)]
                made = self._add(like, aten.constant_pad_nd.default, self.of[source], zeros)
            self.padded[key] = made
        return self.padded[key]

    def _add(self, like: fx.Node, target: Any, *args: Any) -> fx.Node:
        """A call in the region and module of `like`, with its fake result."""
        made = self.new.create_node("call_function", target, args, name=f"{like.name}_padded")
        made.meta = {key: value for key, value in like.meta.items() if key not in ("val", "tensor_meta")}
        values: Any = fx.node.map_arg(args, lambda n: n.meta["val"])
        fake = next(v for v in values if isinstance(v, Tensor))
        assert isinstance(fake, FakeTensor)
        with fake.fake_mode, torch.no_grad():
            made.meta["val"] = target(*values)
        return made
