"""A traced step as a Chrome trace: open it in Perfetto (ui.perfetto.dev) or chrome://tracing.

Tracks for regions, modules and nodes, one after the other in the order of the graph with their measured times
and no gaps, and counters for live bytes and for what they consist of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.costs.memory import CATEGORIES, MemoryCurve

if TYPE_CHECKING:
    import pandas as pd

_TRACKS = {"regions": 1, "modules": 2, "nodes": 3}


def save_chrome_trace(path: Path, nodes: pd.DataFrame, curve: MemoryCurve) -> None:
    """Write the trace of a node table (`stats.node_stats`) and its memory curve to `path`, a JSON file."""
    events = [*_names(), *_spans(nodes), *_counters(nodes, curve)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _names() -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "training step"}}
    for name, track in _TRACKS.items():
        yield {"ph": "M", "pid": 1, "tid": track, "name": "thread_name", "args": {"name": name}}
        yield {"ph": "M", "pid": 1, "tid": track, "name": "thread_sort_index", "args": {"sort_index": track}}


def _microseconds(nodes: pd.DataFrame) -> np.ndarray:
    """Start of each node, and the end of the last."""
    return np.concatenate([[0.0], np.cumsum(nodes["median_run_time_s"].to_numpy() * 1e6)])


def _spans(nodes: pd.DataFrame) -> Iterator[dict[str, Any]]:
    starts = _microseconds(nodes)
    for row in nodes.to_dict("records"):
        if row["region"] == "input":
            continue
        arguments = {key: row[key] for key in ("rank", "target", "node_type", "module", "output_bytes", "flops")}
        yield _span("nodes", str(row["node_name"]), starts[row["rank"]], starts[row["rank"] + 1], arguments)
    for column, track in (("region", "regions"), ("module", "modules")):
        ranks = [rank for rank, region in enumerate(nodes["region"]) if region != "input"]
        for name, group in groupby(ranks, key=lambda rank: nodes[column].iloc[rank]):
            run = list(group)
            yield _span(track, str(name), starts[run[0]], starts[run[-1] + 1], {"nodes": len(run)})


def _span(track: str, name: str, start: float, end: float, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": 1,
        "tid": _TRACKS[track],
        "name": name,
        "ts": float(start),
        "dur": float(end - start),
        "args": arguments,
    }


def _counters(nodes: pd.DataFrame, curve: MemoryCurve) -> Iterator[dict[str, Any]]:
    starts = _microseconds(nodes)
    table = curve.table[[*CATEGORIES, "live_bytes"]].to_numpy()
    for rank, row in enumerate(table):
        values = dict(zip(CATEGORIES, row[:-1].tolist(), strict=True))
        yield {
            "ph": "C",
            "pid": 1,
            "name": "live bytes",
            "ts": float(starts[rank]),
            "args": {"bytes": int(row[-1])},
        }
        yield {"ph": "C", "pid": 1, "name": "memory by category", "ts": float(starts[rank]), "args": values}
