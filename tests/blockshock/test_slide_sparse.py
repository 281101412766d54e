"""method=slide_sparse: a pruned weight's windows side by side on one rank, the pruned dense layer's results."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear, mse_loss

from blockshock.jobs import correctness
from blockshock.kernels.gpu.lift import lift
from blockshock.masks.window import WindowMask
from blockshock.measure.timing import capture
from blockshock.methods.pruned.lifted import Lifted
from tests.blockshock.rank_tasks import method_yaml, problem_of

MASKS = {"window_4of6": 6, "window_6of8": 8}
WINDOWS = {
    6: [0, 1, 2, 3, 2, 3, 4, 5],
    8: [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7],
}  # the columns that those of a block read
DTYPES = ["float64", "float32", "bfloat16", "float16"]


@st.composite
def layers(draw):
    mask = draw(st.sampled_from(sorted(MASKS)))
    return {
        "mask": mask, "N": draw(st.integers(1, 24)), "K": MASKS[mask] * draw(st.integers(1, 9)),
        "B": draw(st.integers(1, 9)), "seed": draw(st.integers(0, 2**31)), "dtype": "float64",
    }  # fmt: skip


def lifted(weight, block):
    """(N, K) -> (N, K'), by indexing with every column."""
    index = [start + column for start in range(0, weight.shape[1], block) for column in WINDOWS[block]]
    return weight[:, index]


def keep(problem, weight):
    assert isinstance(problem.mask, WindowMask)
    return problem.mask.keep(weight)


@given(layers(), st.sampled_from(DTYPES))
def test_the_lift_copies_each_column_into_the_windows_that_read_it(spec, dtype):
    x = problem_of(spec | {"dtype": dtype}).inputs()
    block = MASKS[spec["mask"]]
    assert torch.equal(lift(x, block), lifted(x, block))


@given(layers(), st.sampled_from(["auto", "masked_dense", "reference"]))
@settings(max_examples=50)
def test_it_is_the_pruned_dense_layer_in_float64(spec, kernel):
    problem = problem_of(spec)
    weight, x, upstream = problem.weight(), problem.inputs().requires_grad_(), problem.upstream_gradient()
    layer = method_yaml("slide_sparse", kernel=kernel).build(problem, weight)
    y = layer(x)
    y.backward(upstream)
    exact_w, exact_x = weight.clone().requires_grad_(), x.detach().clone().requires_grad_()
    exact_y = linear(exact_x, exact_w)
    exact_y.backward(upstream)
    assert x.grad is not None
    assert exact_x.grad is not None
    assert exact_w.grad is not None
    (parameter,) = layer.parameters()
    grad = layer.assemble_weight([parameter.grad])
    kept = keep(problem, weight)
    for got, expected in ((y, exact_y), (x.grad, exact_x.grad), (grad, exact_w.grad * kept)):
        assert float((got - expected).detach().norm()) <= 1e-12 * float(expected.detach().norm())
    assert bool((grad[~kept] == 0).all())
    assert parameter.shape == parameter.grad.shape == (spec["N"], lifted(weight, MASKS[spec["mask"]]).shape[1] // 2)
    assert torch.equal(layer.assemble_weight([parameter.detach()]), weight)


@given(layers(), st.sampled_from(["masked_dense", "reference"]))
def test_a_weight_that_has_changed_is_multiplied_once_it_is_packed_again(spec, kernel):
    problem = problem_of(spec)
    weight, x = problem.weight(), problem.inputs()
    lifted = Lifted.of(kernel, problem.mask, weight, problem.B)
    values = lifted.adopt(lifted.pack(weight))
    lifted.recompress(values, -2 * weight)
    torch.testing.assert_close(lifted.matmul(x, values), linear(x, -2 * weight))


@given(layers(), st.sampled_from(DTYPES))
def test_packing_keeps_every_kept_weight_once_and_zeros_inside_of_windows(spec, dtype):
    problem = problem_of(spec | {"dtype": dtype})
    weight = problem.weight()
    generator = torch.Generator().manual_seed(spec["seed"])
    chance = torch.rand(weight.shape, generator=generator)
    weight = weight.masked_fill(chance < 0.2, 0.0).masked_fill(chance > 0.8, -0.0)  # ties: some are kept, some are not
    layer = method_yaml("slide_sparse").build(problem, weight)
    kept = keep(problem, weight)
    (parameter,) = layer.parameters()
    back = layer.place_weight([parameter.detach()])
    expected = torch.where(kept, weight, torch.zeros((), dtype=weight.dtype))
    assert torch.equal(back, expected)
    assert torch.equal(back.signbit(), expected.signbit())
    ones = layer.place_weight([torch.ones_like(parameter)])
    assert torch.equal(ones, kept.to(weight.dtype))  # each place once
    windows = layer.kernel.layout.unpack(torch.ones_like(parameter))
    assert bool((windows.view(len(weight), -1, 4).sum(2) == 2).all())  # what sparse tensor cores can hold
    assert bool((lifted(kept, MASKS[spec["mask"]]) | (windows == 0)).all())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_ten_steps_with_packed_optimizer_state_equal_ten_of_the_pruned_layer(mask, optimizer):
    problem = problem_of({"mask": mask, "N": 32, "K": 48, "B": 12, "seed": 11, "dtype": "float64"})
    weight = problem.weight()
    layer = method_yaml("slide_sparse").build(problem, weight)
    dense, kept = torch.nn.Parameter(weight.clone()), keep(problem, weight)
    settings = {"lr": 1e-2, "weight_decay": 0.1} if optimizer == "AdamW" else {"lr": 1.0, "momentum": 0.9}
    make = getattr(torch.optim, optimizer)
    ours, theirs = make(layer.parameters(), **settings), make([dense], **settings)
    for step in range(1, 11):
        x, target = problem.inputs(step), problem.target(step)
        for each, y in ((ours, layer(x)), (theirs, linear(x, dense * kept))):
            each.zero_grad()
            mse_loss(y, target).backward()
            each.step()
        layer.after_optimizer_step(step)
    (parameter,) = layer.parameters()
    state = [value for value in ours.state[parameter].values() if torch.is_tensor(value) and value.dim()]
    assert len(state) == (2 if optimizer == "AdamW" else 1)
    assert all(value.shape == parameter.shape for value in state)
    found = layer.assemble_weight([parameter.detach()])
    assert float((dense.detach() - weight).norm()) > 0.1 * float(weight.norm())
    assert float((found - dense.detach()).norm()) <= 1e-12 * float(dense.detach().norm())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mask", MASKS)
def test_in_each_dtype_packed_adamw_steps_are_bitwise_those_of_the_kept_weights(mask, dtype):
    """dW depends on no weight: given dY, both layers have the same gradients, and all the rest is elementwise."""
    problem = problem_of({"mask": mask, "N": 64, "K": 192, "B": 16, "seed": 2, "dtype": dtype})
    weight = problem.weight()
    layer = method_yaml("slide_sparse").build(problem, weight)
    dense, kept = torch.nn.Parameter(weight.clone()), keep(problem, weight)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-4}  # 1e-8 is 0 in float16
    ours, theirs = torch.optim.AdamW(layer.parameters(), **settings), torch.optim.AdamW([dense], **settings)
    for step in range(1, 4):
        x, upstream = problem.inputs(step), problem.upstream_gradient(step)
        ours.zero_grad()
        layer(x).backward(upstream)
        dense.grad = upstream.t() @ x
        ours.step()
        theirs.step()
    (parameter,) = layer.parameters()
    assert not torch.equal(parameter, layer.kernel.pack(weight))
    assert torch.equal(layer.place_weight([parameter.detach()]), dense.detach() * kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_in_each_dtype_every_result_is_rounded_as_a_dense_ones(mask, dtype):
    problem = problem_of({"mask": mask, "N": 64, "K": 96, "B": 32, "seed": 1, "dtype": dtype})
    layer = method_yaml("slide_sparse").build(problem, problem.weight())
    verdicts = correctness.check(problem, layer)
    assert correctness.failure(verdicts) is None
    assert {name: verdict["roundings"] for name, verdict in verdicts.items()} == {"Y": 1, "dX": 1, "dW": 1}


@pytest.mark.parametrize(("mask", "share"), [("window_4of6", 2 / 3), ("window_6of8", 3 / 4)])
def test_it_needs_the_kept_weights_operations_and_holds_their_bytes_and_two_bits_each(mask, share):
    problem = problem_of({"mask": mask, "N": 16, "K": 3072, "B": 8, "seed": 0, "dtype": "bfloat16"})
    layer = method_yaml("slide_sparse").build(problem, problem.weight())
    kept = 16 * 3072 * share
    cost = layer.costs()["forward"]
    assert cost.flops == 2 * 8 * kept
    assert cost.memory_bytes == 2 * (8 * 3072 + kept + 8 * 16) + kept * 2 / 8
    assert layer.weight_bytes() == 2 * kept + kept * 2 / 8
    assert layer.describe()["lifted_features"] == 3072 * 2 * share
    assert layer.collectives() == {}


GIVEN = (
    "hardware=cpu", "method=slide_sparse", "mask=window_4of6", "model.N=32", "model.K=48", "model.B=8",
    "model.dtype=fp32", "hardware.world_size=1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.K=64"], "model.K=64: mask=window_4of6 prunes blocks of 6 inputs; use a multiple, such as 60"),
        (["mask=window_6of8", "model.K=60"], "model.K=60: mask=window_6of8 prunes blocks of 8 inputs"),
        (["hardware.world_size=2"], "hardware.world_size=2: slide_sparse runs on one rank; set it to 1"),
        (["mask=random_2of4"], "mask=random_2of4: keeps every weight, and slide_sparse multiplies pruned ones"),
        (["method.kernel=gather"], "method.kernel=gather: needs a mask made of dense blocks"),
        (["method.kernel=cusparselt"], "method.kernel=cusparselt: needs an NVIDIA GPU"),
        (["method.kernel=dense"], "method.kernel=dense"),
        (["method.weights=masked"], "method.weights"),
        (["workload=mlp_block", "workload.hidden=100"], "workload.hidden=100: mask=window_4of6"),
        (["workload=tiny_llama"], "mask=window_4of6: a model's weights are not pruned"),
    ],
)
def test_what_cannot_be_is_rejected_in_one_line(cli, arguments, said):
    done = cli(*GIVEN, *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "phase", ["phase0_correctness", "phase1_forward", "phase2_backward_input", "phase3_train_step"]
)
def test_each_phase_of_layers_records_a_checked_result(cli, tmp_path, phase):
    few = ["phase.timed_iters=2"] if phase != "phase0_correctness" else []
    done = cli(*GIVEN, f"phase={phase}", *few, "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["layer"]["windows"] == 2
    assert record["layer"]["lifted_features"] == 64
    assert all(verdict["passed"] for verdict in record["correctness"].values())


@pytest.mark.slow
def test_an_mlp_of_such_layers_is_the_pruned_mlp(cli, tmp_path):
    done = cli(*GIVEN, "workload=mlp_block", "workload.hidden=96", "phase=phase0_correctness", "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(record["correctness"]) == {"Y", "dX", "dW_up", "dW_down"}
    assert all(verdict["passed"] for verdict in record["correctness"].values())


def on_gpu(**spec):
    given = {"mask": "window_4of6", "N": 512, "K": 3072, "B": 64, "seed": 3, "dtype": "bfloat16"}
    return problem_of(given | spec, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [16, 1024])
@pytest.mark.parametrize("kernel", ["auto", "triton", "sparse_mma", "cusparselt"])
@pytest.mark.parametrize(("mask", "dtype"), [("window_4of6", "bfloat16"), ("window_6of8", "float16")])
def test_every_kernel_passes_the_check_on_a_gpu(mask, dtype, kernel, batch):
    problem = on_gpu(mask=mask, dtype=dtype, B=batch)
    layer = method_yaml("slide_sparse", kernel=kernel).build(problem, problem.weight())
    assert correctness.failure(correctness.check(problem, layer)) is None
    (parameter,) = layer.parameters()
    assert torch.equal(layer.assemble_weight([parameter.detach()]), problem.weight())


@pytest.mark.gpu
@pytest.mark.parametrize("mask", MASKS)
def test_exact_zeros_among_kept_weights_multiply_right_on_sparse_tensor_cores(mask):
    problem = on_gpu(mask=mask)
    weight = problem.weight()
    chance = torch.rand(weight.shape, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    weight = weight.masked_fill(chance < 0.1, 0.0).masked_fill(chance > 0.9, -0.0)
    layer = method_yaml("slide_sparse", kernel="cusparselt").build(problem, weight)
    (parameter,) = layer.parameters()
    held = layer.assemble_weight([parameter.detach()])
    assert torch.equal(held, torch.where(keep(problem, weight), weight, weight.new_zeros(())))
    x = problem.inputs()
    exact = x.double() @ held.double().t()
    error, dense = (float((y.detach().double() - exact).norm()) for y in (layer(x), x @ held.t()))
    assert error <= correctness.MARGIN * dense


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("rows", [1, 77, 1024])
@pytest.mark.parametrize("mask", MASKS)
def test_the_lifts_kernel_copies_what_indexing_does(mask, rows, dtype):
    problem = on_gpu(mask=mask, B=rows, dtype=dtype, K=MASKS[mask] * 257)  # no whole number of programs
    x = problem.inputs()
    assert torch.equal(lift(x, MASKS[mask]), lifted(x, MASKS[mask]))


@pytest.mark.gpu
@pytest.mark.parametrize("K", [3072, 48 * 17])  # 48: windows too narrow for the unpacking kernel
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("mask", MASKS)
def test_on_a_gpu_packed_weights_unpack_to_the_pruned_weight(mask, dtype, K):
    problem = on_gpu(mask=mask, dtype=dtype, K=K, N=77)
    weight = problem.weight()
    layer = method_yaml("slide_sparse", kernel="masked_dense").build(problem, weight)
    (parameter,) = layer.parameters()
    assert torch.equal(layer.assemble_weight([parameter.detach()]), weight)
    dy, x = problem.upstream_gradient(), problem.inputs()
    grad = layer.place_weight([layer.kernel.values_grad(dy, x)])
    assert torch.equal(grad, (dy.t() @ x).masked_fill_(~keep(problem, weight), 0.0))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["auto", "sparse_mma", "cusparselt"])
def test_a_captured_forward_follows_its_input_and_its_weight(kernel):
    problem = on_gpu()
    layer = method_yaml("slide_sparse", kernel=kernel).build(problem, problem.weight())
    layer.requires_grad_(False)
    x = problem.inputs().clone()
    out = torch.empty(problem.B, problem.N, dtype=x.dtype, device="cuda")
    out.copy_(layer(x))
    graph = capture(lambda: out.copy_(layer(x)))
    (parameter,) = layer.parameters()
    for step in range(1, 5):
        x.copy_(problem.inputs(step))
        parameter.mul_(-0.5)  # in place, as optimizers do
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, layer(x))
