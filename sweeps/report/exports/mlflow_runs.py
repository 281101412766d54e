"""An MLflow store in one SQLite file: an experiment per sweep, a run per job, with parameters, metrics and tags."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.report.exports.one_run import OneRun, each_run
from sweeps.report.tables.report_data import ReportData
from sweeps.text import counted

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LONGEST = 6000  # characters of a parameter's value; of a tag's 5000
AT_ONCE = 100  # parameters or tags of one call; 1000 metrics


def write_mlflow(data: ReportData, folder: Path) -> str:
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table of its database
    logging.getLogger("alembic").setLevel(logging.WARNING)
    store = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    client = MlflowClient(tracking_uri=store)
    experiments: dict[str, str] = {}
    count = 0
    for run in each_run(data.runs):
        if run.experiment not in experiments:
            place = (folder / "artifacts").resolve().as_uri()
            experiments[run.experiment] = client.create_experiment(run.experiment, artifact_location=place)
        _write(client, experiments[run.experiment], run)
        count += 1
    return f"{counted(count, 'run')} in mlflow.db, for mlflow ui --backend-store-uri {store};"


def _write(client: MlflowClient, experiment: str, run: OneRun) -> None:
    from mlflow.entities import Metric, Param, RunTag

    made = client.create_run(experiment, run_name=run.name, start_time=_ms(run.ran_on.get("started")))
    params = [Param(_key(key), str(value)[:LONGEST]) for key, value in run.set.items()]
    tags = [RunTag(_key(key), value[:5000]) for key, value in (run.ran_on | {"status": run.status}).items()]
    metrics = [
        Metric(_key(name), number, round(1000 * measured.unix_s), measured.step)
        for measured in run.measurements
        for name, number in measured.numbers.items()
    ]
    for start in range(0, max(len(params), len(tags)), AT_ONCE):
        end = start + AT_ONCE
        client.log_batch(made.info.run_id, params=params[start:end], tags=tags[start:end])
    for start in range(0, len(metrics), 10 * AT_ONCE):
        client.log_batch(made.info.run_id, metrics=metrics[start : start + 10 * AT_ONCE])
    ended = "FINISHED" if run.status == "ok" else "RUNNING" if run.status == "running" else "FAILED"
    client.set_terminated(made.info.run_id, status=ended, end_time=_ms(run.ran_on.get("ended")))


def _ms(time: str | None) -> int | None:
    return None if time is None else round(1000 * datetime.fromisoformat(time).timestamp())


def _key(name: str) -> str:
    """MLflow takes letters, digits and _ - . : / and spaces."""
    return re.sub(r"[^\w\-.:/ ]", "_", name)[:250]
