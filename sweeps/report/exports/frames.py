"""Every record, and the numbers behind every table of the report, as CSV or Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from sweeps.report.listings import LISTINGS
from sweeps.report.listings.listing import text_lists
from sweeps.report.spreadsheet import write_csv
from sweeps.report.tables.report_data import ReportData
from sweeps.text import counted


def write_csv_files(data: ReportData, folder: Path) -> str:
    """<table>.csv each; lists are JSON in records.csv, and `0.5;0.6` in the others."""
    names = []
    for name, table in _tables(data):
        plain = table.map(_json_of_list) if name == RECORDS else text_lists(table)
        write_csv(plain, folder / f"{name}.csv")
        names.append(name)
    return f"{counted(len(names), 'CSV file')} ({', '.join(names)})"


def write_parquet_files(data: ReportData, folder: Path) -> str:
    """<table>.parquet each; lists stay lists, and a column of several types is text."""
    names = []
    for name, table in _tables(data):
        columns = {str(column): _one_type(table[column]) for column in table}
        pd.DataFrame(columns, index=table.index).to_parquet(folder / f"{name}.parquet", index=False, engine="pyarrow")
        names.append(name)
    return f"{counted(len(names), 'Parquet file')} ({', '.join(names)})"


RECORDS = "records"


def _tables(data: ReportData) -> Iterator[tuple[str, pd.DataFrame]]:
    """Those that have a row."""
    yield RECORDS, data.runs
    for listing in LISTINGS:
        table = listing.select(data)
        if len(table):
            yield listing.name, table


def _json_of_list(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _one_type(column: pd.Series) -> pd.Series:
    """What Arrow can hold: numbers, booleans, texts, or lists of numbers; otherwise JSON."""
    if column.dtype != object:
        return column
    there = column.dropna()
    kinds = {bool if isinstance(value, bool) else type(value) for value in there}
    if kinds <= {bool} or kinds <= {str}:
        return column
    if kinds <= {int, float}:
        return pd.to_numeric(column)
    if kinds == {list} and all(isinstance(item, int | float) for value in there for item in value):
        return column
    return column.map(lambda value: value if value is None or value != value else json.dumps(value, default=str))
