"""Checks of PyTorch, the GPUs and what runs on them. Each computes something and looks at the result."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import torch
from torch.autograd import DeviceType

from blockshock.doctor.finding import BROKEN, LIMITED, MISSING, WORKS, Check, Finding
from blockshock.measure import nvml

OLDEST_TORCH = (2, 11)  # of checkpointing.backend and of the tests
GIB = 2**30
NO_GPU = "no GPU"
SIZE = 512  # rows and columns of what is multiplied: the least that every kernel takes


def pytorch() -> Finding:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    found = f"{torch.__version__}, " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA")
    a = torch.arange(16.0).reshape(4, 4)
    if not torch.equal(a @ torch.eye(4), a):
        return Finding(BROKEN, f"{found}: a product is wrong", "install PyTorch anew")
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Finding(LIMITED, found, f"install torch {oldest} or later: memory budgets for torch.compile need it")
    return Finding(WORKS, found)


def gpus() -> Finding:
    """Every GPU multiplies two matrices."""
    if not torch.cuda.is_available():
        if nvml.capability() is not None:
            return Finding(
                LIMITED, "a GPU that PyTorch can't use", "install a PyTorch with CUDA that this driver serves"
            )
        return Finding(MISSING, NO_GPU, "none is needed for a CPU's sizes; what is measured on GPUs needs one")
    names = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        a = torch.arange(SIZE, device=device, dtype=torch.float32).expand(SIZE, SIZE)
        if not torch.equal(a @ torch.eye(SIZE, device=device), a):
            return Finding(BROKEN, f"GPU {index} multiplies wrongly", "test the card (nvidia-smi -q, dcgmi diag)")
        properties = torch.cuda.get_device_properties(device)
        names.append(
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / GIB:.1f} GiB"
        )
    return Finding(WORKS, "; ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)))


def driver() -> Finding:
    version = nvml.driver_version()
    if version is None:
        if not torch.cuda.is_available():
            return Finding(MISSING, NO_GPU)
        return Finding(LIMITED, "NVML does not answer", "pip install nvidia-ml-py: records then hold driver and clocks")
    return Finding(WORKS, f"NVIDIA {version}")


def clocks() -> Finding:
    """Readable, so that a record can say what a time was measured at."""
    if not torch.cuda.is_available():
        return Finding(MISSING, NO_GPU)
    found = nvml.readings(nvml.handle_of(torch.device("cuda", 0)))
    if not found:
        return Finding(LIMITED, "can't be read", "ask for access to NVML: records then say what clocks they ran at")
    busy = [
        str(i)
        for i in range(torch.cuda.device_count())
        if nvml.in_use(f"GPU-{torch.cuda.get_device_properties(i).uuid}")
    ]
    said = f"SM {found['sm_mhz']:.0f} MHz, memory {found['memory_mhz']:.0f} MHz, {found['power_w']:.0f} W"
    if busy:
        return Finding(LIMITED, f"{said}; others compute on GPU {', '.join(busy)}", "wait until they have finished")
    return Finding(WORKS, f"{said}; no other process computes there")


def compiler() -> Finding:
    """torch.compile with inductor, from Python to a kernel of this device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.arange(SIZE, device=device, dtype=torch.float32)

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    if not torch.equal(torch.compile(double, dynamic=False)(x), double(x)):
        return Finding(BROKEN, f"inductor computes wrongly on the {device.type}", "install PyTorch and triton anew")
    return Finding(WORKS, f"inductor, on the {'GPU' if device.type == 'cuda' else 'CPU'}")


def triton() -> Finding:
    if importlib.util.find_spec("triton") is None:
        return Finding(
            MISSING, "no triton", "pip install triton (Linux): method.kernel=triton and inductor on GPUs need it"
        )
    version = importlib.metadata.version("triton")
    if not torch.cuda.is_available():
        return Finding(LIMITED, f"{version}, {NO_GPU} to run on", "on a CPU its kernels run through its interpreter")
    return _multiplies("triton", version)


def cusparselt() -> Finding:
    return _multiplies(
        "cusparselt", f"version {torch.backends.cusparselt.version()}" if torch.cuda.is_available() else ""
    )


def sparse_mma() -> Finding:
    return _multiplies("sparse_mma", "compiled for this GPU")


def _multiplies(name: str, found: str) -> Finding:
    """The kernel `name` multiplies small whole numbers, of which bfloat16 holds every sum."""
    from blockshock.kernels.choice import KERNELS, make
    from blockshock.kernels.kernel import Shape

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = Shape(device, torch.bfloat16, SIZE, SIZE, SIZE, 0)
    problem = KERNELS[name].unsupported(shape)
    if problem:
        return Finding(MISSING, NO_GPU if device == "cpu" else "not here", problem)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-2, 3, (SIZE, SIZE), generator=generator).bfloat16()
    x = torch.randint(-1, 2, (SIZE, SIZE), generator=generator).bfloat16()
    mask = torch.tensor([True, True, False, False]).repeat(SIZE // 4).expand(SIZE, SIZE).contiguous()
    kernel = make(name, mask.to(device), None, SIZE, torch.bfloat16)
    product = kernel.matmul(x.to(device), kernel.adopt(kernel.layout.pack((weight * mask).to(device))))
    if not torch.equal(product.cpu().double(), x.double() @ (weight * mask).double().t()):
        return Finding(BROKEN, f"{found}: a product is wrong", f"do not use method.kernel={name} here")
    return Finding(WORKS, found)


def profiler() -> Finding:
    """A kernel that is launched is in the trace: CUPTI may be used."""
    if not torch.cuda.is_available():
        return Finding(MISSING, NO_GPU, "on a CPU phase=profile and phase=trace time operators")
    from profiler.torch_trace import torch_trace

    x = torch.ones(SIZE, device="cuda")
    with torch_trace(x.device, cpu=False) as recorded:
        x.add(1)
    results: Any = recorded.profiler
    if all(event.device_type() == DeviceType.CPU for event in results.kineto_results.events()):
        return Finding(
            LIMITED,
            "torch.profiler sees no kernel",
            "let CUPTI in (options nvidia NVreg_RestrictProfilingToAdminUsers=0), and end other profilers",
        )
    extra = importlib.util.find_spec("cupti") is not None
    return Finding(
        WORKS, "torch.profiler" + (" and cupti-python" if extra else "; no cupti-python (phase.backend=cupti)")
    )


CHECKS = [
    Check("PyTorch", pytorch, needed=True, remedy="install PyTorch anew"),
    Check("GPUs", gpus, remedy="see nvidia-smi: the driver must serve this PyTorch's CUDA"),
    Check("driver", driver),
    Check("clocks", clocks),
    Check("compiler", compiler, remedy="inductor needs a C++ compiler (apt install g++), and on GPUs triton"),
    Check("Triton", triton, remedy="install the triton that this PyTorch names"),
    Check("cuSPARSELt", cusparselt, remedy="needs sm_80 or later, and a PyTorch of NVIDIA's CUDA wheels"),
    Check(
        "sparse_mma",
        sparse_mma,
        remedy="install the cuda-bindings of PyTorch's CUDA version, and use a GPU of sm_80 or later",
    ),
    Check("CUPTI", profiler, remedy="end other profilers of this process's GPUs"),
]
