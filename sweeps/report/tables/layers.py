"""What was measured, one row per way of computing one size: the numbers behind the report.

from sweeps.report.tables.layers import drift, results
table = results(load_runs([...]))       # forward, training step, comparisons, errors, bytes
curves = drift(load_runs([...]))        # error against step
"""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from sweeps.report.tables import clocks
from sweeps.report.tables.comparisons import SYSTEM, compare, repeats, with_repeats

DENSE = ("dense_single", "dense_tp_row", "dense_tp_column", "dtensor_row", "dtensor_column")
FP8_ROW = "dense_tp_row_fp8"
METHODS = (*DENSE, FP8_ROW, "masked_split_dense", "torch_semi_structured", "slide_sparse", "block_shock")
PARTS = ("forward", "backward", "opt_step", "compress")
COLLECTIVES = ("allreduce", "allgather", "reducescatter")  # nested in forward and backward
QUANTITIES = ("Y", "dX", "dW")
SIZES = ("N", "K", "B", "world_size")
WHOLE = ("forward", "backward", "total_step")  # no clock measures these as 0: such a time counts as none

# What makes two measurements comparable as repetitions of one another: the table's key and where records hold it.
PROBLEM = {
    "device": "device",
    "backend": "config.hardware.backend",
    "threads_per_rank": "config.hardware.threads_per_rank",
    "driver": "env.driver",
    "torch": "env.torch",
    "dtype": "dtype",
    "workload": "workload",
    "N": "N",
    "K": "K",
    "B": "B",
    "world_size": "world_size",
    "method": "method",
    "kernel": "layer.kernel.name",
    "mask": "mask",
    "options": "options",  # the method's own, beside those above
}
TIMED = {**PROBLEM, "host": "env.host", "timing_mode": "timing_mode", "flush_l2": "flush_l2"}
TRAINING = ("optimizer", "loss", "input_grad")
TRAINED = {**TIMED, "optimizer": "training.optimizer", "loss": "training.loss", "input_grad": "config.phase.input_grad"}


def results(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per method, kernel, mask, size, world size and whatever else was varied; repetitions become medians.

    Times in ms (p50 of the slowest rank), sizes in bytes, errors relative. `speedup` is over `dense_single` at world
    size 1 on the same device with the same inputs, size, dtype and timing, `speedup_row` over `dense_tp_row` on as many
    ranks; `step_speedup` and `step_speedup_row` are those of a training step. `*_lo` and `*_hi` are bootstrap 95%
    intervals (intervals.py), empty where there are too few repeats; `forward_ms` and `step_ms` list the repeats
    and `*_repeated` says what they are. `local_ms` is the forward without its collectives: the rank-local product,
    empty where they were not timed apart. `passed` covers every quantity checked, in any phase.
    """
    records = layer_records(runs)
    forward = _forward(records[records["phase"] == "phase1_forward"])
    backward = _backward(records[records["phase"] == "phase2_backward_input"])
    training = _training(records[records["phase"] == "phase3_train_step"])
    timed = forward.merge(backward, on=list(TIMED), how="outer").merge(training, on=list(TIMED), how="outer")
    table = timed.merge(_accuracy(records), on=list(PROBLEM), how="outer")
    table["memory_peak_kind"] = table["memory_peak_kind"].where(table["memory_peak_kind"].notna(), table.pop("_kind"))
    for key in ("host", "timing_mode", "flush_l2", *TRAINING):
        table[key] = table[key].fillna("")
    table = compare(compare(table, "forward", ""), "step", "step_", also=TRAINING)
    table["roofline_fraction"] = table["forward_floor_ms"] / table["forward_p50_ms"]
    table["step_roofline_fraction"] = table["step_floor_ms"] / table["step_p50_ms"]
    layer = pd.Series(["(" not in name for name in table["workload"]], table.index, bool)  # no pair and no model
    table["tflops"] = (2 * table["B"] * table["N"] * table["K"] / table["forward_p50_ms"] / 1e9).where(layer)
    table["step_rows_per_s"] = table["B"] / table["step_p50_ms"] * 1e3
    table[list(SIZES)] = table[list(SIZES)].astype("int64")
    return _in_order(table)[list(COLUMNS)]


COLUMNS = (
    *("method", "kernel", "mask", "options", "workload", "N", "K", "B", "dtype", "world_size", "device", "backend"),
    *("threads_per_rank", *SYSTEM, "timing_mode", "flush_l2", *TRAINING),
    *("forward_p50_ms", "forward_lo_ms", "forward_hi_ms", "forward_repeated", "forward_ms"),
    *("local_ms", "link_gbs", *(f"forward_{name}" for name in clocks.COLUMNS)),
    *("speedup", "speedup_lo", "speedup_hi", "speedup_row", "speedup_row_lo", "speedup_row_hi"),
    *("tflops", "forward_floor_ms", "roofline_fraction", "bound"),
    *(f"forward_{name}_p50_ms" for name in COLLECTIVES),
    *("y_relative_error", "y_error_limit", "dx_relative_error", "dx_error_limit", "dw_relative_error"),
    *("dw_error_limit", "dense_relative_error", "passed", "failed_checks", "backward_input_p50_ms"),
    *("step_p50_ms", "step_lo_ms", "step_hi_ms", "step_repeated", "step_ms"),
    *("step_speedup", "step_speedup_lo", "step_speedup_hi"),
    *("step_speedup_row", "step_speedup_row_lo", "step_speedup_row_hi", "step_rows_per_s"),
    *(f"step_{part}_p50_ms" for part in (*PARTS, *COLLECTIVES)),
    *("step_rest_p50_ms", "step_floor_ms", "step_roofline_fraction", *(f"step_{name}" for name in clocks.COLUMNS)),
    *("weight_bytes_per_rank", "gradient_bytes_per_rank", "optimizer_bytes_per_rank"),
    *("forward_memory_peak_bytes", "step_memory_peak_bytes", "memory_peak_kind"),
    *("forward_folder", "step_folder"),  # of several runs the first
)


def drift(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per drift run and step: the key, `mode`, `step`, `error` and `dense_error`.

    Of models also the training `loss`, and how far it and a dense run's in the same dtype are from float64's:
    `loss_distance` and `dense_loss_distance`.
    """
    records = layer_records(runs)
    records = records[_column(records, "drift.step").notna()]
    names = {"mode": "drift.mode", "step": "drift.step", "error": "drift.output_error"}
    names |= {"dense_error": "drift.dense_output_error", "folder": "folder"}
    loss, dense, exact = (
        _column(records, f"drift.{name}").astype(float) for name in ("loss", "dense_loss", "exact_loss")
    )
    curves = records[list(PROBLEM)].assign(
        **{new: _column(records, old) for new, old in names.items()},
        loss=loss,
        loss_distance=(loss - exact).abs(),
        dense_loss_distance=(dense - exact).abs(),
    )
    return _in_order(curves.astype(dict.fromkeys(SIZES, "int64")), then=["folder", "step"])


def in_use(table: pd.DataFrame, key: str) -> bool:
    """Does `key` tell rows apart?"""
    values = table.loc[table[key] != "", key]
    return values.nunique() > 1 or (key == "kernel" and len(values) > 0)


def layer_records(runs: pd.DataFrame) -> pd.DataFrame:
    """The records of the layers' phases, with the columns of the keys filled in and made comparable."""
    phase = _column(runs, "phase").astype("string").fillna("")
    found = runs.assign(phase=phase)[phase.str.match(r"phase[0-3x]_")].copy()
    for name, source in TRAINED.items():
        found[name] = _column(found, source)
        if name not in SIZES:
            found[name] = found[name].map(_text).astype(object)
    cpu = (found["device"] == "cpu") & _column(found, "env.cpu.name").notna()
    found.loc[cpu, "device"] = _column(found, "env.cpu.name").map(_text)
    for region in WHOLE:
        name = f"timings_ms.{region}.p50_ms"
        found[name] = _numbers(found, name).where(lambda times: times > 0)
    found["options"] = _options(found)
    found["workload"] = pd.Series(_workload(found), found.index, object)
    kept = _kept(found)
    found.loc[found["method"].isin([*DENSE, FP8_ROW]), "mask"] = ""  # they use none
    found["mask"] = pd.Series(
        [f"{a}{b}".strip() for a, b in zip(found["mask"], kept, strict=True)], found.index, object
    )
    return found


def _workload(records: pd.DataFrame) -> list[str]:
    """`mlp_block (hidden 4096, gelu)`, `gpt2 (its MLPs over ranks)`: what isn't one layer says so, and stands apart."""
    columns = ("hidden", "activation", "gated", "pairing", "layers")
    given = [_column(records, f"config.workload.{name}").map(_text) for name in columns]
    pairings = _column(records, "layer.pairing").map(_text)
    names = []
    for name, hidden, act, gated, asked, layers, pairing in zip(records["workload"], *given, pairings, strict=True):
        of_pair = [f"hidden {hidden}", act, "gated" * (gated == "True"), pairing * (asked != "auto")]
        inside = _OVER_RANKS.get(layers, layers) if layers else ", ".join(filter(None, of_pair)) if hidden else ""
        names.append(f"{name} ({inside})" if inside else name)
    return names


OVER_RANKS = "over ranks)"  # how the workload of a model with such layers ends
_OVER_RANKS = {
    "mlp": "its MLPs over ranks",
    "attention": "its attention over ranks",
    "mlp+attention": "its MLPs and attention over ranks",
}


def _kept(records: pd.DataFrame) -> list[str]:
    """` (keeps 94% of the energy)` of each window mask, the median over its records; nothing of other masks."""
    energy = _numbers(records, "energy_kept")
    share = energy.groupby(records["mask"]).transform("median")
    return [
        "" if pd.isna(kept) else f" (keeps {100 * kept:.0f}% of the energy)" for kept in share.where(energy.notna())
    ]


def _options(records: pd.DataFrame) -> pd.Series:
    """The method's options as text, for example `compress_every=1, weights=masked`."""
    prefix = "config.method."
    known = {f"{prefix}{name}" for name in ("_target_", "name", "kernel")}
    columns = sorted(name for name in map(str, records) if name.startswith(prefix) and name not in known)
    texts = pd.Series("", index=records.index, dtype=object)
    for name in columns:
        given = records[name].notna()
        if not given.any():
            continue
        parts = f"{name.removeprefix(prefix)}=" + records.loc[given, name].map(_text)
        texts[given] = texts[given].where(texts[given] == "", texts[given] + ", ") + parts
    return texts


def _forward(records: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "forward_p50_ms": "timings_ms.forward.p50_ms",
        "forward_floor_ms": "roofline.floor_ms",
        "forward_memory_peak_bytes": "memory_peak_bytes",
        "link_gbs": "roofline.rates.link_gbs",
        **{f"forward_{name}_p50_ms": f"timings_ms.{name}.p50_ms" for name in COLLECTIVES},
    }
    found = _medians(records, TIMED, columns)
    texts = {"bound": "roofline.bound", "memory_peak_kind": "memory_peak_kind", "forward_folder": "folder"}
    found = found.merge(_firsts(records, TIMED, texts), on=list(TIMED), how="left")
    found = found.merge(_clocks(records, TIMED, "forward"), on=list(TIMED), how="left")
    found = with_repeats(found, repeats(records, list(TIMED), "forward"), "forward")
    local = with_repeats(found, repeats(records, list(TIMED), "forward", COLLECTIVES), "local")
    alone = (found["world_size"] == 1).astype(bool)
    told = alone | found[[f"forward_{name}_p50_ms" for name in COLLECTIVES]].notna().any(axis=1)
    return found.assign(local_ms=local["local_ms"].where(told))  # collectives inside PyTorch's own layers are not timed


def _backward(records: pd.DataFrame) -> pd.DataFrame:
    return _medians(records, TIMED, {"backward_input_p50_ms": "timings_ms.backward.p50_ms"})


def _training(records: pd.DataFrame) -> pd.DataFrame:
    """The step, its parts, and what is left of it; parts are timed inside the step, each with its own clock. Where a
    forward compresses, that part of it counts as `compress` alone."""
    if not records.empty:
        forward, compress = (_numbers(records, f"timings_ms.{part}.p50_ms") for part in ("forward", "compress"))
        inside = (_column(records, "layer.compresses") == "forward") & compress.notna()
        records = records.assign(**{"timings_ms.forward.p50_ms": forward.where(~inside, forward - compress)})
    columns = {f"step_{part}_p50_ms": f"timings_ms.{part}.p50_ms" for part in (*PARTS, *COLLECTIVES)}
    columns |= {"step_p50_ms": "timings_ms.total_step.p50_ms", "step_floor_ms": "roofline.floor_ms"}
    columns |= {"step_memory_peak_bytes": "memory_peak_bytes"}
    columns |= {"gradient_bytes_per_rank": "gradient_bytes", "optimizer_bytes_per_rank": "optimizer_bytes"}
    found = _medians(records, TRAINED, columns)
    parts = found[[f"step_{part}_p50_ms" for part in PARTS]].sum(axis=1, min_count=1)
    found["step_rest_p50_ms"] = (found["step_p50_ms"] - parts).clip(lower=0.0)
    texts = {"_kind": "memory_peak_kind", "step_folder": "folder"}
    found = found.merge(_firsts(records, TRAINED, texts), on=list(TRAINED), how="left")
    found = found.merge(_clocks(records, TRAINED, "step"), on=list(TRAINED), how="left")
    return with_repeats(found, repeats(records, list(TRAINED), "total_step"), "step")


def _accuracy(records: pd.DataFrame) -> pd.DataFrame:
    """Each quantity's worst error against its limit (phase 0's where it ran), what failed in any phase, the weights'
    size."""
    one = pd.DataFrame(index=records.set_index(list(PROBLEM)).index.unique())
    second_hand = records["phase"] != "phase0_correctness"
    for name in QUANTITIES:
        found = records[list(PROBLEM)].copy()
        found["error"] = _numbers(records, f"correctness.{name}.relative_error")
        found["limit"] = _numbers(records, f"correctness.{name}.limit")
        found["dense"] = _numbers(records, f"correctness.{name}.dense_relative_error")
        ratio = found["error"] / found["limit"]
        ordered = found.assign(_second=second_hand | ratio.isna(), _ratio=ratio)
        ordered = ordered.sort_values(["_second", "_ratio"], ascending=[True, False], kind="stable")
        first = ordered.groupby(list(PROBLEM), sort=False, dropna=False)[["error", "limit", "dense"]].first()
        one[f"{name.lower()}_relative_error"] = first["error"]
        one[f"{name.lower()}_error_limit"] = first["limit"]
        if name == "Y":
            one["dense_relative_error"] = first["dense"]
    judged = [name.split(".")[1] for name in map(str, records) if re.fullmatch(r"correctness\.\w+\.passed", name)]
    names = [*QUANTITIES, *sorted({*judged} - {*QUANTITIES})]  # and dW_up, dW_mlp and the like
    verdicts = {name: _column(records, f"correctness.{name}.passed") for name in names}
    checked = pd.concat([verdict.notna() for verdict in verdicts.values()], axis=1).any(axis=1)
    rows_judged = records[list(PROBLEM)].assign(checked=checked, weight_bytes=_numbers(records, "weight_bytes"))
    for name, verdict in verdicts.items():
        rows_judged[name] = verdict.map(lambda passed: passed is False or passed == 0).astype(bool)
    groups = rows_judged.groupby(list(PROBLEM), sort=False, dropna=False)
    one["weight_bytes_per_rank"] = groups["weight_bytes"].first()
    failed = groups[list(verdicts)].any().reindex(one.index)
    rows = failed.to_numpy()
    one["failed_checks"] = [", ".join(name for name, bad in zip(verdicts, row, strict=True) if bad) for row in rows]
    one["passed"] = (~failed.any(axis=1)).where(groups["checked"].any()).astype("boolean")
    return one.reset_index()


def _medians(records: pd.DataFrame, keys: dict[str, str], columns: dict[str, str]) -> pd.DataFrame:
    values = records[list(keys)].assign(**{new: _numbers(records, old) for new, old in columns.items()})
    return values.groupby(list(keys), dropna=False)[list(columns)].median().reset_index()


def _firsts(records: pd.DataFrame, keys: dict[str, str], columns: dict[str, str]) -> pd.DataFrame:
    found = records[list(keys)].assign(**{new: _column(records, old) for new, old in columns.items()})
    return found.drop_duplicates(list(keys))


def _clocks(records: pd.DataFrame, keys: dict[str, str], name: str) -> pd.DataFrame:
    found = clocks.over_repeats(records[list(keys)].join(clocks.clock_columns(records)), list(keys))
    return found.add_prefix(f"{name}_").reset_index()


def _in_order(table: pd.DataFrame, then: list[str] | None = None) -> pd.DataFrame:
    """By what was computed first (device, dtype, size, world size), then by method, so that rivals stand together."""
    modes = table["timing_mode"].map({"cuda_graph": 0}).fillna(1) if "timing_mode" in table else 0
    rank = table["method"].map({name: i for i, name in enumerate(METHODS)}).fillna(len(METHODS))
    tail = [key for key in ("timing_mode", "flush_l2", *TRAINING) if key in table]
    order = [
        "device",
        "dtype",
        "workload",
        "N",
        "K",
        "B",
        "_mode",
        *tail[:2],
        "world_size",
        "_rank",
        "method",
        "kernel",
    ]
    order += ["mask", "options", *tail[2:], *(key for key in SYSTEM if key in table), *(then or [])]
    ordered = table.assign(_rank=rank, _mode=modes).sort_values(order)
    return ordered.drop(columns=["_rank", "_mode"]).reset_index(drop=True)


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[name] if name in frame else pd.Series(index=frame.index, dtype=object)


def _numbers(frame: pd.DataFrame, name: str) -> pd.Series:
    return pd.to_numeric(_column(frame, name)).astype(float)


def _text(value: Any) -> str:
    """One spelling a value: a column with gaps holds 1 as 1.0, and nothing as NaN."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
