"""An operator that counts its runs and shows its inputs, and graphs with fake tensors to measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx


class Runs:
    """Every run of the operator below, by its first argument, and what else is to happen in one."""

    seen: list[Tensor]
    during: Callable[[Tensor], Any]

    def reset(self) -> None:
        self.seen = []
        self.during = lambda x: None

    def count(self) -> int:
        """Runs since the last time that this was asked."""
        count = len(self.seen)
        self.seen.clear()
        return count


RUNS = Runs()
RUNS.reset()


@torch.library.custom_op("costs_test::counted", mutates_args=())
def counted(x: Tensor, factor: float) -> Tensor:
    RUNS.seen.append(x)
    RUNS.during(x)
    return torch.empty_like(x)


@counted.register_fake
def _(x: Tensor, factor: float) -> Tensor:
    return torch.empty_like(x)


def operators(function: Callable[..., Any], *inputs: Any) -> list[fx.Node]:
    """The operators that `function` runs, from a trace with fake tensors."""
    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    return [node for node in graph.nodes if isinstance(node.target, OpOverload)]


def one(function: Callable[..., Any], *inputs: Any) -> fx.Node:
    (node,) = operators(function, *inputs)
    return node


def counted_node(x: Tensor | None = None, factor: float = 2.0) -> fx.Node:
    return one(lambda x: counted(x, factor), torch.ones(3, 4) if x is None else x)
