"""Costs of operators: measured alone at their own shapes, on inputs they accept, and nothing else is disturbed."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from checkpointing.compiled.costs.costs import Costs, fusible_seconds
from checkpointing.compiled.costs.operator_call import OperatorCall, TensorSpec, call_of, call_with
from checkpointing.compiled.costs.random_inputs import random_arguments
from checkpointing.errors import CheckpointingError, CostError
from tests.checkpointing.compiled.counted_operator import RUNS, counted_node, one, operators

CPU = torch.device("cpu")
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "blockshock"
    RUNS.reset()


class EveryKind(nn.Module):
    """Embedding, linear, attention with dropout, convolution, batched matmul, scatter and cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.qkv = nn.Embedding(11, 32), nn.Linear(32, 96)
        self.conv, self.head = nn.Conv1d(32, 32, 3, padding=1), nn.Linear(32, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)  # (2, 16, 32)
        q, k, v = (part.view(2, 16, 4, 8).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        v = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)  # on a CPU that is a chain of smaller operators
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 16, 32)
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = torch.bmm(x, x.transpose(1, 2)) @ x
        x = x[:, torch.arange(16).flip(0)]  # backward: index_put
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())


def training_graphs(model: nn.Module, *batch: Tensor) -> list[fx.Node]:
    """The operators of AOTAutograd's forward and backward graphs."""
    nodes: list[fx.Node] = []

    def keep(graph_module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        nodes.extend(node for node in graph_module.graph.nodes if isinstance(node.target, OpOverload))
        return graph_module.forward

    torch.compile(model, backend=aot_autograd(fw_compiler=keep), dynamic=False)(*batch).backward()
    return nodes


def test_every_operator_of_a_training_step_has_a_cost_and_random_generators_stay_as_they_were():
    nodes = training_graphs(EveryKind(), torch.randint(11, (2, 16)))
    names = " ".join(str(node.target) for node in nodes)
    kinds = (
        "embedding.d addmm bmm convolution.d convolution_backward attention embedding_dense_backward index_put nll_loss"
    )
    assert [kind for kind in kinds.split() if kind not in names] == []
    costs, state = Costs(CPU), torch.get_rng_state()
    costs.measure(nodes)
    assert all(isfinite(costs.seconds(node)) and costs.seconds(node) > 0 for node in nodes)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_number_and_a_flag_that_compare_equal_are_told_apart():
    def added(number: float) -> str:
        return str(call_of(one(lambda x: aten.add.Tensor(x, number), torch.ones(3))))

    assert len({added(1), added(1.0), added(True)}) == 3


@pytest.mark.parametrize("x", [torch.ones(4, 3).T, torch.ones(1, 4).expand(3, 4), torch.ones(3, 9)[:, ::2]])
def test_an_operator_runs_on_its_own_strides_and_on_data_that_is_not_zero(x):
    Costs(CPU).measure([counted_node(x)])
    assert {(seen.shape, seen.stride()) for seen in RUNS.seen} == {(x.shape, x.stride())}
    assert all(seen.count_nonzero() == seen.numel() for seen in RUNS.seen)


ROWS, INDICES = torch.ones(7, 3), torch.zeros(500, dtype=torch.int64)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda w, i: F.embedding(i, w), (ROWS, INDICES)),
        (lambda g, i: aten.embedding_dense_backward(g, i, 7, -1, False), (torch.ones(500, 3), INDICES)),
        (lambda x, i: x[i], (ROWS, INDICES)),
        (lambda x, i: aten.index.Tensor(x.T, [None, i]), (ROWS, INDICES)),
        (lambda x, i, v: aten.index_put(x, [i], v, True), (ROWS, INDICES, torch.ones(500, 3))),
        (lambda x, mask: aten.index_put(x, [mask], x[0, 0]), (ROWS, torch.ones(7, dtype=torch.bool))),
        (lambda x, i: x.gather(0, i), (ROWS, INDICES[:, None])),
        (lambda x, i, v: x.scatter_add(-2, i, v), (ROWS, INDICES[:, None], torch.ones(500, 3))),
        (lambda x, i: x.index_select(0, i), (ROWS, INDICES)),
        (lambda x, i: F.nll_loss(x, i), (torch.ones(500, 7), INDICES)),
        (lambda x: torch.autograd.grad(F.max_pool2d(x, 2).sum(), x), (torch.ones(2, 3, 8, 8, requires_grad=True),)),
    ],
)
def test_random_indices_are_in_range_and_use_the_whole_range(function, inputs):
    nodes = operators(function, *inputs)
    Costs(CPU).measure(nodes)  # PyTorch's own checks raise where an index is out of range
    for node in nodes:
        args, _ = random_arguments(call_of(node), CPU)
        tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        indices = [x for x in tensors if x.shape[:1] == (500,) and x.dtype is torch.int64]
        assert all((x.min(), x.max()) == (0, 6) for x in indices)


def test_the_ends_of_packed_sequences_rise_from_zero_to_the_last_token():
    qkv = TensorSpec((64, 4, 8), (32, 8, 1), torch.float16, "cpu")
    ends = TensorSpec((5,), (1,), torch.int32, "cpu")
    call = OperatorCall(
        aten._flash_attention_forward.default, (qkv, qkv, qkv, ends, ends, 16, 16, 0.0, True, False), {}
    )
    assert random_arguments(call, CPU)[0][3].tolist() == [0, 16, 32, 48, 64]


def test_measuring_works_in_the_middle_of_a_compilation_under_autocast():
    node, autocast = counted_node(), []
    RUNS.during = lambda x: autocast.append((type(x), torch.is_autocast_enabled("cpu")))
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        Costs(CPU).measure([node])
        assert torch.is_autocast_enabled("cpu")
    assert set(autocast) == {(Tensor, False)}


@pytest.mark.parametrize("fails", [False, True])
def test_no_input_of_a_measured_operator_stays_in_memory(fails):
    inputs: list[weakref.ref[Tensor]] = []

    def during(x: Tensor) -> None:
        inputs.append(weakref.ref(x))
        if fails and len(inputs) > 2:
            raise RuntimeError("no more")

    RUNS.during = during
    with pytest.raises(CostError) if fails else nullcontext() as error:
        Costs(CPU).measure([counted_node()])
    RUNS.count()
    gc.collect()
    assert inputs
    assert [x for x in inputs if x() is not None] == [], error  # which still holds its cause


def test_an_operator_that_cannot_run_alone_is_named_with_its_shapes_after_all_others_were_measured():
    def fail(x: Tensor) -> None:
        if x.shape == (5,):
            raise RuntimeError("out of luck\nand a long story")

    RUNS.during = fail
    costs = Costs(CPU)
    bad, good = counted_node(torch.ones(5)), counted_node(torch.ones(6))
    with pytest.raises(CostError) as error:
        costs.measure([bad, good])
    assert str(error.value) == (
        "costs_test.counted.default(float32[5]/[1]@cpu, 2.0) cannot be timed on cpu: RuntimeError: out of luck"
    )
    assert isinstance(error.value, CheckpointingError)
    RUNS.count()
    assert Costs(CPU).seconds(good) > 0
    assert RUNS.count() == 0


def test_an_operator_that_does_not_fit_in_memory_is_an_error_with_its_shapes():
    with FakeTensorMode():
        wide = torch.empty(2**50)
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = wide
    with pytest.raises(CostError, match=r"aten\.neg\.default\(float32\[1125899906842624\].*memory"):
        Costs(CPU).seconds(graph.call_function(aten.neg.default, (x,)))


def test_what_has_no_cost_of_its_own_is_rejected_by_name():
    split = make_fx(lambda x: x.split(2)[0].neg(), tracing_mode="fake")(torch.ones(4)).graph
    item = next(node for node in split.nodes if node.name == "getitem")
    symbolic = make_fx(lambda x: x.neg(), tracing_mode="symbolic")(torch.ones(4, 5)).graph
    neg = next(node for node in symbolic.nodes if node.name == "neg")
    collective = split.call_function(torch.ops._c10d_functional.all_reduce.default, (item, "sum", "0"))
    for node, message in [
        (item, "getitem .* is not a single operator"),
        (neg, "not known before the step runs: compile with dynamic=False"),
        (collective, "all_reduce.default needs the other ranks"),
    ]:
        with pytest.raises(CostError, match=message):
            Costs(CPU).seconds(node)


def test_progress_is_logged(caplog):
    caplog.set_level(logging.INFO)
    Costs(CPU).measure([counted_node(), counted_node(factor=3.0)])
    assert "measuring operators on cpu: 1 of 2, costs_test.counted.default" in caplog.text
    assert "measured 2 operators in" in caplog.text


def test_a_fused_kernel_costs_a_launch_and_the_bytes_that_it_moves():
    costs = Costs(CPU)
    assert fusible_seconds(0, costs) == costs.launch_s > 0
    assert fusible_seconds(costs.bandwidth, costs) == pytest.approx(1 + costs.launch_s)


@pytest.mark.gpu
def test_on_a_gpu_a_training_step_is_measured_and_memory_and_generators_stay_as_they_were():
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.device(device):
        nodes = training_graphs(EveryKind().bfloat16(), torch.randint(11, (2, 16)))
    gc.collect()
    costs = Costs(torch.device("cuda"))
    costs.measure(nodes)  # libraries take their workspaces
    costs.path.unlink()
    before, state = torch.cuda.memory_allocated(), torch.cuda.get_rng_state()
    again = Costs(device)
    again.measure(nodes)
    assert torch.cuda.memory_allocated() <= before
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert 0 < again.launch_s < 1e-3
    assert all(again.seconds(node) > 0 for node in nodes)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [(64, 64), (256, 1024)])
def test_on_a_gpu_the_bytes_inside_a_convolution_are_those_above_its_results(channels):
    narrow, wide = channels
    device, dtype = torch.device("cuda"), torch.bfloat16
    x = torch.randn(64, narrow, 28, 28, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(wide, narrow, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    gradient = torch.randn(64, wide, 28, 28, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    options = ([0], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
    for operator, args in (
        (torch.ops.aten.convolution.default, (x, weight, None, *options[1:-1])),
        (torch.ops.aten.convolution_backward.default, (gradient, x, weight, *options)),
    ):
        inside = Costs(torch.device("cuda")).inside_bytes(call_with(operator, args, {}))
        for _ in range(2):
            results = None
            torch.cuda.reset_peak_memory_stats()
            results = operator(*args)
            stats = torch.cuda.memory_stats()
        assert inside == stats["requested_bytes.all.peak"] - stats["requested_bytes.all.current"]
        del results
    square = torch.randn(256, 256, device=device, dtype=dtype)
    assert Costs(device).inside_bytes(call_with(torch.ops.aten.mm.default, (square, square), {})) == 0
