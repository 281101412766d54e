"""A joint graph in which gradients of embeddings are added to the rows that were looked up.

    joint = with_gradients_by_row(joint)

A graph that inductor decomposes adds the gradient of an embedding [V, H] to zeros in float32, [V, H] too, rounds that
to the parameter's type, and adds it to what else there is of the gradient: of a tied embedding, the gradient of the
linear layer that makes the logits. The zeros of GPT-2 take 147 MiB and those of Llama 1B 1002 MiB, for a few thousand
rows that are not zero. Here the rows are added where the other gradient is, or to zeros in the parameter's type
(`operators.add_rows_`): one rounding in the place of two, and no matrix in float32. An embedding with fewer rows than
are looked up stays as it is.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized

from checkpointing.compiled.embedding.operators import add_rows_
from checkpointing.compiled.loss.new_nodes import NewNodes
from checkpointing.compiled.loss.row_rules import arguments
from checkpointing.compiled.partition import copied, module_of_graph

aten, prims = torch.ops.aten, torch.ops.prims

_PUTS = (aten.index_put.default, aten._unsafe_index_put.default)
_MASKED = getattr(aten, "_unsafe_masked_index_put_accumulate", None)  # zeros, mask [..., 1], [indices], rows
_CASTS = (prims.convert_element_type.default, aten._to_copy.default)


def with_gradients_by_row(joint: fx.GraphModule) -> fx.GraphModule:
    """A copy of `joint` with every such gradient rewritten; `joint` itself if it has none."""
    if not any(map(_adds_few_rows, joint.graph.nodes)):
        return joint
    graph = copied(joint.graph)
    for node in list(graph.nodes):
        if _adds_few_rows(node):
            _rewrite(graph, node)
    graph.eliminate_dead_code()
    graph.lint()
    return module_of_graph(joint, graph)


def _adds_few_rows(node: fx.Node) -> bool:
    """Whether the node adds fewer rows to a matrix of zeros than that has."""
    given = arguments(node)
    if node.target in _PUTS and given[3:] == (True,):
        zeros, indices, rows, _ = given
        mask = None
    elif _MASKED is not None and node.target is _MASKED.default:
        zeros, mask, indices, rows = given
    else:
        return False
    total: Tensor = node.meta["val"]
    if not (_is_zero(zeros) and total.dim() == 2 and isinstance(indices, list | tuple) and len(indices) == 1):
        return False
    index, added = (value.meta["val"] if isinstance(value, fx.Node) else None for value in (indices[0], rows))
    return bool(
        isinstance(index, Tensor)
        and isinstance(added, Tensor)
        and index.dtype in (torch.int32, torch.int64)
        and added.shape == (*index.shape, total.shape[1])
        and (not isinstance(mask, fx.Node) or mask.meta["val"].shape == (*index.shape, 1))
        and index.numel() < len(total)
    )


def _is_zero(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.full.default and bool(node.args[1] == 0)


def _rewrite(graph: fx.Graph, put: fx.Node) -> None:
    result = _only_user(put)
    result = result if result is not None and _is_cast(result) else put
    total = None
    user = _only_user(result)
    if user is not None and (other := _added_to(user, result)) is not None:
        result, total = user, other
    new = NewNodes(result, like=result)
    if total is None:
        value = result.meta["val"]
        total = new.add(aten.full.default, list(value.shape), 0, dtype=value.dtype, device=value.device)
    indices, rows = _counted(new, put)
    both = new.add(auto_functionalized, add_rows_, total=total, indices=indices, rows=rows)
    result.replace_all_uses_with(new.add(operator.getitem, both, 1))


def _counted(new: NewNodes, put: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Indices and rows; a row that a mask leaves out is zero, and goes to the first place: its index may be none."""
    given = arguments(put)
    if put.target in _PUTS:
        return given[1][0], given[2]
    _, mask, [index], rows = given
    number, value = index.meta["val"], rows.meta["val"]
    zero = new.add(aten.full.default, [], 0, dtype=value.dtype, device=value.device)
    first = new.add(aten.full.default, [], 0, dtype=number.dtype, device=number.device)
    flat = new.view(mask, tuple(number.shape))
    return new.add(aten.where.self, flat, index, first), new.add(aten.where.self, mask, rows, zero)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_cast(node: fx.Node) -> bool:
    floats = isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dtype.is_floating_point
    return node.target in _CASTS and floats and node.meta["val"].is_contiguous()


def _added_to(node: fx.Node, gradient: fx.Node) -> fx.Node | None:
    """The other gradient, if `node` is the sum of the two and nothing else reads the other."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    others = [a for a in node.args if isinstance(a, fx.Node) and a is not gradient]
    if len(others) != 1 or others[0].op != "call_function" or _only_user(others[0]) is None:
        return None
    value, total = others[0].meta["val"], node.meta["val"]
    same = value.shape == total.shape and value.dtype == total.dtype == gradient.meta["val"].dtype
    return others[0] if same and value.is_contiguous() else None
