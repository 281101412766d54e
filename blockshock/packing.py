"""Packed weights: the kept values of a 2:4 matrix, and the products that need nothing else.

A 2:4 matrix of shape (R, K) keeps two of every four consecutive columns. Its packed form is (R, K/2): the kept values
in row-major order. Which columns they came from is the layout, made from the mask alone.

Where the mask's rows repeat with a small period T (1 for `1100`, 4 for the checkerboard), the kept columns of a row
depend on the row's place in the period only. Then forward, dX and dW are each half of the dense work:

    Y[:, rows_t]  = X[:, C_t] · V[rows_t]ᵀ        rows_t = t, t+T, t+2T, ...
    dX[:, C_t]   += dY[:, rows_t] · V[rows_t]
    dV[rows_t]    = dY[:, rows_t]ᵀ · X[:, C_t]

For any other mask the weight is unpacked, and dX and dW cost what the dense ones cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

LARGEST_PERIOD = 4  # rows; a longer period leaves products too narrow to gain from


@dataclass(frozen=True)
class PackedLayout:
    """Where the packed values of a (rows, features) matrix belong.

    `places` is uint8 (T, features/2): the place 0..3 of each kept value within its group of four columns.
    """

    places: torch.Tensor
    rows: int
    features: int

    @classmethod
    def of(cls, half: torch.Tensor, period: int | None) -> PackedLayout:
        """The layout of a boolean mask (R, K) whose rows repeat every `period` rows (None: they do not)."""
        rows, features = half.shape
        distinct = half[: period or rows]
        columns = distinct.nonzero()[:, 1].view(len(distinct), features // 2)
        return cls((columns % 4).to(torch.uint8), rows, features)

    @cached_property
    def _period_columns(self) -> torch.Tensor:
        return self._columns_of(self.places)

    @property
    def columns(self) -> torch.Tensor:
        """int64 (T, features/2), ascending in each row. Kept for short periods; else made anew: it is large."""
        return self._period_columns if self.halves_work else self._columns_of(self.places)

    def _columns_of(self, places: torch.Tensor) -> torch.Tensor:
        groups = torch.arange(self.features // 2, device=places.device) // 2
        return 4 * groups + places

    @property
    def period(self) -> int:
        return len(self.places)

    @property
    def metadata_bits(self) -> int:
        """Bits that say which columns are kept: none to speak of for a short period, else two for each value."""
        return 0 if self.halves_work else 2 * self.rows * self.features // 2

    @property
    def halves_work(self) -> bool:
        """Whether dX and dW cost half of the dense work."""
        return self.period <= LARGEST_PERIOD

    def _index(self) -> torch.Tensor:
        return self.columns.expand(self.rows // self.period, -1, -1)  # (R/T, T, K/2), no copy

    def pack(self, dense: torch.Tensor) -> torch.Tensor:
        """(R, K) -> (R, K/2): the kept values; what the mask drops is ignored."""
        tall = dense.reshape(self.rows // self.period, self.period, self.features)
        return tall.gather(2, self._index()).view(self.rows, self.features // 2)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """(R, K/2) -> (R, K), exact zeros where nothing is kept."""
        shape = (self.rows // self.period, self.period, self.features)
        dense = torch.zeros(shape, dtype=values.dtype, device=values.device)
        dense.scatter_(2, self._index(), values.reshape(shape[0], shape[1], -1))
        return dense.view(self.rows, self.features)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(B, K) -> (T, B, K/2): for each row of the period, the columns of X that it multiplies."""
        picked = x.index_select(1, self.columns.flatten())
        return picked.view(len(x), self.period, -1).transpose(0, 1)

    def product(self, x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(B, K), (R, K/2) -> (B, R) = x Wᵀ on gathered columns, half of the dense work."""
        gathered = self.gather(x)
        if self.period == 1:
            return gathered[0] @ values.t()
        by_row = values.view(self.rows // self.period, self.period, -1).permute(1, 2, 0)  # (T, K/2, R/T), a view
        return torch.bmm(gathered, by_row).permute(1, 2, 0).reshape(len(x), self.rows)

    def input_grad(self, dy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(B, R), (R, K/2) -> (B, K) = dy W, each element rounded once."""
        if not self.halves_work:
            return dy @ self.unpack(values)
        dx = torch.zeros(len(dy), self.features, dtype=dy.dtype, device=dy.device)
        if self.period == 1:
            return dx.index_copy_(1, self.columns[0], dy @ values)
        by_place = dy.reshape(len(dy), self.rows // self.period, self.period).permute(2, 0, 1)  # (T, B, R/T)
        tall = values.view(self.rows // self.period, self.period, -1).transpose(0, 1)  # (T, R/T, K/2)
        # Rows of the period share columns, so their products add up: in float32, to round the sum once.
        wide = torch.float64 if dy.dtype == torch.float64 else torch.float32
        parts = _batched_product(by_place, tall, wide)  # (T, B, K/2)
        total = torch.zeros(len(dy), self.features, dtype=wide, device=dy.device)
        for columns, part in zip(self.columns, parts, strict=True):
            total.index_add_(1, columns, part)
        return total.to(dy.dtype)

    def values_grad(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(B, R), (B, K) -> (R, K/2): the kept elements of dyᵀ x."""
        if not self.halves_work:
            return self.pack(dy.t() @ x)
        gathered = self.gather(x)
        if self.period == 1:
            return dy.t() @ gathered[0]
        by_place = dy.reshape(len(dy), self.rows // self.period, self.period).permute(2, 1, 0)  # (T, R/T, B)
        return torch.bmm(by_place, gathered).transpose(0, 1).reshape(self.rows, -1)


def _batched_product(a: torch.Tensor, b: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """Batched product whose result keeps the accumulator's precision."""
    if a.dtype == wide:
        return torch.bmm(a, b)
    if a.device.type == "cuda":
        return torch.bmm(a, b, out_dtype=wide)
    return torch.bmm(a.to(wide), b.to(wide))
