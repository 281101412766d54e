"""What inductor's generated code may use, replaced by what takes the same memory and computes nothing.

    call = load_wrapper(source, wrapper_names(source, ran), after_statement)

Allocations make fake tensors; kernels and operators with `out=` do nothing; operators that make their own outputs
run on the fake tensors.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from checkpointing.compiled.memory.wrapper_module import constants_of, kernels_of

_ALIGNMENT = 16  # bytes: torch._inductor.utils.ALIGNMENT
Ran = Callable[[str, tuple[Any, ...], dict[str, Any]], None]  # of an operator: its name and arguments

_CHECKS = (
    "assert_size_stride", "assert_alignment", "get_raw_stream", "run_intermediate_hooks", "start_graph", "end_graph",
)  # fmt: skip


def wrapper_names(source: str, ran: Ran) -> dict[str, Any]:
    """Global names for the wrapper `source`.

    `ran(name, args, kwargs)` hears of each kernel and operator that a call runs, when its outputs are there.
    To be called, like the wrapper, under a FakeTensorMode.
    """
    ops = _Ops(torch.ops, "torch.ops", ran)
    names: dict[str, Any] = {
        "torch": _Torch(ops),
        "aten": ops.aten,
        "inductor_ops": ops.inductor,
        "_quantized": ops._quantized,
        "extern_kernels": _ExternKernels(ran),
        "reinterpret_tensor": _reinterpret_tensor,
        "copy_if_misaligned": _aligned,
        "empty_strided": torch.empty_strided,
        "device": torch.device,
        "math": math,
        "inf": math.inf,
        "nan": math.nan,
    }
    for kind in ("cpu", "cuda", "xpu", "mtia"):
        names[f"empty_strided_{kind}"] = _empty_strided(kind)
    names["empty_strided_cpu_pinned"] = names["empty_strided_cpu"]
    names |= dict.fromkeys(_CHECKS, _nothing)
    names |= {name: _Kernel(name, ran) for name in kernels_of(source)}
    for name, (kind, dtype, shape, stride) in constants_of(source).items():
        names[name] = torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=fake_device(kind))
    return names


def fake_device(kind: str) -> torch.device:
    """The device of fake tensors of a kind: with an index, so that no such device has to be there."""
    return torch.device(kind) if kind == "cpu" else torch.device(kind, 0)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _empty_strided(kind: str) -> Callable[..., torch.Tensor]:
    def empty_strided(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(shape, stride, dtype=dtype, device=fake_device(kind))

    return empty_strided


def _reinterpret_tensor(
    tensor: torch.Tensor, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
) -> torch.Tensor:
    return tensor.as_strided(shape, stride, tensor.storage_offset() + offset)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """An input as kernels want it: a copy where its first element is not at a whole unit of `_ALIGNMENT`."""
    offset = int(tensor.storage_offset()) * tensor.element_size()
    return tensor.clone() if offset % _ALIGNMENT else tensor


class _Kernel:
    """A compiled kernel, which writes into its arguments: `.run(...)` of Triton's, a call of a C++ one."""

    def __init__(self, name: str, ran: Ran) -> None:
        self.name, self.ran = name, ran

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.ran(self.name, args, kwargs)

    run = __call__


class _ExternKernels:
    """extern_kernels.mm(..., out=buf) writes into `out`; extern_kernels.convolution(...) makes its output."""

    def __init__(self, ran: Ran) -> None:
        self._ran = ran

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from torch._inductor.select_algorithm import extern_kernels

        def run(*args: Any, **kwargs: Any) -> Any:
            result = kwargs["out"] if "out" in kwargs else getattr(extern_kernels, name)(*args, **kwargs)
            self._ran(f"extern_kernels.{name}", args, kwargs)
            return result

        return run


class _Ops:
    """torch.ops and what is below it: an operator runs on fake tensors."""

    def __init__(self, real: Any, path: str, ran: Ran) -> None:
        self._real, self._path, self._ran = real, path, ran

    def __getattr__(self, name: str) -> Any:
        if self._path == "torch.ops.higher_order":
            return _HIGHER_ORDER[name]
        return _Ops(getattr(self._real, name), f"{self._path}.{name}", self._ran)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._real(*args, **kwargs)
        self._ran(self._path.removeprefix("torch.ops."), args, kwargs)
        return result


# The operators that run another one with the state of a random generator, which is a few bytes of the host.


def _with_state(op: _Ops, *args: Any, rng_state: Any = None, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


def _save_state(op: _Ops, *args: Any, **kwargs: Any) -> Any:
    return torch.empty(16, dtype=torch.uint8, device="cpu"), op(*args, **kwargs)


def _from_state(state: Any, op: _Ops, *args: Any, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


_HIGHER_ORDER = {
    "graphsafe_run_with_rng_state": _with_state,
    "run_and_save_rng_state": _save_state,
    "run_with_rng_state": _from_state,
}


class _Torch:
    """The module torch, with its operators and without its devices."""

    cuda = SimpleNamespace(_DeviceGuard=nullcontext, set_device=_nothing)

    def __init__(self, ops: _Ops) -> None:
        self.ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)
