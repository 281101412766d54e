"""On GPUs: the sparse kernel and its packed parameter, every phase, and what happens when memory runs out."""

import json
from pathlib import Path

import pytest
import torch

from blockshock.kernels.autograd import packed_linear
from blockshock.kernels.choice import make
from blockshock.kernels.cusparselt import CuSparseLt, multiply
from checkpointing.compiled.memory.device_memory import graph_pool_bytes
from sweeps import load_runs
from tests.blockshock.test_packing import PERIODS, half_mask

CUDA = torch.device("cuda")


def case(kind: str, dtype: torch.dtype, rows: int = 512, columns: int = 1024, batch: int = 64):
    generator = torch.Generator().manual_seed(0)
    mask = half_mask(kind, rows, columns, generator)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    weight[torch.rand(mask.shape, generator=generator) < 0.1] = 0.0
    weight[torch.rand(mask.shape, generator=generator) < 0.1] = -0.0
    x = torch.randn(batch, columns, generator=generator).to(dtype)
    return mask.to(CUDA), (weight * mask).to(CUDA), x.to(CUDA)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", sorted(PERIODS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cusparselt_multiplies_packed_values_with_exact_zeros_right(kind, dtype):
    mask, weight, x = case(kind, dtype)
    kernel = make("cusparselt", mask, PERIODS[kind], len(x), dtype)
    values = kernel.adopt(kernel.layout.pack(weight))
    exact = x.double() @ weight.double().t()
    dense = x @ weight.t()
    error, dense_error = (float((y.double() - exact).norm() / exact.norm()) for y in (kernel.matmul(x, values), dense))
    assert error <= 1.2 * dense_error


@pytest.mark.gpu
@pytest.mark.parametrize("kind", sorted(PERIODS))
def test_values_updated_in_place_multiply_bit_for_bit_as_a_fresh_compression(kind):
    mask, weight, x = case(kind, torch.bfloat16)
    kernel = make("cusparselt", mask, PERIODS[kind], len(x), torch.bfloat16)
    assert isinstance(kernel, CuSparseLt)
    values = torch.nn.Parameter(kernel.adopt(kernel.layout.pack(weight)))
    optimizer = torch.optim.AdamW([values], lr=1e-2, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        packed_linear(x, values, kernel).square().mean().backward()
        optimizer.step()
    ours = kernel.matmul(x, values.detach())
    fresh = torch._cslt_compress(kernel.layout.unpack(values.detach())).view(kernel._shape)
    theirs = multiply(fresh, x, kernel.algorithm)
    assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", sorted(PERIODS))
@pytest.mark.parametrize("name", ["gather", "triton", "sparse_mma", "masked_dense", "reference", "cusparselt"])
def test_gradients_on_the_gpu_are_those_of_the_masked_matrix(kind, name):
    if name == "gather" and PERIODS[kind] is None:
        pytest.skip("gather needs rows that repeat")
    mask, weight, x = case(kind, torch.bfloat16)
    dy = torch.randn(len(x), len(mask), device=CUDA).bfloat16()
    kernel = make(name, mask, PERIODS[kind], len(x), torch.bfloat16)
    values = kernel.adopt(kernel.layout.pack(weight))
    exact_dx, exact_dw = dy.double() @ weight.double(), (dy.double().t() @ x.double())[mask]
    dense_dx, dense_dw = dy @ weight, (dy.t() @ x)[mask]
    for got, dense, exact in (
        (kernel.input_grad(dy, values), dense_dx, exact_dx),
        (kernel.layout.unpack(kernel.values_grad(dy, x))[mask], dense_dw, exact_dw),
    ):
        assert float((got.double() - exact).norm()) <= 1.2 * float((dense.double() - exact).norm())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", sorted(PERIODS))
def test_gradients_are_right_after_masked_weights_with_zeros_were_compressed_again(kind):
    mask, weight, x = case(kind, torch.bfloat16)
    dy = torch.randn(len(x), len(mask), device=CUDA).bfloat16()
    kernel = make("cusparselt", mask, PERIODS[kind], len(x), torch.bfloat16)
    values = kernel.adopt(kernel.layout.pack(torch.zeros_like(weight)))
    kernel.recompress(values, weight)
    for got, dense, exact in (
        (kernel.matmul(x, values), x @ weight.t(), x.double() @ weight.double().t()),
        (kernel.input_grad(dy, values), dy @ weight, dy.double() @ weight.double()),
    ):
        assert float((got.double() - exact).norm()) <= 1.2 * float((dense.double() - exact).norm())


# This process and its ranks hold the GPUs too: the launcher would wait for them.
OURS = ("hydra.launcher.reuse_ranks=true", "hydra.launcher.use_busy_gpus=true")
PHASES = "phase0_correctness,phase1_forward,phase2_backward_input,phase3_train_step,phasex_drift"


@pytest.mark.gpu
def test_every_phase_runs_on_one_gpu_with_every_method_that_fits(cli, tmp_path):
    methods = "method=dense_single,masked_split_dense,torch_semi_structured,block_shock"
    sweep = ["-m", f"phase={PHASES}", methods, "model.N=512", "model.B=32"]
    done = cli(
        *sweep,
        "mask=complement_1100_0011,checkerboard,random_2of4",
        "experiment.name=one",
        *OURS,
    )
    assert done.code == 0, done.err
    assert set(load_runs([tmp_path / "outputs"]).status) == {"ok"}


@pytest.mark.gpu
def test_ranks_that_find_the_libraries_of_whole_steps_imported_can_use_the_gpu(cli, tmp_path):
    """Importing inductor asks for GPUs, and a process that was forked after CUDA was asked could not use one."""
    methods = "method=keep_all,torch_checkpoint"
    done = cli("-m", "phase=checkpoint", "workload=tiny_gpt2", methods, "experiment.name=steps", *OURS)
    assert done.code == 0, done.err
    assert list(load_runs([tmp_path / "outputs"]).status) == ["ok", "ok"]


@pytest.mark.gpus
def test_every_phase_runs_on_two_gpus_with_every_method_that_fits(cli, tmp_path):
    dense = "dense_tp_row,dense_tp_column,dtensor_row,dtensor_column"
    methods = f"method={dense},masked_split_dense,torch_semi_structured,block_shock"
    sweep = ["-m", f"phase={PHASES}", methods, "model.N=512", "model.B=32", "hardware.world_size=2"]
    done = cli(*sweep, "mask=complement_1100_0011,random_2of4", "experiment.name=two", *OURS)
    assert done.code == 0, done.err
    assert set(load_runs([tmp_path / "outputs"]).status) == {"ok"}


@pytest.mark.gpu
def test_what_a_cuda_graph_replays_in_counts_as_its_steps_memory():
    device = torch.device("cuda", 0)
    before = graph_pool_bytes(device)
    graph = torch.cuda.CUDAGraph()
    x = torch.zeros(2**22, device=device)
    with torch.cuda.graph(graph):
        y = x + 1
        (y * 2).sum()  # what it sums is freed within the graph
    held = graph_pool_bytes(device) - before
    assert held >= x.nbytes


@pytest.mark.gpu
def test_out_of_memory_is_recorded_with_the_sizes_and_the_next_job_runs(cli, tmp_path):
    done = cli("-m", "method=dense_single", "model.N=600000,512", "experiment.name=oom", OURS[1])
    assert done.code == 0, done.err
    statuses = [
        json.loads(Path(p).read_text()) for p in sorted((tmp_path / "outputs/sweeps/oom").glob("*/status.json"))
    ]
    assert sorted(s["status"] for s in statuses) == ["ok", "oom"]
    assert "N=600000" in next(s["reason"] for s in statuses if s["status"] == "oom")
