"""Clocks, power and capability of GPUs through NVML, without a CUDA context; nothing where NVML is missing."""

from __future__ import annotations

import os
from typing import Any

import torch

try:
    import pynvml
except ImportError:  # not on Linux, or not installed: the records then say nothing of clocks
    pynvml = None


POWER_CAP = "power cap"
# The bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h) that mean less than the clock asked for. Idle (1), set
# clocks (2, 256) and sync boost (16) are no throttling.
_LIMITS = {
    0x04: POWER_CAP,
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x08: "hardware slowdown",
    0x80: "power brake",
}
SLOWDOWNS = tuple(name for name in _LIMITS.values() if name != POWER_CAP)


def handle_of(device: torch.device) -> Any:
    """NVML's handle of a CUDA device; None on a CPU and where NVML is missing."""
    if pynvml is None or device.type != "cuda":
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None


def readings(handle: Any) -> dict[str, float]:
    """SM and memory clock in MHz, temperature in °C, power in W (on recent GPUs averaged over a second), now.

    Empty for no handle and where NVML doesn't answer.
    """
    if handle is None:
        return {}
    try:
        return {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_c": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        }
    except pynvml.NVMLError:
        return {}


def clock_limits(handle: Any) -> frozenset[str] | None:
    """What holds the clock down now: POWER_CAP, which is usual in large matmuls, and SLOWDOWNS by heat or hardware.

    None for no handle and where NVML doesn't say.
    """
    if handle is None:
        return None
    # drivers before 535 have the older name only
    ask = getattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    for each in (ask, getattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", None)):
        try:
            bits = each(handle) if each else None
        except pynvml.NVMLError:
            continue
        if bits is not None:
            return frozenset(name for bit, name in _LIMITS.items() if bits & bit)
    return None


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
