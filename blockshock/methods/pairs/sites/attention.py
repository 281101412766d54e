"""The attention of a transformers model as a pair of layers: query, key and value, then the output projection.

A head is what an MLP's hidden unit is: computed from its own rows of the first layer and of nothing else, so ranks
share heads as they share units. Heads that share a key and a value (grouped-query attention) stay together: ranks
share groups. What stands between the projections is the model's own code (rotary embedding, masks, the kernel), which
counts heads by the features that it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from blockshock.errors import ConfigError
from blockshock.methods.pairs.pair import Activate, Between, ParallelPair
from blockshock.methods.pairs.sites.site import Site, stored_weight

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass(frozen=True)
class Attention(Between):
    hidden: int  # features of all heads
    groups: int  # key/value heads; as many as heads, or fewer
    head_dim: int

    @property
    def heads(self) -> int:
        return self.hidden // self.head_dim

    @property
    def matrices(self) -> tuple[int, ...]:
        """Query, key and value."""
        return (self.hidden, self.groups * self.head_dim, self.groups * self.head_dim)

    def check_shares(self, job: Job) -> None:
        ranks = job.hardware.world_size
        if self.groups % ranks:
            grouped = self.groups < self.heads
            heads = f"{self.heads} heads in {self.groups} groups" if grouped else f"{self.heads} heads"
            fit = [str(n) for n in range(2, self.groups + 1) if self.groups % n == 0]
            problem = f"attention has {heads}, which {ranks} ranks can't share; use workload.layers=mlp"
            raise self.error(job, problem + (f", or hardware.world_size={' or '.join(fit)}" if fit else ""))

    def error(self, job: Job, problem: str, size: str = "") -> ConfigError:
        more = f" (attention's {size}); use workload.layers=mlp" if size else ""
        return ConfigError("workload.layers", job.workload.layers, problem + more)


@dataclass(frozen=True)
class Names:
    """What the parts are called within the module that has them, and the module that runs between them."""

    first: tuple[str, ...]  # query, key and value, or one part with the rows of all three
    second: str
    attend: str = ""  # "": the module itself


SHAPES = (
    Names(("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama, ViT
    Names(("c_attn",), "c_proj"),  # GPT-2
    Names(("self.query", "self.key", "self.value"), "output.dense", attend="self"),  # BERT
)


class AttentionSite(Site):
    KIND = "attention"

    def __init__(self, model: nn.Module, path: str, names: Names) -> None:
        super().__init__(model, path)
        self.names = names

    @property
    def first(self) -> tuple[str, ...]:
        return self.names.first

    @property
    def second(self) -> str:
        return self.names.second

    @property
    def between(self) -> Attention:
        attend: Any = self._attend()
        head_dim = attend.attention_head_size if hasattr(attend, "attention_head_size") else attend.head_dim
        rows = sum(len(stored_weight(self.part(name))) for name in self.first)
        hidden = stored_weight(self.part(self.second)).shape[1]
        return Attention(hidden, (rows - hidden) // 2 // head_dim, head_dim)

    @property
    def activate(self) -> Activate:
        return attend

    @property
    def place(self) -> str:
        return f"{self._path_of_attend()}.pair"

    def put(self, pair: ParallelPair) -> None:
        attend: Any = self._attend()
        shares = [rows // pair.shares for rows in self.between.matrices]
        if len(self.first) == 1:
            self.model.set_submodule(f"{self.path}.{self.first[0]}", nn.Identity())
            attend.split_size = shares[0]  # what GPT-2's attention cuts the fused features into
        else:
            for place, name in enumerate(self.first):
                columns = slice(sum(shares[:place]), sum(shares[: place + 1]))
                self.model.set_submodule(f"{self.path}.{name}", Columns(columns))
        self.model.set_submodule(f"{self.path}.{self.second}", nn.Identity())
        self.model.set_submodule(self._path_of_attend(), Projected(attend, pair))

    def _path_of_attend(self) -> str:
        return f"{self.path}.{self.names.attend}" if self.names.attend else self.path

    def _attend(self) -> nn.Module:
        return self.model.get_submodule(self._path_of_attend())


class Columns(nn.Module):
    """In a projection's place: its features among those of all three."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, first: Tensor) -> Tensor:
        return first[..., self.columns]


def attend(first: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
    """`attention` is the model's own with the positions and masks of a call, as `Projected` calls the pair."""
    return attention(first)


class Projected(nn.Module):
    """The model's attention, called as ever, with a pair's projections."""

    def __init__(self, attend: nn.Module, pair: ParallelPair) -> None:
        super().__init__()
        self.attend, self.pair = attend, pair

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        shape = hidden_states.shape[:-1]
        more: list[Any] = []  # what the model returns besides the heads' output

        def attention(first: Tensor) -> Tensor:
            heads, *rest = self.attend(first.view(*shape, -1), *args, **kwargs)
            more.extend(rest)
            return heads.reshape(len(first), -1)

        y = self.pair(hidden_states.reshape(-1, hidden_states.shape[-1]), attention)
        return y.view(*shape, -1), *more


def find_attention(model: nn.Module) -> list[AttentionSite]:
    modules = dict(model.named_modules())
    return [
        AttentionSite(model, path, names)
        for path in modules
        for names in SHAPES
        if all(f"{path}.{name}" in modules for name in (*names.first, names.second))
    ]
