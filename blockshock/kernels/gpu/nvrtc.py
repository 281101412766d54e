"""CUDA C++ compiled at run time and launched, through NVIDIA's own Python bindings.

    kernel = CompiledKernel(compile(source, "product", ("-DROWS=128",), (9, 0)), "product", shared=100_000)
    kernel.launch(grid=(32, 1, 1), threads=256, arguments=(x, y, 4096))

PyTorch's wheels for CUDA bring both NVRTC and cuda-bindings, so a user needs no toolkit and no compiler. PyTorch's own
torch.cuda._compile_kernel is private, differs between versions and looks for an installed toolkit's headers.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from typing import Any

import torch


def usable() -> bool:
    """Whether the bindings are there, and a GPU to use them on."""
    return torch.cuda.is_available() and find_spec("cuda") is not None and find_spec("cuda.bindings") is not None


def compile(source: str, name: str, defines: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    """A cubin for GPUs of that capability; needs none itself. RuntimeError with the compiler's words if it fails."""
    from cuda.bindings import nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), f"{name}.cu".encode(), 0, [], []))
    major, minor = capability
    options = [f"--gpu-architecture=sm_{major}{minor}".encode(), b"--std=c++17", *(d.encode() for d in defines)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"NVRTC refuses {name} with {' '.join(defines)}:\n{log.decode(errors='replace')}")
    cubin = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return bytes(cubin)


class CompiledKernel:
    """A function loaded on the device that is current at the time, with `shared` bytes of dynamic shared memory."""

    def __init__(self, cubin: bytes, name: str, shared: int) -> None:
        from cuda.bindings import driver

        torch.cuda.current_stream().synchronize()  # PyTorch's context exists and is current
        self._driver = driver
        self._module = _checked(driver.cuModuleLoadData(cubin))
        self._function = _checked(driver.cuModuleGetFunction(self._module, name.encode()))
        self._shared = shared
        size = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(self._function, size, shared))

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: tuple[torch.Tensor | int, ...]) -> None:
        """On PyTorch's current stream. Tensors become pointers, integers become C's int."""
        values = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
        types = tuple(ctypes.c_void_p if isinstance(a, torch.Tensor) else ctypes.c_int for a in arguments)
        stream = torch.cuda.current_stream().cuda_stream
        _checked(
            self._driver.cuLaunchKernel(
                self._function, *grid, threads, 1, 1, self._shared, stream, (values, types), 0
            )
        )  # fmt: skip


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of the bindings returns after its status; RuntimeError if that is not success."""
    status, *rest = result
    if int(status) != 0:
        raise RuntimeError(f"{type(status).__name__}: {status.name}")
    return rest[0] if rest else None
