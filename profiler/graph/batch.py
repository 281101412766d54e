"""A batch as a list of tensors: how it is taken apart for the graph, put together for loss_fn, and compared.

    leaves, structure = flatten(batch)
    same_batch = structure.build(leaves)

Tuples, lists, dicts and every other Mapping (Hugging Face's BatchEncoding), named tuples and dataclasses are taken
apart. What remains is a tensor or a plain constant; anything else could hide data that would stay in the graph as it
was at the trace, and is an error.
"""

import copy
import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from profiler.errors import BatchMismatchError, TraceError

_CONSTANTS: tuple[type, ...] = (type(None), bool, int, float, complex, str, bytes, slice, type, enum.Enum, range)
_CONSTANTS += (torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class Structure:
    """One level of a batch: a leaf, or a container with its keys and what is in it."""

    kind: type | None = None  # of the container; None for a leaf
    keys: tuple[Any, ...] = ()
    children: tuple["Structure", ...] = ()
    example: Any = dataclasses.field(default=None, compare=False)  # the container itself, to copy what it has besides

    def build(self, leaves: Sequence[Any]) -> Any:
        """The batch with these leaves, of the same types as the one that was taken apart."""
        return self._build(iter(leaves))

    def _build(self, leaves: Any) -> Any:
        if self.kind is None:
            return next(leaves)
        return _filled(self.example, self.keys, [child._build(leaves) for child in self.children])

    def __str__(self) -> str:
        if self.kind is None:
            return "*"
        inside = [str(child) for child in self.children]
        if self.keys != tuple(range(len(inside))):
            inside = [f"{key}: {child}" for key, child in zip(self.keys, inside, strict=True)]
        return f"{self.kind.__name__}({', '.join(inside)})"


def flatten(batch: Any) -> tuple[list[Any], Structure]:
    """The leaves of a batch in order, and its structure."""
    leaves: list[Any] = []
    return leaves, _take_apart(batch, leaves)


def check_leaves(batch: Sequence[Any]) -> None:
    """Raise TraceError for a leaf that is neither a tensor nor a plain constant, and name it."""
    leaves, _ = flatten(tuple(batch))
    for leaf, path in zip(leaves, _paths(tuple(batch), "batch"), strict=True):
        if isinstance(leaf, (Tensor, *_CONSTANTS)):
            continue
        if type(leaf).__module__ == "numpy":
            raise TraceError(f"{path} is a NumPy {type(leaf).__name__}: give torch.as_tensor(...) of it")
        raise TraceError(
            f"{path} is a {type(leaf).__name__}, which is neither a tensor nor a plain constant, so that its "
            "contents would stay those of the trace: give its tensors, in a tuple, dict or dataclass"
        )


@dataclass(frozen=True)
class BatchSignature:
    """Structure of a batch, and shape, stride, dtype and device of each tensor in it."""

    structure: Structure
    leaves: tuple[Any, ...]  # (shape, stride, dtype, device) of a tensor, otherwise the constant itself

    @classmethod
    def of(cls, batch: Sequence[Any]) -> "BatchSignature":
        leaves, structure = flatten(tuple(batch))
        return cls(structure, tuple(_describe(leaf) for leaf in leaves))

    def check(self, batch: Sequence[Any]) -> list[Tensor]:
        """The tensors of `batch` in order. Raises BatchMismatchError unless it is like the traced one."""
        leaves, structure = flatten(tuple(batch))
        if structure != self.structure:
            raise BatchMismatchError(
                f"this step was traced with a batch of structure {self.structure}, and got {structure}: "
                "trace again for it"
            )
        for index, (leaf, expected) in enumerate(zip(leaves, self.leaves, strict=True)):
            given = _describe(leaf)
            if not _equal(given, expected):
                raise BatchMismatchError(
                    f"tensor {index} of the batch was traced as {_in_words(expected)}, and is "
                    f"{_in_words(given)}: give a batch like the traced one, or trace again for this one"
                )
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class _Constant:
    """A constant with its type: 1, True and 1.0 are three, and so are 0.0 and -0.0."""

    kind: type
    value: Any


def _equal(given: Any, expected: Any) -> bool:
    if isinstance(given, _Constant) and isinstance(expected, _Constant):
        if given.kind is not expected.kind:
            return False
        if isinstance(given.value, float | complex):
            return repr(given.value) == repr(expected.value)
    return bool(given == expected)


def _describe(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device
    return _Constant(type(leaf), leaf)


def _in_words(leaf: Any) -> str:
    if isinstance(leaf, tuple):
        shape, stride, dtype, device = leaf
        return f"shape {shape}, stride {stride}, {dtype} on {device}"
    return f"the constant {leaf.value!r}"


def _take_apart(value: Any, leaves: list[Any]) -> Structure:
    parts = _parts(value)
    if parts is None:
        leaves.append(value)
        return Structure()
    children = tuple(_take_apart(part, leaves) for part in parts.values())
    return Structure(type(value), tuple(parts), children, value)


def _paths(value: Any, name: str) -> list[str]:
    parts = _parts(value)
    if parts is None:
        return [name]
    attribute = dataclasses.is_dataclass(value)
    return [
        path
        for key, part in parts.items()
        for path in _paths(part, f"{name}.{key}" if attribute else f"{name}[{key!r}]")
    ]


def _parts(value: Any) -> dict[Any, Any] | None:
    """Key → part of a container; None for a leaf."""
    if isinstance(value, Mapping):
        return {key: value[key] for key in value}
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if type(value) in pytree.SUPPORTED_NODES:  # a class that its library registered
        return dict(enumerate(pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0]))
    return None


def _filled(example: Any, keys: tuple[Any, ...], values: list[Any]) -> Any:
    """A container like `example` that holds `values`."""
    kind = type(example)
    if isinstance(example, tuple):
        return kind(*values) if hasattr(example, "_fields") else kind(values)
    if isinstance(example, list):
        return kind(values)
    filled: Any
    if isinstance(example, Mapping):
        if kind is dict:
            return dict(zip(keys, values, strict=True))
        filled = copy.copy(example)
        for key, value in zip(keys, values, strict=True):
            filled[key] = value
        return filled
    if dataclasses.is_dataclass(example):
        filled = copy.copy(example)
        for key, value in zip(keys, values, strict=True):
            object.__setattr__(filled, key, value)
        return filled
    registered = pytree.SUPPORTED_NODES[kind]
    return registered.unflatten_fn(values, registered.flatten_fn(example)[1])
