"""Many rows of X times a packed half made of blocks: Y's columns land where they belong with no pass over Y.

    y[b, r] = Σ_k x[b, column(k)] · values[r, k]        values (R, K/2), column(k) = 4·(k // 2) + one of two places

The columns of X that each block keeps are copied first (`take`); then they are a dense matrix, which the tensor memory
accelerator reads. Where strided.py has the weight's rows along the tensor cores' 64, this has X's, for batches that
fill them. A program makes a tile of Y for one block, or, of a checkerboard, the same tile of both blocks at once
(`both`), which it stores interleaved as whole rows. The product's programs start while the copy's last ones still run,
and wait for its results only (programmatic dependent launch), which hides most of a launch.

Picking X's columns in registers on their way to the tensor cores was tried and dropped: Triton's pipeliner overwrites
operands in registers that the tensor cores still read, and some tiles were wrong by up to 20%.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.kernels.gpu.columns import Places, starts_early, take
from blockshock.kernels.gpu.triton_support import INTERPRETED, tl, triton


@dataclass(frozen=True)
class GemmTiles:
    """How a product is cut up: rows of X, rows of each block of the weight, kept columns a step.

    `group` tiles that follow one another along X's rows share the weight's in the L2 cache. A `persistent` program
    makes many tiles, so that one's loads start before the last one's stores end.
    """

    batch: int = 128
    rows: int = 256
    step: int = 64
    both: bool = False
    persistent: bool = False
    group: int = 8
    warps: int = 8
    stages: int = 3

    def fits(self, R: int, K: int, columns: Places) -> bool:
        """Whether weights (R, K) in such blocks are whole tiles and steps."""
        whole = R % (len(columns) * self.rows) == 0 and K % (2 * self.step) == 0
        return whole and (not self.both or len(columns) == 2)


def matmul(
    x: torch.Tensor,
    values: torch.Tensor,
    columns: Places,
    block_rows: Places,
    out: torch.Tensor,
    tiles: GemmTiles,
) -> torch.Tensor:
    """(B, K), (R, K/2) -> out (B, R), for `values`, `columns` and `block_rows` of one or two blocks (packing.py)."""
    B, K = x.shape
    R = out.shape[1]
    weight = TensorDescriptor.from_tensor(values, [tiles.rows, tiles.step])
    source = TensorDescriptor.from_tensor(take(x, columns).view(-1, K // 2), [tiles.batch, tiles.step])
    (e, f), (g, h) = block_rows[0][:2], block_rows[-1][:2]
    early = starts_early(x.device)
    count = triton.cdiv(B, tiles.batch) * (R // tiles.rows) // (2 if tiles.both else 1)
    if tiles.persistent and x.device.type == "cuda":
        count = min(count, torch.cuda.get_device_properties(x.device).multi_processor_count)
    _matmul[(count,)](
        source, weight, out, B, R, K,
        E0=e, E1=f, G0=g, G1=h, PARTS=len(columns), EARLY=early,
        BOTH=tiles.both, PERSISTENT=tiles.persistent, BATCH=tiles.batch, ROWS=tiles.rows, STEP=tiles.step,
        GROUP=tiles.group, UPCAST=INTERPRETED, STAGES=tiles.stages, num_warps=tiles.warps,
        **({"launch_pdl": True} if early else {}),
    )  # fmt: skip
    return out


if triton is not None:
    from triton.language.extra.cuda import gdc_wait
    from triton.tools.tensor_descriptor import TensorDescriptor

    from blockshock.kernels.gpu.columns import at

    @triton.jit
    def _dot(x, v, acc, UPCAST: tl.constexpr):
        if UPCAST:  # the interpreter multiplies bf16 as if it were integers
            x = x.to(tl.float32)
            v = v.to(tl.float32)
        return tl.dot(x, v, acc)

    @triton.jit
    def _tile(
        tile, x, values, out, B, R, K,
        E0: tl.constexpr, E1: tl.constexpr, G0: tl.constexpr, G1: tl.constexpr,
        PARTS: tl.constexpr, BOTH: tl.constexpr,
        BATCH: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
        UPCAST: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """One tile of Y: of block `part` alone, or of both."""
        tiles_b = tl.cdiv(B, BATCH)
        tiles_r = R // ROWS // (2 if BOTH else 1)
        first = tile // (GROUP * tiles_r) * GROUP
        size = tl.minimum(tiles_b - first, GROUP)
        b0 = (first + tile % (GROUP * tiles_r) % size) * BATCH
        tile_r = tile % (GROUP * tiles_r) // size
        part = 0
        if PARTS == 2 and not BOTH:  # both blocks of a tile follow one another: their stores meet in the L2 cache
            part = tile_r % 2
            tile_r = tile_r // 2
        r0 = tile_r * ROWS  # within the block
        xb = part * B + b0  # in X as it was taken
        b = b0 + tl.arange(0, BATCH)
        steps = K // (2 * STEP)
        tl.assume(steps > 0)  # a way past the loop would have the assembler wait for every product (its C7515)
        acc = tl.zeros((BATCH, ROWS), tl.float32)
        if BOTH:
            acc1 = tl.zeros((BATCH, ROWS), tl.float32)
        for k in tl.range(0, steps, num_stages=STAGES):
            v = tl.trans(values.load([part * (R // 2) + r0, k * STEP]))
            acc = _dot(x.load([xb, k * STEP]), v, acc, UPCAST)
            if BOTH:
                v = tl.trans(values.load([R // 2 + r0, k * STEP]))
                acc1 = _dot(x.load([B + xb, k * STEP]), v, acc1, UPCAST)
        if BOTH:
            u, w = tl.split(tl.reshape(acc.to(out.dtype.element_ty), (BATCH, ROWS // 2, 2)))
            y, z = tl.split(tl.reshape(acc1.to(out.dtype.element_ty), (BATCH, ROWS // 2, 2)))
            e0 = at(0, u, w, y, z, E0, E1, G0, G1, 2)
            e1 = at(1, u, w, y, z, E0, E1, G0, G1, 2)
            e2 = at(2, u, w, y, z, E0, E1, G0, G1, 2)
            e3 = at(3, u, w, y, z, E0, E1, G0, G1, 2)
            four = tl.reshape(tl.join(tl.join(e0, e2), tl.join(e1, e3)), (BATCH, 2 * ROWS))
            r = 2 * r0 + tl.arange(0, 2 * ROWS)
            tl.store(out + b[:, None].to(tl.int64) * R + r[None, :], four, mask=(b < B)[:, None])
        else:
            n = tl.arange(0, ROWS)
            r = r0 + n
            if PARTS == 2:
                if E1 == E0 + 1 and G1 == G0 + 1:
                    r = 2 * r0 + 4 * (n // 2) + n % 2 + (E0 + part * (G0 - E0))
                else:
                    r = 2 * r0 + 4 * (n // 2) + tl.where(n % 2 == 0, E0 + part * (G0 - E0), E1 + part * (G1 - E1))
            y = acc.to(out.dtype.element_ty)
            tl.store(out + b[:, None].to(tl.int64) * R + r[None, :], y, mask=(b < B)[:, None])

    @triton.jit
    def _matmul(
        x, values, out, B, R, K,
        E0: tl.constexpr, E1: tl.constexpr, G0: tl.constexpr, G1: tl.constexpr,
        PARTS: tl.constexpr, EARLY: tl.constexpr, BOTH: tl.constexpr, PERSISTENT: tl.constexpr,
        BATCH: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
        UPCAST: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        if EARLY:
            gdc_wait()  # for the copy of X's columns
        if PERSISTENT:
            tiles = tl.cdiv(B, BATCH) * (R // ROWS // (2 if BOTH else 1))
            for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
                _tile(
                    tile, x, values, out, B, R, K, E0, E1, G0, G1, PARTS,
                    BOTH, BATCH, ROWS, STEP, GROUP, UPCAST, STAGES,
                )  # fmt: skip
        else:
            _tile(
                tl.program_id(0), x, values, out, B, R, K, E0, E1, G0, G1, PARTS,
                BOTH, BATCH, ROWS, STEP, GROUP, UPCAST, STAGES,
            )  # fmt: skip
