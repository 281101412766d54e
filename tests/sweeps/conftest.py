"""Small run folders, written by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

WriteRun = Callable[..., Path]
SIZES = ((64, 16), (64, 32), (128, 16), (128, 32))


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """`write_run("name", records=[...], status="ok")`: a run folder below tmp_path/sweep; the path of it."""
    return writer(tmp_path / "sweep")


def writer(top: Path) -> WriteRun:
    """What writes run folders below `top`.

    A run that is `ok` has a record, of its own if none is given.
    """

    def write(name: str, records: list[dict[str, Any]] | None = None, status: str = "ok", reason: str = "") -> Path:
        folder = top / name
        folder.mkdir(parents=True)
        records = [make_record("phase1_forward", "dense_single")] if records is None and status == "ok" else records
        ended = None if status == "running" else "2026-01-02T03:05:00.000+00:00"
        content = {"status": status, "reason": reason, "started": "2026-01-02T03:04:00.000+00:00", "ended": ended}
        (folder / "status.json").write_text(json.dumps({**content, "config_hash": name, "schema": 1}))
        first = (records or [{}])[0]
        config = {
            "experiment": {"name": "by_hand"},
            "phase": {"name": first.get("phase", "phase1_forward")},
            "method": {"name": first.get("method", "dense_single")},
            "model": {"N": first.get("N", 64), "K": first.get("K", 64), "B": first.get("B", 8), "dtype": "fp32"},
            "hardware": {"backend": "gloo", "world_size": first.get("world_size", 1)},
        }
        if "workload_config" in first:
            config["workload"] = first["workload_config"]
        if "method_config" in first:
            config["method"] |= first["method_config"]
            config["workload"] = {"name": first["workload"], "seq_len": 16, **first.get("workload_config", {})}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "env.json").write_text(json.dumps({"torch": "9.9.9+hand", "cpu": {"name": "Hand CPU"}}))
        if records is not None:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder

    return write


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """`record("phase1_forward", "block_shock", forward=0.5, floor=0.1, ...)`: one line of metrics.jsonl."""
    return make_record


def make_record(phase: str, method: str, **given: Any) -> dict[str, Any]:
    times = {name: given.pop(name) for name in list(given) if name in _REGIONS}
    line: dict[str, Any] = {
        **{"schema": 1, "phase": phase, "method": method, "mask": "complement_1100_0011", "workload": "gaussian"},
        **{"N": 64, "K": 64, "B": 8, "dtype": "fp32", "world_size": 1, "device": "cpu"},
        "timings_ms": {name: {"count": 3, "p50_ms": value} for name, value in times.items()},
    }
    if phase not in ("phase0_correctness", "phasex_drift"):
        line |= {"timing_mode": "sync", "flush_l2": False}
    if "floor" in given:
        line["roofline"] = {"floor_ms": given.pop("floor"), "bound": given.pop("bound", "memory")}
    if "error" in given:
        error, limit = given.pop("error"), given.pop("limit")
        line["correctness"] = {"Y": {"relative_error": error, "limit": limit, "passed": error <= limit}}
    return {**line, **given}


@pytest.fixture
def checkpointed() -> Callable[..., dict[str, Any]]:
    """`checkpointed("recompute_optimal", peak, step_ms, budget=0.5, ...)`: a line of phase=checkpoint, in MiB."""
    return make_checkpointed


def make_checkpointed(method: str, peak: float, step_ms: float, **given: Any) -> dict[str, Any]:
    mib = 2**20
    budget, backend, added = given.pop("budget", None), given.pop("backend", None), given.pop("added_ms", 1.0)
    line: dict[str, Any] = {
        **{"schema": 1, "phase": "checkpoint", "method": method, "workload": "tiny_gpt2", "N": None, "K": None},
        **{"B": 8, "dtype": "fp32", "world_size": 1, "device": "cpu", "mask": None},
        "timings_ms": {"total_step": {"p50_ms": step_ms, "p95_ms": step_ms, "min_ms": step_ms, "max_ms": step_ms}},
        "memory": {
            **{"peak_bytes": peak * mib, "static_bytes": 10 * mib, "above_static_bytes": (peak - 10) * mib},
            "baseline_peak_bytes": 80 * mib,
        },
        "proof": {"identical": True},
        "method_config": {"memory_budget": budget, "backend": backend},
    }
    if method.startswith("recompute_"):
        line["plan"] = {
            **{"solver": method, "budget_bytes": 80 * mib * budget, "predicted_peak_bytes": peak * mib * 0.98},
            **{"predicted_step_s": step_ms / 1e3, "predicted_added_s": 2e-3, "planning_s": 0.25},
            **{"bound_added_s": added / 1e3, "recomputed": 3, "activations": 9},
        }
    return {**line, **given}


def make_largest(method: str, memory_gb: int, batch: int) -> dict[str, Any]:
    """A line of phase=largest_batch: `batch` samples of 16 tokens in 2 ms each."""
    line = make_compiled(method, 1000.0 * memory_gb, 2.0 * batch, {}, "", B=batch, budget=1.0)
    found = {"limit_bytes": memory_gb * 10**9, "batch_size": batch, "is_bound": False, "samples_per_s": 500.0}
    found |= {"tokens_per_s": 8000.0, "peak_bytes": memory_gb * 10**9, "tried": [[batch, True], [batch + 1, False]]}
    return line | {"phase": "largest_batch", "timing_mode": "cuda_events", "largest_batch": found}


# GPT-2 on an H100: peak in MiB, step in ms; torch.compile's options and the words that they put into a record.
GPT2: list[tuple[float, float, dict[str, Any], str]] = [
    (4151, 21.5, {}, ""),
    (3954, 27.7, {"memory_budget": 0.5}, ""),
    (2992, 23.6, {"checkpoint": "blocks", "blocks": 0.5}, "0.5 of the blocks"),
    (2144, 25.9, {"checkpoint": "blocks"}, "per block"),
    (2259, 24.7, {"checkpoint": "blocks", "saved": ["attention"]}, "per block, saving attention"),
    (2642, 23.4, {"checkpoint": "blocks", "saved": ["attention", "qkv"]}, "per block, saving attention+qkv"),
    (3300, 22.5, {"loss": "auto_chunker"}, "auto_chunker"),
    (4300, 20.5, {"mode": "reduce-overhead"}, "reduce-overhead"),
]
OURS = [(4150, 21.6, 1.0), (3300, 22.4, 0.8), (2640, 23.5, 0.64), (2140, 24.6, 0.52)]


def make_compiled(
    method: str, peak: float, step: float, config: dict[str, Any], words: str, **fields: Any
) -> dict[str, Any]:
    """A line of a compiled step. `config`: the method's options; `words`: what the record says of them."""
    line = make_checkpointed(method, peak, step, **fields)
    backend = {} if method == "recompute_compiled" else {"backend": "inductor", "mode": "default", "loss": "plain"}
    line["method_config"] = {"memory_budget": 1.0, **backend, **config}
    line["step"] = {"variant": words, "first_s": 40.0}
    return line | {"device": fields.get("device", "H100")}


def make_planned(peak: float, step: float, budget: float, **fields: Any) -> dict[str, Any]:
    """A line of method=recompute_compiled."""
    config = {"memory_budget": budget, "execution": "inductor", "solver": "optimal"}
    line = make_compiled("recompute_compiled", peak, step, config, "optimal", budget=budget, **fields)
    line["plan"] |= {"predicted_peak_bytes": peak * 2**20, "predicted_added_s": max(0, step - 21.5) / 1e3}
    return line


def write_front(write_run: WriteRun) -> None:
    """Every way to lower a compiled step's peak, and ours at four budgets."""
    for number, (peak, step, config, words) in enumerate(GPT2):
        write_run(f"baseline{number}", [make_compiled("torch_compile", peak, step, config, words)])
    for number, point in enumerate(OURS):
        write_run(f"planned{number}", [make_planned(*point)])


@pytest.fixture
def benchmarked(write_run) -> Path:
    """Benchmark folders of one GPU and of two: every part, two N and two B, times that differ; their parent."""
    write_run("bench1", benchmark_rows(1))
    return write_run("bench2", benchmark_rows(2)).parent


def benchmark_rows(world_size: int, sizes: Sequence[tuple[int, int]] = SIZES) -> list[dict[str, Any]]:
    """Lines as `python -m blockshock.bench` wrote them. phase=benchmark has more fields. No two times are alike."""
    masks = ("complement_1100_0011", "complement_1010_0101", "complement_1001_0110", "checkerboard", "random_2of4")
    layers = ("dtensor_row", "dense_tp_row", "torch_semi_structured", "block_shock/1100", "block_shock/checkerboard")
    law = ("dense_tp_row", "dense", "half_k_dense", "block_shock", "sparse_half", "all_reduce")
    parts: dict[str, tuple[str, ...]] = {"forward": layers, "train": layers, "law": law}
    parts |= {"all_reduce": ("nccl", "one_shot", "two_shot")}
    if world_size == 1:
        parts = {"product": ("half_k_dense", "dense", *(f"{mask}/auto" for mask in masks))}
        parts |= {"backward": ("half_k_dense", "half_k_dense/dW", *(f"{m}/{g}" for m in masks for g in ("dX", "dW")))}
    lines = []
    for (part, names), (N, B) in itertools.product(parts.items(), sizes):
        for place, name in enumerate(names):
            method, _, variant = name.partition("/")
            time = (10.0 + N * B / 4096) * (1 + (7 * place + N // 64 + B) % 11 / 12)
            line = {
                **{"schema": 1, "phase": "bench", "timestamp_unix": 1.0, "part": part, "method": method},
                **{"variant": variant, "mask": "", "kernel": "", "N": N, "K": N, "B": B, "dtype": "bfloat16"},
                **{"world_size": world_size, "device": "Hand GPU", "p50_us": time, "eager_p50_us": 3 * time},
                "rounds_us": [0.99 * time, time, 1.02 * time],
            }
            if part == "backward":
                line["quantity"] = "dW" if name.endswith("dW") else "dX"
            if part == "product" and "/" in name:
                kernel = {"name": "triton", "variant": "strided", "split": 2}
                line |= {"kernel": "auto", "detail": kernel, "relative_error": 1e-3, "copy_gbs": 4000.0}
            if part == "train":
                line |= {"state_bytes": N * N, "dense_state_bytes": 2 * N * N}
            if part == "all_reduce":
                line |= {"bytes": 2 * N * B, "chosen": name == "one_shot"}
            if part == "forward":
                line |= {"copy_gbs": 4000.0, "matmul_tflops": 700.0, "link_gbs": 350.0}
            if part == "forward" and method.startswith("block"):
                collective = {"implementation": "one_shot", "chunks": 2, "measured_ms": {"nccl/1": 0.04}}
                line["detail"] = {"kernel": {"name": "sparse_mma", "rows": 64}, "collective": collective}
            lines.append(line)
    return lines


_REGIONS = ("forward", "backward", "opt_step", "compress", "allreduce", "total_step")
