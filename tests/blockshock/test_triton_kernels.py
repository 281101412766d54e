"""The Triton kernels, on a GPU where there is one, else through Triton's interpreter in a process of its own.

Outputs are poisoned with NaN first: an element that a kernel does not write is found.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockshock.kernels.autograd import packed_linear
from blockshock.kernels.choice import make
from blockshock.kernels.gpu import block_gemm, columns, decompress, strided
from blockshock.kernels.gpu.block_gemm import GemmTiles
from blockshock.kernels.gpu.lift import lift
from blockshock.kernels.gpu.strided import StridedTiles, Workspace
from blockshock.kernels.gpu.triton_support import INTERPRETED
from blockshock.kernels.layouts import BlockLayout, PackedLayout
from blockshock.masks.window import WindowMask
from blockshock.measure.timing import capture
from blockshock.methods.pruned.lifted import Lifted
from tests.blockshock.test_packing import PERIODS, half_mask

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
runs_here = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU or TRITON_INTERPRET=1 from the start")
DTYPES = [torch.float16, torch.bfloat16]
BLOCKS = ["1100", "1010", "1001", "checkerboard"]


@pytest.mark.skipif(GPU or INTERPRETED, reason="the tests below run here as they are")
def test_the_kernels_under_the_interpreter():
    """The tests below, where the kernels' decorators see TRITON_INTERPRET when they are imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def draw(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def one_rounding(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """How far a result may be from the exact one: a unit in the last place (the interpreter truncates to bf16 where a
    GPU rounds), and what float32 sums of terms of the size of the largest result can lose."""
    return exact.abs() * torch.finfo(dtype).eps + exact.abs().max() * 1e-5


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "places", [((0, 1),), ((0, 2),), ((1, 2),), ((0, 3),), ((0, 1), (2, 3)), ((2, 3), (0, 1)), ((0, 2), (1, 3))]
)
def test_columns_taken_and_put_back_are_those_of_indexing(places, dtype):
    x = draw(3, 4 * 3001, seed=0, dtype=dtype)  # a size that fills no whole number of programs
    taken = columns.take(x, places)
    index = torch.tensor(places, device=DEVICE)
    assert torch.equal(taken, x.view(3, -1, 4)[:, :, index].permute(2, 0, 1, 3).reshape(taken.shape))
    out = torch.full_like(x, float("nan"))
    assert columns.put(taken, places, out) is out
    kept = torch.zeros(4, dtype=torch.bool, device=DEVICE)
    kept[index.flatten()] = True
    assert torch.equal(out, torch.where(kept.repeat(3001), x, torch.zeros((), dtype=dtype, device=DEVICE)))


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(
    "tiles", [StridedTiles(32, 16, 32, 1, 4, 2), StridedTiles(64, 16, 16, 3, 4, 3)], ids=["whole", "split"]
)
def test_a_product_on_strided_columns_is_that_of_the_masked_matrix(kind, dtype, tiles):
    rows, features, batch = 128, 512, 19
    mask = half_mask(kind, rows, features, torch.Generator().manual_seed(0)).to(DEVICE)
    layout = BlockLayout.of(mask, PERIODS[kind])
    weight, x = draw(rows, features, seed=1, dtype=dtype), draw(batch, features, seed=2, dtype=dtype)
    values, work = layout.pack(weight), Workspace(tiles, rows, batch, DEVICE)
    exact = x.double() @ (weight.double() * mask).t()
    first = None
    for _ in range(2):  # a launch must leave its counters as it found them
        out = torch.full((batch, rows), float("nan"), dtype=dtype, device=DEVICE)
        strided.matmul(x, values, layout.columns, layout.block_rows, out, tiles, work)
        assert bool(((out.double() - exact).abs() <= one_rounding(exact, dtype)).all())
        first = out if first is None else first
        assert torch.equal(out, first)


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("how", [{}, {"persistent": True}, {"both": True}], ids=str)
def test_a_product_of_blocks_is_that_of_the_masked_matrix(kind, dtype, how):
    rows, features, batch = 256, 512, 83  # in tiles of 64: one whole, one with rows past the end
    mask = half_mask(kind, rows, features, torch.Generator().manual_seed(0)).to(DEVICE)
    layout = BlockLayout.of(mask, PERIODS[kind])
    tiles = GemmTiles(64, 64, 64, group=2, warps=4, stages=3, **how)
    if not tiles.fits(rows, features, layout.columns):
        pytest.skip("one block has no other to go beside")
    weight, x = draw(rows, features, seed=1, dtype=dtype), draw(batch, features, seed=2, dtype=dtype)
    exact = x.double() @ (weight.double() * mask).t()
    out = torch.full((batch, rows), float("nan"), dtype=dtype, device=DEVICE)
    assert block_gemm.matmul(x, layout.pack(weight), layout.columns, layout.block_rows, out, tiles) is out
    assert bool(((out.double() - exact).abs() <= one_rounding(exact, dtype)).all())


@runs_here
@pytest.mark.parametrize("block_rows", [((0, 2), (1, 3)), ((1, 2), (0, 3))])
@pytest.mark.parametrize("both", [False, True])
def test_rows_of_blocks_that_are_no_neighbours_come_to_their_places(block_rows, both):
    rows, features, batch, dtype = 256, 256, 64, torch.bfloat16
    layout = BlockLayout(rows, features, ((1, 3), (0, 2)), block_rows)
    tiles = GemmTiles(64, 64, 64, both=both, warps=4)
    values, x = draw(rows, features // 2, seed=1, dtype=dtype), draw(batch, features, seed=2, dtype=dtype)
    exact = x.double() @ layout.unpack(values).double().t()
    out = torch.full((batch, rows), float("nan"), dtype=dtype, device=DEVICE)
    block_gemm.matmul(x, values, layout.columns, block_rows, out, tiles)
    assert bool(((out.double() - exact).abs() <= one_rounding(exact, dtype)).all())


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["random", "checkerboard", "1001"])
@pytest.mark.parametrize("split", [1, 2])
def test_a_product_that_decompresses_is_that_of_the_masked_matrix(kind, dtype, split):
    rows, features, batch = 64, 1024, 19
    mask = half_mask(kind, rows, features, torch.Generator().manual_seed(0)).to(DEVICE)
    layout = PackedLayout.of(mask, None)
    weight, x = draw(rows, features, seed=1, dtype=dtype), draw(batch, features, seed=2, dtype=dtype)
    tiles = StridedTiles(64, 16, decompress.LANES, split, 4, 2)
    out = torch.full((batch, rows), float("nan"), dtype=dtype, device=DEVICE)
    decompress.matmul(x, layout.pack(weight), layout.flags, out, tiles, Workspace(tiles, rows, batch, DEVICE))
    exact = x.double() @ (weight.double() * mask).t()
    assert bool(((out.double() - exact).abs() <= one_rounding(exact, dtype)).all())


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
def test_flags_say_what_places_say_and_packing_keeps_the_sign_of_zeros(dtype):
    rows, features = 40, 1024
    mask = half_mask("random", rows, features, torch.Generator().manual_seed(3)).to(DEVICE)
    layout = PackedLayout.of(mask, None)
    assert torch.equal(layout.places, (mask.nonzero()[:, 1].view(rows, -1) % 4).to(torch.uint8))
    weight = draw(rows, features, seed=4, dtype=dtype)
    weight[draw(rows, features, seed=5, dtype=dtype) < -0.5] = -0.0
    values = layout.pack(weight)
    assert torch.equal(values, weight[mask].view(rows, -1))
    dense = layout.unpack(values)
    expected = torch.where(mask, weight, torch.zeros((), dtype=dtype, device=DEVICE))
    assert torch.equal(dense, expected)
    assert torch.equal(dense.signbit(), expected.signbit())


@runs_here
@pytest.mark.parametrize("kind", [*BLOCKS, "random"])
def test_the_kernel_as_methods_use_it_is_differentiable(kind):
    rows, features, batch, dtype = (64 if kind == "random" else 128), 1024, 16, torch.float16
    mask = half_mask(kind, rows, features, torch.Generator().manual_seed(0)).to(DEVICE)
    weight, x = draw(rows, features, seed=1, dtype=dtype), draw(batch, features, seed=2, dtype=dtype)
    kernel = make("triton", mask, PERIODS[kind], batch, dtype)
    values = kernel.adopt(kernel.layout.pack(weight)).requires_grad_()
    x.requires_grad_()
    y, dy = packed_linear(x, values, kernel), draw(batch, rows, seed=3, dtype=dtype)
    y.backward(dy)
    half = weight.double() * mask
    for got, exact in (
        (y, x.double() @ half.t()),
        (x.grad, dy.double() @ half),
        (kernel.layout.unpack(values.grad), (dy.double().t() @ x.double()) * mask),
    ):
        assert bool(((got.double() - exact).abs() <= one_rounding(exact, dtype)).all())


READ = {6: [0, 1, 2, 3, 2, 3, 4, 5], 8: [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7]}  # the columns that a block's windows read


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", READ)
def test_columns_lifted_to_windows_are_those_of_indexing(block, dtype):
    x = draw(7, block * 1001, seed=0, dtype=dtype)  # a size that fills no whole number of programs
    assert torch.equal(lift(x, block), x.view(7, -1, block)[:, :, READ[block]].reshape(7, -1))


@runs_here
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", READ)
def test_windows_unpack_to_the_pruned_weight_and_pack_from_it(block, dtype):
    mask = WindowMask("mine", block)
    weight = mask.prune(draw(5, 3072, seed=1, dtype=dtype))
    weight[:, ::7] *= -0.0
    kernel = Lifted.of("masked_dense", mask, weight, batch=4)
    flags = kernel.layout.flags
    assert flags is not None
    values = decompress.pack(weight, flags, mask.windows)
    windows = weight.view(5, -1, block)[:, :, READ[block]].reshape(5, -1)
    assert torch.equal(values, decompress.pack(windows, flags))
    back = decompress.unpack(values, flags, mask.windows)
    kept = mask.keep(weight)
    assert torch.equal(back.signbit(), torch.where(kept, weight, weight.new_zeros(())).signbit())
    assert torch.equal(back, weight)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [*BLOCKS, "random"])
@pytest.mark.parametrize("batch", [16, 256, 1024])
@pytest.mark.parametrize("name", ["gather", "triton", "sparse_mma", "cusparselt"])
def test_a_captured_product_follows_its_input_replay_by_replay(name, kind, batch):
    """A graph holds addresses, and kernels that start before the one they wait for has ended."""
    if name == "gather" and kind == "random":
        pytest.skip("gather needs a mask made of blocks")
    rows, features, dtype = 512, 1024, torch.bfloat16
    mask = half_mask(kind, rows, features, torch.Generator().manual_seed(0)).to(DEVICE)
    kernel = make(name, mask, PERIODS[kind], batch, dtype)
    values = kernel.adopt(kernel.layout.pack(draw(rows, features, seed=1, dtype=dtype)))
    x, out = draw(batch, features, seed=2, dtype=dtype), torch.empty(batch, rows, dtype=dtype, device=DEVICE)
    kernel.matmul(x, values, out)
    graph = capture(lambda: kernel.matmul(x, values, out))
    for seed in range(3, 8):
        x.copy_(draw(batch, features, seed=seed, dtype=dtype))
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, kernel.matmul(x, values))
