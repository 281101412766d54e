"""Statistics and gradients of rows of logits against float64: the operators as PyTorch's operators compute them on a
CPU, and the Triton kernel through its interpreter, in a process of its own. `test_row_kernel_on_gpu` has the GPU.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpointing.compiled.loss.row_kernel.operators import row_gradient_, row_statistics
from tests.checkpointing.compiled.loss.logits import Chunk, Drawn, check, draw, exact

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 from the start")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

CHUNKS = st.builds(
    Chunk,
    rows=st.integers(1, 5),
    vocabulary=st.integers(1, 1500),
    width=st.sampled_from([0, 1, 3, 8]),  # columns behind the vocabulary, or up to a multiple of 8
    gap=st.sampled_from([0, 1, 8]),
    offset=st.sampled_from([0, 8, 3]),
    dtype=st.sampled_from(DTYPES),
    square=st.booleans(),
    every=st.booleans(),
    weighted=st.booleans(),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    seed=st.integers(0, 99),
).map(lambda c: Chunk(**{**vars(c), "width": -(-c.vocabulary // 8) * 8 if c.width == 8 else c.vocabulary + c.width}))


@pytest.mark.skipif(INTERPRETED, reason="the tests below run here as they are")
def test_the_kernel_under_the_interpreter() -> None:
    """The tests below, where the kernel's decorators see TRITON_INTERPRET when they are imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[4]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def launched(drawn: Drawn, columns: int = 8192, stages: int = 1) -> torch.Tensor:
    from checkpointing.compiled.loss.row_kernel.kernel import Gradient, Tile, launch

    tile = Tile(columns, 4, stages)
    chunk = drawn.chunk
    gradient = Gradient(*drawn.factors)
    return launch(drawn.logits, chunk.vocabulary, drawn.labels, gradient, drawn.classes, chunk.every, tile)


@interpreted
@settings(max_examples=40, deadline=None)
@given(chunk=CHUNKS, columns=st.sampled_from([256, 512, 8192]), stages=st.sampled_from([1, 3]))
def test_the_kernels_gradient_is_that_of_float64(chunk: Chunk, columns: int, stages: int) -> None:
    drawn, before = draw(chunk, "cpu"), draw(chunk, "cpu")
    check(drawn, launched(drawn, columns, stages), before, roundings=1.0)


@interpreted
@settings(max_examples=15, deadline=None)
@given(chunk=CHUNKS)
def test_the_kernels_statistics_leave_the_logits_as_they_are(chunk: Chunk) -> None:
    from checkpointing.compiled.loss.row_kernel.kernel import Tile, launch

    drawn = draw(chunk, "cpu")
    before = drawn.memory.clone()
    stats = launch(drawn.logits, chunk.vocabulary, drawn.labels, None, drawn.classes, chunk.every, Tile(256, 4))
    assert torch.equal(drawn.memory, before)
    assert torch.allclose(stats[:2].double(), exact(drawn)[0][:2], rtol=1e-6, atol=1e-5)


@interpreted
def test_a_label_outside_of_the_vocabulary_does_not_pass_for_a_loss() -> None:
    """A GPU stops there; the interpreter leaves assertions out."""
    drawn = draw(Chunk(rows=3, vocabulary=300, width=304), "cpu")
    drawn.labels[1] = 301
    assert launched(drawn)[1].isnan().tolist() == [False, True, False]


@interpreted
def test_logits_of_minus_infinity_have_no_probability() -> None:
    drawn = draw(Chunk(rows=2, vocabulary=600, width=600), "cpu")
    drawn.logits[0, :300] = drawn.logits[1] = -float("inf")
    drawn.labels.fill_(599)
    before = copy.deepcopy(drawn)
    stats = launched(drawn, columns=256)
    assert torch.allclose(stats[0], before.logits.float().logsumexp(1))
    assert not drawn.logits[0, :300].any()
    assert drawn.logits[1].isnan().all()  # as softmax has it


@settings(max_examples=60, deadline=None)
@given(chunk=CHUNKS)
def test_the_operators_on_a_cpu_are_those_of_float64(chunk: Chunk) -> None:
    drawn, before = draw(chunk, "cpu"), draw(chunk, "cpu")
    of_softmax, of_label, of_square, of_all = drawn.factors
    given_ = drawn.logits, chunk.vocabulary, drawn.labels
    alone = row_statistics(*given_, drawn.classes, chunk.every)
    assert torch.equal(drawn.memory, before.memory)
    stats = row_gradient_(*given_, of_softmax, of_label, of_square, of_all, drawn.classes, chunk.every)
    assert torch.equal(stats, alone)
    check(drawn, stats, before)


def test_no_rows_have_no_statistics() -> None:
    nothing = torch.zeros(0)
    assert row_gradient_(torch.zeros(0, 8), 7, torch.zeros(0, dtype=torch.long), nothing, nothing).shape == (3, 0)


def test_the_gradient_of_a_cross_entropy_is_what_autograd_computes() -> None:
    """With label smoothing, class weights, ignored rows and a z-loss, each in a factor."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 17, generator=generator).requires_grad_()
    classes = torch.rand(17, generator=generator) + 0.5
    labels = torch.randint(17, (9,), generator=generator)
    labels[2] = -100
    loss = torch.nn.functional.cross_entropy(logits, labels, classes, label_smoothing=0.1, reduction="sum")
    counts = labels != -100
    (loss + 0.01 * (logits.logsumexp(1).square() * counts).sum()).backward()
    safe = labels.masked_fill(~counts, 0)
    one = counts.float()
    own, every = 0.9 * classes[safe] * one, 0.1 / 17 * one
    found = logits.detach().clone()
    row_gradient_(found, 17, safe, own + every * classes.sum(), -own, 0.02 * one, -every, classes)
    assert torch.allclose(found, logits.grad, atol=1e-6)
