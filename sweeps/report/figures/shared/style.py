"""One colour a method and one marker and line a world size, the same in every figure.

The colours are Okabe and Ito's, chosen to stay apart for colour-blind readers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

INK, BLUE, SKY, ORANGE = "#3b3b3b", "#0072b2", "#56b4e9", "#e69f00"
PINK, VERMILION, VIOLET, WINE = "#cc79a7", "#d55e00", "#7a5195", "#882255"
COLOURS = {
    "dense_single": INK,
    "dense_tp_row": BLUE,
    "dense_tp_column": SKY,
    "dtensor_row": "#00755a",
    "dtensor_column": "#3fbf97",
    "masked_split_dense": ORANGE,
    "torch_semi_structured": PINK,
    "slide_sparse": "#7a7a00",  # an olive that shows on light and on dark pages
    "block_shock": VERMILION,
}
OTHERS = (VIOLET, "#8c6d31", "#1b9e9e", "#a6761d", "#6b8e00", "#b03a5b")
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
    "keep_all": INK,
    "torch_checkpoint": BLUE,
    "torch_memory_budget, aot_eager": SKY,
    "torch_memory_budget, inductor": WINE,
    "recompute_greedy": ORANGE,
    "recompute_optimal": VERMILION,
}
# Ways of summing over the ranks: likewise in figures of their own.
COLLECTIVES = {"nccl": BLUE, "one_shot": ORANGE, "two_shot": VERMILION, "copy": VIOLET}
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
