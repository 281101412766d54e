"""Columns taken from, and put back among, groups of four: what a mask with a short period does to X, Y and gradients.

    take(x, ((0, 1),))            (B, K) -> (1, B, K/2): columns 0 and 1 of every four
    take(y, ((0, 1), (2, 3)))     (B, R) -> (2, B, R/2): both pairs, each on its own
    put(parts, ((0, 1),))         (1, B, K/2) -> (B, K), zeros elsewhere

A copy at the speed of memory, each byte read once and written once: one Triton kernel each way. On a CPU, and in dtypes
of other than 16 bits, PyTorch's indexing does the same.
"""

from __future__ import annotations

from functools import cache

import torch

from blockshock.kernels.gpu.triton_support import tl, triton, usable

Places = tuple[tuple[int, ...], ...]  # for each part, which of every four columns it has, ascending


def take(x: torch.Tensor, places: Places) -> torch.Tensor:
    """(B, K) -> (G, B, K·w/4), contiguous, where each of G parts has w of every four columns."""
    width = len(places[0])
    shape = (len(places), len(x), x.shape[1] * width // 4)
    if not (usable(x.device, x.dtype) and width == 2 and x.is_contiguous()):
        fours = x.view(len(x), -1, 4)
        return torch.stack([fours[:, :, among_fours(own)].reshape(shape[1:]) for own in places])
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    groups = x.numel() // 4
    (a, b), (c, d) = places[0], places[-1]
    _take[(triton.cdiv(groups, BLOCK),)](
        x, out, groups, a, b, c, d, len(places), BLOCK, starts_early(x.device), num_warps=8
    )
    return out


def put(parts: torch.Tensor, places: Places, out: torch.Tensor | None = None) -> torch.Tensor:
    """(G, B, K·w/4) -> (B, K): the inverse of `take` for parts that share no column, zeros in columns of no part."""
    count, rows, _ = parts.shape
    width = len(places[0])
    if out is None:
        out = torch.empty(rows, parts.shape[2] * 4 // width, dtype=parts.dtype, device=parts.device)
    if not (usable(parts.device, parts.dtype) and width == 2 and parts.is_contiguous() and out.is_contiguous()):
        fours = torch.zeros(rows, out.shape[1] // 4, 4, dtype=parts.dtype, device=parts.device)
        for own, part in zip(places, parts, strict=True):
            fours[:, :, among_fours(own)] = part.view(rows, -1, width)
        return out.copy_(fours.view(out.shape))
    groups = out.numel() // 4
    (a, b), (c, d) = places[0], places[-1]
    _put[(triton.cdiv(groups, BLOCK),)](parts, out, groups, a, b, c, d, count, BLOCK, num_warps=8)
    return out


def among_fours(places: tuple[int, ...]) -> slice:
    """Ascending places among four, evenly apart, as a slice: an index tensor can't be made while a graph is captured.

    Two are always evenly apart.
    """
    step = places[1] - places[0] if len(places) > 1 else 1
    return slice(places[0], places[-1] + 1, step)


BLOCK = 2048  # groups of four elements a program: 16 KiB in and out, eight warps


@cache
def starts_early(device: torch.device) -> bool:
    """Whether a kernel can be started before the one that it depends on has ended: Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


if triton is not None:
    from triton.language.extra.cuda import gdc_launch_dependents

    @triton.jit
    def fours(t, ROWS: tl.constexpr, GROUPS: tl.constexpr):
        """(ROWS, 4·GROUPS) -> four tensors (ROWS, GROUPS): the columns by their place in their group of four."""
        even, odd = tl.split(tl.reshape(t, (ROWS, GROUPS, 2, 2)))
        e0, e2 = tl.split(even)
        e1, e3 = tl.split(odd)
        return e0, e1, e2, e3

    @triton.jit
    def pick(e0, e1, e2, e3, place):
        """The one of four that `place` (0 to 3) names."""
        return tl.where(place < 2, tl.where(place == 0, e0, e1), tl.where(place == 2, e2, e3))

    @triton.jit
    def _take(
        x, out, groups, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
        PARTS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
    ):  # fmt: skip
        if EARLY:
            gdc_launch_dependents()  # a kernel that waits for this one's results may start
        groups = tl.cast(groups, tl.int64)  # four times as many elements may be more than 2^31; one group is a constant
        first = tl.program_id(0).to(tl.int64) * BLOCK
        i4 = first * 4 + tl.arange(0, 4 * BLOCK)
        e0, e1, e2, e3 = fours(tl.load(x + i4, mask=i4 < groups * 4)[None, :], 1, BLOCK)
        i2 = (first * 2 + tl.arange(0, 2 * BLOCK))[None, :]
        inside = i2 < groups * 2
        pair = tl.join(pick(e0, e1, e2, e3, A), pick(e0, e1, e2, e3, B))
        tl.store(out + i2, tl.reshape(pair, (1, 2 * BLOCK)), mask=inside)
        if PARTS == 2:
            pair = tl.join(pick(e0, e1, e2, e3, C), pick(e0, e1, e2, e3, D))
            tl.store(out + groups * 2 + i2, tl.reshape(pair, (1, 2 * BLOCK)), mask=inside)

    @triton.jit
    def at(
        place: tl.constexpr, a, b, c, d,
        A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr,
    ):  # fmt: skip
        """Which of a, b (and c, d of a second part) belongs at `place`; zeros if none does."""
        found = tl.zeros_like(a)
        if place == A:
            found = a
        if place == B:
            found = b
        if PARTS == 2:
            if place == C:
                found = c
            if place == D:
                found = d
        return found

    @triton.jit
    def _put(
        parts, out, groups, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
        PARTS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        groups = tl.cast(groups, tl.int64)  # four times as many elements may be more than 2^31; one group is a constant
        first = tl.program_id(0).to(tl.int64) * BLOCK
        i2 = first * 2 + tl.arange(0, 2 * BLOCK)
        a, b = tl.split(tl.reshape(tl.load(parts + i2, mask=i2 < groups * 2), (BLOCK, 2)))
        c, d = a, b
        if PARTS == 2:
            c, d = tl.split(tl.reshape(tl.load(parts + groups * 2 + i2, mask=i2 < groups * 2), (BLOCK, 2)))
        e0 = at(0, a, b, c, d, A, B, C, D, PARTS)
        e1 = at(1, a, b, c, d, A, B, C, D, PARTS)
        e2 = at(2, a, b, c, d, A, B, C, D, PARTS)
        e3 = at(3, a, b, c, d, A, B, C, D, PARTS)
        i4 = first * 4 + tl.arange(0, 4 * BLOCK)
        four = tl.reshape(tl.join(tl.join(e0, e2), tl.join(e1, e3)), (4 * BLOCK,))
        tl.store(out + i4, four, mask=i4 < groups * 4)
