"""A profile as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def report(nodes: pd.DataFrame, activations: pd.DataFrame, summary: dict[str, Any], rows: int = 10) -> str:
    """Summary, time by region, and the `rows` most expensive nodes and idlest activations.

    `nodes` and `activations` are the tables of `stats`, `summary` is `GraphProfiler.summary()`.
    """
    by_region = nodes.groupby("region", sort=False)["median_run_time_s"].agg(["size", "sum"])
    top_nodes = nodes.nlargest(rows, "median_run_time_s")
    idle = activations.assign(weight=activations["median_mem_size_bytes"] * activations["inactive_time_s"])
    top_activations = idle.nlargest(rows, "weight")
    lines = [
        f"step {in_time(summary['step_time_s'])}, sum of nodes {in_time(summary['node_time_s'])}, "
        f"idle between kernels {in_time(summary['idle_s'])}",
        f"{summary['nodes']} nodes on {summary['device']}",
        f"peak {in_bytes(summary['simulated_peak_bytes'])} simulated, "
        f"{in_bytes(summary['measured_peak_bytes'])} measured, at {summary['peak_node']} "
        f"(node {summary['peak_rank']} of the graph, {summary['peak_region']})",
        *(f"    {name:<16}{in_bytes(size):>12}" for name, size in summary["peak_breakdown"].items()),
        *(f"no FLOPs counted for {name}: there is no formula" for name in summary["uncounted_operators"]),
        "",
        "region         nodes        time",
        *(
            f"{row['region']:<12}{row['size']:>8}{in_time(row['sum']):>12}"
            for row in by_region.reset_index().to_dict("records")
        ),
        "",
        "slowest nodes",
        *(
            f"    {in_time(row['median_run_time_s']):>10}  {row['node_name']}  {row['target']}  "
            f"[{row['region']}: {row['module']}]"
            for row in top_nodes.to_dict("records")
        ),
        "",
        f"activations that lie idle the most (bytes × time), of {summary['activations']}",
        *(
            f"    {in_bytes(row['median_mem_size_bytes']):>10}  idle {in_time(row['inactive_time_s']):>10}  "
            f"again in {in_time(row['recomp_time_s']):>10}  {row['activation_name']}"
            for row in top_activations.to_dict("records")
        ),
    ]
    return "\n".join(lines)


def in_bytes(size: float) -> str:
    """`size` bytes with a unit: 3072 → '3.0 KiB'."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 2048:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def in_time(seconds: float) -> str:
    """`seconds` with a unit: 0.0015 → '1.50 ms'."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.1f} µs"
