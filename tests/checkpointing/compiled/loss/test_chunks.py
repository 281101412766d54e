"""A loss in chunks of rows is the loss: compared with float64, and with the same loss in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from checkpointing.compiled.loss.chunked_loss import with_chunked_losses
from checkpointing.compiled.proof.distances import FACTOR
from tests.checkpointing.compiled.loss.joint_graphs_of import TracedLoss, traced
from tests.checkpointing.compiled.recorded_graphs import NAMES, recorded
from tests.profiler.eager_steps import LiveBytes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EQUAL = 5e-3  # of a distance: what a difference in the last bit of few elements makes of it
FORMS = pytest.mark.parametrize("decomposed", [False, True], ids=["as traced", "decomposed"])


@dataclass(frozen=True)
class Options:
    """Of a loss of [rows, width] hidden states and a linear layer, as users write it."""

    rows: int
    width: int
    vocabulary: int
    dtype: torch.dtype = torch.float64
    bias: bool = True
    cast: bool = False
    cap: float | None = None
    reduction: str = "mean"
    smoothing: float = 0.0
    weighted: bool = False
    z_loss: bool = False
    ignored: int = 0  # labels, the first ones
    scale: float = 1.0  # of the loss, before the backward

    def inputs(self, seed: int, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Hidden states, weight, bias, labels, the weights of classes."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator).to(self.dtype).to(dtype or self.dtype)
            return values.requires_grad_()

        labels = torch.randint(self.vocabulary, (self.rows,), generator=generator)
        labels[: self.ignored] = -100
        hidden, weight, bias = draw(self.rows, self.width), draw(self.vocabulary, self.width), draw(self.vocabulary)
        classes = torch.rand(self.vocabulary, generator=generator) + 0.5
        casts = self.cast and dtype is None and self.dtype != torch.float64
        logits_dtype = torch.float32 if casts else dtype or self.dtype
        return [hidden, weight, bias, labels, classes.to(self.dtype).to(logits_dtype)]

    def loss(self, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        logits = linear(hidden, weight, bias if self.bias else None)
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        if self.cast and logits.dtype != torch.float64:
            logits = logits.float()
        loss = cross_entropy(
            logits,
            labels,
            weight=classes if self.weighted else None,
            reduction=self.reduction,
            label_smoothing=self.smoothing,
        )
        if self.z_loss:
            loss = loss + 0.01 * logits.logsumexp(-1).square().mean()
        if self.reduction == "none":
            loss = (loss * torch.linspace(0, 1, self.rows, dtype=loss.dtype)).sum()
        return loss * self.scale + (0 if self.bias else 0 * bias.sum())


OPTIONS = st.builds(
    Options,
    rows=st.integers(2, 13),
    width=st.integers(2, 6),
    vocabulary=st.integers(2, 19),
    bias=st.booleans(),
    cast=st.booleans(),
    cap=st.sampled_from([None, 3.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    z_loss=st.booleans(),
    ignored=st.integers(0, 2),
    scale=st.sampled_from([1.0, 0.3]),
)


def check(step: TracedLoss, expected: TracedLoss, close: Callable[[Tensor, Tensor], bool]) -> None:
    loss, gradients = step.run()
    true_loss, true = expected.run()
    assert close(loss, true_loss)
    for found, exact in zip(gradients, true, strict=True):
        assert found.dtype == step.inputs[0].dtype
        assert found.shape == exact.shape
        assert close(found, exact)


def equal(found: Tensor, exact: Tensor) -> bool:
    return torch.allclose(found.double(), exact.double(), rtol=1e-11, atol=1e-11, equal_nan=True)


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(options=OPTIONS, chunks=st.integers(1, 15), decomposed=st.booleans(), seed=st.integers(0, 99))
def test_in_float64_any_loss_is_what_autograd_computes(
    options: Options, chunks: int, decomposed: bool, seed: int
) -> None:
    inputs = options.inputs(seed)
    step = traced(options.loss, inputs, chunks, decomposed)
    loss, gradients = step.run()
    assert step.said.startswith("the loss of "), step.said
    true = options.loss(*inputs)
    assert equal(loss, true)
    exact = torch.autograd.grad(true, inputs[:3])
    assert all(equal(a, b) for a, b in zip(gradients, exact, strict=True))


@pytest.mark.slow
@FORMS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        Options(96, 32, 75),
        Options(96, 32, 80, cast=True, bias=False),
        Options(90, 24, 75, cast=True, cap=5.0, smoothing=0.1, weighted=True, z_loss=True, ignored=7),
        Options(64, 32, 61, reduction="sum", scale=0.3),
    ],
    ids=["plain", "cast", "all options", "scaled sum"],
)
def test_no_gradient_is_further_from_float64_than_in_one_piece(
    options: Options, dtype: torch.dtype, decomposed: bool
) -> None:
    """Over eight draws, as one rounding error says little: the loss and the weight's gradient strictly. The others are
    as near, but a tangent that multiplies at the end rounds once more than one that multiplies at the start."""
    options = Options(**{**vars(options), "dtype": dtype})
    errors: dict[int | None, list[float]] = {}
    for chunks in (None, 7):
        squares = [0.0] * 4
        step = traced(
            options.loss, options.inputs(0), chunks, decomposed
        )  # a graph of shapes: any draw runs through it
        for seed in range(8):
            loss, gradients = replace(step, inputs=options.inputs(seed)).run()
            exact = options.inputs(seed, torch.float64)
            true_loss = options.loss(*exact)
            true = [true_loss, *torch.autograd.grad(true_loss, exact[:3])]
            for index, (a, b) in enumerate(zip([loss, *gradients], true, strict=True)):
                squares[index] += float(
                    (a.double() - b).detach().norm() ** 2 / max(float(b.detach().norm()) ** 2, 1e-300)
                )
        errors[chunks] = [square**0.5 for square in squares]
    loss, hidden, weight, bias = zip(errors[7], errors[None], strict=True)
    assert all(mine <= (1 + EQUAL) * one for mine, one in (loss, weight)), errors
    assert all(mine <= FACTOR * one for mine, one in (hidden, bias)), errors


@FORMS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunks", [2, 5, 9])
def test_losses_of_rows_are_bitwise_those_of_one_piece(chunks: int, dtype: torch.dtype, decomposed: bool) -> None:

    def losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        by_row = cross_entropy(linear(hidden, weight), labels, reduction="none")
        return by_row.mean(), by_row.detach()

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(s, generator=generator).to(dtype) for s in ((64, 9), (37, 9)))
    inputs = (hidden.requires_grad_(), weight.requires_grad_(), torch.randint(37, (64,), generator=generator))
    [_, one], [_, several] = (traced(losses, inputs, count, decomposed).run()[0] for count in (1, chunks))
    assert torch.equal(several, one)


@FORMS
@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("part", [slice(None, -1), slice(1, None), slice(1, 3)], ids=["all but last", "rest", "middle"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("cast", [False, True])
def test_logits_of_which_a_part_of_the_sequence_counts(
    cast: bool, biased: bool, part: slice, chunks: int, decomposed: bool
) -> None:
    """As older Hugging Face models shift them, with the labels shifted or not, and with a bias or without."""
    dtype = torch.float32 if cast else torch.float64

    def shifted(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = linear(hidden, weight, bias).to(torch.float64)[:, part].reshape(-1, 7)
        return cross_entropy(logits, labels[:, part].reshape(-1))

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in ((3, 5, 4), (7, 4)))
    inputs = [hidden, weight, torch.randint(7, (3, 5), generator=generator)]
    if biased:
        inputs.append(torch.randn(7, generator=generator).to(dtype).requires_grad_())
    step = traced(shifted, inputs, chunks, decomposed)
    loss, gradients = step.run()
    rows = len(range(5)[part]) * 3
    made = 3 if (rows, chunks) == (6, 4) else chunks  # chunks are of equal size: six rows are three of two
    assert f"in {made} chunks of its {rows} rows" in step.said
    true = shifted(*inputs)
    exact = torch.autograd.grad(true, [given for given in inputs if given.requires_grad])
    close = 1e-5 if cast else 1e-11
    assert torch.allclose(loss, true, rtol=close, atol=close)
    assert all(torch.allclose(a, b, rtol=close, atol=close) for a, b in zip(gradients, exact, strict=True))


def test_float16_gradients_that_a_scaled_loss_keeps_from_vanishing_do_not_vanish() -> None:
    options = Options(64, 8, 4096, torch.float16, bias=False, cast=True, scale=2.0**14)
    _, found = traced(options.loss, options.inputs(0), 4, decomposed=True).run()
    _, one = traced(options.loss, options.inputs(0), None, decomposed=True).run()
    assert float((found[0] - one[0]).norm()) <= 2**-9 * float(one[0].norm())


@FORMS
def test_all_rows_ignored_have_the_mean_of_nothing(decomposed: bool) -> None:
    options = Options(6, 3, 5, torch.float32, ignored=6)
    check(
        traced(options.loss, options.inputs(0), 3, decomposed),
        traced(options.loss, options.inputs(0), None, decomposed),
        lambda found, exact: torch.equal(found.isnan(), exact.isnan()) and equal(found, exact),
    )


def test_no_rows_are_no_chunks() -> None:
    options = Options(0, 3, 5, torch.float32)
    step = traced(options.loss, options.inputs(0), 3, decomposed=False)
    loss, gradients = step.run()
    assert loss.isnan()
    assert gradients[0].shape == (0, 3)
    assert "0 rows, which cannot be divided" in step.said


@FORMS
@pytest.mark.parametrize("label", [37, 40, -3])
def test_labels_out_of_range_are_the_error_that_torch_has(label: int, decomposed: bool) -> None:
    """Also those that the padded vocabulary would have room for."""
    options = Options(6, 3, 37, torch.bfloat16)
    inputs = options.inputs(0)
    inputs[3][4] = label
    kinds = []
    for chunks in (None, 3):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds") as error:
            traced(options.loss, inputs, chunks, decomposed).run()
        kinds.append(error.type)
    assert kinds[0] is kinds[1]


def count_peak(step: TracedLoss) -> int:
    """Bytes of storages above the inputs at the fullest operator of forward and backward."""
    step.run()
    counter = LiveBytes(list(step.inputs))
    before = sum(t.untyped_storage().nbytes() for t in step.inputs)
    with counter:
        step.run()
    return max(counter.counts) - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["in the forward", "in the backward"])
def test_no_more_than_one_chunk_of_logits_is_there(dtype: torch.dtype) -> None:
    options = Options(512, 4, 1024, dtype, bias=False)
    one, sixteen = (count_peak(traced(options.loss, options.inputs(0), n, decomposed=False)) for n in (1, 16))
    logits = 512 * 1024 * dtype.itemsize
    assert one >= 2 * logits  # with what is computed from them
    assert sixteen <= one / 16 + 12 * (512 + 1024) * 4 * 4  # and hidden states, weights, their gradients


@pytest.mark.parametrize("name", NAMES)
def test_in_a_models_graph_nothing_is_wider_than_a_chunk(name: str) -> None:
    graph = recorded(name)
    joint, said = with_chunked_losses(graph.module, 8)
    assert said.startswith("the loss of ")
    rows = {"gpt2": 8192, "bert": 8192, "llama": 4096}.get(name, 64)
    vocabulary = {"gpt2": 50257, "bert": 30522, "llama": 128256}.get(name, 1000)
    [output] = joint.graph.find_nodes(op="output")
    needed = set(output.all_input_nodes)
    for node in reversed(list(joint.graph.nodes)):
        if node in needed:
            needed.update(node.all_input_nodes)
    wide = [
        node.name
        for node in needed
        if isinstance(value := node.meta.get("val"), Tensor)
        and value.dim() >= 2
        and value.numel() > rows // 8 * (vocabulary + 8)
        and vocabulary <= max(value.shape) < vocabulary + 8
        and rows in (value.shape[0], value.shape[-1])
    ]
    assert not wide
