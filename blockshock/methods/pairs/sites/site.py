"""One pair of layers of a model: its weights as W_up (rows, K) and W_down (N, hidden), and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from blockshock.methods.pairs.pair import Activate, Between, PairWeights, ParallelPair


class Rows(nn.Module):
    """A pair on (..., K), where it takes (B, K)."""

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pair(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])


class Site(ABC):
    """`path` is of the module of `model` within which the parts have their names."""

    KIND: ClassVar[str]  # mlp | attention

    def __init__(self, model: nn.Module, path: str) -> None:
        self.model, self.path = model, path

    @property
    @abstractmethod
    def first(self) -> tuple[str, ...]:
        """The parts that make the first layer, in the order of their rows."""

    @property
    @abstractmethod
    def second(self) -> str:
        """The part that is the second layer."""

    @property
    @abstractmethod
    def between(self) -> Between: ...

    @property
    @abstractmethod
    def activate(self) -> Activate:
        """What the pair runs between its layers, given what the module that `put` makes calls the pair with."""

    @property
    @abstractmethod
    def place(self) -> str:
        """The path at which `put` puts a pair."""

    @abstractmethod
    def put(self, pair: ParallelPair) -> None:
        """Let the model run `pair` in the parts' place."""

    @property
    def features(self) -> int:
        """K and N: what the pair reads and writes."""
        return stored_weight(self.part(self.second)).shape[0]

    def weights(self) -> PairWeights:
        first, second = [self.part(name) for name in self.first], self.part(self.second)
        biases = [part.bias for part in first if part.bias is not None]
        up_bias = torch.cat(biases).detach() if biases else None
        down_bias = None if second.bias is None else second.bias.detach()
        up = torch.cat([stored_weight(part) for part in first]).detach()
        return PairWeights(up, stored_weight(second).detach().contiguous(), up_bias, down_bias)

    def original(self, assembled: list[Tensor]) -> dict[str, Tensor]:
        """Dense tensors in the order of a pair's `assemble_weights` -> by the names of the model's own parameters.

        For a site whose parts are still there: of another copy of the model than the one that `put` has changed.
        """
        up, down, *biases = assembled
        rows = [len(stored_weight(self.part(name))) for name in self.first]
        found = {f"{self.second}.weight": self._as_stored(self.second, down)}
        for name, part in zip(self.first, up.split(rows), strict=True):
            found[f"{name}.weight"] = self._as_stored(name, part)
        if self.part(self.first[0]).bias is not None:
            found |= {f"{name}.bias": part for name, part in zip(self.first, biases[0].split(rows), strict=True)}
        if self.part(self.second).bias is not None:
            found[f"{self.second}.bias"] = biases[-1]
        return {f"{self.path}.{name}": tensor for name, tensor in found.items()}

    def parts(self) -> list[str]:
        """Paths of the modules whose parameters the pair has in their place."""
        return [f"{self.path}.{name}" for name in (*self.first, self.second)]

    def part(self, name: str) -> Any:
        return self.model.get_submodule(f"{self.path}.{name}")

    def _as_stored(self, name: str, weight: Tensor) -> Tensor:
        return weight if isinstance(self.part(name), nn.Linear) else weight.t()


def stored_weight(part: Any) -> Tensor:
    """(out, in); GPT-2's Conv1D has it the other way round."""
    weight: Tensor = part.weight
    return weight if isinstance(part, nn.Linear) else weight.t()
