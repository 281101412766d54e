"""Parts that keep a step from being one graph are rejected with place and remedy; odd parts are proved all the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import checkpointing
from checkpointing import CheckpointingError, prove_compiled
from checkpointing.errors import GraphBreakError
from tests.checkpointing.compiled.training import Blocks, square

WIDTH = 16
BUDGET = 0.9


class Between(nn.Module):
    """`part(self, x)` between two rows of blocks."""

    def __init__(self, part: Callable[[Between, Tensor], Tensor], **children: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after, self.part = Blocks(), Blocks(), part
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.part(self, self.before(x)))


def rows() -> Tensor:
    return torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))


def proved(model: nn.Module, batch: Tensor) -> None:
    """The planned step is bitwise the unplanned one, recomputes something, and leaves model and batch as they were."""
    before = {name: value.clone() for name, value in [*model.state_dict().items(), ("batch", batch)]}
    proof = prove_compiled(square, model, (batch,), BUDGET, execution="eager", solver="greedy")
    assert proof.identical
    assert not proof.plan.is_empty
    after = {**model.state_dict(), "batch": batch}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def masked_rows(_: Between, x: Tensor) -> Tensor:
    return torch.cat([x, x[x[:, 0] > 0]])  # as many rows as are positive


def scaled_by_a_number(_: Between, x: Tensor) -> Tensor:
    return x * x.detach().abs().max().item()


def recurrent(model: Between, x: Tensor) -> Tensor:
    return model.layer(x.view(16, 4, WIDTH))[0].reshape(x.shape)


def buffer_assigned(model: Between, x: Tensor) -> Tensor:
    model.scale = model.scale.to(dtype=x.dtype)  # breaks the graph in a line of torch
    return x * model.scale


class DroppedLayers(nn.Module):
    """Skips blocks at random, as transformers' layerdrop does: a condition in a loop, so that Dynamo runs `forward` as
    it is, and compiles each block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Blocks(1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if torch.rand([]) < 0.0:
                continue
            x = block(x)  # begins a graph
        return x


def lstm() -> nn.Module:
    return nn.LSTM(WIDTH, WIDTH, batch_first=True)


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("model", "line", "remedy"),
    [
        (Between(masked_rows), "return torch.cat([x, x[x[:, 0]", "use a mask or torch.where"),
        (Between(scaled_by_a_number), "return x * x.detach()", "capture_scalar_outputs = True"),
        (Between(recurrent, layer=lstm()), "return model.layer(x.view", "allow_rnn = True"),
    ],
)
def test_a_break_is_rejected_with_its_line_and_what_removes_it(model: nn.Module, line: str, remedy: str) -> None:
    with pytest.raises(GraphBreakError, match=re.escape(remedy)) as error:
        proved(model, rows())
    assert f"{__file__}:{line_of(line)} " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("budget", ["1KB", "8GB"])  # too small for the first of the graphs; large enough for all
def test_a_loop_that_dynamo_does_not_compile_is_rejected_with_its_reason_whatever_the_budget(budget: str) -> None:
    torch._dynamo.reset()
    step = torch.compile(square, backend=checkpointing.backend(budget, execution="eager"), dynamic=False)
    with pytest.raises(GraphBreakError, match=re.escape("Data-dependent branching; use torch.where")) as error:
        step(DroppedLayers(), rows())
    assert f"{__file__}:{line_of('# begins a graph')} " in str(error.value)
    assert "\n" not in str(error.value)
    assert ('use at least "' in str(error.value)) == (budget == "1KB")


def test_a_step_inside_of_a_function_that_dynamo_does_not_compile_has_a_budget_of_its_own() -> None:
    model, batch = Blocks(), rows()
    torch._dynamo.reset()
    chosen = checkpointing.backend(BUDGET, execution="eager")

    def epoch() -> None:
        for _ in range(2):
            if torch.rand([]) < 2.0:  # Dynamo compiles `square` alone
                square(model, batch).backward()

    torch.compile(epoch, backend=chosen, dynamic=False)()
    assert [plan.is_empty for plan in chosen.plans] == [False]


def test_a_break_inside_of_torch_is_shown_at_the_users_line() -> None:
    model = Between(buffer_assigned)
    model.scale = nn.Buffer(torch.ones(WIDTH), persistent=False)
    with pytest.raises(GraphBreakError, match=rf"test_obstacles\.py:{line_of('breaks the graph in a line of')} "):
        proved(model, rows())


@pytest.mark.parametrize(("part", "flag"), [(scaled_by_a_number, "capture_scalar_outputs"), (recurrent, "allow_rnn")])
def test_with_the_remedy_the_step_is_proved(part: Callable[[Between, Tensor], Tensor], flag: str) -> None:
    with torch._dynamo.config.patch({flag: True}):
        proved(Between(part, layer=lstm()) if part is recurrent else Between(part), rows())


def test_a_shape_that_dynamo_captures_and_that_depends_on_data_is_rejected_with_its_line() -> None:
    with (
        torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True),
        pytest.raises(CheckpointingError, match=r"the shape of a result of .* depends on data at ") as error,
    ):
        proved(Between(masked_rows), rows())
    assert f"{__file__}:{line_of('return torch.cat([x, x[x[:, 0]')} " in str(error.value)
    assert "\n" not in str(error.value)


def batch_changed(_: nn.Module, x: Tensor) -> Tensor:
    return x


def weights_clipped(model: Between, x: Tensor) -> Tensor:
    model.layer.weight.data.mul_(0.9)  # in a way that counts no version
    return model.layer(x)


def unregistered_average(model: Between, x: Tensor) -> Tensor:
    model.average.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
    return x - model.average.tanh()


class Rows(nn.Module):
    """An embedding with sparse gradients, and blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.blocks = nn.Embedding(50, WIDTH, sparse=True), Blocks()

    def forward(self, indices: Tensor) -> Tensor:
        return self.blocks(self.embedding(indices))


def test_what_a_step_writes_to_besides_buffers_is_put_back_between_the_runs_of_a_proof() -> None:
    averaging = Between(unregistered_average)
    averaging.average = torch.zeros(WIDTH)
    proved(averaging, rows())
    assert torch.equal(averaging.average, torch.zeros(WIDTH))
    proved(Between(weights_clipped, layer=nn.Linear(WIDTH, WIDTH)), rows())


def test_a_batch_that_the_step_changes_is_put_back_between_the_runs_of_a_proof() -> None:
    model, batch = Between(batch_changed), rows()
    before = batch.clone()
    proof = prove_compiled(
        lambda model, x: square(model, x.add_(1)), model, (batch,), BUDGET, execution="eager", solver="greedy"
    )
    assert proof.identical
    assert torch.equal(batch, before)


def test_sparse_gradients_are_proved() -> None:
    proved(Rows(), torch.arange(64)[:, None].repeat(1, 4) % 50)
