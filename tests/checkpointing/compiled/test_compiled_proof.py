"""The proof that a planned step is the unplanned one: right steps pass, and each way of being wrong is caught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from checkpointing import CheckpointingError, ProofError, plans_of, prove_compiled
from checkpointing.compiled import compiled_step
from checkpointing.compiled.proof.exact_step import Reference, without_drops
from profiler.models import build
from tests.checkpointing.compiled.random_models import RandomModel, random_batch

WIDTH = 16
EXECUTIONS = pytest.mark.parametrize("execution", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])


class Layers(nn.Module):
    """Linear, batch norm, GELU, linear, dropout, `count` times, with residuals."""

    def __init__(self, count: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(WIDTH, 4 * WIDTH, bias=False),  # its gradient would be 0, and all that is computed rounding
                nn.BatchNorm1d(4 * WIDTH),
                nn.GELU(),
                nn.Linear(4 * WIDTH, WIDTH),
                nn.Dropout(dropout),
            )
            for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def itself(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def rows(seed: int = 0) -> tuple[Tensor]:
    return (torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(seed)),)


@pytest.mark.slow
def test_operator_by_operator_a_models_planned_step_is_bitwise_the_unplanned_one() -> None:
    task = build("tiny_bert", batch_size=2, seq_len=16, dropout=0.1)
    proof = prove_compiled(task.loss_fn, task.model, task.batch, 0.93, execution="eager")
    assert proof.passed
    assert proof.identical
    assert not proof.plan.is_empty
    gradients = proof.table[proof.table.kind == "gradient"]
    assert set(gradients.name) == {name for name, _ in task.model.named_parameters()}
    assert f"{len(proof.plan.plan.recomputed)} values recomputed" in proof.summary()
    assert proof.summary().endswith("passed")


def test_operator_by_operator_a_small_models_planned_step_is_bitwise_the_unplanned_one() -> None:
    assert prove_compiled(itself, RandomModel(0), random_batch(0), 0.97, execution="eager").identical


@pytest.mark.slow
def test_compiled_by_inductor_the_planned_step_is_within_rounding_of_the_unplanned_one() -> None:
    model = Layers()
    proof = prove_compiled(square, model, rows(), 1.0, recompute=["layers.0"])
    assert not proof.plan.is_empty
    assert proof.passed
    assert (proof.reference, proof.dropouts) == ("float64", 2)
    kinds = proof.table.groupby("kind").size()
    assert kinds.to_dict() == {"loss": 1, "gradient": 10, "buffer": 6}
    real = proof.table[~proof.table.name.str.contains("num_batches")]
    assert (real.unplanned > 0).all()
    assert proof.table.planned.max() < 1e-4


class Residual(nn.Module):
    """Convolution, batch norm, ReLU, `count` times, each with a residual."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.slow
def test_compiled_by_inductor_a_step_with_convolutions_is_within_rounding_of_the_unplanned_one() -> None:
    """A whole model, a GPT-2, is compared with float64 in test_backend.py."""
    images = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    proof = prove_compiled(square, Residual(), (images,), 1.0, recompute=["blocks.0"])
    assert proof.passed
    assert not proof.plan.is_empty
    assert set(proof.table.kind) == {"loss", "gradient", "buffer"}


Halves = tuple[fx.GraphModule, fx.GraphModule]


def broken(monkeypatch: pytest.MonkeyPatch, harm: Callable[[fx.GraphModule, fx.GraphModule], None]) -> None:
    """Let `harm` change the halves of every planned step."""
    split = compiled_step.split

    def harmed(*arguments: Any) -> Halves:
        forward, backward = split(*arguments)
        harm(forward, backward)
        return forward, backward

    monkeypatch.setattr(compiled_step, "split", harmed)


def scale_a_saved_value(forward: fx.GraphModule, backward: fx.GraphModule) -> None:
    """The largest value that the backward reads is a thousandth larger than what the forward saved."""
    given = [node for node in backward.graph.find_nodes(op="placeholder") if "tangents" not in node.name]
    largest = max((n for n in given if n.meta["val"].is_floating_point()), key=lambda node: node.meta["val"].numel())
    with backward.graph.inserting_after(given[-1]):
        scaled = backward.graph.call_function(torch.ops.aten.mul.Tensor, (largest, 1.001))
    scaled.meta.update(largest.meta)
    largest.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    backward.recompile()


def redraw_masks(forward: fx.GraphModule, backward: fx.GraphModule) -> None:
    """Inductor draws from seeds: let the backward's be others."""
    seeds = torch.ops.prims.inductor_lookup_seed.default
    found = backward.graph.find_nodes(op="call_function", target=seeds)
    assert found, "this plan draws no mask in the backward"
    for node in found:
        with backward.graph.inserting_after(node):
            other = backward.graph.call_function(torch.ops.aten.add.Tensor, (node, 1))
        other.meta.update(node.meta)
        node.replace_all_uses_with(other, delete_user_cb=lambda user, other=other: user is not other)  # type: ignore[misc]
    backward.recompile()


def move_statistics_twice(forward: fx.GraphModule, backward: fx.GraphModule) -> None:
    """The forward's new running statistics move once more."""
    copies = forward.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)  # inductor's own
    for user in [*copies, *forward.graph.find_nodes(op="output")]:
        statistics = [n for n in user.all_input_nodes if n.op != "placeholder" and n.meta["val"].shape == (4 * WIDTH,)]
        if statistics:
            break
    with forward.graph.inserting_before(user):
        moved = forward.graph.call_function(torch.ops.aten.mul.Tensor, (statistics[0], 0.9))
    moved.meta.update(statistics[0].meta)
    user.replace_input_with(statistics[0], moved)
    forward.recompile()


@EXECUTIONS
def test_a_saved_value_that_comes_back_changed_is_caught(monkeypatch: pytest.MonkeyPatch, execution: str) -> None:
    broken(monkeypatch, scale_a_saved_value)
    with pytest.raises(ProofError, match=r"the planned step is not the unplanned one: gradient layers\.\d") as error:
        prove_compiled(square, Layers(), rows(), 1.0, execution=execution, recompute=["layers.0"])
    assert "\n" not in str(error.value)
    failed = error.value.proof.table[~error.value.proof.table.passed]
    assert set(failed.kind) == {"gradient"}


@pytest.mark.slow
def test_a_mask_that_the_backward_draws_anew_is_caught_by_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, redraw_masks)
    with pytest.raises(ProofError, match=r"gradient layers\.\S+ differs by .* a random mask is not the same") as error:
        prove_compiled(square, Layers(), rows(), 1.0, recompute=["layers.1"])
    table = error.value.proof.table
    assert (table.ratio <= table.ratio_limit).all()  # without dropout there is nothing to see
    assert (table.difference / table.difference_limit).max() > 1e3


def test_a_mask_that_the_backward_draws_anew_is_caught_operator_by_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._functorch import partitioners

    def unchanged(joint: Any, forward: fx.GraphModule, backward: fx.GraphModule, *_: Any) -> Halves:
        return forward, backward

    monkeypatch.setattr(partitioners, "functionalize_rng_ops", unchanged)
    with pytest.raises(ProofError, match="is not bitwise equal"):
        prove_compiled(square, Layers(), rows(), 1.0, execution="eager", recompute=["layers.1"])


@EXECUTIONS
def test_statistics_of_batch_norm_that_move_twice_are_caught(monkeypatch: pytest.MonkeyPatch, execution: str) -> None:
    broken(monkeypatch, move_statistics_twice)
    with pytest.raises(ProofError, match=r"buffer layers\.\d\.1\.running_") as error:
        prove_compiled(square, Layers(dropout=0.0), rows(), 1.0, execution=execution, recompute=["layers.0"])
    table = error.value.proof.table
    assert len(table[~table.passed]) == 1


def test_the_proof_leaves_the_model_as_it_was() -> None:
    model, batch = Layers(), rows()
    square(model, *batch).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())
    drawn = torch.get_rng_state()
    prove_compiled(square, model, batch, 0.95, execution="eager")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is gradients[name] for name, parameter in model.named_parameters())
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert plans_of(model) == []


def test_a_step_that_returns_no_scalar_is_rejected() -> None:
    with pytest.raises(CheckpointingError, match="a scalar that requires a gradient"):
        prove_compiled(itself, Layers(), rows(), 0.95, execution="eager")


def test_random_numbers_that_are_no_dropouts_have_no_reference() -> None:
    def noisy(model: nn.Module, x: Tensor) -> Tensor:
        return model(x + torch.randn_like(x)).square().mean()

    model, batch = Layers(), rows()
    torch._dynamo.reset()
    with pytest.raises(CheckpointingError, match="in another way than by dropout"):
        torch.compile(noisy, backend=Reference(torch.float64), dynamic=False)(model, *batch)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama", "tiny_resnet152"])
def test_the_reference_is_the_model_in_float64_without_dropout(name: str) -> None:
    batch_norm = name == "tiny_resnet152"
    task = build(name, batch_size=2, seq_len=16, dropout=None if batch_norm else 0.3)
    exact = build(name, batch_size=2, seq_len=16, dropout=None if batch_norm else 0.0)
    exact.model.double()
    true_loss = exact.loss_fn(exact.model, *(t.double() if t.is_floating_point() else t for t in exact.batch))
    true_loss.backward()

    def in_autocast(model: nn.Module, *batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return task.loss_fn(model, *batch)

    torch._dynamo.reset()
    reference = Reference(torch.float64)
    loss = torch.compile(in_autocast, backend=reference, dynamic=False)(task.model, *task.batch)
    loss.backward()
    tolerance = (
        1e-5 if name == "tiny_llama" else 1e-10
    )  # Llama's own code rounds its norms to float32, the reference not
    assert torch.allclose(loss, true_loss, rtol=tolerance)
    for (path, parameter), true in zip(task.model.named_parameters(), exact.model.parameters(), strict=True):
        assert true.grad is not None
        found = reference.copy_of(parameter).grad
        assert found is not None
        assert found.dtype == torch.float64, path
        assert torch.allclose(found, true.grad, rtol=tolerance, atol=tolerance * float(true.grad.abs().max())), path
        assert parameter.grad is None


def test_dropouts_that_drop_nothing_are_planned_and_compiled_as_they_are() -> None:
    class Attention(Layers):
        def forward(self, x: Tensor) -> Tensor:
            heads = x.view(2, 2, -1, 8)
            x = nn.functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.4).reshape(x.shape)
            return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]

    graphs: list[tuple[fx.GraphModule, int]] = []

    def capture(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(without_drops(module))
        assert without_drops(graphs[-1][0])[1] == 1  # attention's; the others are dropouts no more
        return graphs[-1][0]

    model, batch = Attention(), rows()
    torch._dynamo.reset()
    found = torch.compile(itself, backend=capture, dynamic=False)(model, *batch)
    [(_, count)] = graphs
    assert count == 3
    model.eval()
    for layer in model.layers:
        layer[1].train()
    heads = batch[0].view(2, 2, -1, 8)
    attended = nn.functional.scaled_dot_product_attention(heads, heads, heads).reshape(32, WIDTH)
    assert torch.allclose(found, Layers.forward(model, attended), atol=1e-6)
