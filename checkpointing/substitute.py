"""A cheaper way to make the value of a node a second time than to run the node."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Substitute:
    """A cheaper way to make the value of a node again: `target(*inputs, *constants)`, inputs being ranks of nodes."""

    target: Callable[..., Any]
    inputs: tuple[int, ...]
    constants: tuple[Any, ...]
    seconds: float
    workspace: int = 0
