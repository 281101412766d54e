"""A transformers model over ranks: its MLPs are a method's pairs, and everything else is on every rank alike.

X is a batch of token ids or images, Y the logits of every position, (positions, classes). All ranks have the same batch
and a pair leaves all of its input's gradient, so what is on every rank gets the same gradients and updates there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from blockshock.measure.roofline import Cost
from blockshock.methods import ParallelModule
from blockshock.methods.pairs.pair import ParallelMlp
from blockshock.methods.pairs.sites import Site, find_mlps
from blockshock.problem import Problem
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.methods import Method


class Logits(nn.Module):
    """A model's logits, (positions, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits.flatten(0, -2)


def put_pairs(model: nn.Module, build: Callable[[Site], ParallelMlp]) -> dict[str, ParallelMlp]:
    """Let `model` run what `build` makes of each of its MLPs, by the path at which it now is."""
    pairs = [(site, build(site)) for site in find_mlps(model)]
    return {site.put(pair): pair for site, pair in pairs}


def pairs_of(model: nn.Module) -> dict[str, ParallelMlp]:
    """What `put_pairs` returned for this model."""
    return {path: module for path, module in model.named_modules() if isinstance(module, ParallelMlp)}


def dense_tensors(sites: list[Site], pairs: dict[str, ParallelMlp], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors of a rank's, by name: parameters, or gradients of them. A collective.

    `sites` are those of a copy of the model that still has its MLPs.
    """
    dense = {name: tensor for name, tensor in given.items() if not name.startswith(tuple(f"{path}." for path in pairs))}
    for site, (path, pair) in zip(sites, pairs.items(), strict=True):
        own = [given[f"{path}.{name}"] for name, _ in pair.named_parameters()]
        dense |= site.original(pair.assemble_weights(own))
    return dense


class ParallelModel(ParallelModule):
    """One rank's part of the model. `original`: the same model, of which nothing but shapes and names is read."""

    def __init__(self, model: nn.Module, original: nn.Module, build: Callable[[Site], ParallelMlp]) -> None:
        super().__init__()
        self.logits = Logits(model)
        self._sites = find_mlps(original)
        self._names = [name for name, _ in original.named_parameters()]
        self._pairs = put_pairs(model, build)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.logits(x)
        return y

    def assemble_weights(self, like_parameters: list[Tensor]) -> list[Tensor]:
        names = [name for name, _ in self.logits.model.named_parameters()]
        given = dict(zip(names, like_parameters, strict=True))
        dense = dense_tensors(self._sites, self._pairs, given)
        return [dense[name] for name in self._names]

    def costs(self) -> dict[str, Cost]:
        """Of the MLPs alone: the rest is the same for every method, and the floor stays a floor."""
        total: dict[str, Cost] = {}
        for pair in self._pairs.values():
            for name, cost in pair.costs().items():
                total[name] = total.get(name, Cost()) + cost
        return total

    def roundings(self) -> dict[str, float]:
        """As for one pair: some of the dense model's roundings are of sums over ranks."""
        return next(iter(self._pairs.values())).roundings()

    def after_optimizer_step(self, step: int) -> None:
        for pair in self._pairs.values():
            pair.after_optimizer_step(step)

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        return {op: count for pair in self._pairs.values() for op, count in pair.flop_formulas().items()}

    def weight_bytes(self) -> int:
        inside = {id(parameter) for pair in self._pairs.values() for parameter in pair.parameters()}
        rest = distributed.local_bytes(p for p in self.parameters() if id(p) not in inside)
        return rest + sum(pair.weight_bytes() for pair in self._pairs.values())

    def describe(self) -> dict[str, Any]:
        first = next(iter(self._pairs.values()))
        return {"mlps": len(self._pairs), **first.describe()}


@dataclass(frozen=True)
class ModelProblem(Problem):
    """A model in place of a layer. N and K are the features that its MLPs read and write, B the rows that they read."""

    has_input_grad: ClassVar[bool] = False  # ids have none

    pairing: type[ParallelMlp]
    build_model: Callable[[torch.dtype, torch.device], nn.Module]  # the same weights each time
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]]  # a batch and its labels
    classes: int  # of the logits

    def inputs(self, step: int = 0) -> Tensor:
        x = self.draw(self._generator("X", step))[0]
        return x.to(self.dtype) if x.is_floating_point() else x

    def target(self, step: int = 0) -> Tensor:
        return self.draw(self._generator("X", step))[1].flatten()

    def upstream_gradient(self, step: int = 0) -> Tensor:
        return self._normal("dY", len(self.target(step)), self.classes, step=step).to(self.dtype)

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    def weights(self) -> nn.Module:
        return self.build_model(self.dtype, self.device)

    def build(self, method: Method, weights: nn.Module) -> ParallelModule:
        def pair(site: Site) -> ParallelMlp:
            return self.pairing.build(self.of_layer(site.path, self.N, self.K), method, site.mlp, site.weights())

        return ParallelModel(weights, self._original, pair)

    def dense(self, dtype: torch.dtype) -> nn.Module:
        return Logits(self.build_model(self.dtype, self.device).to(dtype))

    def weight_quantities(self) -> list[str]:
        """`dW_mlp` of the MLPs' weights together, `dW_rest` of all others."""
        mlps = {f"{site.path}.{name}" for site in find_mlps(self._original) for name in site.names.all()}
        names = [name for name, _ in self._original.named_parameters()]
        return ["dW_mlp" if name.rpartition(".")[0] in mlps else "dW_rest" for name in names]

    def loss(self, kind: str, y: Tensor, target: Tensor) -> Tensor:
        """The model's own, cross entropy, whatever a layer's would be."""
        return cross_entropy(y, target)

    def loss_name(self, kind: str) -> str:
        return "cross_entropy"

    @cached_property
    def _original(self) -> Any:
        return self.build_model(self.dtype, torch.device("meta"))
