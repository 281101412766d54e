"""Models trained through the backend with their loss in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import checkpointing
from checkpointing import CheckpointingError, plan_of, prove_compiled
from profiler.models import TrainingTask, build
from tests.checkpointing.compiled.training import CountedHalves, train

EXECUTIONS = pytest.mark.parametrize("execution", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])


class Head(nn.Module):
    """A linear layer of a large vocabulary on a small model."""

    def __init__(self, vocabulary: int = 515, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def loss_of(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model(x), labels)


def batch(rows: int = 128, vocabulary: int = 515) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 16, generator=generator), torch.randint(vocabulary, (rows,), generator=generator)


LAYERS = {"tiny_gpt2": "transformer.h", "tiny_llama": "model.layers", "tiny_bert": "bert.encoder.layer"}


def with_one_layer(name: str) -> TrainingTask:
    """A model of whose layers the first is left: the loss has one below it, and inductor half as much to compile."""
    task = build(name, batch_size=4, seq_len=32, dropout=0.1)
    layers = task.model.get_submodule(LAYERS[name])
    assert isinstance(layers, nn.ModuleList)
    del layers[1:]
    return task


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_a_models_step_is_as_near_to_float64_as_with_the_loss_in_one_piece(name: str) -> None:
    """GPT-2's with its layer recomputed, too."""
    task = with_one_layer(name)
    recompute = [f"{LAYERS[name]}.0"] * (name == "tiny_gpt2")
    options: dict[str, Any] = {"execution": "eager", "recompute": recompute, "chunked_loss": 3}
    proof = prove_compiled(task.loss_fn, task.model, task.batch, 1.0, **options)
    assert proof.passed
    assert "in 3 chunks of its 128 rows" in proof.plan.loss
    assert proof.plan.is_empty == (not recompute)


class Tied(Head):
    """Its head's weight is the embedding of its tokens, as GPT-2's is."""

    def __init__(self, vocabulary: int = 515, width: int = 16) -> None:
        super().__init__(vocabulary, width)
        self.embedding = nn.Embedding(vocabulary, width)
        self.body.append(nn.Dropout(0.1))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(self.embedding(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("model", [Head(), Tied()], ids=["head of its own", "tied head and a layer recomputed"])
def test_through_inductor_a_step_is_as_near_to_float64_as_with_the_loss_in_one_piece(model: Head) -> None:
    """Of two small models: inductor takes a minute for those of transformers, proved above operator by operator."""
    x, labels = batch()
    recompute = ["body.1"] * isinstance(model, Tied)
    given = (labels.flip(0) if isinstance(model, Tied) else x, labels)
    proof = prove_compiled(loss_of, model, given, 1.0, execution="inductor", recompute=recompute, chunked_loss=3)
    assert proof.passed
    assert "in 3 chunks of its 128 rows" in proof.plan.loss
    assert proof.plan.is_empty == (not recompute)


@EXECUTIONS
def test_training_goes_as_with_the_loss_in_one_piece(execution: str) -> None:
    chunked = checkpointing.backend("1GB", execution=execution, chunked_loss=4)
    found = train(Head(), loss_of, batch(), chunked)
    expected = train(Head(), loss_of, batch(), "aot_eager")
    assert plan_of(found.model).loss == "the loss of head in 4 chunks of its 128 rows"
    assert "the loss of head in 4 chunks of its 128 rows" in plan_of(found.model).summary()
    for loss, true in zip(found.losses, expected.losses, strict=True):
        assert torch.allclose(loss, true, rtol=1e-5)


def test_a_budget_that_logits_alone_exceed_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedHalves(monkeypatch)
    rows, vocabulary = 1024, 2048
    given = batch(rows, vocabulary)
    peaks = {}
    for chunks in (None, 16):
        backend = checkpointing.backend(1.0, execution="eager", chunked_loss=chunks)
        trained = train(Head(vocabulary), loss_of, given, backend)
        peaks[chunks] = counted.peak(trained, given)
        assert peaks[chunks] == plan_of(trained.model).predicted_peak_bytes
    logits = rows * vocabulary * 4
    assert peaks[None] > 2 * logits
    assert peaks[16] < logits
    for count in (16, "auto"):
        backend = checkpointing.backend(logits, execution="eager", chunked_loss=count)
        trained = train(Head(vocabulary), loss_of, given, backend)
        assert counted.peak(trained, given) == plan_of(trained.model).predicted_peak_bytes <= logits


def test_gradients_that_the_forward_computes_are_kept_and_the_table_says_why() -> None:
    chunked = checkpointing.backend("1GB", execution="eager", chunked_loss=4)
    table = plan_of(train(Head(), loss_of, batch(), chunked, steps=1).model).table()
    rows = table[table.why == "is a gradient that the forward computes along with the loss"]
    assert set(rows.module) == {"head"}
    assert set(rows.decision) == {"keep"}


def test_more_chunks_than_rows_are_as_many_as_rows() -> None:
    chunked = checkpointing.backend("1GB", execution="eager", chunked_loss=1000)
    trained = train(Head(), loss_of, batch(6), chunked, steps=1)
    assert "in 6 chunks of its 6 rows" in plan_of(trained.model).loss


def test_a_model_without_such_a_loss_is_as_without_the_option_and_says_why() -> None:
    def square(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return model(x).square().mean()

    found = train(Head(), square, batch(), checkpointing.backend("1GB", execution="eager", chunked_loss=4))
    expected = train(Head(), square, batch(), "aot_eager")
    assert "the loss is not in chunks" in plan_of(found.model).summary()
    assert [loss.item() for loss in found.losses] == [loss.item() for loss in expected.losses]


@pytest.mark.parametrize("chunks", [0, -1, 2.0, "all", True, float("nan")])
def test_a_number_of_chunks_that_is_none_is_rejected(chunks: Any) -> None:
    with pytest.raises(CheckpointingError, match="a positive whole number") as error:
        checkpointing.backend("8GB", chunked_loss=chunks)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_through_inductor_parts_of_the_weights_gradient_are_added_chunk_by_chunk() -> None:
    """Three chunks more take less than one such part more: as planned, and by the generated code."""
    vocabulary, part = 4096, 4096 * 16 * 4
    given = batch(20, vocabulary)
    plans = [
        plan_of(train(Head(vocabulary), loss_of, given, checkpointing.backend("1GB", chunked_loss=n), steps=1).model)
        for n in (2, 5)
    ]
    few, many = plans
    assert many.plan.predicted_peak_bytes < few.plan.predicted_peak_bytes + part
    assert many.predicted_peak_bytes < few.predicted_peak_bytes + part
