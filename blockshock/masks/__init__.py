"""2:4 masks. A mask is a dataclass with `name` and `make(weight, generator) -> bool (N, K)`, the first half M₀.

The second half is the complement: two kept of four leave two of four. A window mask (window.py) prunes and has
windows instead: the job's weights are pruned, whatever the method. `period` is the number of rows after which the
pattern repeats (None: it does not), and `column_wise` claims that columns are 2:4 as well.
"""

from __future__ import annotations

from typing import Protocol

import torch

from blockshock.errors import ConfigError
from blockshock.masks.window import WindowMask


class Mask(Protocol):
    """Of halves. A `WindowMask` is none: it has no first half to make."""

    name: str

    @property
    def period(self) -> int | None: ...
    @property
    def column_wise(self) -> bool: ...
    def make(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor: ...


def prunes(mask: object) -> bool:
    """Whether the mask leaves weights out, so that it has windows and no halves."""
    return isinstance(mask, WindowMask)


def reject_pruning(mask: Mask | WindowMask, who: str) -> Mask:
    """The mask itself, for what needs every weight to be in one of two halves."""
    if isinstance(mask, WindowMask):
        problem = f"prunes, and {who} needs complementary halves; use a mask of halves, or method=block_shock"
        raise ConfigError("mask", mask.name, problem)
    return mask


def halves(
    mask: Mask | WindowMask, weight: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """M₀ and M₁ = ¬M₀ of `weight` (N, K), checked: 2:4 along rows, along columns where claimed, period as stated."""
    mask = reject_pruning(mask, "this")
    first = mask.make(weight, generator)
    problem = violation(first, ~first, mask.period, mask.column_wise)
    if problem:
        raise ConfigError("mask", mask.name, problem)
    return first, ~first


def violation(
    first: torch.Tensor, second: torch.Tensor, period: int | None = None, column_wise: bool = False
) -> str | None:
    """Why two boolean (N, K) halves are not complementary 2:4 masks; None if they are."""
    if first.shape != second.shape or first.dtype != torch.bool or second.dtype != torch.bool:
        return "halves must be boolean and of one shape"
    if bool((first == second).any()):
        return "halves are not complementary: every weight must be in exactly one"
    rows, columns = first.shape
    if columns % 4 or bool((first.view(rows, columns // 4, 4).sum(2) != 2).any()):
        return "not 2:4 along rows: two of every four consecutive columns must be kept"
    if column_wise and (rows % 4 or bool((first.view(rows // 4, 4, columns).sum(1) != 2).any())):
        return "not 2:4 along columns, which it claims"
    if period and (rows % period or bool((first.view(-1, period, columns) != first[:period]).any())):
        return f"its rows do not repeat every {period} rows, which it claims"
    return None
