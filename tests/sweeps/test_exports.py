"""blockshock-report --export: what other programs read back is what load_runs reads."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sweeps import load_runs
from sweeps.report import command, exports
from sweeps.report.exports import EXPORTS, export
from sweeps.report.tables.report_data import read_report_data
from tests.import_graph import ROOT

PACKED = ROOT / "outputs" / "reference" / "checkpoint_h200"
DRIFT_RUNS = 3


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return load_runs([PACKED])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some jobs of a sweep as a packed experiment of their own: a forward pass, drift curves, and one that failed."""
    import gzip

    lines = (
        gzip.decompress((ROOT / "outputs/reference/hypotheses_h200/runs.jsonl.gz").read_bytes()).decode().splitlines()
    )
    all_runs = [json.loads(line) for line in lines]
    drift = [run for run in all_runs if run["records"][0]["phase"] == "phasex_drift"][:DRIFT_RUNS]
    forward = [run for run in all_runs if run["records"][0]["phase"] == "phase1_forward"][:2]
    failed = forward[1] | {"records": [], "status": forward[1]["status"] | {"status": "failed", "reason": "it broke"}}
    file = tmp_path_factory.mktemp("few") / "runs.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(run) + "\n" for run in [*drift, forward[0], failed]).encode()))
    return file


def test_csv_holds_every_record_and_every_table(runs: pd.DataFrame, tmp_path: Path, capsys) -> None:
    export([PACKED], "csv", tmp_path / "out")
    back = pd.read_csv(tmp_path / "out" / "records.csv", low_memory=False)
    assert list(back) == list(runs)
    np.testing.assert_allclose(back["memory.peak_bytes"], runs["memory.peak_bytes"].astype(float))
    table = pd.read_csv(tmp_path / "out" / "recomputation.csv")
    np.testing.assert_allclose(table["peak_bytes"], read_report_data([PACKED]).recomputed["peak_bytes"])
    assert capsys.readouterr().out.startswith("2 CSV files (records, recomputation) in ")


def test_parquet_keeps_numbers_and_gaps(runs: pd.DataFrame, tmp_path: Path) -> None:
    export([PACKED], "parquet", tmp_path / "out")
    back = pd.read_parquet(tmp_path / "out" / "records.parquet")
    assert list(back) == list(runs)
    assert back["memory.peak_bytes"].dtype.kind in "fi"
    pd.testing.assert_series_equal(
        back["memory.peak_bytes"].astype(float), runs["memory.peak_bytes"].astype(float), check_index=False
    )
    assert json.loads(back["env.gpus"].dropna().iloc[0]) == runs["env.gpus"].dropna().iloc[0]
    table = pd.read_parquet(tmp_path / "out" / "recomputation.parquet")
    np.testing.assert_allclose(table["step_p50_ms"], read_report_data([PACKED]).recomputed["step_p50_ms"])


BLOCKS = "timings_ms.forward.blocks_p50_ms"


def test_lists_are_json_in_csv_and_lists_in_parquet(few: Path, tmp_path: Path) -> None:
    lists = load_runs([few])[BLOCKS].dropna().tolist()
    assert [len(one) for one in lists] == [5]
    for name in ("csv", "parquet"):
        export([few], name, tmp_path / name)
    back = pd.read_csv(tmp_path / "csv" / "records.csv", low_memory=False)
    assert [json.loads(value) for value in back[BLOCKS].dropna()] == lists
    back = pd.read_parquet(tmp_path / "parquet" / "records.parquet")
    assert [list(value) for value in back[BLOCKS].dropna()] == lists


def test_tensorboard_reads_a_run_per_job_with_its_curve_and_configuration(few: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    export([few], "tensorboard", tmp_path / "out")
    runs = load_runs([few])
    drift = runs[runs["phase"] == "phasex_drift"]
    folder = drift["folder"].iloc[0]
    assert len(list((tmp_path / "out").iterdir())) == runs["folder"].nunique() == DRIFT_RUNS + 2
    events = EventAccumulator(str(tmp_path / "out" / Path(folder).name)).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("drift/output_error")]
    own = drift[(drift["folder"] == folder) & drift["drift.output_error"].notna()]
    assert len(curve) > 3
    assert [step for step, _ in curve] == own["drift.step"].astype(int).tolist()
    np.testing.assert_allclose([value for _, value in curve], own["drift.output_error"].astype(float), rtol=1e-6)
    data = HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info
    assert data.hparams["model.N"].number_value == own["N"].iloc[0]
    assert data.hparams["method.name"].string_value == own["method"].iloc[0]


@pytest.mark.slow
def test_mlflow_reads_experiments_runs_parameters_metrics_and_how_they_ended(few: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    export([few], "mlflow", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mlflow.db"]
    runs = load_runs([few])
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    assert experiment.name == runs["config.experiment.name"].iloc[0]
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(found) == runs["folder"].nunique()
    own = runs[runs["phase"] == "phase1_forward"].iloc[0]
    run = found[Path(own["folder"]).name]
    assert run.info.status == "FINISHED"
    assert run.data.params["model.N"] == str(int(own["N"]))
    assert run.data.metrics["timings_ms.forward.p50_ms"] == pytest.approx(own["timings_ms.forward.p50_ms"])
    assert run.data.tags["config_hash"] == own["config_hash"]
    curve = runs[runs["drift.output_error"].notna()]
    first = curve[curve["folder"] == curve["folder"].iloc[0]]
    history = client.get_metric_history(found[Path(first["folder"].iloc[0]).name].info.run_id, "drift.output_error")
    assert {(one.step, one.value) for one in history} == set(
        zip(first["drift.step"].astype(int), first["drift.output_error"].astype(float), strict=True)
    )
    (broken,) = [one for one in found.values() if one.info.status == "FAILED"]
    assert (broken.data.tags["status"], broken.data.tags["reason"]) == ("failed", "it broke")
    assert broken.data.metrics == {}


@pytest.mark.parametrize(("name", "extra"), [(name, kind.extra) for name, kind in EXPORTS.items() if kind.modules])
def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(
    name: str, extra: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    import tomllib

    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert refused(monkeypatch, capsys, name, tmp_path / "out") == (
        f"blockshock-report: --export={name}: needs {EXPORTS[name].modules[0]}: pip install 'block-shock[{extra}]'\n"
    )
    assert not (tmp_path / "out").exists()
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def refused(monkeypatch, capsys, name: str, out: Path) -> str:
    monkeypatch.setattr(command, "check_packages", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["blockshock-report", str(PACKED), "--export", name, "--out", str(out)])
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 2
    return capsys.readouterr().err


def test_wrong_formats_and_folders_in_use_are_rejected_in_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    said = refused(monkeypatch, capsys, "tensorbord", tmp_path / "out")
    assert said == (
        "blockshock-report: --export=tensorbord: allowed: csv, parquet, tensorboard, mlflow; "
        "did you mean 'tensorboard'?\n"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    said = refused(monkeypatch, capsys, "csv", tmp_path / "mine")
    assert said.endswith("mine: is there already; give a new folder\n")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_names_of_runs_are_told_apart_by_as_much_of_their_paths_as_it_takes() -> None:
    from sweeps.report.exports.one_run import _names

    assert _names(["a/x/1", "a/y/1", "a/y/2"]) == {"a/x/1": "x_1", "a/y/1": "y_1", "a/y/2": "y_2"}
    assert _names(["a/x/1", "a/x/2"]) == {"a/x/1": "1", "a/x/2": "2"}
    assert exports.EXPORTS.keys() == {"csv", "parquet", "tensorboard", "mlflow"}
