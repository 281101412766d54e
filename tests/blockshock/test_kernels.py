"""The list of kernels: a file each, what is rejected, what `auto` tries, and what a job on a CPU need not import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockshock import kernels
from blockshock.errors import ConfigError
from blockshock.kernels import KERNELS, Kernel, Shape, check_kernel, make
from blockshock.kernels.choice import candidates
from tests.blockshock.test_packing import half_mask

SHARED = {"__init__", "kernel", "choice", "autograd", "layouts"}


def test_each_value_of_method_kernel_is_one_file_of_its_name():
    folder = Path(kernels.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - SHARED == set(KERNELS)
    for name, kernel in KERNELS.items():
        assert kernel.name == name
        assert kernel.__module__ == f"blockshock.kernels.{name}"


class Loop(Kernel):
    """A kernel of a user's own: one row of the weight after another."""

    name = "loop"

    @classmethod
    def unsupported(cls, shape: Shape) -> str | None:
        return None if shape.rows % 2 == 0 else f"needs an even number of rows, not {shape.rows}"

    @classmethod
    def worth_trying(cls, shape: Shape) -> bool:
        return True

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        columns = [(x * row).sum(1) for row in self.layout.unpack(values)]
        return torch.stack(columns, 1) if out is None else out.copy_(torch.stack(columns, 1))


def test_a_kernel_that_is_only_listed_is_built_rejected_and_tried_like_the_others(cli, monkeypatch):
    monkeypatch.setitem(KERNELS, "loop", Loop)
    shape = Shape("cpu", torch.float64, 8, 16, 4, blocks=0)
    assert candidates(shape)[-1] == "loop"
    assert "masked_dense" in candidates(shape)
    assert "loop" not in candidates(Shape("cpu", torch.float64, 9, 16, 4, blocks=0))

    generator = torch.Generator().manual_seed(0)
    mask = half_mask("random", 8, 16, generator)
    weight = torch.randn(8, 16, generator=generator, dtype=torch.float64) * mask
    x = torch.randn(4, 16, generator=generator, dtype=torch.float64)
    kernel = make("loop", mask, None, 4, torch.float64)
    values = kernel.adopt(kernel.layout.pack(weight))
    torch.testing.assert_close(kernel.matmul(x, values), x @ weight.t(), rtol=0, atol=1e-12)

    done = cli("method=block_shock", "method.kernel=loop", "model.N=30", "model.K=32", "hydra.job.chdir=false")
    assert done.code == 2  # N=30 is the mask's to reject: the kernel's name is known
    assert "model.N=30" in done.err
    done = cli("method=block_shock", "method.kernel=lopo")
    assert done.code == 2
    assert "did you mean 'loop'?" in done.err


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("gather", Shape("cpu", torch.float32, 128, 128, 8, blocks=0), "needs a mask made of dense blocks"),
        ("cusparselt", Shape("cuda", torch.float32, 128, 128, 8, blocks=1), "multiplies bf16 and fp16, not fp32"),
        ("cusparselt", Shape("cuda", torch.bfloat16, 128, 192, 8, blocks=1), "needs K=192"),
        ("cusparselt", Shape("cuda", torch.bfloat16, 128, 128, 9, blocks=1), "needs model.B=9 to be a multiple of 8"),
        ("triton", Shape("cuda", torch.bfloat16, 96, 128, 8, blocks=1), "needs a rank's rows N=96"),
        ("triton", Shape("cuda", torch.float64, 128, 128, 8, blocks=1), "multiplies bf16 and fp16, not fp64"),
        ("sparse_mma", Shape("cpu", torch.bfloat16, 128, 128, 8, blocks=0), "needs an NVIDIA GPU"),
    ],
)
def test_a_kernel_says_what_it_cannot_multiply(monkeypatch, name, shape, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # as on a cluster's login node
    assert said in KERNELS[name].unsupported(shape)


def test_a_login_node_rejects_no_gpu_kernel_for_what_only_the_gpu_nodes_know(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    shape = Shape("cuda", torch.bfloat16, 128, 256, 8, blocks=1)
    assert {name for name in ("triton", "sparse_mma", "cusparselt") if KERNELS[name].unsupported(shape)} == set()


def test_an_unknown_kernel_is_rejected_with_the_list():
    with pytest.raises(ConfigError, match="allowed: auto, gather, masked_dense, triton, sparse_mma, cusparselt, refer"):
        check_kernel(None, "cutlass", 128, 128)


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="with a GPU Triton is wanted")
def test_a_job_on_a_cpu_does_not_import_triton():
    code = (
        "import sys, torch\n"
        "from blockshock.kernels import make\n"
        "mask = torch.tensor([True, True, False, False]).repeat(8, 4)\n"
        "assert make('auto', mask, 1, 4, torch.float32).name == 'gather'\n"
        "assert 'triton' not in sys.modules\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
