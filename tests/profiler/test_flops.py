"""Operations by hand against the node table and the counter: what PyTorch's own formulas lack or have wrong."""

import pytest
import torch
from torch import Tensor, fx, nn

from profiler import GraphProfiler, trace_train_step
from profiler.flops import flops_of, uncounted
from profiler.traces import count_flops
from profiler.traces.graph_steps import graph_flops


@pytest.mark.parametrize("key_heads", [1, 2, 8])
def test_shared_key_heads_cost_what_their_query_heads_multiply(key_heads):
    batch, heads, tokens, width = 2, 8, 16, 32
    graph = fx.Graph()
    operands = [graph.placeholder(name) for name in ("query", "key", "value")]
    for operand, count in zip(operands, (heads, key_heads, key_heads), strict=True):
        operand.meta["val"] = torch.empty(batch, count, tokens, width, device="meta")
    node = graph.call_function(torch.ops.aten._scaled_dot_product_flash_attention.default, tuple(operands))
    node.meta["val"] = (torch.empty(batch, heads, tokens, width, device="meta"),)
    # queries times keys, then weights times values: two products of tokens x tokens x width a head
    assert flops_of(node) == 2 * 2 * batch * heads * tokens * tokens * width


def totals(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """FLOPs of a training step on `x`: from the graph, and counted while it runs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        result = model(x)
        return (result.abs() if result.is_complex() else result).square().mean()

    step = trace_train_step(model, loss_fn, optimizer, (x,))
    return sum(graph_flops(step).values()), sum(count_flops(model, lambda: loss_fn(model, x).backward()).values())


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_in_groups_costs_a_share_of_one_without(groups: int, transposed: bool) -> None:
    batch, channels, side, taps = 2, 8, 6, 3
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    net = kind(channels, channels, taps, padding=1, groups=groups, bias=False)
    once = 2 * batch * side * side * taps * taps * channels * channels // groups
    # the input needs no gradient: forward, and the weight's gradient
    assert totals(net, torch.randn(batch, channels, side, side)) == (2 * once, 2 * once)


def test_attention_on_a_cpu_is_two_products_forward_and_five_backward() -> None:
    batch, heads, tokens, width = 2, 2, 8, 4

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(*(self.scale * x).unbind())

    product = 2 * batch * heads * tokens * tokens * width
    assert totals(Attend(), torch.randn(3, batch, heads, tokens, width)) == (7 * product, 7 * product)


@pytest.mark.parametrize(
    ("operation", "shapes", "multiply_adds"),
    [
        (torch.mv, [(3, 5), (5,)], 3 * 5),
        (torch.dot, [(5,), (5,)], 5),
        (torch.addmv, [(3,), (3, 5), (5,)], 3 * 5),
        (torch.addbmm, [(3, 7), (2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7),
        (torch.bmm, [(2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7),
        # x1 · W for each output, then its product with x2
        (torch.bilinear, [(4, 3), (4, 5), (2, 3, 5), None], 4 * 2 * 3 * 5 + 4 * 2 * 5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_products_with_vectors_in_batches_and_of_complex_numbers(operation, shapes, multiply_adds, dtype) -> None:
    operands = [None if shape is None else torch.randn(shape, dtype=dtype) for shape in shapes]
    counted = sum(count_flops(nn.Identity(), lambda: operation(*operands)).values())
    assert counted == 2 * multiply_adds * (4 if dtype.is_complex else 1)


@torch.library.custom_op("flops_tests::product", mutates_args=())
def product(x: Tensor) -> Tensor:
    return x @ x.t()


product.register_fake(lambda x: x.new_empty(x.shape[0], x.shape[0]))
product.register_autograd(
    lambda ctx, gradient: (gradient + gradient.t()) @ ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def test_what_has_no_formula_is_named_and_not_silently_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return product(torch.tanh(self.linear(x)))

    net, batch = Net(), (torch.randn(3, 4),)
    step = trace_train_step(net, lambda m, x: m(x).mean(), torch.optim.SGD(net.parameters(), lr=0.1), batch)
    name = "flops_tests.product.default"
    assert graph_flops(step).uncounted == {name: 1}
    assert count_flops(net, lambda: net(*batch)).uncounted == {name: 1}
    profiler = GraphProfiler(step)
    profiler.run(*batch, warmup_iters=1, profile_iters=1)
    assert profiler.summary()["uncounted_operators"] == [name]
    profiler.print_stats()
    assert f"no FLOPs counted for {name}" in capsys.readouterr().out


def test_what_moves_data_or_works_on_elements_needs_no_formula() -> None:
    aten = torch.ops.aten
    for quiet in (aten.add, aten.lgamma, aten.upsample_bilinear2d, aten.native_layer_norm, aten.mm):
        assert not any(uncounted(getattr(quiet, overload)) for overload in quiet.overloads())
    for loud in (aten._fft_r2c, aten.linalg_svd, aten.mkldnn_rnn_layer, aten._cdist_forward):
        assert uncounted(loud.default)
