"""X's columns copied into the windows that read them: one Triton kernel, pairs of 16-bit columns as 32-bit words.

    lift(x, 6)       (B, K) -> (B, 8/6 K):  a b c d e f  ->  a b c d | c d e f
    lift(x, 8)       (B, K) -> (B, 12/8 K): a b c d e f g h  ->  a b c d | c d e f | e f g h

On a CPU, and in dtypes of other than 16 bits, PyTorch copies an unfolded view.
"""

from __future__ import annotations

import torch

from blockshock.kernels.gpu.triton_support import tl, triton, usable

BLOCK = 4096  # words that a program writes


def lift(x: torch.Tensor, block: int) -> torch.Tensor:
    """(B, K) -> (B, 4·W·K/block), both contiguous: of each block its W = block/2 - 1 windows of four columns."""
    if not usable(x.device, x.dtype):
        return x.view(len(x), -1, block).unfold(2, 4, 2).reshape(len(x), -1)
    windows = block // 2 - 1
    out = torch.empty(len(x), x.shape[1] // block * 4 * windows, dtype=x.dtype, device=x.device)
    words = out.numel() // 2
    _lift[(triton.cdiv(words, BLOCK),)](
        x.view(torch.int32), out.view(torch.int32), words, WINDOWS=windows, BLOCK=BLOCK, num_warps=8
    )
    return out


if triton is not None:

    @triton.jit
    def _lift(x, out, words, WINDOWS: tl.constexpr, BLOCK: tl.constexpr):
        # Rows are whole blocks, so all of them are one long row. 64-bit numbers only where a program starts.
        first = tl.program_id(0).to(tl.int64) * BLOCK
        i = tl.arange(0, BLOCK)
        word = (first % (2 * WINDOWS)).to(tl.int32) + i
        source = word // (2 * WINDOWS) * (WINDOWS + 1) + (word % (2 * WINDOWS) + 1) // 2
        inside = first + i < words
        values = tl.load(x + first // (2 * WINDOWS) * (WINDOWS + 1) + source, mask=inside)
        tl.store(out + first + i, values, mask=inside)
