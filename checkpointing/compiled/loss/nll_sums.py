"""`nll_loss_forward` that sums over rows, as losses per row and their sum: what runs row by row can run on a few.

    sum_apart(graph)            # every nll_loss_forward of `graph`, in place

Graphs that inductor decomposes have no such operator; those that run operator by operator do.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from checkpointing.compiled.loss.new_nodes import NewNodes
from checkpointing.compiled.loss.row_rules import arguments

aten = torch.ops.aten
NONE, MEAN = 0, 1  # reductions; a sum is 2


def sum_apart(graph: fx.Graph) -> None:
    """The sums are in float64, which costs nothing for one number per row: no order of summation shows in the result.
    The weight of all labels comes from the labels alone."""
    for node in graph.find_nodes(op="call_function", target=aten.nll_loss_forward.default):
        log_softmax, labels, weight, reduction, ignored = arguments(node)
        assert isinstance(log_softmax, fx.Node)
        assert isinstance(labels, fx.Node)
        if log_softmax.meta["val"].dim() != 2:
            continue
        dtype = log_softmax.meta["val"].dtype
        new = NewNodes(node, like=node)
        own_weight = weight if reduction == NONE else None
        by_row = new.add(aten.nll_loss_forward.default, log_softmax, labels, own_weight, NONE, ignored)
        total = new.add(operator.getitem, by_row, 0)
        if reduction == NONE:
            device = log_softmax.meta["val"].device
            total_weight = new.add(aten.full.default, [], 0, dtype=dtype, device=device)  # which nobody reads
        else:
            counted = _counted(new, labels, weight, ignored)
            if weight is not None:
                total = new.add(aten.mul.Tensor, new.cast(total, torch.float64), counted)
            total_weight = new.add(aten.sum.default, counted, dtype=torch.float64)
            total = new.add(aten.sum.default, total, dtype=torch.float64)
        if reduction == MEAN:
            total = new.add(aten.div.Tensor, total, total_weight)
        results = [new.cast(total, dtype), new.cast(total_weight, dtype)]
        for user in list(node.users):
            user.replace_all_uses_with(results[arguments(user)[1]])
            graph.erase_node(user)
        graph.erase_node(node)


def _counted(new: NewNodes, labels: fx.Node, weight: fx.Node | None, ignored: int) -> fx.Node:
    """Of each row, whether its label counts, or the weight of its class: a mean divides by their sum."""
    is_ignored = new.add(aten.eq.Scalar, labels, ignored)
    if weight is None:
        return new.add(aten.logical_not.default, is_ignored)
    allowed = new.add(aten.masked_fill.Scalar, labels, is_ignored, 0)
    counted = new.cast(new.add(aten.index.Tensor, weight, [allowed]), torch.float64)
    return new.add(aten.masked_fill.Scalar, counted, is_ignored, 0)
