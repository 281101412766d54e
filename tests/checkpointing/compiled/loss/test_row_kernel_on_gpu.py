"""The kernel of a chunk of logits on a GPU: against float64, and as an operator that inductor places in its graph."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from checkpointing.compiled.loss.row_kernel.kernel import Gradient, Tile, launch
from checkpointing.compiled.loss.row_kernel.operators import row_gradient_, row_statistics
from tests.checkpointing.compiled.loss.logits import Chunk, check, draw, exact

pytestmark = pytest.mark.gpu

SIZES = [
    Chunk(64, 50257, 50304),
    Chunk(33, 50257, 50264, gap=8),  # rows of whole units of 16 bytes, not of 32
    Chunk(33, 50257, 50257),  # rows of none
    Chunk(17, 128256, 128256, dtype=torch.float16),
    Chunk(9, 262144, 262144),
    Chunk(40, 32003, 32064, dtype=torch.float32),
    Chunk(40, 32003, 32003, offset=3, dtype=torch.float32),
    Chunk(1, 1, 1),
    Chunk(300, 515, 520),
    Chunk(300, 7000, 7000, spread=30.0),
]
OPTIONS = [{}, {"square": True}, {"every": True}, {"square": True, "every": True, "weighted": True}]
TILES = [Tile(), Tile(4096, 8), Tile(16384, 32), Tile(8192, 16, 3), Tile(256, 4, 2)]


def launched(chunk: Chunk, tile: Tile) -> None:
    drawn, before = draw(chunk, "cuda"), draw(chunk, "cuda")
    gradient = Gradient(*drawn.factors)
    given = drawn.logits, chunk.vocabulary, drawn.labels
    alone = launch(*given, None, drawn.classes, chunk.every, tile)
    assert torch.equal(drawn.memory, before.memory)
    stats = launch(*given, gradient, drawn.classes, chunk.every, tile)
    assert torch.equal(stats[:2], alone[:2])
    check(drawn, stats, before)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", SIZES, ids=str)
def test_the_gradient_is_that_of_float64_rounded_once(chunk: Chunk, options: dict[str, bool]) -> None:
    launched(Chunk(**{**vars(chunk), **options}), Tile())


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("width", [50257, 50304])
def test_every_tile_computes_the_same(tile: Tile, width: int) -> None:
    launched(Chunk(32, 50257, width, every=True), tile)


def test_rows_that_begin_behind_two_to_the_31_elements() -> None:
    rows, vocabulary = 34, 64_000_000
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16, device="cuda")
    labels = torch.arange(rows, device="cuda") + vocabulary - 100
    ones = torch.ones(rows, device="cuda")
    stats = row_gradient_(logits, vocabulary, labels, ones, -ones)
    assert torch.allclose(stats[0], torch.full_like(stats[0], vocabulary).log(), rtol=1e-5)
    assert (logits.argmin(1) == labels).all()
    assert ((logits[:, :1000] - 1 / vocabulary).abs() <= 1e-2 / vocabulary).all()


def test_inductor_places_it_without_a_copy_of_the_logits() -> None:
    """The kernel writes over the result of a matmul, and its statistics are read by generated code."""
    rows, width, vocabulary = 1024, 64, 50304

    def step(hidden: Tensor, weight: Tensor, labels: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        logits = hidden @ weight
        stats = row_gradient_(logits, vocabulary, labels, factor, -factor)
        return (stats[0] - stats[1]).mean(), logits @ weight.t()

    generator = torch.Generator("cuda").manual_seed(0)
    hidden, weight = (
        torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for shape in ((rows, width), (width, vocabulary))
    )
    labels = torch.randint(vocabulary, (rows,), generator=generator, device="cuda")
    factor = torch.ones(rows, device="cuda")
    compiled = torch.compile(step, dynamic=False, fullgraph=True)
    with torch.no_grad():
        compiled(hidden, weight, labels, factor)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss, gradient = compiled(hidden, weight, labels, factor)
        peak = torch.cuda.max_memory_allocated() - before
    x = hidden.double() @ weight.double()
    true = torch.nn.functional.cross_entropy(x, labels)
    assert abs(float(loss) - float(true)) <= 1e-3 * float(true)
    error = x.softmax(1)
    error.scatter_add_(1, labels[:, None], -torch.ones(rows, 1, dtype=torch.float64, device="cuda"))
    expected = error @ weight.double().t()
    assert float((gradient.double() - expected).norm() / expected.norm()) < 0.02
    assert peak < 1.5 * rows * vocabulary * 2  # one chunk of logits, and not two


@pytest.mark.parametrize("label", [300, 303, -1])
def test_a_label_outside_of_the_vocabulary_stops_the_device(label: int) -> None:
    """In a process of its own, whose device is of no use afterwards."""
    code = f"""
import torch
from checkpointing.compiled.loss.row_kernel.operators import row_gradient_
ones = torch.ones(4, device="cuda")
labels = torch.tensor([1, 2, {label}, 3], device="cuda")
row_gradient_(torch.zeros(4, 304, device="cuda", dtype=torch.bfloat16), 300, labels, ones, -ones)
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "label out of bounds" in done.stderr
    assert "device-side assert" in done.stderr


def test_columns_of_a_transposed_matrix_are_no_rows() -> None:
    with pytest.raises(RuntimeError, match="rows without gaps"):
        row_statistics(torch.zeros(8, 4, device="cuda").t(), 8, torch.zeros(4, dtype=torch.long, device="cuda"))


def test_statistics_of_rows_are_those_of_float64() -> None:
    drawn = draw(Chunk(100, 50257, 50304), "cuda")
    stats = row_statistics(drawn.logits, 50257, drawn.labels)
    assert torch.allclose(stats[:2].double(), exact(drawn)[0][:2], rtol=1e-6)
