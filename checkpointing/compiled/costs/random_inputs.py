"""Random inputs that an operator accepts: how long a matmul takes depends on its data, and an index has to be in range.

args, kwargs = random_arguments(call, torch.device("cuda:0"))
call.operator(*args, **kwargs)

An index out of range would end the process's CUDA context, so integers of an unknown meaning stay below the smallest
dimension of all tensors in the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from checkpointing.compiled.costs.operator_call import OperatorCall, TensorSpec

_SEED = 0
_MASKS = (torch.bool, torch.uint8)  # in a list of indices, these select; other integers count
_INDEXED_BY_LISTS = ("index", "unsafe_index", "index_put", "unsafe_index_put", "index_put_impl")
_OF_PROBABILITIES = ("bernoulli", "multinomial", "poisson", "binomial", "binary_cross_entropy")  # nothing negative


def random_arguments(call: OperatorCall, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of `call`, with new tensors of its shapes and strides.

    `device` stands for every device of its type; tensors of a CPU stay there. No generator but this function's own is
    read.
    """
    named = call.named()
    family = call.operator._schema.name.partition("::")[2].strip("_")
    smallest = min((size for spec in call.tensors() for size in spec.shape if size), default=1)
    generators = {place: torch.Generator(place).manual_seed(_SEED) for place in (torch.device("cpu"), device)}

    def argument(name: str, given: Any) -> Any:
        if not isinstance(given, (list, tuple)):
            return element(name, given, _bound(family, name, named, smallest))
        if family in _INDEXED_BY_LISTS and name == "indices":
            sizes = _indexed_sizes(named["self"].shape, given)
            return [element(name, index, size) for index, size in zip(given, sizes, strict=True)]
        return [element(name, one, smallest) for one in given]

    def element(name: str, given: Any, bound: int) -> Any:
        if isinstance(given, torch.device):
            return device if given.type == device.type else given
        if not isinstance(given, TensorSpec):
            return given
        place = device if given.device_type == device.type else torch.device(given.device_type)
        if name.startswith(("cu_seqlens", "cum_seq")):  # where each sequence of a packed batch begins and ends
            packed = named["query" if name.endswith("q") else "key"].shape[-3]
            return torch.linspace(0, packed, *given.shape, device=place).to(given.dtype)
        flat = _random(given, bound, family.startswith(_OF_PROBABILITIES), place, generators[place])
        return flat.as_strided(given.shape, given.stride)

    return call.filled(argument)


def _bound(family: str, name: str, named: Mapping[str, Any], smallest: int) -> int:
    """How many values an entry of the integer argument `name` may have: it is one of 0 ... bound - 1."""
    match family, name:
        case "embedding", "indices":
            return named["weight"].shape[0]
        case "embedding_dense_backward", "indices":
            return named["num_weights"]
        case "gather" | "index_select" | "index_add" | "index_copy" | "index_fill" | "index_reduce", "index":
            return (named["self"].shape or (1,))[named["dim"]]
        case "scatter" | "scatter_add" | "scatter_reduce", "index":
            return (named["self"].shape or (1,))[named["dim"]]
        case "add_rows", "indices":
            return named["total"].shape[0]
        case "row_statistics" | "row_gradient", "labels":
            return named["vocabulary"]
        case "take" | "put", "index":
            return prod(named["self"].shape)
        case "nll_loss_forward" | "nll_loss_backward" | "nll_loss2d_forward" | "nll_loss2d_backward", "target":
            shape = named["self"].shape  # (N, C, ...) or (C,)
            return shape[min(1, len(shape) - 1)]
        case "max_pool2d_with_indices_backward" | "adaptive_max_pool2d_backward", "indices":
            return prod(named["self"].shape[-2:])
        case "max_pool3d_with_indices_backward" | "adaptive_max_pool3d_backward", "indices":
            return prod(named["self"].shape[-3:])
        case "low_memory_max_pool_offsets_to_indices", "self":
            return prod(named["kernel_size"])
        case _:
            return smallest


def _indexed_sizes(shape: tuple[int, ...], indices: Sequence[TensorSpec | None]) -> list[int]:
    """How many values an entry of each of `indices` may have; a mask spans as many dimensions as it has itself."""
    sizes, dim = [], 0
    for index in indices:
        if index is not None and index.dtype in _MASKS:
            sizes.append(2)
            dim += len(index.shape)
        else:
            sizes.append(shape[dim])
            dim += 1
    return sizes


def _random(
    spec: TensorSpec, bound: int, positive: bool, place: torch.device, generator: torch.Generator
) -> torch.Tensor:
    """A flat tensor that covers the spec's memory: normal, or uniform in [0, 1), or integers below `bound`."""
    if spec.dtype.is_floating_point or spec.dtype.is_complex:
        drawn = torch.float32 if spec.dtype.itemsize == 1 else spec.dtype  # floats of 8 bits can only be rounded to
        draw = torch.rand if positive else torch.randn
        return draw(spec.extent, generator=generator, device=place, dtype=drawn).to(spec.dtype)
    most = 2 if spec.dtype is torch.bool else max(1, min(bound, torch.iinfo(spec.dtype).max))
    return torch.randint(0, most, (spec.extent,), generator=generator, device=place).to(spec.dtype)
