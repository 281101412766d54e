"""A transformers model over ranks: its MLPs, attention or both are a method's pairs, all else is on every rank alike.

X is a batch of token ids or images, Y the logits of every position, (positions, classes). All ranks have the same batch
and a pair leaves all of its input's gradient, so what is on every rank gets the same gradients and updates there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from blockshock.measure.roofline import Cost
from blockshock.methods import ParallelModule
from blockshock.methods.pairs.pair import ParallelPair
from blockshock.methods.pairs.sites import Site, find_sites
from blockshock.problem import LargeRun, Problem
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


def put_pairs(model: nn.Module, layers: str, build: Callable[[Site], ParallelPair]) -> None:
    """Let `model` run what `build` makes of each of its pairs of `layers` (`workload.layers`)."""
    sites = find_sites(model, layers)
    for site, pair in [(site, build(site)) for site in sites]:
        site.put(pair)


def pairs_of(model: nn.Module) -> dict[str, ParallelPair]:
    """What `put_pairs` put into this model, by its path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, ParallelPair)}


def dense_tensors(sites: list[Site], pairs: dict[str, ParallelPair], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors of a rank's, by name: parameters, or gradients of them. A collective.

    `sites` are those of a copy of the model that still has its own layers.
    """
    dense = {name: tensor for name, tensor in given.items() if not name.startswith(tuple(f"{path}." for path in pairs))}
    for site in sites:
        pair = pairs[site.place]
        own = [given[f"{site.place}.{name}"] for name, _ in pair.named_parameters()]
        dense |= site.original(pair.assemble_weights(own))
    return dense


class ParallelModel(ParallelModule):
    """One rank's part of the model. `original`: the same model, of which nothing but shapes and names is read."""

    def __init__(
        self, model: nn.Module, original: nn.Module, layers: str, build: Callable[[Site], ParallelPair]
    ) -> None:
        super().__init__()
        self.logits = Logits(model)
        self._sites = find_sites(original, layers)
        self._names = [name for name, _ in original.named_parameters()]
        put_pairs(model, layers, build)
        self._pairs = pairs_of(model)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.logits(x)
        return y

    def assemble_weights(self, like_parameters: list[Tensor]) -> list[Tensor]:
        names = [name for name, _ in self.logits.model.named_parameters()]
        given = dict(zip(names, like_parameters, strict=True))
        dense = dense_tensors(self._sites, self._pairs, given)
        return [dense[name] for name in self._names]

    def costs(self) -> dict[str, Cost]:
        """Of the pairs alone: the rest is the same for every method, and the floor stays a floor."""
        total: dict[str, Cost] = {}
        for pair in self._pairs.values():
            for name, cost in pair.costs().items():
                total[name] = total.get(name, Cost()) + cost
        return total

    def collectives(self) -> dict[str, Counter[str]]:
        """Of all pairs."""
        total: dict[str, Counter[str]] = {"forward": Counter(), "backward": Counter()}
        for pair in self._pairs.values():
            for name, counts in pair.collectives().items():
                total[name] += counts
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
        counts = self.collectives()
        sent = {each: dict(+count) for each, count in counts.items()}
        kinds = [site.KIND for site in self._sites]
        first = self._pairs[self._sites[0].place]
        found = {"mlps": kinds.count("mlp"), "attentions": kinds.count("attention")}
        return found | first.describe() | {"collectives": sent}


@dataclass(frozen=True)
class ModelProblem(Problem):
    """A model in place of a layer. N and K: features that its pairs read and write; B: the rows that they read."""

    has_input_grad: ClassVar[bool] = False  # ids have none

    layers: str  # workload.layers
    pairing: type[ParallelPair]
    build_model: Callable[[torch.dtype, torch.device], nn.Module]  # the same weights each time
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]]  # a batch and its labels
    classes: int  # of the logits
    described: str  # all that decides on model and batches, but seed, dtype and device

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
        def pair(site: Site) -> ParallelPair:
            own = self.of_layer(site.path, self.N, self.K)
            return self.pairing(own, method, site.between, site.activate, site.weights())

        return ParallelModel(weights, self._original, self.layers, pair)

    def dense(self, dtype: torch.dtype) -> nn.Module:
        return Logits(self.build_model(self.dtype, self.device).to(dtype))

    def large_run(self) -> LargeRun:
        sizes = [parameter.numel() for parameter in self._original.parameters()]
        return LargeRun(self.described, len(self.target()) * self.classes, sizes)

    def weight_quantities(self) -> list[str]:
        """`dW_mlp` of the MLPs' weights together, `dW_attention` of the projections', `dW_rest` of all others."""
        kinds = {path: site.KIND for site in find_sites(self._original, self.layers) for path in site.parts()}
        names = [name for name, _ in self._original.named_parameters()]
        return [f"dW_{kinds.get(name.rpartition('.')[0], 'rest')}" for name in names]

    def loss(self, kind: str, y: Tensor, target: Tensor) -> Tensor:
        """The model's own, cross entropy, whatever a layer's would be."""
        return cross_entropy(y, target)

    def loss_name(self, kind: str) -> str:
        return "cross_entropy"

    @cached_property
    def _original(self) -> Any:
        return self.build_model(self.dtype, torch.device("meta"))
