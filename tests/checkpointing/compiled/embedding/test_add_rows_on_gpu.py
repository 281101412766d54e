"""The kernels that add rows to the places of their indices on a GPU, against float64 and in their memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from checkpointing.compiled.embedding.operators import add_rows_

pytestmark = pytest.mark.gpu

GPT2, LLAMA = (50257, 768, 8192), (128256, 2048, 4096)  # places, columns, rows


def drawn(shape: tuple[int, int, int], dtype: torch.dtype, used: int) -> tuple[Tensor, Tensor, Tensor]:
    places, width, count = shape
    generator = torch.Generator("cuda").manual_seed(0)
    total = torch.randn(places, width, generator=generator, device="cuda", dtype=dtype)
    rows = torch.randn(count, width, generator=generator, device="cuda")
    return total, torch.randint(used, (count,), generator=generator, device="cuda"), rows


@pytest.mark.parametrize("used", [1, 2, 100, 50257])  # places: all rows add to one, or hardly two to the same
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [GPT2, LLAMA, (33000, 5, 32801)], ids=str)
def test_sums_are_rounded_once_and_the_same_in_every_run(
    shape: tuple[int, int, int], dtype: torch.dtype, used: int
) -> None:
    total, indices, rows = drawn(shape, dtype, min(used, shape[0]))
    exact, sizes = total.double().clone(), total.double().abs()
    exact.index_add_(0, indices, rows.double())
    sizes.index_add_(0, indices, rows.double().abs())
    found, again = total.clone(), total.clone()
    add_rows_(found, indices, rows)
    add_rows_(again, indices, rows)
    assert torch.equal(found, again)
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + (shape[2] ** 0.5 + 2) * unit * sizes
    assert ((found.double() - exact).abs() <= bound).all()


def test_no_more_is_taken_than_a_few_rows() -> None:
    total, indices, rows = drawn(LLAMA, torch.bfloat16, 50257)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    add_rows_(total, indices, rows)
    assert torch.cuda.max_memory_allocated() - before < 0.5 * rows.numel() * rows.element_size()
