"""What Python keeps between two steps (attributes, lists, dicts, closures), and how a trace leaves it untouched.

    objects = UserObjects(model, loss_fn, optimizer)     # everything that can be reached from them
    ...                                                  # the step runs on fake tensors, and writes where it likes
    for change in objects.changes(): ...
    objects.restore()

Followed are modules, containers, closures, bound methods, partials, and objects of classes that are not PyTorch's.
"""

import functools
import gc
import sys
import types
from collections import deque
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer

from profiler.graph.capture.python_random import is_generator

_LIBRARIES = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
_ATOMS = (type(None), bool, int, float, complex, str, bytes, Tensor, types.ModuleType, torch.dtype, torch.device)
_FOLLOWED_AT_MOST = 200_000  # objects: a data set that a closure holds is not searched to its end


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING: Any = _Missing()


@dataclass(frozen=True)
class Change:
    """One entry of one container that is another object than before."""

    place: str  # in words: "layer.cache[4]"
    container: Any
    key: Any
    before: Any
    after: Any


class UserObjects:
    """Shallow copies of every container that can be reached from the given objects."""

    def __init__(self, *roots: Any) -> None:
        self._saved: dict[int, tuple[Any, str, Any]] = {}
        self._seen: dict[int, Any] = {}
        self.generators: list[Any] = []  # of Python's and NumPy's random numbers
        for root in roots:
            self.add(root, "" if isinstance(root, nn.Module) else f"({type(root).__name__.lower()})")

    def add(self, root: Any, name: str) -> None:
        """Remember the containers that can be reached from `root`, which messages call `name`."""
        pending = deque([(root, name)])
        while pending and len(self._seen) < _FOLLOWED_AT_MOST:
            value, place = pending.popleft()
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value  # held, so that no other object gets its id
            if is_generator(value):
                self.generators.append(value)
                continue
            container = _container(value)
            if container is not None:
                self._saved[id(container)] = (container, place, _copy(container))
            pending.extend(_parts(value, place))

    def changes(self) -> list[Change]:
        """Every entry that is now another object, except PyTorch's own lists of hooks."""
        found = []
        for container, place, saved in self._saved.values():
            if "_hooks" in place.rpartition(".")[2]:  # some are the trace's own
                continue
            before, now = dict(_entries(saved)), dict(_entries(container))
            for key in [*before, *(key for key in now if key not in before)]:
                old, new = before.get(key, MISSING), now.get(key, MISSING)
                if old is not new and not (type(old) is type(new) and isinstance(old, _ATOMS[1:7]) and old == new):
                    found.append(Change(_entry(place, container, key), container, key, old, new))
        return found

    def restore(self) -> None:
        """Make every container hold what it held."""
        for container, _, saved in self._saved.values():
            if not _same(container, saved):
                _fill(container, saved)

    def restore_one(self, container: Any) -> None:
        """Make one container hold what it held."""
        _fill(container, self._saved[id(container)][2])

    def put_back(self, changes: Sequence[Change]) -> None:
        """Undo some of the changes: those of dicts, attributes and closures."""
        for change in changes:
            if isinstance(change.container, types.CellType):
                _fill(change.container, [change.before] if change.before is not MISSING else [])
            elif isinstance(change.container, dict):
                if change.before is MISSING:
                    del change.container[change.key]
                else:
                    change.container[change.key] = change.before
            elif isinstance(change.container, list) and change.before is not MISSING:
                change.container[change.key] = change.before

    def places(self) -> Iterator[tuple[Tensor, str, Any, Any]]:
        """(tensor, name, container, key) of each tensor that lies in one of the containers."""
        for container, place, saved in self._saved.values():
            for key, value in _entries(saved):
                if isinstance(value, Tensor):
                    yield value, _entry(place, container, key), container, key


def empty_caches(leftovers: Sequence[Tensor]) -> None:
    """Clear each `functools.lru_cache` in which one of `leftovers` is kept; a cache has no contents that matter."""
    wanted = {id(tensor) for tensor in leftovers}
    if wanted:
        for cache in _caches():
            if _holds(cache, wanted):
                cache.cache_clear()


def _caches() -> list[Any]:
    """What the garbage collector knows, and what stands in modules and their classes: those from before a `gc.freeze()`
    it does not give."""
    found = [o for o in gc.get_objects() if type(o) is functools._lru_cache_wrapper]
    if gc.get_freeze_count():
        named = [
            value for module in list(sys.modules.values()) for value in list(getattr(module, "__dict__", {}).values())
        ]
        named += [value for kind in named if issubclass(type(kind), type) for value in vars(kind).values()]
        plain = [value.__func__ if type(value) in (staticmethod, classmethod) else value for value in named]
        found += [value for value in plain if type(value) is functools._lru_cache_wrapper]
    return list({id(cache): cache for cache in found}.values())


def _holds(cache: Any, wanted: set[int]) -> bool:
    pending, seen = list(gc.get_referents(cache)), set[int]()
    while pending:
        value = pending.pop()
        if id(value) in wanted:
            return True
        known = id(value) in seen or isinstance(value, (*_ATOMS, type, types.FunctionType, nn.Module))
        seen.add(id(value))
        if not known and len(seen) < 10_000:
            pending.extend(gc.get_referents(value))
    return False


def _container(value: Any) -> Any:
    """What of `value` can change: itself, its attributes, or None."""
    if isinstance(value, MutableMapping) and isinstance(value, dict):
        return value
    if isinstance(value, list | set | deque | types.CellType):
        return value
    return getattr(value, "__dict__", None) if _is_users(value) else None


def _is_users(value: Any) -> bool:
    """Whether an object's attributes are followed: modules and optimizers, and what is not of PyTorch or Python."""
    if isinstance(value, nn.Module | Optimizer):
        return not isinstance(value, torch.jit.ScriptModule)
    if isinstance(value, type | types.FunctionType | types.MethodType | types.BuiltinFunctionType | FakeTensor):
        return False
    return type(value).__module__.partition(".")[0] not in _LIBRARIES and isinstance(
        getattr(value, "__dict__", None), dict
    )


def _parts(value: Any, place: str) -> list[tuple[Any, str]]:
    """What to follow from `value`, with its name."""
    parts: list[tuple[Any, str]] = []
    if isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        parts += [(cell, name) for name, cell in zip(names, value.__closure__ or (), strict=True)]
        parts += [(default, place) for default in (value.__defaults__ or ())]
        parts += [(default, place) for default in (value.__kwdefaults__ or {}).values()]
        if value.__module__.partition(".")[0] not in _LIBRARIES:
            parts += [(value.__globals__[name], name) for name in _names(value.__code__) if name in value.__globals__]
    elif isinstance(value, types.MethodType):
        parts += [(value.__self__, place), (value.__func__, place)]
    elif isinstance(value, functools.partial):
        parts += [(value.func, place), (value.args, place), (value.keywords, place)]
    elif isinstance(value, functools._lru_cache_wrapper):
        parts.append((value.__wrapped__, place))
    elif isinstance(value, types.CellType):
        parts += [(held, place) for held in _entries_of_cell(value)]
    elif isinstance(value, tuple | list | set | frozenset | deque):
        parts += [(item, f"{place}[{index}]") for index, item in enumerate(value) if not isinstance(item, _ATOMS)]
    elif isinstance(value, dict):
        parts += [(item, _key(place, key)) for key, item in value.items() if not isinstance(item, _ATOMS)]
    attributes = getattr(value, "__dict__", None) if _is_users(value) else None
    if isinstance(attributes, dict):
        for key, item in attributes.items():
            if isinstance(value, nn.Module) and key in ("_parameters", "_buffers", "_modules"):
                parts.append((item, place))
            elif not isinstance(item, _ATOMS):
                parts.append((item, f"{place}.{key}" if place else key))
        parts += [(method, place) for method in _methods(type(value))]  # type: ignore[arg-type]
    return parts


@functools.cache
def _methods(kind: type) -> tuple[Any, ...]:
    """The methods and the containers of the classes of an object, as far as they are a user's."""
    return tuple(
        item
        for base in kind.__mro__
        if base.__module__.partition(".")[0] not in _LIBRARIES
        for key, item in vars(base).items()
        if not key.startswith("__") or key in ("__call__", "__init__")
        if isinstance(item, types.FunctionType | list | dict | set | functools._lru_cache_wrapper)
    )


def _names(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*(_names(one) for one in inner))


def _copy(container: Any) -> Any:
    if isinstance(container, types.CellType):
        return _entries_of_cell(container)
    if isinstance(container, dict):
        return dict(dict.items(container))
    return list(container)


def _entries(container: Any) -> list[tuple[Any, Any]]:
    if isinstance(container, types.CellType):
        return list(enumerate(_entries_of_cell(container)))
    if isinstance(container, dict):
        return list(dict.items(container))
    return list(enumerate(container))


def _entries_of_cell(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # an empty cell: the variable has no value yet
        return []


def _same(container: Any, saved: Any) -> bool:
    if isinstance(container, dict):
        now = list(dict.items(container))
        return len(now) == len(saved) and all(
            key is old_key and value is old for (key, value), (old_key, old) in zip(now, saved.items(), strict=True)
        )
    now = _copy(container)
    return len(now) == len(saved) and all(a is b for a, b in zip(now, saved, strict=True))


def _fill(container: Any, saved: Any) -> None:
    if isinstance(container, types.CellType):
        if saved:
            container.cell_contents = saved[0]
        elif _entries_of_cell(container):
            del container.cell_contents
    elif isinstance(container, dict):
        dict.clear(container)
        dict.update(container, saved)
    elif isinstance(container, list):
        container[:] = saved
    else:
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(saved)


def _entry(place: str, container: Any, key: Any) -> str:
    return place if isinstance(container, types.CellType) else _key(place, key)


def _key(place: str, key: Any) -> str:
    if isinstance(key, str):
        return f"{place}.{key}" if place else key
    return f"{place}[{key!r}]"
