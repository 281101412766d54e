"""Chunks of a loss by the kernel's operators: which losses these know, and that they compute what autograd does.

On a CPU PyTorch's operators are in the kernel's place; `test_row_kernel` compares these with the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, nll_loss

from checkpointing import plan_of
from checkpointing.compiled.costs.operator_call import OperatorCall, TensorSpec
from checkpointing.compiled.costs.random_inputs import random_arguments
from checkpointing.compiled.loss import chunked_loss
from checkpointing.compiled.loss.chunked_loss import with_chunked_losses
from checkpointing.compiled.loss.ordered_matmuls import timed_as, total_of
from checkpointing.compiled.loss.row_kernel.operators import row_gradient_
from checkpointing.compiled.proof.distances import FACTOR
from tests.checkpointing.compiled.loss.joint_graphs_of import TracedLoss, traced
from tests.checkpointing.compiled.loss.test_chunked_loss import Head, batch, loss_of
from tests.checkpointing.compiled.loss.test_chunks import EQUAL, OPTIONS, Options
from tests.checkpointing.compiled.recorded_graphs import candidate_of, chunked_problem_of, recorded
from tests.checkpointing.compiled.training import train

BY_KERNEL = "each by one kernel"


def distances(step: TracedLoss, options: Options, seed: int) -> list[float]:
    """Of loss and gradients from float64, relative to their size."""
    loss, gradients = step.run()
    exact = options.inputs(seed, torch.float64)
    true_loss = options.loss(*exact)
    true = [true_loss.detach(), *torch.autograd.grad(true_loss, exact[:3])]
    found = [loss.detach(), *gradients]
    return [float((a.double() - b).norm() / max(float(b.norm()), 1e-3)) for a, b in zip(found, true, strict=True)]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(options=OPTIONS, chunks=st.integers(1, 15), seed=st.integers(0, 99))
def test_any_cross_entropy_is_known_and_right(options: Options, chunks: int, seed: int) -> None:
    options = replace(options, dtype=torch.float32, cap=None)
    assume(options.rows != options.vocabulary and options.ignored < options.rows)
    step = traced(options.loss, options.inputs(seed), chunks, decomposed=True, kernel=True)
    assert max(distances(step, options, seed)) < 2e-5
    assert step.said.endswith(BY_KERNEL)


PLAIN = Options(960, 128, 301)
CAST = Options(960, 128, 320, cast=True, bias=False)
ALL_OPTIONS = Options(900, 96, 301, cast=True, smoothing=0.1, weighted=True, z_loss=True, ignored=70)
SCALED_SUM = Options(640, 128, 245, reduction="sum", scale=0.3)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        *((options, dtype) for options in (PLAIN, ALL_OPTIONS) for dtype in (torch.float32, torch.bfloat16)),
        *((options, torch.float16) for options in (PLAIN, CAST, SCALED_SUM)),
    ],
)
def test_no_gradient_is_further_from_float64_than_in_one_piece(options: Options, dtype: torch.dtype) -> None:
    """As `test_chunks` has it for generated code, over eight draws, loss and weight strictly. Of more elements: the
    kernel rounds elsewhere, and of few elements the one or the other is nearer by chance."""
    options = replace(options, dtype=dtype)
    errors = {}
    for chunks in (None, 7):
        step = traced(options.loss, options.inputs(0), chunks, decomposed=True, kernel=True)  # of shapes, for any draw
        draws = [distances(replace(step, inputs=options.inputs(seed)), options, seed) for seed in range(8)]
        errors[chunks] = [sum(error**2 for error in draw) ** 0.5 for draw in zip(*draws, strict=True)]
    loss, hidden, weight, bias = zip(errors[7], errors[None], strict=True)
    assert all(mine <= (1 + EQUAL) * one + 1e-7 for mine, one in (loss, weight)), errors
    assert all(mine <= FACTOR * one for mine, one in (hidden, bias)), errors


def z_loss_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    logarithm = logits.logsumexp(-1)
    return (logarithm - logits.gather(1, labels[:, None])[:, 0]).mean() + 1e-2 * logarithm.square().mean()


def smoothed_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    log_softmax = logits.log_softmax(-1)
    return 0.8 * nll_loss(log_softmax, labels) - 0.2 * log_softmax.mean(-1).mean()


def one_hot_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    at_label = torch.arange(logits.shape[1]) == labels[:, None]
    return -torch.where(at_label, logits.log_softmax(-1), 0.0).sum(-1).mean()


def weighted_rows(logits: Tensor, labels: Tensor) -> Tensor:
    weights = torch.linspace(0, 1, len(labels))
    return (cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()


def log_of_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.softmax(-1).gather(1, labels[:, None]).log().mean()


def cubed(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels) + 1e-2 * logits.logsumexp(-1).pow(3).mean()


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    loss = cross_entropy(logits, labels, reduction="none")
    return ((1 - (-loss).exp()) ** 2 * loss).mean()


def capped(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(5 * torch.tanh(logits / 5), labels)


def scaled(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits / 2, labels)


def soft_labels(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, (logits.detach().shape[1] * torch.eye(logits.shape[1])[labels] + 1).softmax(-1))


def two_labels(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels) + cross_entropy(logits, labels.flip(0))


def largest(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels) + logits.amax(-1).detach().mean()


KNOWN = [z_loss_by_hand, smoothed_by_hand, one_hot_by_hand, weighted_rows]
UNKNOWN = [log_of_softmax, cubed, focal, capped, scaled, soft_labels, two_labels, largest]


@pytest.mark.parametrize(
    ("loss_fn", "chunks"),
    [*((loss_fn, 4) for loss_fn in (*KNOWN, *UNKNOWN)), (z_loss_by_hand, 1), (cubed, 1)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_losses_that_are_written_by_hand(loss_fn: Callable[[Tensor, Tensor], Tensor], chunks: int) -> None:
    """What the kernel does not know is generated, which is said, and right as well."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(s, generator=generator).requires_grad_() for s in ((11, 4), (7, 4)))
    inputs = (hidden, weight, torch.randint(7, (11,), generator=generator))

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return loss_fn(linear(hidden, weight), labels)

    step = traced(loss, inputs, chunks, decomposed=True, kernel=True)
    found, gradients = step.run()
    true = loss(*inputs)
    assert torch.allclose(found, true, rtol=1e-5)
    for gradient, exact in zip(gradients, torch.autograd.grad(true, inputs[:2]), strict=True):
        assert torch.allclose(gradient, exact, rtol=1e-4, atol=1e-6)
    if loss_fn in KNOWN:
        assert step.said.endswith(BY_KERNEL)
    else:
        assert "by generated code (the kernel does not know" in step.said


@pytest.mark.parametrize("biased", [False, True])
def test_a_sequence_of_which_a_part_counts_goes_through_the_kernel(biased: bool) -> None:
    def shifted(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
        return cross_entropy(linear(hidden, weight, bias)[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1))

    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5, 4), (7, 4), (7,))
    hidden, weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    inputs = [hidden, weight, torch.randint(7, (3, 5), generator=generator), *([bias] if biased else [])]
    step = traced(shifted, inputs, 3, decomposed=True, kernel=True)
    loss, gradients = step.run()
    true = shifted(*inputs)
    assert step.said.endswith(BY_KERNEL)
    assert torch.allclose(loss, true)
    exact = torch.autograd.grad(true, [given for given in inputs if given.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, exact, strict=True))


def test_all_rows_ignored_have_the_mean_of_nothing() -> None:
    options = Options(6, 3, 5, torch.float32, ignored=6)
    loss, gradients = traced(options.loss, options.inputs(0), 3, decomposed=True, kernel=True).run()
    whole_loss, whole = traced(options.loss, options.inputs(0), None, decomposed=True).run()
    assert loss.isnan()
    assert whole_loss.isnan()
    for found, expected in zip(gradients, whole, strict=True):
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_that_are_masked_may_have_infinite_logits(smoothed: bool, scaled: bool) -> None:
    """Of a masked row torch takes zero, and not zero times its infinity. (The gradient of each is no number.)"""

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        log_softmax = torch.where(counts[:, None], linear(hidden, weight).log_softmax(1), 0)
        by_row = -log_softmax.gather(1, labels[:, None])[:, 0] - (0.1 * log_softmax.sum(1) if smoothed else 0)
        return by_row.div(3).sum() if scaled else by_row.mean()

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator) for shape in ((8, 4), (7, 4)))
    hidden[5] = float("inf")
    labels, counts = torch.randint(7, (8,), generator=generator), torch.arange(8) != 5
    inputs = [hidden.requires_grad_(), weight.requires_grad_(), labels, counts]
    step = traced(loss, inputs, 3, decomposed=True, kernel=True)
    found, gradients = step.run()
    assert step.said.endswith(BY_KERNEL)
    true = loss(hidden.double(), weight.double(), labels, counts)
    assert true.isfinite()
    assert torch.allclose(found.double(), true)
    exact = torch.autograd.grad(loss(*inputs), inputs[:2])
    assert all(torch.allclose(a, b, atol=1e-6, equal_nan=True) for a, b in zip(gradients, exact, strict=True))


@pytest.mark.parametrize("label", [37, 40, -3])
def test_labels_out_of_range_are_the_error_that_torch_has(label: int) -> None:
    options = Options(6, 3, 37, torch.bfloat16)
    inputs = options.inputs(0)
    inputs[3][4] = label
    kinds = []
    for chunks in (None, 3):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds") as error:
            traced(options.loss, inputs, chunks, decomposed=True, kernel=True).run()
        kinds.append(error.type)
    assert kinds[0] is kinds[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_has_no_kernel_is_said(dtype: torch.dtype) -> None:
    options = Options(7, 3, 7 if dtype == torch.float32 else 5, dtype)
    said = "7 classes of 7 rows" if dtype == torch.float32 else "logits in float64"
    step = traced(options.loss, options.inputs(0), 2, decomposed=True, kernel=True)
    step.run()
    assert f"by generated code (the kernel does not know {said})" in step.said


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_the_loss_of_a_model_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In graphs that inductor decomposed on a GPU; the gradient takes the logits' place, as the planner counts it."""
    graph = recorded(name)
    made = candidate_of(graph, 8, monkeypatch, kernel=True)
    assert made.said.endswith(BY_KERNEL)
    problem = chunked_problem_of(graph, made.step)
    calls = [kernel.node for kernel in made.step.order if kernel.node.args[:1] == (row_gradient_,)]
    assert len(calls) == 8
    for call in calls:
        logits = made.step.added_to(call)
        assert logits is total_of(call)
        sizes = [problem.size[i] for i in problem.created[problem.names.index(call.name)]]
        assert sum(sizes) <= 4 * 3 * call.kwargs["labels"].meta["val"].numel() + 512  # statistics, and no gradient


def test_its_time_is_the_operators_with_labels_that_there_are() -> None:
    joint, _ = with_chunked_losses(recorded("gpt2").module, 8, kernel=True)
    node = next(node for node in joint.graph.nodes if node.args[:1] == (row_gradient_,))
    operator, args, kwargs = timed_as(node)
    assert (operator, args) == (row_gradient_, ())
    logits, labels, factor = (
        ((4096, 8), (8, 1), torch.float32),
        ((4096,), (1,), torch.int64),
        ((4096,), (1,), torch.float32),
    )
    given = dict(zip(("logits", "labels", "of_softmax", "of_label"), (logits, labels, factor, factor), strict=True))
    specs = {name: TensorSpec(*spec, "cpu") for name, spec in given.items()}
    _, drawn = random_arguments(
        OperatorCall(row_gradient_, (), {**kwargs, **specs, "vocabulary": 5}), torch.device("cpu")
    )
    assert set(drawn["labels"].tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["in the forward", "in the backward"])
def test_through_inductor_training_goes_as_in_one_piece(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpointing

    monkeypatch.setattr(chunked_loss, "is_kernel_there", lambda device: True)
    x, labels = batch(64, 4096)
    trained: dict[Any, Any] = {}
    for kernel in (True, False):
        backend = checkpointing.backend("1GB", chunked_loss=3)
        backend.loss_kernel = kernel
        steps = 3 if dtype == torch.float32 else 1  # without a scaled loss, float16 does not train further
        trained[kernel] = train(Head(4096).to(dtype), loss_of, (x.to(dtype), labels), backend, steps=steps)
    by_kernel, generated = (plan_of(trained[kernel].model) for kernel in (True, False))
    assert by_kernel.loss.endswith(BY_KERNEL)
    assert BY_KERNEL not in generated.loss
    few = 8 * 64 * 4 * 4  # statistics of all rows, and their factors
    assert by_kernel.predicted_peak_bytes <= generated.predicted_peak_bytes + few
    assert by_kernel.predicted_peak_bytes <= by_kernel.plan.predicted_peak_bytes + few
    assert by_kernel.plan.predicted_peak_bytes <= generated.plan.predicted_peak_bytes + few
    for loss, other in zip(trained[True].losses, trained[False].losses, strict=True):
        assert torch.allclose(loss, other, rtol=1e-5 if dtype == torch.float32 else 2e-3)


@pytest.mark.slow
def test_a_rule_about_operators_that_the_kernel_replaces_is_one_about_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner chooses chunks, whose loss has no maximum of rows any more."""
    import checkpointing

    monkeypatch.setattr(chunked_loss, "is_kernel_there", lambda device: True)
    backend = checkpointing.backend(0.6, keep=["aten.amax"])
    backend.loss_kernel = True
    trained = train(Head(4096), loss_of, batch(256, 4096), backend, steps=1)
    plan = plan_of(trained.model)
    assert plan.loss.startswith("the loss of head in ")
    assert plan.options["chunked_loss"] > 1
    by_file = checkpointing.backend(plan=plan.to_json(tmp_path / "plan.json"))
    by_file.loss_kernel = True
    assert train(Head(4096), loss_of, batch(256, 4096), by_file, steps=1).losses == trained.losses
    with pytest.raises(checkpointing.CheckpointingError, match=r"keep='aten\.amin' matches no module and no operator"):
        train(Head(4096), loss_of, batch(256, 4096), checkpointing.backend(0.6, keep=["aten.amin"]), steps=1)


def test_run_operator_by_operator_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpointing

    monkeypatch.setattr(chunked_loss, "is_kernel_there", lambda device: True)
    backend = checkpointing.backend("1GB", execution="eager", chunked_loss=4)
    found = train(Head(), loss_of, batch(), backend, steps=1)
    assert plan_of(found.model).loss == "the loss of head in 4 chunks of its 128 rows"
