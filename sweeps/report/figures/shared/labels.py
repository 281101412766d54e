"""Short texts beside marks, where they cover the least.

place(axis, [Label(x, y, "0.5", colour)])       # once the axis has its limits
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 7.0  # points
# Where the text's centre is from the mark, in half widths and heights of the text (and a gap).
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
GAP = 6.0  # points
MARK = 4.0  # half of a mark, points
INKED = 1.0  # half of a line's width, points

Box = tuple[float, float, float, float]  # left, bottom, right, top, points


@dataclass(frozen=True)
class Label:
    x: float  # of the mark, in data
    y: float
    text: str
    colour: str
    important: bool = True  # drawn even where it covers another


def place(axis: Axes, labels: Sequence[Label]) -> None:
    """Write each on the side where it overlaps marks, lines and other texts the least; the important ones first."""
    scale = 72 / axis.figure.dpi  # points a pixel
    extent = axis.get_window_extent()
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    width, height = extent.width * scale, extent.height * scale

    def in_points(x: float, y: float) -> tuple[float, float]:
        return (x - left) / (right - left) * width, (y - bottom) / (top - bottom) * height

    at = {label: in_points(label.x, label.y) for label in labels}
    taken = [_around(x, y, MARK, MARK) for x, y in at.values()]
    texts: list[Box] = []
    for line in axis.lines:
        if line.get_linestyle() not in ("None", ""):
            corners = [in_points(x, y) for x, y in np.asarray(line.get_xydata()).tolist()]
            taken += [_around(x, y, INKED, INKED) for x, y in _along(corners)]
    for label in sorted(at, key=lambda label: not label.important):
        if not label.text:
            continue
        (x, y), half, tall = at[label], 0.3 * SIZE * len(label.text), 0.55 * SIZE
        boxes, costs, hides = [], [], []
        for far, (dx, dy) in itertools.product((1.0, 2.5), SIDES):
            gap = far * (GAP if 0 in (dx, dy) else GAP / 2)
            box = _around(x + dx * (half + gap), y + dy * (tall + gap), half, tall)
            covered = sum(_overlap(box, other) for other in taken)
            costs.append(covered + 20 * _outside(box, width, height) + 5 * (far - 1))
            boxes.append(box)
            hides.append(any(_overlap(box, other) > 0 for other in texts))
        best = min(range(len(boxes)), key=costs.__getitem__)
        if not label.important and (hides[best] or costs[best] > 0.3 * 4 * half * tall):
            continue
        box = boxes[best]
        taken.append(box)
        texts.append(box)
        offset = ((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y)
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SIZE, "color": label.colour}
        axis.annotate(label.text, (label.x, label.y), offset, textcoords="offset points", zorder=5, **style)


def _along(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of a line, one every INKED of its length."""
    found = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        count = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / INKED))
        found += [(x0 + i / count * (x1 - x0), y0 + i / count * (y1 - y0)) for i in range(count)]
    return found


def _around(x: float, y: float, half: float, tall: float) -> Box:
    return x - half, y - tall, x + half, y + tall


def _outside(box: Box, width: float, height: float) -> float:
    """How far it reaches over the panel's edge."""
    return max(0.0, -box[0], -box[1], box[2] - width, box[3] - height)


def _overlap(a: Box, b: Box) -> float:
    """Area, square points."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
