"""Logits of which a part of the sequence is used, `logits[:, :-1]`: that part is taken of the hidden states instead.

    logits = without_shift(graph, logits)       # in place; the same node where there is no such slice

The matmul then makes the rows that count and no others, and each of its rows is a row of the loss. In the backward,
zeros that were put around the gradient of the logits are put around that of the hidden states; a bias' gradient, their
sum, is the same without them.
"""

from __future__ import annotations

import torch
from torch import fx

from checkpointing.compiled.loss.new_nodes import NewNodes
from checkpointing.compiled.loss.row_rules import arguments, packet

aten, prims = torch.ops.aten, torch.ops.prims

_VIEWS = (aten.view, aten._unsafe_view, aten.reshape)
_CASTS = (aten._to_copy, prims.convert_element_type)
_TRANSPOSES = (aten.t, aten.permute)
Cut = tuple[int, int, int]  # dimension, first and last element


def without_shift(graph: fx.Graph, logits: fx.Node) -> fx.Node:
    chain = _chain(logits)
    if chain is None:
        return logits
    cut, full = _cut(chain[-1]), list(chain[-2].meta["val"].shape)
    hidden = arguments(logits)[-2]
    ends = [(g, *found) for g in graph.nodes if (found := _gradient(g, full, cut, logits.meta["val"].shape, hidden))]
    if not ends:
        return logits
    new = NewNodes(logits, like=logits)
    lead = full[:-1]
    rows = new.view(hidden, (*lead, hidden.meta["val"].shape[1]))
    rows = new.add(aten.slice.Tensor, rows, *cut)
    few = _flat(new, rows)
    made = new.add(logits.target, *arguments(logits)[:-2], few, arguments(logits)[-1])
    made.meta = {**logits.meta, "val": made.meta["val"]}
    value = new.view(made, (*rows.meta["val"].shape[:-1], full[-1]))
    for node in chain[:-1]:
        value = new.cast(value, node.meta["val"].dtype)
    chain[-1].replace_all_uses_with(value)
    for scattered, source, matmuls in ends:
        for matmul, dtype in matmuls:
            _replace(matmul, source, dtype, scattered.meta["val"].shape, cut, few)
    graph.eliminate_dead_code()
    return made


def is_shifted(logits: fx.Node) -> bool:
    """Whether a part of their sequence is all that is read of them."""
    return _chain(logits) is not None


def _replace(matmul: fx.Node, gradient: fx.Node, dtype: torch.dtype, full: torch.Size, cut: Cut, few: fx.Node) -> None:
    """A matmul or a sum that reads the gradient with its zeros, by one that reads the rows that count."""
    new = NewNodes(matmul, like=matmul)
    flat = _flat(new, new.cast(gradient, dtype))
    if packet(matmul) is aten.sum:
        total = new.add(aten.sum.dim_IntList, flat, [0], **matmul.kwargs)
        matmul.replace_all_uses_with(new.view(total, tuple(matmul.meta["val"].shape)))
        return
    left, right = arguments(matmul)
    if packet(left) in _TRANSPOSES:
        result = new.add(aten.mm.default, new.add(aten.permute.default, flat, [1, 0]), few)
    else:
        rows = new.add(aten.mm.default, flat, right)
        width = rows.meta["val"].shape[1]
        rows = new.view(rows, (*gradient.meta["val"].shape[:-1], width))
        dim, start, stop = cut
        around = [0, 0] * (len(full) - 1 - dim) + [start, full[dim] - stop]
        padded = new.add(aten.constant_pad_nd.default, rows, around)
        result = new.view(padded, (matmul.meta["val"].shape[0], width))
    matmul.replace_all_uses_with(result)


def _flat(new: NewNodes, node: fx.Node) -> fx.Node:
    """As a matrix."""
    return new.add(aten.view.default, new.contiguous(node), [-1, node.meta["val"].shape[-1]])


def _chain(logits: fx.Node) -> list[fx.Node] | None:
    """The nodes below the logits, each the only one that reads the one before, down to the slice; None without one."""
    chain: list[fx.Node] = []
    node = logits
    while len(node.users) == 1:
        [node] = node.users
        chain.append(node)
        if node.target is aten.slice.Tensor:
            before = arguments(node)[0].meta["val"]
            dim = arguments(node)[1] % before.dim() if len(arguments(node)) > 1 else 0
            inside = len(chain) > 1 and dim < before.dim() - 1 and len(arguments(node)) < 5
            return chain if inside and before.shape[-1] == logits.meta["val"].shape[1] else None
        if packet(node) not in (*_VIEWS, *_CASTS):
            return None
    return None


def _cut(node: fx.Node) -> Cut:
    before, args = arguments(node)[0].meta["val"].shape, list(arguments(node))
    dim, start, stop = args[1:4] + [0, 0, None][len(args) - 1 :]
    return _places(before, dim, start, stop)


def _places(shape: torch.Size, dim: int, start: int | None, stop: int | None) -> Cut:
    """Without negative numbers."""
    dim %= len(shape)
    first, last, _ = slice(start, stop).indices(shape[dim])
    return dim, first, last


def _gradient(
    node: fx.Node, full: list[int], cut: Cut, shape: torch.Size, hidden: fx.Node
) -> tuple[fx.Node, list[tuple[fx.Node, torch.dtype]]] | None:
    """(the gradient of the slice, the matmuls and sums that read it with zeros around, and in which type)."""
    if node.target is aten.slice_backward.default:
        source, _, dim, start, stop, step = arguments(node)
    elif node.target is aten.slice_scatter.default and len(arguments(node)) == 5:
        zeros, source, dim, start, stop = arguments(node)
        step = 1 if packet(zeros) is aten.full and arguments(zeros)[1] == 0 else 0
    else:
        return None
    out = node.meta["val"].shape
    if list(out) != full or step != 1 or _places(out, dim, start, stop) != cut:
        return None
    found: list[tuple[fx.Node, torch.dtype]] = []
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if packet(user) in (*_VIEWS, *_CASTS) or (packet(user) in _TRANSPOSES and user.meta["val"].dim() == 2):
            pending += user.users
            continue
        if _sums_rows(user):
            found.append((user, arguments(user)[0].meta["val"].dtype))
            continue
        if user.target is not aten.mm.default:
            return None
        left, right = arguments(user)
        by_row = left.meta["val"].shape == shape and packet(left) not in _TRANSPOSES
        over_rows = packet(left) in _TRANSPOSES and left.meta["val"].shape == shape[::-1] and right is hidden
        if not (by_row or over_rows):
            return None
        found.append((user, left.meta["val"].dtype))
    return (source, found) if found else None


def _sums_rows(node: fx.Node) -> bool:
    """Whether all dimensions but the last are summed over: the gradient of a bias."""
    if packet(node) is not aten.sum or len(arguments(node)) < 2:
        return False
    count = arguments(node)[0].meta["val"].dim()
    return {dim % count for dim in arguments(node)[1]} == set(range(count - 1))
