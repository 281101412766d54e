"""How long the gradient of an embedding takes: the kernels, by the length of their pieces, and inductor's code.

    python -m tests.checkpointing.compiled.embedding.add_rows_speed

Each adds the rows of the ids to the gradient of a tied weight in bf16; both gradients are compared first. Ids are drawn
from all of the vocabulary, from 100 of it, or all the same. Copies take turns, so that no cache holds them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from checkpointing.compiled.embedding.kernel import PIECE, launch
from tests.checkpointing.compiled.loss.row_kernel_speed import microseconds

SHAPES = {  # places, columns, rows
    "GPT-2 8x1024": (50257, 768, 8192),
    "Llama 1B 4x1024": (128256, 2048, 4096),
    "BERT 16x512": (30522, 768, 8192),
}
PIECES = (PIECE, 8, 32, 64)
COPIES = 3

Given = tuple[Tensor, Tensor, Tensor]  # the other gradient, ids, rows


def generated(total: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """As inductor decomposes it: zeros in float32, a sum by atomic additions, a cast, and the sum of both gradients."""
    by_row = torch.zeros(total.shape, device=total.device).index_put([ids], rows, accumulate=True)
    return total + by_row.to(total.dtype)


def by_kernels(given: Given, piece: int) -> Tensor:
    total, ids, rows = given
    launch(total, *torch.sort(ids, stable=True), rows, torch.float32, piece)
    return total


def drawn(shape: tuple[int, int, int], used: int, seed: int) -> Given:
    places, width, count = shape
    generator = torch.Generator("cuda").manual_seed(seed)
    total = torch.randn(places, width, generator=generator, device="cuda", dtype=torch.bfloat16)
    rows = torch.randn(count, width, generator=generator, device="cuda")
    return total, torch.randint(used, (count,), generator=generator, device="cuda"), rows


def main() -> None:
    compiled = torch.compile(generated, dynamic=False, fullgraph=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, us: inductor | kernels by length of a piece")
    for name, shape in SHAPES.items():
        for used in (shape[0], 100, 1):
            given: list[Any] = [drawn(shape, used, seed) for seed in range(COPIES)]
            expected = compiled(*given[0]).float()
            total, ids, rows = given[0]
            found = by_kernels((total.clone(), ids, rows), PIECE).float()
            torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6 * float(expected.abs().max()))
            theirs, *ours = microseconds(
                [lambda one: compiled(*one), *(lambda one, piece=piece: by_kernels(one, piece) for piece in PIECES)],
                given,
            )
            listed = ", ".join(f"{piece}: {time:.1f}" for piece, time in zip(PIECES, ours, strict=True))
            print(f"{name}, {used} ids: {theirs:.1f} | {listed}")


if __name__ == "__main__":
    main()
