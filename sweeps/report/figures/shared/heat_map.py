"""A heat map of ratios over the sizes, its colours on a logarithmic scale around 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 12
EVEN = 0.179  # the luminance on which both inks have the same contrast, 4.5


def ratio_map(
    axis: Axes,
    cells: pd.DataFrame,
    ends: float,
    form: str = "{:.2f}×",
    less_is_better: bool = False,
    marks: pd.DataFrame | None = None,
) -> None:
    """`cells` (N by B) with their numbers; blue is better than 1 and red worse, full at `ends` or 1 / `ends`. `marks`:
    what follows the numbers."""
    import seaborn as sns
    from matplotlib.colors import to_rgba_array

    numbers = cells.map(lambda value: "" if pd.isna(value) else form.format(value))
    sns.heatmap(
        np.log2(cells),
        annot=numbers if marks is None else numbers + marks.fillna(""),
        fmt="",
        cmap="RdBu_r" if less_is_better else "RdBu",
        vmin=-math.log2(ends),
        vmax=math.log2(ends),
        cbar=False,
        linewidths=1.5,
        annot_kws={"fontsize": "small"},
        ax=axis,
    )
    told = cells.notna().to_numpy().ravel()
    for text, colour in zip(axis.texts, to_rgba_array(axis.collections[0].get_facecolor())[told], strict=True):
        # two inks that a dark page leaves alone, since the cells stay as they are (dark_mode.py)
        text.set_color("#010101" if _luminance(colour) > EVEN else "#fefefe")
    axis.tick_params(axis="y", rotation=0)
    axis.grid(visible=False)


def colour_bar(figure: Figure, ends: float, label: str, less_is_better: bool = False) -> None:
    """The one scale of all maps of a figure, with its ratios in plain numbers."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    reach = math.log2(ends)
    scale = ScalarMappable(Normalize(-reach, reach), "RdBu_r" if less_is_better else "RdBu")
    bar = figure.colorbar(scale, ax=figure.axes, location="bottom", shrink=0.4, aspect=40, pad=0.02)
    ticks = [-reach, -reach / 2, 0.0, reach / 2, reach]
    bar.set_ticks(ticks, labels=[f"{2**tick:.2f}" for tick in ticks])
    bar.set_label(label, fontsize="small")
    bar.ax.tick_params(labelsize="small")


def most_sizes(data: pd.DataFrame) -> pd.DataFrame:
    """Of more than MOST sizes of a dimension so many, evenly spread with the largest among them: a map can be read."""
    for key in ("N", "B"):
        sizes = np.array(sorted(set(data[key])))
        if len(sizes) > MOST:
            data = data[data[key].isin(sizes[np.linspace(0, len(sizes) - 1, MOST).round().astype(int)])]
    return data


def _luminance(colour: np.ndarray) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    linear = np.where(colour[:3] <= 0.04045, colour[:3] / 12.92, ((colour[:3] + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
