"""The phase diagram's cells as text, and the forwards behind them next to what their parts predict."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.tables import clocks
from sweeps.report.tables.benchmarks import CELL, SETTING, benchmarks
from sweeps.report.tables.diagram.forward_parts import NOT_LOCATED, WITHIN, forward_parts
from sweeps.report.tables.diagram.phase_diagram import phase_diagram
from sweeps.report.tables.report_data import ReportData
from sweeps.text import number, percent


def select_cells(data: ReportData) -> pd.DataFrame:
    return phase_diagram(data.runs)


def cells_table(table: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "family": table["family"],
        **_sizes(table),
        "ratio": table["ratio"].map("{:.3f}".format),
        "from – to": _span(table, "ratio"),
        "outcome": table["decided"],
        "s to break even": [_needed(s) for s in table["s_even"]],
        "fastest": table["contender"],
        "its time, µs": table["p50_us"].map(number),
        "of its parts": table["of_predicted"].map(_ratio),
        "dense": table["dense"],
        "dense, µs": table["dense_us"].map(number),
        "of dense parts": table["dense_of_predicted"].map(_ratio),
        "both within 5%": table["within"].map({True: "yes", False: "no"}).fillna(""),
        "fp8 dense, µs": table["fp8_us"].map(number),
        "× fp8": table["ratio_fp8"].map(_ratio),
        "energy kept": percent(table["energy_kept"]),
    }
    return without_empty_columns(pd.DataFrame(columns).join(clocks.as_text(table)))


def select_parts(data: ReportData) -> pd.DataFrame:
    """Of the forwards that the diagram compares."""
    cells = phase_diagram(data.runs)
    table = benchmarks(data.runs)
    found = forward_parts(table[table["part"].eq("forward")])
    if cells.empty or found.empty:
        return pd.DataFrame()
    pairs = [cells[[*CELL, name]].rename(columns={name: "contender"}) for name in ("contender", "dense")]
    return pd.concat(pairs).drop_duplicates().merge(found, on=[*CELL, "contender"])


def parts_table(table: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "method": table["contender"],
        **_sizes(table),
        "forward, µs": table["p50_us"].map(number),
        "predicted, µs": table["predicted_us"].map(number),
        "measured / predicted": table["of_predicted"].map(_ratio),
        "from – to": _span(table, "of_predicted"),
        "the miss lies in": table["why"],
        "matmul, µs": table["matmul_us"].map(number),
        "collective, µs": table["collective_us"].map(number),
        "chunks": table["parts_chunks"],
        "not hidden, µs": table["inside_us"].map(number),
        "empty step, µs": table["empty_us"].map(number),
        "max(compute, memory, link), µs": (1e3 * table["floor_ms"]).map(number),
        "the largest": table["bound"].fillna(""),
        "SM alone, MHz": table["matmul_sm_mhz"].map(lambda value: "" if pd.isna(value) else f"{value:.0f}"),
    }
    return without_empty_columns(pd.DataFrame(columns).join(clocks.as_text(table)))


def parts_remark(table: pd.DataFrame) -> str:
    within, open_rows = int(table["within"].sum()), int(table["why"].eq(NOT_LOCATED).sum())
    located = len(table) - within - open_rows
    said = f" Within {100 * WITHIN:.0f}%: {within} of {len(table)}; located in a part: {located}; not: {open_rows}."
    return said + clocks.remark(table)


def _sizes(table: pd.DataFrame) -> dict[str, pd.Series]:
    return {
        "N": table["N"],
        **({"K": table["K"]} if table["K"].ne(table["N"]).any() else {}),
        "B": table["B"],
        "P": table["world_size"],
        **{name: table[name] for name in SETTING if table[name].nunique() > 1},
    }


def _span(table: pd.DataFrame, name: str) -> list[str]:
    return [f"{low:.3f} – {high:.3f}" for low, high in zip(table[f"{name}_lo"], table[f"{name}_hi"], strict=True)]


def _ratio(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"


def _needed(s: float) -> str:
    return "none is enough" if np.isinf(s) else f"{s:.2f}"


PHASE_DIAGRAM = Listing(
    "phase_diagram",
    "Phase diagram: cells",
    "Ratio: the time of a family's fastest forward over the fastest dense one's in the same job; from – to: over "
    "processes or, without repeats, over rounds. Of its parts: measured over predicted time, as in the table of parts. "
    "× fp8: its time over that of row-parallel with an fp8 matmul, whose error is larger (table of benchmarks).",
    select_cells,
    cells_table,
    clocks.remark,
)
FORWARD_PARTS = Listing(
    "forward_parts",
    "Phase diagram: forwards and their parts",
    "The matmul and the collective were timed alone in the same job, in turns with the forward. Predicted: the two one "
    "after the other or, in chunks, as a pipeline in which a chunk's sum overlaps the next chunk's matmul. Not hidden: "
    "the collective's time in the forward after the last matmul. max(compute, memory, link): the least time by "
    "calibrated rates.",
    select_parts,
    parts_table,
    parts_remark,
)
