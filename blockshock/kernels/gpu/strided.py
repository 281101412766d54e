"""Few rows of X times a packed half whose kept columns repeat: the weight is read once, X's columns are picked inside.

    y[b, r] = Σ_k x[b, column(k)] · values[r, k]        values (R, K/2), column(k) = 4·(k // 2) + one of two places

With few rows the product is bound by the bytes of the weight, so a program takes BLOCK_R rows of it and all of X's rows
that fit, and `split` programs share a row's K. The last of them to finish adds their partial sums, in a fixed order, so
that a matmul is one launch and always bitwise the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from blockshock.kernels.gpu.columns import Places
from blockshock.kernels.gpu.triton_support import INTERPRETED, tl, triton


@dataclass(frozen=True)
class StridedTiles:
    """How a product is cut up: rows of the weight, rows of X, groups of four columns a step, programs along K."""

    rows: int = 64
    batch: int = 16
    groups: int = 32
    split: int = 1
    warps: int = 4
    stages: int = 4

    def fits(self, R: int, K: int, parts: int) -> bool:
        """Whether weights (R, K) in `parts` blocks are whole tiles and steps, and every program has a step."""
        whole = R % (parts * self.rows) == 0 and K % (4 * self.groups) == 0
        return whole and K // (4 * self.groups) >= self.split


class Cut(Protocol):
    """What of a kernel's tiles a workspace depends on: rows of the weight, rows of X, programs along K."""

    @property
    def rows(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def split(self) -> int: ...


class Workspace:
    """Partial sums and counters of arrived programs. Counters are left at zero by every launch."""

    def __init__(self, tiles: Cut, R: int, B: int, device: torch.device) -> None:
        programs = (R // tiles.rows) * triton.cdiv(B, tiles.batch)
        size = programs * tiles.split * tiles.rows * tiles.batch if tiles.split > 1 else 1
        self.partial = torch.empty(size, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(programs, dtype=torch.int32, device=device)


def matmul(
    x: torch.Tensor,
    values: torch.Tensor,
    columns: Places,
    block_rows: Places,
    out: torch.Tensor,
    tiles: StridedTiles,
    work: Workspace,
) -> torch.Tensor:
    """(B, K), (R, K/2) -> out (B, R), for `values`, `columns` and `block_rows` of one or two blocks (packing.py)."""
    B, K = x.shape
    R = len(values)
    (a, b), (c, d) = columns[0], columns[-1]
    (e, f), (g, h) = block_rows[0][:2], block_rows[-1][:2]
    grid = (R // tiles.rows, triton.cdiv(B, tiles.batch), tiles.split)
    _matmul[grid](
        x, values, out, work.partial, work.arrived, B, R, K,
        A0=a, A1=b, C0=c, C1=d, E0=e, E1=f, G0=g, G1=h, PARTS=len(columns),
        ROWS=tiles.rows, BATCH=tiles.batch, GROUPS=tiles.groups, SPLIT=tiles.split, UPCAST=INTERPRETED,
        STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
    return out


if triton is not None:
    from blockshock.kernels.gpu.columns import fours, pick

    @triton.jit
    def store_or_add(
        acc, out, partial, arrived, B, R, rows, pid_r, pid_b,
        ROWS: tl.constexpr, BATCH: tl.constexpr, SPLIT: tl.constexpr,
    ):  # fmt: skip
        """Write acc (ROWS, BATCH) to out[b, rows], after the SPLIT programs of one tile have added theirs."""
        b = pid_b * BATCH + tl.arange(0, BATCH)
        target = out + b[None, :].to(tl.int64) * R + rows[:, None]
        inside = (b < B)[None, :]
        if SPLIT == 1:
            tl.store(target, acc.to(out.dtype.element_ty), mask=inside)
        else:
            tile = pid_r * tl.num_programs(1) + pid_b
            i = tl.arange(0, ROWS)[:, None] * BATCH + tl.arange(0, BATCH)[None, :]
            mine = partial + tile.to(tl.int64) * SPLIT * ROWS * BATCH
            tl.store(mine + tl.program_id(2) * ROWS * BATCH + i, acc)
            tl.debug_barrier()  # all threads' stores come before the arrival that announces them
            if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLIT - 1:
                total = tl.zeros((ROWS, BATCH), tl.float32)
                for s in tl.static_range(SPLIT):
                    total += tl.load(mine + s * ROWS * BATCH + i, cache_modifier=".cg")  # others' sums: past L1
                tl.store(target, total.to(out.dtype.element_ty), mask=inside)
                tl.store(arrived + tile, 0)

    @triton.jit
    def _matmul(
        x, values, out, partial, arrived, B, R, K,
        A0: tl.constexpr, A1: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr,
        E0: tl.constexpr, E1: tl.constexpr, G0: tl.constexpr, G1: tl.constexpr, PARTS: tl.constexpr,
        ROWS: tl.constexpr, BATCH: tl.constexpr, GROUPS: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        pid_r, pid_b = tl.program_id(0), tl.program_id(1)
        first = pid_r * ROWS
        p0, p1 = A0, A1
        if PARTS == 2:
            second = first >= R // 2
            p0 = tl.where(second, C0, A0)
            p1 = tl.where(second, C1, A1)
        r = first + tl.arange(0, ROWS)
        b = pid_b * BATCH + tl.arange(0, BATCH)
        inside = (b < B)[:, None]
        steps = K // (4 * GROUPS)
        start = tl.program_id(2) * steps // SPLIT
        stop = (tl.program_id(2) + 1) * steps // SPLIT
        v = values + r[:, None].to(tl.int64) * (K // 2) + tl.arange(0, 2 * GROUPS)[None, :]
        xs = x + b[:, None].to(tl.int64) * K + tl.arange(0, 4 * GROUPS)[None, :]
        acc = tl.zeros((ROWS, BATCH), tl.float32)
        for k in tl.range(start, stop, num_stages=STAGES):
            w = tl.load(v + k * 2 * GROUPS)
            e0, e1, e2, e3 = fours(tl.load(xs + k * 4 * GROUPS, mask=inside, other=0.0), BATCH, GROUPS)
            kept = tl.reshape(tl.join(pick(e0, e1, e2, e3, p0), pick(e0, e1, e2, e3, p1)), (BATCH, 2 * GROUPS))
            if UPCAST:  # the interpreter multiplies bf16 as if it were integers
                w = w.to(tl.float32)
                kept = kept.to(tl.float32)
            acc = tl.dot(w, tl.trans(kept), acc)
        rows = r
        if PARTS == 2:
            half = r - tl.where(second, R // 2, 0)
            rows = 4 * (half // 2) + tl.where(half % 2 == 0, tl.where(second, G0, E0), tl.where(second, G1, E1))
        store_or_add(acc, out, partial, arrived, B, R, rows, pid_r, pid_b, ROWS, BATCH, SPLIT)
