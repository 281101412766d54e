"""A few elements of large tensors, from which norms of all of them are estimated.

    sample = Sample([p.numel() for p in parameters], most=1 << 14, generator=generator)
    of_ours, of_theirs = sample.of(parameters), sample.of(other_parameters)     # ‖ours - theirs‖ / ‖theirs‖ of these

Stratified sampling: of a tensor with n elements, k are drawn uniformly and multiplied with sqrt(n / k), so the expected
squared norm of the sample is that of the whole. k is in proportion to n, but at least LEAST: a few large elements, such
as the gains of a model's norms, hold as much of the norm as all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST = 32  # elements of a tensor


class Sample:
    """The same elements each time. `sizes`: of the tensors; where all have at most `most` elements, they are taken."""

    def __init__(self, sizes: Sequence[int], most: int, generator: torch.Generator) -> None:
        total = sum(sizes)
        self.sizes = list(sizes)
        self._places, self._scales = [], []
        for size in sizes:
            count = size if total <= most else min(size, max(LEAST, most * size // total))
            whole = count == size
            self._places.append(torch.arange(size) if whole else torch.randint(size, (count,), generator=generator))
            self._scales.append(math.sqrt(size / count))

    def __len__(self) -> int:
        return sum(len(places) for places in self._places)

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensors' elements in float64, scaled, on the tensors' device: (len(self),)."""
        parts = []
        for number, tensor in enumerate(tensors):
            values = tensor.detach().reshape(-1)[self._on(tensor.device, number)]
            parts.append(values.double() * self._scales[number])
        return torch.cat(parts)

    def of_rows(self, rows: Tensor, first: int) -> Tensor:
        """As `of([y])`, where `rows` are y's from row `first` on; zero for the elements of other rows."""
        places = self._on(rows.device, 0) - first * rows.shape[1]
        inside = (places >= 0) & (places < rows.numel())
        values = rows.detach().reshape(-1)[places.clamp(0, rows.numel() - 1)].double() * self._scales[0]
        return torch.where(inside, values, torch.zeros_like(values))

    def _on(self, device: torch.device, number: int) -> Tensor:
        places = self._places[number] = self._places[number].to(device)
        return places
