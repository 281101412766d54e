"""`blockshock-report DIR --export FORMAT`: the records and tables in the format of another program, by its own library.

export([Path("outputs/sweeps/first_picture")], "parquet", Path("exported"))

To add a format, write its function and list it here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockshock.errors import ConfigError, one_of, writable
from sweeps.report.exports.event_files import write_events
from sweeps.report.exports.frames import write_csv_files, write_parquet_files
from sweeps.report.exports.mlflow_runs import write_mlflow
from sweeps.report.tables.report_data import ReportData, read_report_data
from sweeps.text import shown


@dataclass(frozen=True)
class Export:
    write: Callable[[ReportData, Path], str]  # into a new folder; what was written, in a few words
    modules: tuple[str, ...] = ()  # that it needs
    extra: str = ""  # of pyproject.toml, which brings them


EXPORTS = {
    "csv": Export(write_csv_files),
    "parquet": Export(write_parquet_files, ("pyarrow",), "parquet"),
    "tensorboard": Export(write_events, ("tensorboard",), "tensorboard"),
    "mlflow": Export(write_mlflow, ("mlflow", "sqlalchemy", "alembic"), "mlflow"),
}


def export(paths: Sequence[Path], name: str, out: Path | None) -> None:
    """Write into the new folder `out`, by default <first path>/export_<name>.

    Raises ConfigError for an unknown format, a missing library or a folder in use; ValueError and OSError of paths.
    """
    one_of("--export", name, EXPORTS)
    chosen = EXPORTS[name]
    missing = [module for module in chosen.modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError("--export", name, f"needs {missing[0]}: pip install 'block-shock[{chosen.extra}]'")
    first = paths[0]
    target = out or (first.parent if first.is_file() else first) / f"export_{name}"
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError("--out", shown(target), "is there already; give a new folder")
    writable("--out", target)
    data = read_report_data(paths)
    target.mkdir(parents=True, exist_ok=True)
    print(f"{chosen.write(data, target)} in {shown(target)}")
