"""Tables as files: numbers as CSV, text as Markdown."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sweeps.text import markdown


def write_table(base: Path, shown: pd.DataFrame, numbers: pd.DataFrame | None = None) -> tuple[str, ...]:
    """<base>.csv and <base>.md; their paths from the report."""
    if shown.empty:
        return ()
    (shown if numbers is None else numbers).to_csv(base.with_suffix(".csv"), index=False)
    base.with_suffix(".md").write_text(markdown(shown.astype(str)), encoding="utf-8")
    return tuple(f"{base.parent.name}/{base.name}{ending}" for ending in (".csv", ".md"))


def text_lists(table: pd.DataFrame) -> pd.DataFrame:
    """Repeats as `0.5;0.6;0.4`, which a spreadsheet can split."""
    lists = [name for name in ("forward_ms", "local_ms", "step_ms", "rounds_us") if name in table]
    as_text = {name: table[name].map(lambda v: ";".join(map(repr, v)) if isinstance(v, list) else "") for name in lists}
    return table.assign(**as_text)
