"""Where a transformers model has pairs of layers, by structure, not by model: MLPs (mlp.py), attention (attention.py).

for site in find_sites(model, "mlp+attention"):
    pair = pairing(problem, method, site.between, site.activate, site.weights())
    site.put(pair)                                   # the model now runs the pair
"""

from collections.abc import Callable, Sequence

from torch import nn

from blockshock.methods.pairs.sites.attention import find_attention
from blockshock.methods.pairs.sites.mlp import find_mlps
from blockshock.methods.pairs.sites.site import Site

# By value of `workload.layers`.
LAYERS: dict[str, tuple[Callable[[nn.Module], Sequence[Site]], ...]] = {
    "mlp": (find_mlps,),
    "attention": (find_attention,),
    "mlp+attention": (find_mlps, find_attention),
}


def find_sites(model: nn.Module, layers: str) -> list[Site]:
    """Every pair of a shape that is known here; of each kind in the order of the model's modules."""
    return [site for find in LAYERS[layers] for site in find(model)]
