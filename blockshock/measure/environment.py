"""What a measurement depends on beside its configuration: versions, devices, host, commit. Becomes env.json."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from blockshock import __version__
from blockshock.measure.cpu import available_cpus, cpu_name, cpu_quota
from blockshock.measure.nvml import driver_version
from blockshock.measure.turns import jobs_that_share

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "pandas",
    "hydra-core",
    "omegaconf",
    "submitit",
    "transformers",
    "nvidia-nccl-cu13",
)


def describe(device: torch.device) -> dict[str, Any]:
    """JSON-ready facts of this process's machine. On a GPU it needs an initialised CUDA context."""
    content: dict[str, Any] = {
        "blockshock": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": {
            "name": cpu_name(),
            "cores": os.cpu_count(),
            "available": available_cpus(),  # of the affinity mask and the container's quota
            "quota": cpu_quota(),  # CPU seconds a second; null without a limit
            "memory_bytes": psutil.virtual_memory().total,
        },
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
    }
    if device.type == "cuda":
        content |= {
            "driver": driver_version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "cusparselt": torch.backends.cusparselt.version(),
            "cudnn": torch.backends.cudnn.version(),
            "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
            "jobs_per_gpu": jobs_that_share(),  # side by side, but for what is measured
        }
    return content


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the source tree, marked when it has uncommitted changes; None outside a checkout, unless
    BLOCKSHOCK_GIT_COMMIT says it (for images and copies without .git)."""
    if "BLOCKSHOCK_GIT_COMMIT" in os.environ:
        return os.environ["BLOCKSHOCK_GIT_COMMIT"]
    root = Path(__file__).parent
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
