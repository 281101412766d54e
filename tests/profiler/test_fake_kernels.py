"""Fake results have the strides and the storages of real ones, whatever the order of the operands' memory."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from profiler import analyse, trace_train_step
from profiler.graph.fake_kernels import FaithfulFakeTensorMode

aten = torch.ops.aten
SHAPE = (2, 3, 4, 5)
channels, zeros, ones = torch.rand(3), torch.zeros(3), torch.ones(3)


def orders() -> Iterator[Tensor]:
    yield torch.rand(SHAPE)
    yield torch.rand(SHAPE).to(memory_format=torch.channels_last)
    yield torch.rand(3, 2, 5, 4).permute(1, 0, 3, 2)
    yield torch.rand(2, 3, 5, 4).transpose(2, 3)
    yield torch.rand(2, 3, 4, 10)[..., ::2]


def layer_norm_backward(gradient: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    moments = (x.new_zeros(2, 3, 4, 1), x.new_ones(2, 3, 4, 1))
    return aten.native_layer_norm_backward(gradient, x, [5], *moments, x.new_ones(5), x.new_ones(5), [True] * 3)


OPERATORS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "batch norm": lambda x, _: aten.native_batch_norm(x, channels, channels, zeros, ones, True, 0.1, 1e-5),
    "batch norm, legit": lambda x, _: aten._native_batch_norm_legit(x, None, None, zeros, ones, False, 0.1, 1e-5),
    "batch norm, no statistics": lambda x, _: aten._native_batch_norm_legit.no_stats(x, None, None, True, 0.1, 1e-5),
    "batch norm backward": lambda g, x: aten.native_batch_norm_backward(
        g, x, channels, zeros, ones, zeros, ones, True, 1e-5, [True] * 3
    ),
    "layer norm backward": layer_norm_backward,
    "log softmax backward": lambda g, y: aten._log_softmax_backward_data(g, y, -1, torch.float32),
    "softmax backward": lambda g, y: aten._softmax_backward_data(g, y, -1, torch.float32),
    "mse backward": lambda x, y: aten.mse_loss_backward(torch.ones(()), x, y, 1),
    "smooth l1 backward": lambda x, y: aten.smooth_l1_loss_backward(torch.ones(()), x, y, 1, 1.0),
    "huber backward": lambda x, y: aten.huber_loss_backward(torch.ones(()), x, y, 1, 1.0),
    "glu backward": lambda g, x: aten.glu_backward(g[:, :, :2], x, 2),
    "power": lambda x, _: aten.pow.Scalar(2.0, x),
    "roll": lambda x, _: aten.roll(x, [1], [2]),
    "dropout backward": lambda g, x: aten.native_dropout_backward(g, x > 0.5, 2.0),
    "hardswish backward": aten.hardswish_backward,
    "softplus backward": lambda g, x: aten.softplus_backward(g, x, 1.0, 20.0),
    "rounded division": lambda a, b: aten.div.Tensor_mode(a, b[:1], rounding_mode="floor"),
    "logical and": lambda a, b: aten.logical_and(a[:1], b),
    "mse": lambda x, y: aten.mse_loss(x, y),
    "mse, broadcast": lambda x, y: aten.mse_loss(x[:1], y),
    "smooth l1": lambda x, y: aten.smooth_l1_loss(x, y),
    "binary cross entropy": lambda x, y: aten.binary_cross_entropy(x, y),
    "soft margin": lambda x, y: aten.soft_margin_loss(x, y),
    "unreduced": lambda x, y: aten.mse_loss(x, y, 0),
}


def layout(result: object) -> list[tuple[object, ...]]:
    tensors = result if isinstance(result, tuple | list) else (result,)
    return [(t.shape, t.stride(), t.dtype, t.untyped_storage().nbytes()) for t in tensors if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", OPERATORS)
def test_fake_results_are_laid_out_as_real_ones(name: str) -> None:
    operator = OPERATORS[name]
    mode = FaithfulFakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    for first, second in itertools.product(orders(), orders()):
        real = layout(operator(first, second))
        with mode:
            fake = operator(mode.from_tensor(first, static_shapes=True), mode.from_tensor(second, static_shapes=True))
        assert layout(fake) == real, (first.stride(), second.stride())


def test_a_step_through_batch_norm_over_a_transposed_view_equals_eager() -> None:
    """Where the fake kernel preserves the transposition and the real one does not, the graph would hold a `view`."""

    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.norm(x.transpose(1, 2)).transpose(1, 2))

    batch = (torch.randn(4, 8, 16),)
    losses = []
    for traced in (False, True):
        torch.manual_seed(0)
        model = Norm()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = trace_train_step(model, lambda m, x: m(x).square().mean(), optimizer, batch) if traced else None
        for _ in range(2):
            if step is None:
                optimizer.zero_grad()
                loss = model(*batch).square().mean()
                loss.backward()
                optimizer.step()
            losses.append(step(*batch).item() if step else loss.item())
    assert losses[:2] == losses[2:]


def test_the_forecast_counts_the_storage_in_which_a_loss_was_computed() -> None:
    x = torch.randn(64, 64)
    net = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step = trace_train_step(net, lambda m, x: torch.nn.functional.mse_loss(m(x), x), optimizer, (x,))
    real = torch.nn.functional.mse_loss(x, x + 1).untyped_storage().nbytes()
    assert {s.name: s.bytes for s in analyse(step).storages}["mse_loss"] == real == x.nbytes
