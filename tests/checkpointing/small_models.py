"""Small models made at random from a seed: what a step's graph can contain, in a few nodes.

`SmallModel(seed, length)` chains `length` operations on values [24, 8]: linear layers (some shared), views, splits
and concatenations, in-place operations on values and on views of them, operators with several results, dropout, batch
and layer norm, residuals. Only what autograd lets eager PyTorch do is chosen: a value that some backward needs
is never written to.
"""

import random

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS, WIDTH = 24, 8
OPERATIONS = (
    "linear",
    "linear",
    "tanh",
    "gelu",
    "relu_in_place",
    "relu_in_place",
    "add_in_place",
    "scale_slice_in_place",
    "residual",
    "gate",
    "split_and_cat",
    "chunk",
    "transpose",
    "max",
    "sort",
    "dropout",
    "dropout",
    "batch_norm",
    "layer_norm",
    "softmax",
    "wide",
)


class SmallModel(nn.Module):
    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linears = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])  # shared by all that are linear
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.batch_norm, self.layer_norm = nn.BatchNorm1d(WIDTH), nn.LayerNorm(WIDTH)
        self.seed, self.length = seed, length

    def forward(self, x: Tensor) -> Tensor:
        choose = random.Random(self.seed)
        values = [self.linears[0](x)]
        frozen = {0: False}  # value → whether a backward needs what it holds now, or it shares memory with another
        for _ in range(self.length):
            source = choose.choice(range(max(0, len(values) - 3), len(values)))
            other = choose.randrange(len(values))
            made, keeps_own = self._apply(choose.choice(OPERATIONS), choose, values, frozen, source, other)
            if made is not None:
                values.append(made)
                frozen[len(values) - 1] = keeps_own
        return torch.stack(values[-2:]).square().mean()

    def _apply(
        self, name: str, choose: random.Random, values: list[Tensor], frozen: dict[int, bool], source: int, other: int
    ) -> tuple[Tensor | None, bool]:
        """The new value, if there is one, and whether its own backward needs what it holds."""
        a, b = values[source], values[other]
        if name.endswith("in_place"):
            if frozen[source] or source == other:
                return None, False
            if name == "relu_in_place":
                a.relu_()
                frozen[source] = True
            elif name == "add_in_place":
                a.add_(b)
            else:
                a[:, : WIDTH // 2].mul_(2.0)
            return None, False
        if name == "residual":
            return a + b, False
        if name == "split_and_cat":
            frozen[source] = True
            left, right = a.split(WIDTH // 2, dim=1)
            return torch.cat([right, left], dim=1), False
        if name == "transpose":
            return a.view(ROWS, 2, WIDTH // 2).transpose(1, 2).reshape(ROWS, WIDTH), False
        if name == "max":
            return a.view(ROWS, 2, WIDTH // 2).max(dim=1).values.repeat(1, 2), False
        if name == "sort":
            return a.sort(dim=1).values, False
        if name == "dropout":
            return functional.dropout(a, 0.3), False
        if name == "tanh":
            return a.tanh(), True
        if name == "softmax":
            return a.softmax(dim=1), True
        frozen[source] = True
        if name == "linear":
            return choose.choice(list(self.linears))(a), False
        if name == "wide":
            return self.down(functional.gelu(self.up(a))), False
        if name == "gelu":
            return functional.gelu(a), False
        if name == "batch_norm":
            return self.batch_norm(a), False
        if name == "layer_norm":
            return self.layer_norm(a), False
        if name == "chunk":
            left, right = a.chunk(2, dim=1)
            return torch.cat([left * right, left.sigmoid()], dim=1), False
        frozen[other] = True
        return a * b.cos(), False  # bounded: products of products would overflow


def small_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def small_batch(seed: int) -> tuple[Tensor]:
    return (torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)),)
