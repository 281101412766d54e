"""Fake tensors that have the strides and the storage of the real ones, where PyTorch's fake kernels promise others.

    mode = FaithfulFakeTensorMode(...)        # use it as a FakeTensorMode

A graph is traced on fake tensors, and their strides decide between a copy and an alias; a graph that was traced with
other strides than the real ones may not run, and a storage of another size spoils the forecast. The operators here were
found by comparing fake and real results of each operator in PyTorch's own test inputs (torch 2.13), plain, transposed
and in channels-last order. Strides are those of the CPU's kernels; storages are the same on every device.

A number that is known only when the step runs decides no layout; kernels that look at its value are given another.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode

_aten = torch.ops.aten
Like = Callable[..., Tensor]  # of the operator's arguments, on the meta device: a tensor with the right strides


class FaithfulFakeTensorMode(FakeTensorMode):
    """A FakeTensorMode whose results are corrected by the tables of this file."""

    def dispatch(self, func: Any, types: Sequence[type], args: Sequence[object] = (), kwargs: Any = None) -> Any:
        """What the mode does for one call of an operator."""
        if getattr(func, "overloadpacket", None) in _LOOKS_AT_NUMBERS:
            args = tuple(_as_some_number(argument) for argument in args)
        result = super().dispatch(func, types, args, kwargs or {})
        if func in _STRIDES:
            return self._with_strides(result, _STRIDES[func](*map(_as_meta, args)))
        if func in _KEEPS_ITS_INPUTS_SIZE and isinstance(result, Tensor):
            return self._in_a_larger_storage(result, args)
        return result

    def _with_strides(self, result: Any, like: Tensor) -> Any:
        """The operator's first result with the strides of `like`."""
        first, *others = result if isinstance(result, tuple | list) else (result,)
        if isinstance(first, Tensor) and first.device.type == "cpu" and first.stride() != like.stride():
            with self:
                first = torch.empty_strided(like.shape, like.stride(), dtype=first.dtype, device=first.device)
        return (first, *others) if isinstance(result, tuple | list) else first

    def _in_a_larger_storage(self, result: Tensor, args: Sequence[Any]) -> Tensor:
        """A number in the storage in which the operator computed the elements that it then reduced."""
        elements = math.prod(torch.broadcast_shapes(args[0].shape, args[1].shape))
        if result.dim() or elements <= 1:
            return result
        with self:
            whole = torch.empty(elements, dtype=result.dtype, device=result.device)
            return whole.as_strided((), ())


def _as_meta(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return torch.empty_strided(argument.shape, argument.stride(), device="meta")


def _as_some_number(argument: Any) -> Any:
    """A number of the same type in the place of one that is unknown while tracing; anything else as it is."""
    if isinstance(argument, torch.SymFloat):
        return 0.3
    return 3 if isinstance(argument, torch.SymInt) else argument


def _contiguous(of: int) -> Like:
    return lambda *args: torch.empty(args[of].shape, device="meta")


def _in_memory_format(of: int) -> Like:
    """Contiguous or channels-last as the argument; contiguous if it is neither."""
    return lambda *args: torch.empty(args[of].shape, device="meta", memory_format=suggest_memory_format(args[of]))


def _element_by_element(a: Any, b: Any, *_: Any) -> Tensor:
    """The order in which an element-wise operator of two operands writes."""
    result: Tensor = torch.add(a, b)
    return result


_STRIDES: dict[Any, Like] = {
    _aten.native_batch_norm.default: _in_memory_format(0),
    _aten._native_batch_norm_legit.default: _in_memory_format(0),
    _aten._native_batch_norm_legit.no_stats: _in_memory_format(0),
    _aten._batch_norm_with_update.default: _in_memory_format(0),
    _aten.native_batch_norm_backward.default: _in_memory_format(1),
    _aten.batch_norm_backward.default: _in_memory_format(1),
    _aten.native_layer_norm_backward.default: _contiguous(1),
    _aten._log_softmax_backward_data.default: _contiguous(0),
    _aten.mse_loss_backward.default: _contiguous(1),
    _aten.smooth_l1_loss_backward.default: _contiguous(1),
    _aten.huber_loss_backward.default: _contiguous(1),
    _aten.glu_backward.default: _contiguous(1),
    _aten.pow.Scalar: _contiguous(1),
    _aten.roll.default: _in_memory_format(0),
    _aten.native_dropout_backward.default: _element_by_element,
    _aten.hardswish_backward.default: _element_by_element,
    _aten.softplus_backward.default: _element_by_element,
    _aten.copysign.Tensor: _element_by_element,
    _aten.div.Tensor_mode: _element_by_element,
    _aten.floor_divide.default: _element_by_element,
    _aten.heaviside.default: _element_by_element,
    _aten.logaddexp.default: _element_by_element,
    _aten.logical_and.default: _element_by_element,
    _aten.logical_or.default: _element_by_element,
    _aten.logical_xor.default: _element_by_element,
    _aten.xlogy.Tensor: _element_by_element,
}
_KEEPS_ITS_INPUTS_SIZE = (  # losses: with a reduction, the result stays in the storage of the elements
    _aten.mse_loss.default,
    _aten.smooth_l1_loss.default,
    _aten.binary_cross_entropy.default,
    _aten.soft_margin_loss.default,
)
# Before torch 2.13 the fake kernel of a power compares the number with 0.5, 1 and 2, and unknown ones are no answer.
_LOOKS_AT_NUMBERS = (_aten.pow, _aten.pow_, _aten._foreach_pow, _aten._foreach_pow_)
