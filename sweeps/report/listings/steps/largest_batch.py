"""The largest batch of each method in each memory, as text."""

from __future__ import annotations

import pandas as pd

from sweeps.report.listings.listing import Listing, without_empty_columns
from sweeps.report.listings.steps.recomputation import plain
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.steps.largest_batch import batch_text, next_to_torch_compile
from sweeps.text import number, times

GB = 1e9


def select(data: ReportData) -> pd.DataFrame:
    return next_to_torch_compile(data.largest)


def show(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text."""
    columns = {
        "method": table["variant"],
        "model": table["model"],
        "memory, GB": (table["limit_bytes"] / GB).map(number),
        "largest batch": batch_text(table),
        "samples per s": table["samples_per_s"].map(number),
        "tokens per s": table["tokens_per_s"].map(number),
        "× torch.compile's": table["over_alone"].map(times),
        "step, ms": table["step_p50_ms"].map(number),
        "peak, GB": (table["peak_bytes"] / GB).map(number),
        "tokens a row": table["seq_len"].map(plain),
        "dtype": table["dtype"],
        "autocast": table["autocast"],
        "device": table["device"],
    }
    return without_empty_columns(pd.DataFrame(columns))


LARGEST_BATCH = Listing(
    "largest_batch",
    "Largest batch and throughput",
    "The largest batch whose training step fits the memory, found by doubling and halving, and its median step. On a "
    "GPU the memory is a limit on PyTorch's allocator, on a CPU it is compared with the planner's count of living "
    "storages. × torch.compile's: samples per second over torch.compile alone in the same memory.",
    select,
    show,
)
