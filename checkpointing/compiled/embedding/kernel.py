"""The Triton kernels of `add_rows_`: indices are sorted, so that all rows of one place come one after the other.

    launch(total, sorted, order, rows, torch.float32)           # sorted[i] is the place of rows[order[i]]

The sorted rows are cut into pieces of equal length. A program adds up one piece for some columns: whatever begins and
ends in it is added to the total at once; what goes on in the next piece, and what began in an earlier one, is left in
`open` and `last`. A second kernel joins those, from the piece where each begins. A place that all rows name takes a
number of steps that is the piece's length and the number of pieces, and not their product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 16
MOST_COLUMNS = 1024


def launch(total: Tensor, sorted: Tensor, order: Tensor, rows: Tensor, exact: torch.dtype, piece: int = PIECE) -> None:
    """Add `rows` [N, H] to `total` [V, H], in place, with sums in `exact`; `sorted` and `order` are [N]."""
    count, width = rows.shape
    if not count or not width:
        return
    if total.stride(1) != 1:
        raise RuntimeError(f"a total with strides {total.stride()}: rows without gaps are written")
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    sorted = torch.nn.functional.pad(sorted, (1, 1), value=-1)[1:]  # no place before the first, nor behind the last
    pieces, columns = triton.cdiv(count, piece), min(MOST_COLUMNS, triton.next_power_of_2(width))
    open_, last = torch.empty((2, pieces, width), dtype=exact, device=total.device)
    grid = (pieces, triton.cdiv(width, columns))
    shape = {"PIECE": piece, "COLUMNS": columns}
    _pieces[grid](
        total, sorted, order, rows, open_, last, count, width, total.shape[0], total.stride(0), rows.stride(0),
        EXACT=tl.float64 if exact == torch.float64 else tl.float32, debug=True, **shape,
    )  # fmt: skip
    if pieces > 1:
        _across[grid](total, sorted, open_, last, count, width, pieces, total.stride(0), **shape)


@triton.jit
def _add(total, place, stride, column, mask, value):
    """total[place, column] += value, rounded once."""
    at = total + place.to(tl.int64) * stride + column
    before = tl.load(at, mask=mask, other=0.0).to(value.dtype)
    tl.store(at, (before + value).to(total.dtype.element_ty), mask=mask)


@triton.jit
def _pieces(
    total, sorted, order, rows, open, last, count, width, places, total_stride, row_stride,
    PIECE: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0)
    start = piece * PIECE
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    place = tl.load(sorted + start)
    began_here = tl.load(sorted + start - 1) != place
    sums = tl.zeros([COLUMNS], EXACT)
    for position in range(start, tl.minimum(start + PIECE, count)):
        tl.device_assert((place >= 0) & (place < places), "index out of bounds")
        row = tl.load(order + position).to(tl.int64)
        sums += tl.load(rows + row * row_stride + column, mask=inside, other=0.0).to(EXACT)
        after = tl.load(sorted + position + 1)
        ends = after != place
        _add(total, place, total_stride, column, column < tl.where(ends & began_here, width, 0), sums)
        tl.store(last + piece * width + column, sums, mask=column < tl.where(began_here, 0, tl.where(ends, width, 0)))
        sums = tl.where(ends, 0.0, sums)
        began_here = began_here | ends
        place = after
    tl.store(open + piece * width + column, sums, mask=inside)


@triton.jit
def _across(
    total, sorted, open, last, count, width, pieces, total_stride, PIECE: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """What begins in this piece and goes on in the next.

    Loops over tensors have their bounds first: Triton 3.6 can't compile one that ends by a condition.
    """
    piece = tl.program_id(0)
    start = piece * PIECE
    end = start + PIECE  # the first position of the next piece
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    if end < count:
        place = tl.load(sorted + end - 1)
        began_here = (tl.load(sorted + start) != place) | (tl.load(sorted + start - 1) != place)
        if (tl.load(sorted + end) == place) & began_here:
            final, beyond = piece + 1, pieces  # the last piece that begins with this place is from final up to beyond
            while beyond - final > 1:
                middle = (final + beyond) // 2
                same = tl.load(sorted + middle * PIECE) == place
                final = tl.where(same, middle, final)
                beyond = tl.where(same, beyond, middle)
            sums = tl.load(open + piece * width + column, mask=inside, other=0.0)
            for part in range(piece + 1, final):
                sums += tl.load(open + part * width + column, mask=inside, other=0.0)
            sums += tl.load(last + final * width + column, mask=inside, other=0.0)
            _add(total, place, total_stride, column, inside, sums)
