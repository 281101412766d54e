"""Packed weights: the kept values of a 2:4 matrix, and the products that need nothing else.

A 2:4 matrix of shape (R, K) keeps two of every four consecutive columns. Packed it is (R, K/2). Which columns the
values came from is the layout, made from the mask alone; there are two.

`PackedLayout`, for any mask: the kept values in row-major order, as cuSPARSELt has them, and two bits a value of
metadata. Gradients unpack the weight: dX and dW cost what the dense ones cost.

`BlockLayout`, for masks made of one or two dense blocks: the rows that keep the same columns lie together. `1100` is
one block, the checkerboard is two, each of half the rows and half the columns. Then forward, dX and dW are each half of
the dense work, on dense matrices (C_g, R_g: the columns and the rows of block g):

    Y[:, R_g]  = X[:, C_g] · V_gᵀ        dX[:, C_g] = dY[:, R_g] · V_g        dV_g = dY[:, R_g]ᵀ · X[:, C_g]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from blockshock.kernels.gpu import decompress
from blockshock.kernels.gpu.columns import Places, among_fours, put, take
from blockshock.kernels.gpu.triton_support import usable


@dataclass(frozen=True)
class PackedLayout:
    """Kept values of a (rows, features) matrix in row-major order.

    `places` is uint8 (T, features/2): the place 0..3 of each kept value within its group of four columns, for each row
    of a period. Without a period (T = rows) and where the sizes allow it the layout is kept as `flags` (two bits a
    value, see kernels/decompress.py) and places are made from them when they are needed.
    """

    rows: int
    features: int
    kept_places: torch.Tensor | None
    flags: torch.Tensor | None

    @classmethod
    def of(cls, half: torch.Tensor, period: int | None) -> PackedLayout:
        """The layout of a boolean mask (R, K) whose rows repeat every `period` rows (None: they do not)."""
        rows, features = half.shape
        distinct = half[: period or rows]
        columns = distinct.nonzero()[:, 1].view(len(distinct), features // 2)
        places = (columns % 4).to(torch.uint8)
        if period is None and features % decompress.COLUMNS == 0:
            return cls(rows, features, None, decompress.flags_of(places))
        return cls(rows, features, places, None)

    @property
    def places(self) -> torch.Tensor:
        if self.kept_places is not None:
            return self.kept_places
        assert self.flags is not None
        return decompress.places_of(self.flags)

    @property
    def metadata_bits(self) -> int:
        """Bits that say which columns are kept: none to speak of for a short period, else two for each value."""
        return 2 * self.rows * self.features // 2 if self.period == self.rows else 0

    @property
    def metadata_bytes(self) -> int:
        """Bytes in memory that hold the layout."""
        return sum(t.numel() * t.element_size() for t in (self.kept_places, self.flags) if t is not None)

    @property
    def period(self) -> int:
        held = self.flags if self.kept_places is None else self.kept_places
        assert held is not None
        return len(held)

    def _index(self) -> torch.Tensor:
        """int64 (R/T, T, K/2), no copy: the column of each kept value."""
        places = self.places
        groups = torch.arange(self.features // 2, device=places.device) // 2
        return (4 * groups + places).expand(self.rows // self.period, -1, -1)

    def pack(self, dense: torch.Tensor) -> torch.Tensor:
        """(R, K) -> (R, K/2): the kept values; what the mask drops is ignored."""
        if self.flags is not None and usable(dense.device, dense.dtype):
            return decompress.pack(dense.contiguous(), self.flags)
        tall = dense.reshape(self.rows // self.period, self.period, self.features)
        return tall.gather(2, self._index()).view(self.rows, self.features // 2)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """(R, K/2) -> (R, K), exact zeros where nothing is kept."""
        if self.flags is not None and usable(values.device, values.dtype):
            return decompress.unpack(values.contiguous(), self.flags)
        shape = (self.rows // self.period, self.period, self.features)
        dense = torch.zeros(shape, dtype=values.dtype, device=values.device)
        dense.scatter_(2, self._index(), values.reshape(shape[0], shape[1], -1))
        return dense.view(self.rows, self.features)


@dataclass(frozen=True)
class BlockLayout:
    """Kept values of a (rows, features) matrix, the rows of each of G dense blocks together: (G, rows/G, features/2).

    `columns[g]` says which two of every four columns the rows of block g keep. With two blocks, `block_rows[g]` says
    which two of every four rows are block g's. No column and no row is in two blocks.
    """

    rows: int
    features: int
    columns: Places
    block_rows: Places
    metadata_bits: int = 0  # the four numbers above are all that there is
    metadata_bytes: int = 0

    @classmethod
    def of(cls, half: torch.Tensor, period: int | None) -> BlockLayout | None:
        """The layout of a boolean mask (R, K) whose rows repeat every `period` rows; None where that isn't so."""
        rows, features = half.shape
        if period is None or period > 4 or (period > 1 and rows % 4):
            return None
        fours = half[:period].view(period, features // 4, 4)
        if not bool((fours == fours[:, :1]).all()):
            return None
        kept = [tuple(row.nonzero().flatten().tolist()) for row in fours[:, 0]] * (4 // period if period > 1 else 1)
        columns = tuple(dict.fromkeys(kept))
        block_rows = tuple(tuple(r for r, own in enumerate(kept) if own == block) for block in columns)
        if len(columns) == 1:
            return cls(rows, features, columns, ((0, 1, 2, 3),))
        disjoint = len(columns) == 2 and not set(columns[0]) & set(columns[1])
        if not disjoint or len(block_rows[0]) != 2:
            return None
        return cls(rows, features, columns, block_rows)

    @cached_property
    def blocks(self) -> int:
        return len(self.columns)

    def split(self, values: torch.Tensor) -> torch.Tensor:
        """(R, K/2) -> (G, R/G, K/2), a view."""
        return values.view(self.blocks, self.rows // self.blocks, self.features // 2)

    def from_row_major(self, values: torch.Tensor) -> torch.Tensor:
        """(R, K/2) in the order of PackedLayout -> the order of this layout."""
        if self.blocks == 1:
            return values
        tall = values.view(self.rows // 4, 4, -1)
        return torch.stack([tall[:, among_fours(rows)] for rows in self.block_rows]).view(self.rows, -1)

    def to_row_major(self, values: torch.Tensor) -> torch.Tensor:
        """The inverse of `from_row_major`."""
        if self.blocks == 1:
            return values
        tall = torch.empty(self.rows // 4, 4, values.shape[1], dtype=values.dtype, device=values.device)
        for rows, part in zip(self.block_rows, values.view(self.blocks, self.rows // 4, 2, -1), strict=True):
            tall[:, among_fours(rows)] = part
        return tall.view(self.rows, -1)

    def pack(self, dense: torch.Tensor) -> torch.Tensor:
        """(R, K) -> (R, K/2): the kept values; what the mask drops is ignored."""
        each = [take(part, (own,))[0] for part, own in zip(self._by_block(dense), self.columns, strict=True)]
        return torch.cat(each) if len(each) > 1 else each[0]

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """(R, K/2) -> (R, K), exact zeros where nothing is kept."""
        each = [put(part[None], (own,)) for part, own in zip(self.split(values), self.columns, strict=True)]
        return self.to_row_major(torch.cat(each)) if len(each) > 1 else each[0]

    def _by_block(self, dense: torch.Tensor) -> torch.Tensor:
        """(R, K) -> (G, R/G, K)."""
        return self.from_row_major(dense.contiguous()).view(self.blocks, self.rows // self.blocks, self.features)

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """(B, K), (R, K/2) -> (B, R) = x Wᵀ, half of the dense work."""
        taken = take(x, self.columns)
        if self.blocks == 1:
            return torch.mm(taken[0], values.t(), out=out)
        return put(torch.bmm(taken, self.split(values).transpose(1, 2)), self.block_rows, out)

    def input_grad(self, dy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(B, R), (R, K/2) -> (B, K) = dy W, half of the dense work, each element rounded once."""
        dy = dy.contiguous()
        by_block = dy[None] if self.blocks == 1 else take(dy, self.block_rows)
        return put(torch.bmm(by_block, self.split(values)), self.columns)

    def values_grad(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(B, R), (B, K) -> (R, K/2): the kept elements of dyᵀ x, half of the dense work."""
        dy = dy.contiguous()
        by_block = dy[None] if self.blocks == 1 else take(dy, self.block_rows)
        return torch.bmm(by_block.transpose(1, 2), take(x, self.columns)).view(self.rows, -1)


def mask_key(blocks: BlockLayout | None) -> str:
    """What about a mask matters to the speed of its kernels: `01`, `01+23` or `any`."""
    return "+".join("".join(map(str, own)) for own in blocks.columns) if blocks else "any"
