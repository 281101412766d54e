"""Floating-point operations of an operator: 2 × multiply-adds of matrix products, convolutions and attention.

The formulas are those of `torch.utils.flop_counter`, and here are those that it lacks or has wrong: convolutions in
groups, attention on a CPU, products with vectors. A product of complex numbers is four of real ones.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Formula = Callable[..., int]  # of tensors, with the result as `out_val`

_aten = torch.ops.aten
# Words in the names of PyTorch's operators that multiply and add; the others move, look up, or work on each element.
_ARITHMETIC = re.compile(
    r"mm($|_|\d)|(^|_)(mv|v?dot|addmv|lstm|gru|rnn)|matmul|conv|attention|rnn_layer|linalg|cholesky|solve|svd|_fft|"
    r"cdist|pdist|euclidean|trilinear|^bilinear|linear($|_)|einsum|tensordot"
)
_NOT_ARITHMETIC = re.compile(r"upsample|_thnn_fused|fused_sdp_choice|dropout_state|_forward_only$")


def flops_of(node: fx.Node) -> int:
    """2 × multiply-adds of a matrix product, convolution or attention, from its shapes; 0 for all else.

    Element-wise operators and reductions count as 0: memory bounds them, not arithmetic.
    """
    packet = getattr(node.target, "overloadpacket", None)
    if not has_formula(packet):
        return 0
    args: Any = fx.node.map_arg(node.args, lambda argument: argument.meta["val"])
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda argument: argument.meta["val"])
    return formula_flops(packet, args, kwargs, node.meta["val"])


def has_formula(packet: Any) -> bool:
    """Whether the operations of an operator (without its overload) are known."""
    return packet in _FORMULAS or packet in flop_registry


def uncounted(target: Any) -> bool:
    """Whether an operator may do arithmetic that has no formula: a custom one, or one of PyTorch's by its name."""
    packet = getattr(target, "overloadpacket", None)
    if packet is None or has_formula(packet):
        return False
    if target.namespace not in ("aten", "prims"):
        return bool(target.namespace not in ("profiler", "_c10d_functional", "c10d", "symm_mem"))
    name = packet.__name__
    return bool(_ARITHMETIC.search(name)) and not _NOT_ARITHMETIC.search(name)


def formula_flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """The count for one call of an operator that has a formula."""
    if "scaled_dot_product" in str(packet):
        args = _with_all_heads(args)
    count = int((_FORMULAS.get(packet) or flop_registry[packet])(*args, **kwargs, out_val=out))
    is_complex = any(isinstance(argument, Tensor) and argument.is_complex() for argument in args)
    return 4 * count if is_complex else count


def _with_all_heads(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Attention's operands with as many key and value heads as query heads [B, H, S, D].

    In grouped-query attention several query heads share one key head; each still multiplies by it, and the formulas
    of torch 2.11 know no sharing.
    """
    heads = max(argument.shape[1] for argument in args[:4] if isinstance(argument, Tensor) and argument.dim() == 4)

    def widen(argument: Any) -> Any:
        if isinstance(argument, Tensor) and argument.dim() == 4 and heads % argument.shape[1] == 0:
            return torch.empty(argument.shape[0], heads, *argument.shape[2:], dtype=argument.dtype, device="meta")
        return argument

    return tuple(widen(argument) if place < 4 else argument for place, argument in enumerate(args))


def _convolution(x: Tensor, weight: Tensor, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Input [B, C_in, ...], weight [C_out, C_in/groups, ...]; of a transposed one [C_in, C_out/groups, ...]."""
    transposed = len(args) > 4 and isinstance(args[4], bool) and args[4]  # bias, stride, padding, dilation, transposed
    taps = weight.numel() // weight.shape[0]  # multiply-adds for each element of the output, or of a transposed input
    return 2 * taps * (x if transposed else out_val).numel()


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    *,
    out_val: Any,
) -> int:
    """The gradients of the input and of the weight take as many operations as the forward, each."""
    forward = 2 * (weight.numel() // weight.shape[0]) * (x if transposed else gradient).numel()
    return forward * sum(output_mask[:2])


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    summed: Sequence[int],
    unroll_dim: int = 1,
    *,
    out_val: Any,
) -> int:
    """Two products: of `a` and `b`, summed over what `c` lacks, and of the result and `c`.

    `expand_a` are the dimensions that `a` lacks.
    """
    lacking = [set(expanded) for expanded in (expand_a, expand_b, expand_c)]
    sizes: dict[int, int] = {}
    for tensor, lacks in zip((a, b, c), lacking, strict=True):
        present = [dim for dim in range(tensor.dim() + len(lacks)) if dim not in lacks]
        sizes.update(zip(present, tensor.shape, strict=True))
    in_first = set(sizes) - (lacking[0] & lacking[1])
    between = in_first - (set(summed) & lacking[2] - {unroll_dim})
    first, second = in_first, between | (set(sizes) - lacking[2])
    return sum(2 * math.prod(sizes[dim] for dim in dims) for dims in (first, second))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


_FORMULAS: dict[Any, Formula] = {
    _aten.convolution: _convolution,
    _aten._convolution: _convolution,
    _aten.convolution_overrideable: _convolution,
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten._scaled_dot_product_fused_attention_overrideable: _attention,
    _aten.mv: lambda matrix, vector, out_val: 2 * matrix.numel(),
    _aten.addmv: lambda bias, matrix, vector, out_val, **_: 2 * matrix.numel(),
    _aten.dot: lambda a, b, out_val: 2 * a.numel(),
    _aten.vdot: lambda a, b, out_val: 2 * a.numel(),
    _aten.addbmm: lambda bias, a, b, out_val, **_: 2 * a.numel() * b.shape[-1],
    _aten._int_mm: lambda a, b, out_val: 2 * a.numel() * b.shape[-1],
    _aten._trilinear: _trilinear,
}
