"""The MLPs of a transformers model: modules that are called as GPT-2's, ViT's, Llama's and BERT's are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from blockshock.methods.pairs.mlp import Mlp
from blockshock.methods.pairs.pair import Activate, ParallelPair
from blockshock.methods.pairs.sites.site import Rows, Site, stored_weight


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


class MlpSite(Site):
    KIND = "mlp"

    def __init__(self, model: nn.Module, path: str, names: Names) -> None:
        super().__init__(model, path)
        self.names = names

    @property
    def first(self) -> tuple[str, ...]:
        return (self.names.gate, self.names.up) if self.names.gate else (self.names.up,)

    @property
    def second(self) -> str:
        return self.names.down

    @property
    def between(self) -> Mlp:
        hidden = stored_weight(self.part(self.names.down)).shape[1]
        return Mlp(hidden, self.part(self.names.act), self.names.gate is not None)

    @property
    def activate(self) -> Activate:
        return self.between.activate

    @property
    def place(self) -> str:
        return f"{self.path}.pair" if self.names.gate else f"{self.path}.{self.names.up}.pair"

    def put(self, pair: ParallelPair) -> None:
        self.model.set_submodule(self.place.removesuffix(".pair"), Rows(pair))
        for name in () if self.names.gate else (self.names.act, self.names.down):
            self.model.set_submodule(f"{self.path}.{name}", nn.Identity())


def find_mlps(model: nn.Module) -> list[MlpSite]:
    modules = dict(model.named_modules())
    return [
        MlpSite(model, path, names)
        for path in modules
        for names in SHAPES
        if all(f"{path}.{name}" in modules for name in names.all())
    ]
