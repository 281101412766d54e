"""Gradients of embeddings, tied to a linear layer or not, against float64 and by what they take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import cross_entropy, embedding, linear

import checkpointing
from tests.checkpointing.compiled.loss.joint_graphs_of import TracedLoss, traced
from tests.checkpointing.compiled.training import train

PLACES, WIDTH = 61, 8
TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)


def inputs(dtype: torch.dtype, ids: int = 30) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The weight, ids that repeat, what multiplies their rows, and the two factors of another gradient."""
    generator = torch.Generator().manual_seed(3)
    weight, by_row, left, right = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in [(PLACES, WIDTH), (2, ids // 2, WIDTH), (5, PLACES), (5, WIDTH)]
    )
    chosen = torch.randint(9, (2, ids // 2), generator=generator)
    chosen[0, 0] = PLACES - 1
    return weight.requires_grad_(), chosen, by_row, left, right


def step(dtype: torch.dtype, tied: bool, padding: int | None = None, ids: int = 30) -> TracedLoss:
    def loss(weight: Tensor, chosen: Tensor, by_row: Tensor, left: Tensor, right: Tensor) -> Tensor:
        total = (embedding(chosen, weight, padding) * by_row).float().sum()
        return total + (left.mm(weight).float() * right.float()).sum() if tied else total

    return traced(loss, inputs(dtype, ids), None, decomposed=True)


def largest(graph: fx.GraphModule) -> list[fx.Node]:
    """The values of float32 that are as large as the weight."""
    nodes = [n for n in graph.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    return [n for n in nodes if n.meta["val"].shape == (PLACES, WIDTH) and n.meta["val"].dtype == torch.float32]


@TYPES
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("padding", [None, 4])
def test_a_gradient_is_off_by_its_roundings_alone(dtype: torch.dtype, tied: bool, padding: int | None) -> None:
    traced_step = step(dtype, tied, padding)
    _, [found] = traced_step.run()
    _, chosen, by_row, left, right = (t.detach() for t in inputs(dtype))
    counted = torch.nn.functional.one_hot(chosen.flatten(), PLACES).double()
    if padding is not None:
        counted[:, padding] = 0
    rows, products = by_row.double().reshape(-1, WIDTH), left.double().T @ right.double() * tied
    exact = counted.T @ rows + products
    sizes = counted.T @ rows.abs() + left.double().abs().T @ right.double().abs()
    half = torch.finfo(dtype).eps / 2  # a unit, of the other gradient and of their sum
    sums = 64 * torch.finfo(torch.float32).eps * sizes
    bound = half * (exact.abs() + (1 + half) * products.abs()) + sums
    assert ((found.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("tied", [False, True])
def test_no_matrix_in_float32_is_made(tied: bool) -> None:
    traced_step = step(torch.bfloat16, tied)
    traced_step.run()
    assert traced_step.backward is not None
    assert not largest(traced_step.backward)
    many = step(torch.bfloat16, tied, ids=2 * PLACES)  # as many rows as the weight has: nothing would be gained
    many.run()
    assert many.backward is not None
    assert largest(many.backward)


def test_a_gradient_that_something_else_reads_too_is_not_written_over() -> None:
    def loss(weight: Tensor, chosen: Tensor, by_row: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        other = left.mm(weight)
        return (embedding(chosen, weight) * by_row).sum() + (other * right).sum(), other

    given = inputs(torch.float32)
    first, second = (traced(loss, given, None, decomposed) for decomposed in (True, False))
    for found, expected in zip(first.run()[1], second.run()[1], strict=True):
        torch.testing.assert_close(found, expected)


@TYPES
def test_a_tied_loss_in_chunks_adds_to_its_own_gradient(dtype: torch.dtype) -> None:
    def loss(weight: Tensor, chosen: Tensor) -> Tensor:
        hidden = embedding(chosen, weight)
        return cross_entropy(hidden.tanh().flatten(0, 1).mm(weight.t()).float(), chosen.flatten())

    weight, chosen, *_ = inputs(dtype)
    truth = weight.detach().double().requires_grad_()
    [exact] = torch.autograd.grad(loss(truth, chosen), truth)
    [eager] = torch.autograd.grad(loss(weight, chosen), weight)
    chunked = traced(loss, (weight, chosen), 3, decomposed=True)
    _, [found] = chunked.run()
    assert "in 3 chunks" in chunked.said
    distances = [(one.double() - exact).norm() for one in (found, eager)]
    assert distances[0] <= 1.2 * distances[1]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(PLACES, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return linear(self.embedding(ids).tanh(), self.embedding.weight)


@pytest.mark.slow
def test_through_inductor_a_tied_model_trains_as_it_does_without() -> None:
    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        return cross_entropy(model(ids), ids.roll(1))

    ids = torch.randint(9, (40,), generator=torch.Generator().manual_seed(1))
    found = train(Tied(), loss, (ids,), checkpointing.backend(1.0))
    expected = train(Tied(), loss, (ids,), "aot_eager")
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value)
    torch.testing.assert_close(found.losses, expected.losses)
