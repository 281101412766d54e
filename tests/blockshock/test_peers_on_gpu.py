"""PyTorch's own layers on GPUs: its sparse tensors against float64, and all of them in CUDA graphs."""

import dataclasses

import pytest
import torch

from blockshock.jobs.correctness import MARGIN
from blockshock.phases.phase3_train_step import TrainStep
from blockshock.ranks.pool import RankPool
from profiler.traces import count_flops
from tests.blockshock import peer_tasks
from tests.blockshock.rank_tasks import method_yaml, problem_of
from tests.blockshock.test_methods import MASKS

SPEC = {"mask": "complement_1100_0011", "N": 512, "K": 256, "B": 64, "seed": 3, "dtype": "bfloat16"}
DTENSOR = ["dtensor_row", "dtensor_column"]


def on_gpu(**spec):
    return dataclasses.replace(problem_of(SPEC | spec), device=torch.device("cuda"))


def with_zeros(weight: torch.Tensor) -> torch.Tensor:
    """A tenth of the weights +0, a tenth -0: `_cslt_compress` then keeps other places than the mask's."""
    generator = torch.Generator(weight.device).manual_seed(0)
    chance = torch.rand(weight.shape, generator=generator, device=weight.device)
    return weight.masked_fill(chance < 0.1, 0.0).masked_fill(chance > 0.9, -0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("recompress", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("dtype", "batch"), [("bfloat16", 64), ("float16", 20)])  # PyTorch pads 20 to 24
def test_pytorchs_sparse_tensor_multiplies_halves_with_exact_zeros_right(dtype, batch, mask, recompress):
    problem = on_gpu(mask=mask, dtype=dtype, B=batch)
    weight, dy = with_zeros(problem.weight()), problem.upstream_gradient()
    layer = method_yaml("torch_semi_structured", recompress=recompress).build(problem, weight)
    assert layer.describe()["kernel"]["class"] == "SparseSemiStructuredTensorCUSPARSELT", layer.describe()
    x = problem.inputs().requires_grad_()
    y = layer(x)
    y.backward(dy)
    got = {"Y": y.detach(), "dX": x.grad, "dW": layer.assemble_weight([p.grad for p in layer.parameters()])}
    assert torch.equal(layer.assemble_weight([p.detach() for p in layer.parameters()]), weight)
    assert y.is_contiguous()
    x = x.detach()
    dense = {"Y": x @ weight.t(), "dX": dy @ weight, "dW": dy.t() @ x}
    x, weight, dy = x.double(), weight.double(), dy.double()
    exact = {"Y": x @ weight.t(), "dX": dy @ weight, "dW": dy.t() @ x}
    for name, factor in layer.roundings().items():
        error, dense_error = (float((a[name].double() - exact[name]).norm()) for a in (got, dense))
        assert error <= MARGIN * factor * dense_error, (name, error / dense_error, factor)


@pytest.mark.gpu
def test_the_sparse_products_flops_are_those_of_kept_weights_and_the_backwards_those_of_dense_ones():
    problem = on_gpu()
    layer = method_yaml("torch_semi_structured").build(problem, problem.weight())
    step, _ = TrainStep("phase3_train_step").make_step(layer, problem)
    step()
    dense = 2 * problem.B * problem.N * problem.K
    # one rank multiplies by both halves: forward each half of the dense work, dX and dW each all of it
    assert sum(count_flops(layer, step, layer.flop_formulas()).values()) == 2 * (dense // 2 + 2 * dense)


@pytest.mark.gpu
@pytest.mark.parametrize("recompress", [True, False])
def test_an_optimizer_step_leaves_zeros_where_the_mask_has_them_and_changes_what_multiplies(recompress):
    problem = on_gpu(mask="random_2of4")
    layer = method_yaml("torch_semi_structured", recompress=recompress).build(problem, problem.weight())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, fused=True, capturable=True)
    x = problem.inputs()
    for step in range(1, 4):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
        layer.after_optimizer_step(step)
    for weight, mask in zip(layer.weights, layer.masks, strict=True):
        assert int(weight[~mask].count_nonzero()) == 0
    fresh = method_yaml("torch_semi_structured").build(
        problem, layer.assemble_weight([p.detach() for p in layer.parameters()])
    )
    with torch.no_grad():
        assert torch.equal(layer(x), fresh(x))


@pytest.mark.gpu
@pytest.mark.parametrize("recompress", [True, False])
@pytest.mark.parametrize("mask", ["complement_1100_0011", "random_2of4"])
def test_steps_with_compression_replayed_from_a_cuda_graph_equal_eager_ones(mask, recompress):
    spec = {"method": "torch_semi_structured", "options": {"recompress": recompress}}
    check_replay(peer_tasks.replay_beside_eager(on_gpu(mask=mask), spec))


@pytest.mark.gpus
@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, {}) for name in (*DTENSOR, "torch_semi_structured")),
        *(("block_shock", {"kernel": kernel}) for kernel in ("gather", "triton", "cusparselt")),
        *(("block_shock", {"kernel": "triton", "collective": name}) for name in ("one_shot", "two_shot", "copy")),
    ],
)
def test_steps_on_two_gpus_replayed_from_a_cuda_graph_equal_eager_ones(method, options):
    with RankPool(2) as pool:
        outcome = pool.run(peer_tasks.graph_beside_eager, SPEC | {"method": method, "options": options})
    assert outcome.status == "ok", outcome.reason
    check_replay(outcome.value)


def check_replay(found: dict) -> None:
    """Two ranks' sums have one order, and the kernels are the same: nothing may differ, not by a bit."""
    assert found["plain_output"], found
    assert found["weights_moved"] > 0.1, found
    assert found["losses"][0] == found["losses"][1], found
    assert found["losses"][0][-1] < found["losses"][0][0], found
    assert found["weights_differ"] == 0, found
    assert found["forward_differs"] == 0, found


@pytest.mark.gpus
@pytest.mark.parametrize("method", DTENSOR)
def test_a_dtensor_method_holds_a_shard_on_a_gpu_and_nothing_of_the_rest(method):
    with RankPool(2) as pool:
        outcome = pool.run(peer_tasks.allocated, SPEC | {"N": 2048, "K": 2048, "method": method})
    assert outcome.status == "ok", outcome.reason
    assert outcome.value["layer_bytes"] == 2048 * 2048 // 2 * 2, outcome.value
