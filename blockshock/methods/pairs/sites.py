"""The MLPs of a transformers model: where they are, their weights as W_up (rows, K) and W_down (N, hidden), and back.

    for site in find_mlps(model):
        pair = pairing.build(problem, method, site.mlp, site.weights())
        site.put(pair)                                   # the model now runs the pair

By structure, not by model: modules that are called as GPT-2's, ViT's, Llama's and BERT's are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blockshock.methods.pairs.pair import Mlp, MlpWeights


@dataclass(frozen=True)
class Names:
    """What the parts of an MLP are called within the module that has them."""

    up: str
    act: str
    down: str
    gate: str | None = None

    def all(self) -> list[str]:
        return [name for name in (self.gate, self.up, self.act, self.down) if name]


SHAPES = (
    Names("c_fc", "act", "c_proj"),  # GPT-2
    Names("fc1", "activation_fn", "fc2"),  # ViT
    Names("up_proj", "act_fn", "down_proj", gate="gate_proj"),  # Llama
    Names("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),  # BERT
)


class Rows(nn.Module):
    """A pair on (..., K), where it takes (B, K)."""

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pair(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])


@dataclass
class Site:
    """One MLP of `model`."""

    model: nn.Module
    path: str  # of the module that has the parts
    names: Names

    @property
    def mlp(self) -> Mlp:
        down = self._part(self.names.down)
        hidden = _weight(down).shape[1]
        return Mlp(hidden, self._part(self.names.act), self.names.gate is not None)

    @property
    def features(self) -> int:
        """K and N: what the MLP reads and writes."""
        return _weight(self._part(self.names.down)).shape[0]

    def weights(self) -> MlpWeights:
        first = [self._part(name) for name in (self.names.gate, self.names.up) if name]
        down = self._part(self.names.down)
        biases = [part.bias for part in first if part.bias is not None]
        up_bias = torch.cat(biases).detach() if biases else None
        down_bias = None if down.bias is None else down.bias.detach()
        up = torch.cat([_weight(part) for part in first]).detach()
        return MlpWeights(up, _weight(down).detach().contiguous(), up_bias, down_bias)

    def original(self, assembled: list[Tensor]) -> dict[str, Tensor]:
        """Dense tensors in the order of a pair's `assemble_weights` -> by the names of the model's own parameters.

        For a site whose parts are still there: of another copy of the model than the one that `put` has changed.
        """
        up, down, *biases = assembled
        first = [name for name in (self.names.gate, self.names.up) if name]
        found = {f"{self.names.down}.weight": self._as_stored(self.names.down, down)}
        for name, part in zip(first, up.chunk(len(first)), strict=True):
            found[f"{name}.weight"] = self._as_stored(name, part)
        if self._part(self.names.up).bias is not None:
            found |= {f"{name}.bias": part for name, part in zip(first, biases[0].chunk(len(first)), strict=True)}
        if self._part(self.names.down).bias is not None:
            found[f"{self.names.down}.bias"] = biases[-1]
        return {f"{self.path}.{name}": tensor for name, tensor in found.items()}

    def put(self, pair: nn.Module) -> str:
        """Let the model run `pair` in the MLP's place; the path at which it now is."""
        if self.names.gate:
            self.model.set_submodule(self.path, Rows(pair))
            return f"{self.path}.pair"
        for name in (self.names.act, self.names.down):
            self.model.set_submodule(f"{self.path}.{name}", nn.Identity())
        self.model.set_submodule(f"{self.path}.{self.names.up}", Rows(pair))
        return f"{self.path}.{self.names.up}.pair"

    def _part(self, name: str) -> Any:
        return self.model.get_submodule(f"{self.path}.{name}")

    def _as_stored(self, name: str, weight: Tensor) -> Tensor:
        return weight if isinstance(self._part(name), nn.Linear) else weight.t()


def find_mlps(model: nn.Module) -> list[Site]:
    """Every MLP of a shape that is known here, in the order of the model's modules."""
    modules = dict(model.named_modules())

    def sites() -> Iterator[Site]:
        for path in modules:
            for names in SHAPES:
                if all(f"{path}.{name}" in modules for name in names.all()):
                    yield Site(model, path, names)

    return list(sites())


def _weight(part: Any) -> Tensor:
    """(out, in); GPT-2's Conv1D has it the other way round."""
    weight: Tensor = part.weight
    return weight if isinstance(part, nn.Linear) else weight.t()
