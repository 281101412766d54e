"""What the figures share: the look, the colours, units that suit an axis, and saving."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REGION_COLOUR = {
    "forward": "#0072B2",
    "loss": "#E69F00",
    "backward": "#D55E00",
    "optimizer": "#009E73",
    "output": "#999999",
}
PASS_COLOUR = {
    "forward": "#0072B2",
    "backward": "#D55E00",
    "optimizer": "#009E73",
    "other": "#999999",
    "communication": "#CC79A7",
    "copies": "#E69F00",
    "idle": "#E5E5E5",
}
CATEGORY_COLOUR = {
    "parameters": "#0072B2",
    "buffers": "#56B4E9",
    "inputs": "#999999",
    "optimizer_state": "#009E73",
    "gradients": "#CC79A7",
    "activations": "#E69F00",
    "temporaries": "#F0E442",
    "workspace": "#D55E00",
}  # the colours of Okabe and Ito, which colour-blind readers can tell apart


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure of this library, while one is drawn; a user's own comes back. Also a decorator."""
    with mpl.rc_context():
        sns.set_theme(style="ticks", rc={"axes.spines.top": False, "axes.spines.right": False})
        yield


def byte_unit(largest: float) -> tuple[float, str]:
    """Bytes in a unit that suits an axis up to `largest` bytes, and the unit's name."""
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if largest >= 2 * scale:
            return scale, unit
    return 1, "B"


def time_unit(largest: float) -> tuple[float, str]:
    """Seconds in a unit that suits an axis up to `largest` seconds, and the unit's name."""
    return (1e-3, "ms") if largest >= 2e-3 else (1e-6, "µs")


def nanosecond_unit(largest: float) -> tuple[float, str]:
    """Nanoseconds in a unit that suits an axis up to `largest` nanoseconds, and the unit's name."""
    for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if largest >= 2 * scale:
            return scale, unit
    return 1.0, "ns"


def in_nanoseconds(duration: float) -> str:
    """A duration with its unit: 1234567 → '1.23 ms'."""
    scale, unit = nanosecond_unit(2 * duration)
    value = duration / scale
    return f"{value:.0f} {unit}" if value >= 100 or unit == "ns" else f"{value:.3g} {unit}"


def cpu_note(figure: Figure, on_cpu: bool) -> None:
    """Say on the figure that there was no GPU."""
    if on_cpu:
        text = "no GPU: operators of the CPU in place of kernels"
        figure.text(0.995, 0.995, text, ha="right", va="top", fontsize=9, style="italic", color="#B00020")


def save(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """Write the figure to `path`, if there is one, making its folder."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure


def light_grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Thin lines behind the data."""
    axes.grid(True, axis=axis, lw=0.5, color="#DDDDDD")
    axes.set_axisbelow(True)
