"""The dtypes under test: `bf16` is what people type and records of layers say, `bfloat16` what PyTorch prints."""

from __future__ import annotations

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def short_name(dtype: torch.dtype) -> str:
    """The configuration's name of `dtype`: `bf16`."""
    return next(name for name, each in DTYPES.items() if each == dtype)


def torch_name(dtype: torch.dtype) -> str:
    """PyTorch's own name of `dtype`, without its module: `bfloat16`."""
    return str(dtype).removeprefix("torch.")
