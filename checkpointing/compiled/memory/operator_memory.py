"""Bytes that operators of other libraries allocate and free inside, where they are known.

    internal_bytes("aten._scaled_dot_product_flash_attention_backward.default", args)

Attention's backward adds up the query's gradient in float32. Other operators count as zero: what cuDNN takes for a
convolution depends on the algorithm that it picks, and only a run on the device tells.
"""

from collections.abc import Sequence
from typing import Any

from profiler.costs.memory import CUDA_ROUNDING, rounded

_FLOAT32 = 4  # bytes


def internal_bytes(operator: str, args: Sequence[Any]) -> int:
    """Bytes beyond the outputs at the operator's own peak, as CUDA's allocator counts them.

    `operator` is a name such as "aten.mm.default". The flash-attention formula is that of PyTorch's flash_api.cpp
    (mha_bwd, non-deterministic). The one of cuDNN holds in recorded allocations of torch 2.11 on an H200: GPT-2
    8×1024 (12 heads of 64: 25559296 bytes) and Llama 4×1024 (32 heads of 64 over 8: 67633408 bytes).
    """
    name = operator.removeprefix("aten.").removesuffix(".default")
    if name == "_scaled_dot_product_flash_attention_backward":
        return _flash_backward(args[1], args[2])
    if name == "_scaled_dot_product_cudnn_attention_backward":
        return _cudnn_backward(args[1], args[2])
    return 0


def _flash_backward(query: Any, key: Any) -> int:
    # query: [B, H, S, D], key: [B, H_kv, S_kv, D]
    batch, heads, length, width = query.shape
    length = rounded(length, 128)
    width = rounded(width, 8)
    parts = [
        batch * heads * length * _FLOAT32,  # row sums of dO * O
        batch * heads * length * rounded(width, 32 if width <= 128 else 64) * _FLOAT32,  # dQ
    ]
    if key.shape[1] != heads:  # dK and dV of each query head, before they are summed over a group
        parts += [batch * heads * key.shape[2] * width * key.element_size()] * 2
    return sum(rounded(part, CUDA_ROUNDING) for part in parts)


def _cudnn_backward(query: Any, key: Any) -> int:
    batch, heads, length, width = query.shape
    workspace = batch * heads * length * (width + 1) * _FLOAT32 + 256  # dQ and the row sums
    if key.shape[1] != heads:
        workspace += 2 * batch * heads * key.shape[2] * width * key.element_size()
    return rounded(workspace, CUDA_ROUNDING)
