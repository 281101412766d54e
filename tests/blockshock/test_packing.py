"""Packed weights: nothing is lost, and products with them are products with the masked dense matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockshock.kernels.choice import make
from blockshock.kernels.layouts import BlockLayout, PackedLayout

PERIODS = {"1100": 1, "1010": 1, "1001": 1, "checkerboard": 4, "random": None}


def half_mask(kind: str, rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A 2:4 mask made here, by other means than the package's."""
    if kind == "checkerboard":
        r, c = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
        return (r % 4 < 2) == (c % 4 < 2)
    if kind == "random":
        order = torch.rand(rows, columns // 4, 4, generator=generator).argsort(2).argsort(2)
        return (order < 2).view(rows, columns)
    pattern = torch.tensor([c == "1" for c in kind])
    return pattern.repeat(columns // 4).expand(rows, columns).contiguous()


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(sorted(PERIODS)))
    rows, columns = 4 * draw(st.integers(1, 6)), 4 * draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = half_mask(kind, rows, columns, generator)
    if draw(st.booleans()):
        mask = ~mask
    return mask, PERIODS[kind], generator


@given(cases(), st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]))
def test_packing_then_unpacking_is_the_identity_on_kept_values_zeros_of_both_signs_included(case, dtype):
    mask, period, generator = case
    weight = torch.randn(mask.shape, generator=generator).to(dtype)
    weight[torch.rand(mask.shape, generator=generator) < 0.2] = 0.0
    weight[torch.rand(mask.shape, generator=generator) < 0.2] = -0.0
    layout = PackedLayout.of(mask, period)
    values = layout.pack(weight)
    assert torch.equal(values.flatten(), weight[mask])  # row-major order of the kept values
    check_unpacking(layout, values, weight, mask)
    blocks = BlockLayout.of(mask, period)
    if blocks is not None:
        assert torch.equal(blocks.pack(weight), blocks.from_row_major(values))
        assert torch.equal(blocks.to_row_major(blocks.pack(weight)), values)
        check_unpacking(blocks, blocks.pack(weight), weight, mask)


def check_unpacking(layout, values, weight, mask):
    back = layout.unpack(values)
    expected = torch.where(mask, weight, torch.zeros((), dtype=weight.dtype))
    assert torch.equal(back, expected)
    assert torch.equal(back.signbit(), expected.signbit())
    assert torch.equal(layout.pack(back).signbit(), values.signbit())


@given(cases(), st.integers(1, 9), st.sampled_from(["gather", "masked_dense", "reference"]))
@settings(max_examples=150)
def test_every_kernel_multiplies_by_the_masked_matrix_forward_and_backward(case, batch, kernel_name):
    mask, period, generator = case
    if kernel_name == "gather" and period is None:
        kernel_name = "masked_dense"
    rows, columns = mask.shape
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * mask
    x = torch.randn(batch, columns, generator=generator, dtype=torch.float64)
    dy = torch.randn(batch, rows, generator=generator, dtype=torch.float64)
    kernel = make(kernel_name, mask, period, batch, torch.float64)
    values = kernel.adopt(kernel.layout.pack(weight))
    torch.testing.assert_close(kernel.matmul(x, values), x @ weight.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(kernel.input_grad(dy, values), dy @ weight, rtol=0, atol=1e-12)
    dense_dw = torch.where(mask, dy.T @ x, 0.0)
    torch.testing.assert_close(kernel.layout.unpack(kernel.values_grad(dy, x)), dense_dw, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "share"), [("1100", 0.5), ("checkerboard", 0.5), ("random", 0.53125)])
def test_a_packed_half_holds_half_of_the_values_and_a_short_period_needs_no_metadata_to_speak_of(kind, share):
    mask = half_mask(kind, 512, 512, torch.Generator().manual_seed(0))
    kernel = make("gather" if kind != "random" else "masked_dense", mask, PERIODS[kind], 8, torch.float32)
    assert kernel.weight_bytes == pytest.approx(share * 512 * 512 * 4, rel=0.01)


def test_input_gradient_of_a_checkerboard_half_is_rounded_once():
    generator = torch.Generator().manual_seed(1)
    mask = half_mask("checkerboard", 256, 256, generator)
    weight = (torch.randn(256, 256, generator=generator) * mask).bfloat16()
    dy = torch.randn(64, 256, generator=generator).bfloat16()
    layout = BlockLayout.of(mask, 4)
    got = layout.input_grad(dy, layout.pack(weight))
    exact = dy.double() @ weight.double()
    # what one rounding of the exact result costs, and no more than float32 accumulation beside it
    once = (exact.bfloat16().double() - exact).norm()
    assert float((got.double() - exact).norm() / once) < 1.02


class TestMaskedWeights:
    """weights=masked: the compressed copy follows the dense one only when it is compressed again."""

    def test_recompressing_brings_the_values_up_to_date(self):
        mask = half_mask("random", 16, 32, torch.Generator().manual_seed(2))
        kernel = make("masked_dense", mask, None, 4, torch.float64)
        dense = torch.randn(16, 32, dtype=torch.float64) * mask
        values = kernel.adopt(kernel.layout.pack(dense))
        changed = dense * 2
        assert not torch.equal(kernel.layout.unpack(values), changed)
        kernel.recompress(values, changed)
        assert torch.equal(kernel.layout.unpack(values), changed)
