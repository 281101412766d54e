"""Triton where it can run: on a GPU, or on any machine through its interpreter (TRITON_INTERPRET=1).

Elsewhere it is not imported, which would take a CPU job a third of a second.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch

from blockshock.collectives.in_graph import tracing

INSTALLED = importlib.util.find_spec("triton") is not None  # PyTorch for CPUs comes without
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

triton: Any = None
tl: Any = None
if INSTALLED and (INTERPRETED or torch.cuda.device_count() > 0):
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton kernels can work on such tensors: they are written for 16-bit floats, and are no operators of a
    graph."""
    if tracing():
        return False
    where = device.type == "cuda" or INTERPRETED
    return triton is not None and where and dtype in (torch.bfloat16, torch.float16)
