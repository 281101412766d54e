"""Clocks, power and capability of GPUs through NVML, without a CUDA context; nothing where NVML is missing."""

from __future__ import annotations

import os
from typing import Any

import torch

try:
    import pynvml
except ImportError:  # not on Linux, or not installed: the records then say nothing of clocks
    pynvml = None


def _handle(device: torch.device) -> Any:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def clocks(device: torch.device) -> dict[str, float]:
    """SM and memory clock in MHz, power in W, temperature in °C of a CUDA device, now; empty without NVML."""
    if pynvml is None or device.type != "cuda":
        return {}
    try:
        handle = _handle(device)
        return {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_c": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        }
    except pynvml.NVMLError:
        return {}


def capability() -> tuple[int, int] | None:
    """Compute capability of this machine's first GPU; None without NVML or a GPU."""
    if pynvml is None:
        return None
    try:
        pynvml.nvmlInit()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError:
        return None
    return major, minor


def in_use(gpu: str) -> bool:
    """Whether another process computes on a GPU; False where NVML can't say.

    gpu: as CUDA_VISIBLE_DEVICES names it, an index in the order of PCI buses or a UUID.
    """
    if pynvml is None:
        return False
    try:
        pynvml.nvmlInit()
        by_index = gpu.isdecimal()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(gpu)
        return any(found.pid != os.getpid() for found in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError:
        return False


def uuid_of(gpu: str) -> str:
    """A GPU's name on this machine, whoever asks; `gpu` itself where NVML can't say. gpu: as for in_use."""
    if pynvml is None or not gpu.isdecimal():
        return gpu
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(int(gpu))))
    except pynvml.NVMLError:
        return gpu


def driver_version() -> str | None:
    if pynvml is None:
        return None
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
