"""Rows added to the rows of a matrix that their indices name, where the matrix is.

    add_rows_(total, indices, rows)         # total[indices[i]] += rows[i], for all i

`total` is [V, H], `indices` are N whole numbers below V in any shape (negative ones count from the end), `rows` are
[..., H] with N rows. What belongs to one row of the total is added up in float32 or better, together with the total's
own row, and rounded once. On CUDA the sum's order depends on the indices alone, so that it is the same in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

_OPERATORS = torch.library.Library("checkpointing", "FRAGMENT")
_OPERATORS.define("add_rows_(Tensor(a!) total, Tensor indices, Tensor rows) -> ()")
add_rows_ = torch.ops.checkpointing.add_rows_.default


def exact_type(total: Tensor, rows: Tensor) -> torch.dtype:
    """The type in which the sums are computed."""
    return torch.promote_types(torch.promote_types(total.dtype, rows.dtype), torch.float32)


def _add(total: Tensor, indices: Tensor, rows: Tensor) -> None:
    places, place_of = _flat(total, indices).unique(return_inverse=True)
    exact = exact_type(total, rows)
    sums = torch.zeros(len(places), total.shape[1], dtype=exact, device=total.device)
    sums.index_add_(0, place_of, rows.reshape(-1, total.shape[1]).to(exact))
    total[places] = (sums + total[places]).to(total.dtype)


def _add_on_cuda(total: Tensor, indices: Tensor, rows: Tensor) -> None:
    from checkpointing.compiled.embedding.kernel import launch

    with torch.cuda.device(total.device):
        places, order = torch.sort(_flat(total, indices), stable=True)
        launch(total, places, order, rows.reshape(-1, total.shape[1]), exact_type(total, rows))


def _add_nothing(total: Tensor, indices: Tensor, rows: Tensor) -> None:
    """Fake tensors have no values."""


def _flat(total: Tensor, indices: Tensor) -> Tensor:
    flat = indices.flatten()
    return torch.where(flat < 0, flat + total.shape[0], flat)


_OPERATORS.impl("add_rows_", _add, "CompositeExplicitAutograd")
_OPERATORS.impl("add_rows_", _add_on_cuda, "CUDA")
_OPERATORS.impl("add_rows_", _add_nothing, "Meta")
