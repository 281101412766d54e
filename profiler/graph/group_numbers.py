"""Learning rates and betas that are plain floats are read from the optimizer in every step: schedules are followed.

The optimizer's own code computes with symbols instead of the floats, and its arithmetic (`1 - lr * weight_decay`) is
written into the graph. A symbol has no value: numbers that an optimizer compares (`momentum != 0`) stay constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import SymFloat
from torch.fx.experimental.proxy_tensor import track_tensor_tree
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.optim import Optimizer


@dataclass(frozen=True, eq=False)
class NumberReader:
    """A node's target: returns the number that the optimizer has now. Printed the same in every process, as other
    targets are, since plans name them."""

    optimizer: Optimizer = field(repr=False)
    group: int
    key: str
    place: int | None

    @property
    def __name__(self) -> str:  # asked for by fx, which writes the graph as Python
        return f"group{self.group}_{self.key}" + ("" if self.place is None else str(self.place))

    def __call__(self) -> float:
        value = self.optimizer.param_groups[self.group][self.key]
        number: float = value if self.place is None else value[self.place]
        return number


def are_read(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys whose floats are read in every step. A fused step takes plain numbers, and they stay constants."""
    if group.get("fused"):
        return ()
    return tuple(key for key in ("lr", "betas") if _is_floats(group.get(key)))


def _is_floats(value: Any) -> bool:
    return type(value) is float or (isinstance(value, tuple) and all(type(one) is float for one in value))


class GroupNumbers:
    """Puts symbols in the place of an optimizer's numbers; traces of one step share the functions that read them."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._readers: dict[tuple[int, str, int | None], NumberReader] = {}

    def become_symbols(self, tracer: Any, shapes: ShapeEnv) -> None:
        """For the optimizer's step that is traced next; who calls puts the numbers back."""
        for index, group in enumerate(self.optimizer.param_groups):
            for key in are_read(group):
                if isinstance(group[key], tuple):
                    places = range(len(group[key]))
                    group[key] = tuple(self._symbol(tracer, shapes, index, key, place) for place in places)
                else:
                    group[key] = self._symbol(tracer, shapes, index, key, None)

    def _symbol(self, tracer: Any, shapes: ShapeEnv, index: int, key: str, place: int | None) -> SymFloat:
        reader = self._readers.setdefault((index, key, place), NumberReader(self.optimizer, index, key, place))
        with shapes.ignore_fresh_unbacked_symbols():  # no operator returns it
            symbol: SymFloat = shapes.create_unbacked_symfloat()
        proxy = tracer.create_proxy("call_function", reader, (), {}, name=reader.__name__)
        track_tensor_tree(symbol, proxy, constant=None, tracer=tracer)
        return symbol
