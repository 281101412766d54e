"""Triton where it can run: on a GPU that has it, or on any machine through its interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

if importlib.util.find_spec("triton"):
    import triton as _triton
    import triton.language as _language
else:  # PyTorch for CPUs comes without
    _triton = _language = None

triton: Any = _triton
tl: Any = _language

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton kernels can work on such tensors: they are written for 16-bit floats."""
    where = device.type == "cuda" or INTERPRETED
    return triton is not None and where and dtype in (torch.bfloat16, torch.float16)
