"""Any 2:4 half, from its packed values and two bits a value: tiles become dense in registers on their way to the MMA.

What is read of the weight is 9/16 of its dense bytes: the kept values, and flags, one bit a column, of which two are
set in every group of four. An int32 holds the flags of eight groups. Those of its group s are at bits s, s+16, s+8 and
s+24, so that `(word >> s) & 0x10001` are columns 0 and 1, each at the foot of its half of a register, and times 0xFFFF
they are the mask of a pair of 16-bit values. The groups of one word lie LANES apart, so that loads are contiguous.

Also here: `unpack` (values -> dense) and `pack` (dense -> values), which dX and dW of such masks need.
"""

from __future__ import annotations

import torch

from blockshock.kernels.gpu.strided import StridedTiles, Workspace
from blockshock.kernels.gpu.triton_support import INTERPRETED, tl, triton

LANES = 16  # groups of one step, and words of flags of one row in a block of 8·LANES groups
COLUMNS = 4 * 8 * LANES  # columns of such a block: K must be a multiple


def flags_of(places: torch.Tensor) -> torch.Tensor:
    """uint8 places (T, K/2) -> int32 flags (T, K/32)."""
    T, kept = places.shape
    blocks = places.view(T, kept // (16 * LANES), 8, LANES, 2).long()  # groups of a block by (s, lane)
    on = torch.zeros(*blocks.shape[:-1], 4, dtype=torch.int64, device=places.device)
    on.scatter_(-1, blocks, 1)
    s = torch.arange(8, device=places.device).view(8, 1)
    words = ((on[..., 0] << s) | (on[..., 1] << (s + 16)) | (on[..., 2] << (s + 8)) | (on[..., 3] << (s + 24))).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).view(T, -1)


def places_of(flags: torch.Tensor) -> torch.Tensor:
    """The inverse of `flags_of`."""
    T, words = flags.shape
    tall = flags.view(T, words // LANES, 1, LANES)
    s = torch.arange(8, dtype=torch.int32, device=flags.device).view(8, 1)
    c0, c1, c2, c3 = ((tall >> (s + bit)) & 1 for bit in (0, 16, 8, 24))
    first = torch.where(c0 == 1, 0, torch.where(c1 == 1, 1, 2))
    second = torch.where(c3 == 1, 3, torch.where(c2 == 1, 2, 1))
    return torch.stack([first, second], -1).to(torch.uint8).view(T, -1)


def matmul(
    x: torch.Tensor, values: torch.Tensor, flags: torch.Tensor, out: torch.Tensor, tiles: StridedTiles, work: Workspace
) -> torch.Tensor:
    """(B, K), (R, K/2), flags (R, K/32) -> out (B, R)."""
    B, K = x.shape
    R = len(values)
    grid = (R // tiles.rows, triton.cdiv(B, tiles.batch), tiles.split)
    _matmul[grid](
        x, values.view(torch.int32), flags, out, work.partial, work.arrived, B, R, K,
        ROWS=tiles.rows, BATCH=tiles.batch, LANES=LANES, SPLIT=tiles.split, UPCAST=INTERPRETED, STAGES=tiles.stages,
        num_warps=tiles.warps,
    )  # fmt: skip
    return out


def unpack(values: torch.Tensor, flags: torch.Tensor, windows: int = 0) -> torch.Tensor:
    """(R, K/2), flags (R, K/32) -> (R, K), zeros where nothing is kept.

    With `windows` the K columns are overlapping windows, that many of each block (lift.py), no two of which keep one
    column: the result has the columns from which they were lifted.
    """
    R, kept = values.shape
    K = 2 * kept
    width = _columns_below(K, windows)
    make = torch.zeros if windows else torch.empty
    dense = make(R, width, dtype=values.dtype, device=values.device)
    grid = (triton.cdiv(R, 16), K // COLUMNS)
    _unpack[grid](values.view(torch.int32), flags, dense, R, K, width, ROWS=16, LANES=LANES, WINDOWS=windows)
    return dense


def pack(dense: torch.Tensor, flags: torch.Tensor, windows: int = 0) -> torch.Tensor:
    """(R, K), flags (R, K/32) -> (R, K/2): the kept values. With `windows` the inverse of `unpack` with as many."""
    R, K = len(dense), 32 * flags.shape[1]
    values = torch.empty(R, K // 2, dtype=dense.dtype, device=dense.device)
    width = _columns_below(K, windows)
    _pack[(triton.cdiv(R, 16), K // COLUMNS)](dense, flags, values, R, K, width, ROWS=16, LANES=LANES, WINDOWS=windows)
    return values


def _columns_below(K: int, windows: int) -> int:
    """How many columns K columns of windows were lifted from; K without windows."""
    return K // (4 * windows) * (2 * windows + 2) if windows else K


if triton is not None:
    from blockshock.kernels.gpu.columns import fours
    from blockshock.kernels.gpu.strided import store_or_add

    @triton.jit
    def _expand(word, flags, S: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, dtype: tl.constexpr):
        """int32 words (ROWS, LANES) of two kept values, group S of `flags` -> their four columns, (ROWS, 4·LANES)."""
        swapped = (word << 16) | ((word >> 16) & 0xFFFF)
        low = (flags >> S) & 0x10001
        high = (flags >> (8 + S)) & 0x10001
        # Column 0, if kept, is the first value; column 1 is the second if column 0 is kept, else the first; and so on.
        a = tl.where((low & 1) != 0, word, swapped) & (low * 0xFFFF)
        b = tl.where((high & 0x10000) != 0, word, swapped) & (high * 0xFFFF)
        even = tl.join(a.to(tl.int16), b.to(tl.int16))
        odd = tl.join((a >> 16).to(tl.int16), (b >> 16).to(tl.int16))
        return tl.reshape(tl.join(even, odd), (ROWS, 4 * LANES)).to(dtype, bitcast=True)

    @triton.jit
    def _matmul(
        x, words, flags, out, partial, arrived, B, R, K,
        ROWS: tl.constexpr, BATCH: tl.constexpr, LANES: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
        STAGES: tl.constexpr,
    ):  # fmt: skip
        pid_r, pid_b = tl.program_id(0), tl.program_id(1)
        r = pid_r * ROWS + tl.arange(0, ROWS)
        b = pid_b * BATCH + tl.arange(0, BATCH)
        inside = (b < B)[:, None]
        blocks = K // (32 * LANES)
        start = tl.program_id(2) * blocks // SPLIT
        stop = (tl.program_id(2) + 1) * blocks // SPLIT
        lane = tl.arange(0, LANES)[None, :]
        ws = words + r[:, None].to(tl.int64) * (K // 4) + lane
        fs = flags + r[:, None].to(tl.int64) * (K // 32) + lane
        xs = x + b[:, None].to(tl.int64) * K + tl.arange(0, 4 * LANES)[None, :]
        acc = tl.zeros((ROWS, BATCH), tl.float32)
        for k in tl.range(start, stop, num_stages=STAGES):
            f = tl.load(fs + k * LANES)
            for s in tl.static_range(8):
                w = tl.load(ws + (8 * k + s) * LANES)
                t = tl.load(xs + (8 * k + s) * 4 * LANES, mask=inside, other=0.0)
                d = _expand(w, f, s, ROWS, LANES, x.dtype.element_ty)
                if UPCAST:  # the interpreter multiplies bf16 as if it were integers
                    d = d.to(tl.float32)
                    t = t.to(tl.float32)
                acc = tl.dot(d, tl.trans(t), acc)
        store_or_add(acc, out, partial, arrived, B, R, r, pid_r, pid_b, ROWS, BATCH, SPLIT)

    @triton.jit
    def _below(column, WINDOWS: tl.constexpr):
        """The column from which that of a window was lifted."""
        below = column
        if WINDOWS != 0:
            window = column // 4
            below = window // WINDOWS * (2 * WINDOWS + 2) + 2 * (window % WINDOWS) + column % 4
        return below

    @triton.jit
    def _unpack(
        words, flags, dense, R, K, width, ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr
    ):  # fmt: skip
        r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
        k = tl.program_id(1)
        inside = r < R
        lane = tl.arange(0, LANES)[None, :]
        f = tl.load(flags + r * (K // 32) + k * LANES + lane, mask=inside, other=0)
        for s in tl.static_range(8):
            w = tl.load(words + r * (K // 4) + (8 * k + s) * LANES + lane, mask=inside, other=0)
            d = _expand(w, f, s, ROWS, LANES, dense.dtype.element_ty)
            columns = (8 * k + s) * 4 * LANES + tl.arange(0, 4 * LANES)[None, :]
            stored = inside
            if WINDOWS != 0:  # what a window doesn't keep, its neighbour may
                k0, k1, k2, k3 = (f >> s) & 1, (f >> (s + 16)) & 1, (f >> (s + 8)) & 1, (f >> (s + 24)) & 1
                kept = tl.reshape(tl.join(tl.join(k0, k2), tl.join(k1, k3)), (ROWS, 4 * LANES))
                stored = inside & (kept != 0)
            tl.store(dense + r * width + _below(columns, WINDOWS), d, mask=stored)

    @triton.jit
    def _pack(
        dense, flags, values, R, K, width, ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr
    ):  # fmt: skip
        r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
        k = tl.program_id(1)
        inside = r < R
        lane = tl.arange(0, LANES)[None, :]
        f = tl.load(flags + r * (K // 32) + k * LANES + lane, mask=inside, other=0)
        for s in tl.static_range(8):
            columns = (8 * k + s) * 4 * LANES + tl.arange(0, 4 * LANES)[None, :]
            read = dense + r * width + _below(columns, WINDOWS)
            e0, e1, e2, e3 = fours(tl.load(read, mask=inside, other=0.0), ROWS, LANES)
            k0, k1, k2, k3 = (f >> s) & 1, (f >> (s + 16)) & 1, (f >> (s + 8)) & 1, (f >> (s + 24)) & 1
            first = tl.where(k0 != 0, e0, tl.where(k1 != 0, e1, e2))
            second = tl.where(k3 != 0, e3, tl.where(k2 != 0, e2, e1))
            pair = tl.reshape(tl.join(first, second), (ROWS, 2 * LANES))
            tl.store(
                values + r * (K // 2) + (8 * k + s) * 2 * LANES + tl.arange(0, 2 * LANES)[None, :], pair, mask=inside
            )
