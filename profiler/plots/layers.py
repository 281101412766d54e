"""Run time and arithmetic rate of modules, forward and backward, over the steps of a profile."""

import os
import re
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from profiler.errors import EmptyTraceError
from profiler.plots.style import PASS_COLOUR, cpu_note, in_nanoseconds, light_grid, nanosecond_unit, save, style
from profiler.traces.modules import ModuleProfile, is_module, require_profile

MOST = 24  # modules that a figure shows
_SIDES = (("forward", 0.21), ("backward", -0.21))


@style()
def plot_layer_runtime_stats(
    profile: ModuleProfile,
    forward_markers: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Box plots of each module's own device time, forward and backward: mean, median, quartiles and extremes; beside
    them the time of a step by kind of module, which is its class, of all modules together.

    A module's own time leaves out its submodules, which have boxes of their own. `forward_markers`: names of
    `record_function` ranges to take as modules. Raises EmptyTraceError for a profile without modules.
    """
    profile = profile.with_markers(forward_markers)
    require_profile(profile)
    sides = {region: _samples(profile, "device_self_ns", region) for region, _ in _SIDES}
    totals = _totals(sides, sides)
    chosen = _chosen(profile, totals)
    largest = max(table[[m for m in chosen if m in table]].max().max() for table in sides.values() if len(table))
    scale, unit = nanosecond_unit(largest)
    kinds = _kinds(profile, sides)
    size = (15, max(3.6, 1.9 + 0.36 * len(chosen)))
    figure, (axes, right) = plt.subplots(1, 2, figsize=size, layout="constrained", gridspec_kw={"width_ratios": [3, 2]})
    _boxes(axes, sides, chosen, scale)
    _draw_kinds(right, kinds)
    axes.set_xlabel(
        f"device time of the module's own {'operators' if profile.collector.on_cpu else 'kernels'} [{unit}]"
    )
    axes.set_xlim(left=0)
    shown = totals[chosen].sum() / max(1.0, totals.sum())
    _titles(figure, axes, _message(kinds), profile, len(chosen), len(totals), f" ({shown:.0%} of all modules' time)")
    _legend(axes, [])
    return save(figure, path)


@style()
def plot_throughput_analysis(
    profile: ModuleProfile,
    forward_markers: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Box plots of each module's TFLOP/s, forward and backward, with the device's peak (`profile.peak_tflops`).

    Modules without counted operations (normalisation, activations) are left out. Raises EmptyTraceError for a profile
    without modules or without FLOPs.
    """
    profile = profile.with_markers(forward_markers)
    require_profile(profile)
    sides = {region: _samples(profile, "tflops_self", region) for region, _ in _SIDES}
    if all(table.empty for table in sides.values()):
        raise EmptyTraceError(
            "profile has no FLOPs: give ModuleProfile(collector, flops=count_flops(model, step)), and a model with "
            "matmuls, convolutions or attention"
        )
    work = {region: _samples(profile, "device_self_ns", region) for region, _ in _SIDES}
    totals = _totals(work, sides)
    chosen = _chosen(profile, totals)
    figure, axes = _figure(len(chosen))
    values = [table[[m for m in chosen if m in table]].max().max() for table in sides.values() if len(table)]
    top = float(np.nanmax(values))
    scale, unit = (1.0, "TFLOP/s") if top >= 0.2 else (1e-3, "GFLOP/s")
    _boxes(axes, sides, chosen, scale)
    lines = []
    if profile.peak_tflops:
        peak = profile.peak_tflops / scale
        axes.axvline(peak, color="black", lw=1.2, ls="--")
        lines.append(Line2D([], [], color="black", lw=1.2, ls="--", label=f"measured peak: {peak:,.4g} {unit}"))
        top = max(top, profile.peak_tflops)
    axes.set_xlim(0, 1.06 * top / scale)
    axes.set_xlabel(f"{unit} of the module's own matmuls and convolutions over its own device time")
    note = "" if profile.peak_tflops else "; the device's peak is not given"
    _titles(figure, axes, "Throughput of modules", profile, len(chosen), len(totals), "", note)
    _legend(axes, lines)
    return save(figure, path)


def _samples(profile: ModuleProfile, column: str, region: str) -> pd.DataFrame:
    table = profile.samples(column, region)
    return table[[name for name in table if is_module(str(name))]]


def _totals(times: dict[str, pd.DataFrame], sides: dict[str, pd.DataFrame]) -> pd.Series:
    """Of each module in `sides`: its mean time of a step, forward and backward."""
    names = list(dict.fromkeys(str(name) for table in sides.values() for name in table))
    forward, backward = (times[region].mean().reindex(names, fill_value=0.0) for region, _ in _SIDES)
    return forward + backward


def _kinds(profile: ModuleProfile, sides: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a kind of module, the one with the most time first: `forward` and `backward`, ns in a mean step, and how
    many `modules` are of it."""
    table = profile.table.drop_duplicates("module").set_index("module")
    names = list(dict.fromkeys(str(name) for side in sides.values() for name in side))
    # A range that was named as a module has no class: its name without the numbers of its place.
    kinds = pd.Series({name: table["type"][name] or re.sub(r"\d+", "*", name) for name in names})
    steps = profile.steps["step"].nunique()
    times = {region: (sides[region].sum() / steps).reindex(names, fill_value=0.0) for region, _ in _SIDES}
    found = pd.DataFrame({**times, "modules": 1}).groupby(kinds).sum()
    return found.loc[found[list(times)].sum(axis=1).sort_values(ascending=False).index]


def _draw_kinds(axes: Axes, kinds: pd.DataFrame) -> None:
    regions = [region for region, _ in _SIDES]
    shown = kinds.head(MOST)
    scale, unit = nanosecond_unit(float(shown[regions].sum(axis=1).max()))
    left = np.zeros(len(shown))
    for region in regions:
        width = shown[region].to_numpy() / scale
        axes.barh(range(len(shown)), width, 0.7, left=left, color=PASS_COLOUR[region], alpha=0.6, lw=0)
        left += width
    for place, total in enumerate(left):
        share = total * scale / kinds[regions].to_numpy().sum()
        axes.annotate(
            f"{in_nanoseconds(total * scale)}, {share:.0%}",
            (total, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    names = [f"{_short(str(kind), 24)} ×{count}" for kind, count in shown["modules"].items()]
    axes.set_yticks(range(len(shown)), names, fontsize=8.5)
    axes.set_ylim(max(len(shown), 6) - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * left.max())
    axes.set_xlabel(f"time of a mean step of all modules of a kind [{unit}]")
    axes.set_title("by kind of module", fontsize=10)
    light_grid(axes, "x")


def _message(kinds: pd.DataFrame) -> str:
    times = kinds["forward"] + kinds["backward"]
    return f"Run time of modules: {times.index[0]} takes {times.iloc[0] / times.sum():.0%} of it"


def _chosen(profile: ModuleProfile, totals: pd.Series) -> list[str]:
    """The modules with the most time, in the order in which the model has them."""
    if totals.empty or totals.sum() == 0:
        raise EmptyTraceError("profile has no time in any module: nothing was launched in one inside a step")
    largest = set(totals.nlargest(MOST).index)
    names = list(profile.collector.modules.values())
    order = {name: place for place, name in enumerate(names)}
    return sorted(largest, key=lambda name: (order.get(name, len(order)), list(totals.index).index(name)))


def _figure(count: int) -> tuple[Figure, Axes]:
    return plt.subplots(figsize=(12, max(3.6, 1.9 + 0.36 * count)), layout="constrained")


def _boxes(axes: Axes, sides: dict[str, pd.DataFrame], chosen: Sequence[str], scale: float) -> None:
    for region, offset in _SIDES:
        table = sides[region]
        present = [(n, table[name].dropna().to_numpy() / scale) for n, name in enumerate(chosen) if name in table]
        colour = PASS_COLOUR[region]
        axes.boxplot(
            [values for _, values in present],
            positions=[n - offset for n, _ in present],
            widths=0.34,
            orientation="horizontal",
            manage_ticks=False,
            whis=(0, 100),
            showmeans=True,
            patch_artist=True,
            boxprops={"facecolor": colour, "alpha": 0.45, "edgecolor": colour},
            medianprops={"color": "black", "lw": 1.2},
            meanprops={"marker": "D", "markerfacecolor": colour, "markeredgecolor": "black", "markersize": 3.6},
            whiskerprops={"color": colour},
            capprops={"color": colour},
        )
    axes.set_yticks(range(len(chosen)), [_short(name) for name in chosen], fontsize=8.5)
    axes.set_ylim(len(chosen) - 0.4, -0.6)
    light_grid(axes, "x")


def _short(name: str, limit: int = 48) -> str:
    """The end of a path, from a dot on."""
    if len(name) <= limit:
        return name
    end = name[-limit:]
    return "…" + (end[end.index(".") :] if "." in end else end)


def _titles(
    figure: Figure, axes: Axes, title: str, profile: ModuleProfile, shown: int, of: int, share: str = "", note: str = ""
) -> None:
    steps = profile.steps["step"].nunique()
    figure.suptitle(title)
    chosen = f"the {shown} of {of} modules with the most time{share}" if shown < of else f"{of} module{'s' * (of != 1)}"
    axes.set_title(f"{chosen}; {steps} step{'s' * (steps != 1)} of rank {profile.rank}{note}", fontsize=10)
    cpu_note(figure, profile.collector.on_cpu)


def _legend(axes: Axes, lines: list[Any]) -> None:
    handles: list[Any] = [
        Patch(facecolor=PASS_COLOUR[region], alpha=0.45, edgecolor=PASS_COLOUR[region], label=region)
        for region, _ in _SIDES
    ]
    handles.append(Line2D([], [], color="black", lw=1.2, label="median; box: quartiles; whiskers: extremes"))
    mean = Line2D([], [], marker="D", color="none", markerfacecolor="white", markeredgecolor="black", markersize=4)
    mean.set_label("mean")
    handles += [mean, *lines]
    axes.figure.legend(handles=handles, loc="outside lower center", ncol=len(handles), fontsize=8, frameon=False)
