"""Bytes that operators of other libraries allocate and free inside, beyond their results.

    known_bytes("aten._scaled_dot_product_flash_attention_backward.default", args, kwargs)
    measured_bytes(torch.device("cuda:0"))("extern_kernels.convolution", args, kwargs)

Attention's backward adds up the query's gradient in float32: a formula says how much that is. What cuDNN takes for a
convolution depends on the algorithm that it picks, and only a run on the device tells.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from checkpointing.compiled.costs.costs import Costs
from checkpointing.compiled.costs.operator_call import call_with
from checkpointing.compiled.kernels import is_library_call
from checkpointing.errors import CostError
from profiler.costs.memory import CUDA_ROUNDING, rounded

log = logging.getLogger(__name__)

InternalBytes = Callable[[str, tuple[Any, ...], dict[str, Any]], int]  # of an operator by its name, and its arguments

_FLOAT32 = 4  # bytes


def known_bytes(operator: str, args: Sequence[Any], kwargs: object = None) -> int:
    """Bytes beyond the outputs at the operator's own peak, as CUDA's allocator counts them; 0 without a formula.

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


def measured_bytes(device: torch.device) -> InternalBytes:
    """`known_bytes`, and for the other operators that a library runs what one run of each took on `device`.

    It is measured once, along with the operator's time, and kept on disk. Where an operator cannot be run on its own,
    0 counts, which is said.
    """
    costs = Costs(device)

    def inside(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        known = known_bytes(operator, args)
        called = None if known or "out" in kwargs else _library_call(operator)
        if called is None:
            return known
        try:
            return costs.inside_bytes(call_with(called, args, kwargs))
        except CostError as error:
            log.info("%s: what it takes inside counts as nothing, and the first steps check it", str(error))
            return 0

    return inside


def _library_call(operator: str) -> OpOverload | None:
    """The operator that the generated code calls by this name, if a library runs it."""
    namespace, _, name = operator.replace("extern_kernels.", "aten.").partition(".")
    name, _, overload = name.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name, None) if name else None  # a generated kernel has no point
    found = getattr(packet, overload or "default", None)
    return found if isinstance(found, OpOverload) and is_library_call(found) else None


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
