"""Two matmuls by which chunks come one after the other, and add up where their sum is.

    matmul_after(left, right, bias, [loss, total])      # not before these have been computed
    add_matmul_(total, left, right)                     # total += left @ right, in float32 or better

A compiler runs what is ready in any order, and fuses what is alike: it would compute the softmax of all chunks in one
kernel, with the logits of all chunks alive. So the logits of a chunk wait for everything that the chunk before makes.

In a graph, `added` is the node that torch makes of any operator that writes to its arguments, `auto_functionalized`:
inductor lets it write where the total is if nothing reads the total later, and nothing of ours does.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized

from checkpointing.compiled.embedding.operators import add_rows_
from checkpointing.compiled.loss.new_nodes import NewNodes
from checkpointing.compiled.loss.row_kernel.operators import row_gradient_

aten = torch.ops.aten

_OPERATORS = torch.library.Library("checkpointing", "FRAGMENT")
_OPERATORS.define("matmul_after(Tensor left, Tensor right, Tensor? bias, Tensor[] after) -> Tensor")
_OPERATORS.define("add_matmul_(Tensor(a!) total, Tensor left, Tensor right) -> ()")
matmul_after = torch.ops.checkpointing.matmul_after.default
add_matmul_ = torch.ops.checkpointing.add_matmul_.default
# operator → the argument that it writes to
WRITTEN: dict[Any, str] = {add_matmul_: "total", row_gradient_: "logits", add_rows_: "total"}


def _matmul(left: Tensor, right: Tensor, bias: Tensor | None, after: Sequence[Tensor]) -> Tensor:
    """[M, K] @ [K, N], plus a bias of N."""
    return torch.mm(left, right) if bias is None else torch.addmm(bias, left, right)


def _add(total: Tensor, left: Tensor, right: Tensor) -> None:
    """[M, N] += [M, K] @ [K, N], in the total's type."""
    total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _add_on_cuda(total: Tensor, left: Tensor, right: Tensor) -> None:
    """16-bit operands are multiplied as they are, and the matmul itself adds in float32."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        aten.addmm.dtype_out(total, left, right, total.dtype, out=total)


def _add_nothing(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Fake tensors have no values."""


_OPERATORS.impl("matmul_after", _matmul, "CompositeExplicitAutograd")
_OPERATORS.impl("add_matmul_", _add, "CompositeExplicitAutograd")
_OPERATORS.impl("add_matmul_", _add_on_cuda, "CUDA")
_OPERATORS.impl("add_matmul_", _add_nothing, "Meta")


def added(new: NewNodes, total: fx.Node, left: fx.Node, right: fx.Node) -> fx.Node:
    """The total with the product in it."""
    both = new.add(auto_functionalized, add_matmul_, total=total, left=left, right=right)
    return new.add(operator.getitem, both, 1)


def is_addition(node: fx.Node) -> bool:
    """Whether the node is such an addition to a sum."""
    return node.target is auto_functionalized and node.args[0] is add_matmul_


def total_of(node: fx.Node) -> fx.Node | None:
    """The node in whose memory the result of such an addition lies: of the addition, or of what takes its result. The
    same for logits that their gradient replaces."""
    if node.target is operator.getitem:
        return total_of(node.args[0]) if node.args[1] == 1 and isinstance(node.args[0], fx.Node) else None
    argument = WRITTEN.get(node.args[0]) if node.target is auto_functionalized else None
    written = node.kwargs[argument] if argument is not None else None
    return written if isinstance(written, fx.Node) else None


def timed_as(node: fx.Node) -> tuple[Any, Sequence[Any], dict[str, Any]]:
    """The operator whose time is the node's, and its arguments: of a matmul that waits, the matmul alone."""
    if node.target is matmul_after:
        left, right, bias, _ = node.args
        return (aten.mm.default, (left, right), {}) if bias is None else (aten.addmm.default, (bias, left, right), {})
    if total_of(node) is not None:
        return node.args[0], (), dict(node.kwargs)
    return node.target, node.args, dict(node.kwargs)
