"""How far results are from a reference, planned and unplanned, and how far rounding alone could put them.

distances = Distances()
distances.add(planned, unplanned, exact)            # of a first draw of parameters; more if `above()`
distances.rows(planned, unplanned)                  # judged, with results of one seed
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from checkpointing.compiled.proof.one_step import Key, Results
from profiler.graph.two_runs import same_bits

FACTOR = 1.2  # of the unplanned step's distance
STANDARD_ERRORS = 4.0  # of the mean of the logarithms of several ratios


class Distances:
    """From the reference, of planned and unplanned results, over the draws."""

    def __init__(self) -> None:
        self.planned: dict[Key, list[float]] = {}
        self.unplanned: dict[Key, list[float]] = {}
        self.logarithms: dict[Key, list[float]] = {}  # of the ratios
        self.whole: list[float] = []  # sums of both relative distances of all gradients together
        self.draws = 0

    def add(self, planned: Results, unplanned: Results, exact: Results) -> None:
        self.draws += 1
        squares = [0.0, 0.0, 0.0]
        for key in dict.fromkeys([*planned, *unplanned, *exact]):
            norm = _norm(exact.get(key))
            a, b = (_distance(results.get(key), exact.get(key)) for results in (planned, unplanned))
            self.planned.setdefault(key, []).append(_over(a, norm))
            self.unplanned.setdefault(key, []).append(_over(b, norm))
            least = norm * _rounding(unplanned.get(key))  # no result of this type is sure to be nearer
            ratio = 1.0 if a <= least else _over(a, max(b, least))
            self.logarithms.setdefault(key, []).append(math.log(ratio) if math.isfinite(ratio) and ratio else math.inf)
            if key[0] == "gradient":
                squares = [s + x * x for s, x in zip(squares, (a, b, norm), strict=True)]
        a, b, norm = (math.sqrt(square) for square in squares)
        self.whole.append(_over(a, norm) + _over(b, norm))

    def above(self) -> bool:
        """Whether any ratio of the draws so far is above what is allowed."""
        return any(ratio > limit for ratio, limit in map(self._ratio, self.logarithms))

    def rows(self, planned: Results, unplanned: Results) -> list[tuple[Any, ...]]:
        """A row per result; `planned` and `unplanned` are from one seed, with dropout as configured."""
        rows: list[tuple[Any, ...]] = []
        for key in self.logarithms:
            ratio, limit = self._ratio(key)
            same = key in planned and key in unplanned and same_bits(planned[key], unplanned[key])
            difference = 0.0 if same else relative(planned.get(key), unplanned.get(key))
            rounding = max(
                _mean(self.planned[key]) + _mean(self.unplanned[key]),
                _mean(self.whole),  # a result of few elements may be near the reference by chance
                2 * _rounding(unplanned.get(key)),
            )
            passed = ratio <= limit and difference <= FACTOR * rounding
            distances = (_mean(self.planned[key]), _mean(self.unplanned[key]))
            rows.append((*key, same, *distances, ratio, limit, difference, FACTOR * rounding, passed))
        return rows

    def _ratio(self, key: Key) -> tuple[float, float]:
        """The geometric mean of the ratios, and its limit."""
        values = self.logarithms[key]
        mean, count = _mean(values), len(values)
        if count == 1 or not math.isfinite(mean):
            return math.exp(mean), FACTOR
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
        return math.exp(mean), FACTOR * math.exp(STANDARD_ERRORS * error)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _norm(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(tensor.double().norm())


def _distance(tensor: Tensor | None, other: Tensor | None) -> float:
    """The norm of the difference; infinite where one of the two is missing or has another shape, or for NaN."""
    if tensor is None or other is None or tensor.shape != other.shape:
        return math.inf
    distance = float((tensor.double() - other.double()).norm())
    return distance if math.isfinite(distance) else math.inf


def relative(tensor: Tensor | None, other: Tensor | None) -> float:
    return _over(_distance(tensor, other), _norm(other))


def _over(distance: float, norm: float) -> float:
    return distance / norm if norm else (math.inf if distance else 0.0)


def _rounding(tensor: Tensor | None) -> float:
    """Half a unit in the last place of the tensor's type, relative."""
    return torch.finfo(tensor.dtype).eps / 2 if tensor is not None and tensor.is_floating_point() else 0.0
