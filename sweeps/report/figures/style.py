"""One colour a method and one marker and line a world size, the same in every figure.

The colours are Okabe and Ito's, chosen to stay apart for colour-blind readers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

COLOURS = {
    "dense_single": "#3b3b3b",
    "dense_tp_row": "#0072b2",
    "dense_tp_column": "#56b4e9",
    "dtensor_row": "#00755a",
    "dtensor_column": "#3fbf97",
    "masked_split_dense": "#e69f00",
    "torch_semi_structured": "#cc79a7",
    "block_shock": "#d55e00",
}
OTHERS = ("#7a5195", "#8c6d31", "#1b9e9e", "#a6761d", "#6b8e00", "#b03a5b")
PARTS = {
    "forward": "#2a788e",
    "backward": "#7ad151",
    "opt_step": "#9b8bd0",
    "compress": "#fde725",
    "rest": "#c9c9c9",
}
INSIDE = "#1d1d1d"  # a part of the parts
# Ways of running a whole model's step: never in one figure with the layer's methods.
RECOMPUTATION = {
    "keep_all": "#3b3b3b",
    "torch_checkpoint": "#0072b2",
    "torch_memory_budget, aot_eager": "#56b4e9",
    "torch_memory_budget, inductor": "#882255",
    "recompute_greedy": "#e69f00",
    "recompute_optimal": "#d55e00",
}
# Ways of summing over the ranks: likewise in figures of their own.
COLLECTIVES = {"nccl": "#0072b2", "one_shot": "#e69f00", "two_shot": "#d55e00", "copy": "#7a5195"}
MARKERS = {1: "o", 2: "s", 4: "^", 8: "D"}
DASHES: dict[int, tuple[float, ...]] = {1: (), 2: (4, 1.5), 4: (1, 1.2), 8: (5, 1.2, 1, 1.2)}


def palette(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method. One that is not ours gets the colour its name picks, or the next one still free."""
    chosen: dict[str, str] = {}
    for method in sorted(set(methods)):
        start = zlib.crc32(method.encode())
        free = [
            colour for i in range(len(OTHERS)) if (colour := OTHERS[(start + i) % len(OTHERS)]) not in chosen.values()
        ]
        known = COLOURS.get(method) or RECOMPUTATION.get(method)
        chosen[method] = known or (free[0] if free else OTHERS[start % len(OTHERS)])
    return chosen


def marker(world_size: int) -> str:
    return MARKERS.get(world_size, "v")


def dashes(world_size: int) -> tuple[float, ...]:
    return DASHES.get(world_size, (2, 1, 2, 3))
