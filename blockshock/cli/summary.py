"""What a single run prints at its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from blockshock.run_folder.files import printable
from blockshock.run_folder.folder import RunFolder


def print_summary(run_dir: str | os.PathLike[str]) -> None:
    """The last record's timings, errors and roofline, and where the folder is."""
    folder = RunFolder(run_dir)
    record = folder.records()[-1]
    if "part" in record:
        _print_benchmark(folder.records())
        print(f"  {printable(str(folder.path))}")
        return
    size = (
        f"N={record['N']} K={record['K']} B={record['B']}" if record["N"] else f"{record['workload']} B={record['B']}"
    )
    size += f" {record['dtype']}"
    print(f"{record['phase']} · {record['method']} · {size} · {record['world_size']} x {record['device']}")
    for name, t in record["timings_ms"].items():
        print(f"  {name:<11} p50 {t['p50_ms']:10.4f} ms   p95 {t['p95_ms']:10.4f} ms   min {t['min_ms']:10.4f} ms")
    held = _held_down(record)
    if held:
        print(f"  clock       held down by {held} while timing")
    roof = record.get("roofline")
    if roof and roof["fraction"]:
        print(f"  roofline    floor {roof['floor_ms']:8.4f} ms ({roof['bound']}): {roof['fraction']:.0%} reached")
    for name, verdict in record.get("correctness", {}).items():
        print(f"  error {name:<5} {verdict['relative_error']:.3e}, at most {verdict['limit']:.3e}: passed")
    drift = record.get("drift")
    if drift:
        print(
            f"  drift after {drift['step']} steps: {drift['output_error']:.3e}, dense {drift['dense_output_error']:.3e}"
        )
    profile = record.get("profile")
    if profile:
        peak, simulated = (profile[f"{name}_peak_bytes"] / 2**20 for name in ("measured", "simulated"))
        print(f"  peak        {peak:.1f} MiB measured, {simulated:.1f} MiB simulated, at {profile['peak_node']}")
        print(f"  nodes       {profile['nodes']}, {profile['node_time_s'] * 1e3:.4f} ms in all")
    trace = record.get("trace")
    if trace:
        parts = ("forward", "backward", "optimizer", "other", "exposed_communication", "idle")
        slowest = max(range(len(trace["step_ms"])), key=lambda rank: trace["step_ms"][rank])
        text = ", ".join(f"{part.replace('_', ' ')} {trace[f'{part}_ms'][slowest]:.4f}" for part in parts)
        print(f"  step        {text} ms (rank {slowest})")
        known = (
            ""
            if trace["attributed"] is None
            else f"; {trace['attributed']:.2%} of the device time is attributed to a module"
        )
        print(f"  trace       {trace['kernels'][0]} kernels a step; slower by {trace['slowdown']:.1%}{known}")
    for rank, own in enumerate(record.get("each_rank") or ()):
        print(f"  rank {rank:<6} {'   '.join(_of_rank(own))}")
    print(f"  {printable(str(folder.path))}")


def _of_rank(own: dict[str, Any]) -> Iterator[str]:
    yield f"p50 {own['step_p50_ms']:10.4f} ms"
    if own["kernels_ms"] is not None:
        yield f"kernels {own['kernels_ms']:10.4f} ms"
    names = {"peak_bytes": "peak", "predicted_peak_bytes": "predicted", "budget_bytes": "budget"}
    yield from (f"{said} {own[name] / 2**20:.1f} MiB" for name, said in names.items() if own[name] is not None)
    if own["collectives"] is not None:
        yield f"{own['collectives']} collectives, unchanged {own['reference_collectives']}"


def _held_down(record: dict[str, Any]) -> str:
    return (record.get("clocks") or {}).get("throttled") or ""


def _print_benchmark(records: list[dict[str, Any]]) -> None:
    """A line per contender: its median, and over the baseline's."""
    first = records[0]
    size = f"N={first['N']} K={first['K']} B={first['B']} {first['dtype']}"
    print(f"{first['phase']} · {first['part']} · {size} · {first['world_size']} x {first['device']}")
    baselines = {r.get("quantity"): r["p50_us"] for r in records if r["method"] == r["baseline"]}
    for record in records:
        name = f"{record['method']}/{record['variant']}".rstrip("/")
        line = f"  {name:<28} p50 {record['p50_us']:12.3f} µs"
        if "eager_p50_us" in record:
            line += f"   eager {record['eager_p50_us']:12.3f} µs"
        baseline = baselines.get(record.get("quantity"))
        line += f"   {record['p50_us'] / baseline:7.3f} x {first['baseline']}" if baseline else ""
        print(f"{line}   {_held_down(record)}".rstrip())
