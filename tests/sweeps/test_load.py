from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sweeps import load, load_runs


def test_a_row_is_a_record_with_its_configuration_environment_and_status(write_run, record, tmp_path):
    write_run("a", [record("phase1_forward", "dense_single", forward=2.0), record("phase1_forward", "dense_single")])
    runs = load_runs([tmp_path])
    assert len(runs) == 2
    assert runs["timings_ms.forward.p50_ms"].iloc[0] == 2.0
    assert runs["config.model.N"].tolist() == [64, 64]
    assert runs["env.torch"].tolist() == ["9.9.9+hand"] * 2
    assert runs["status"].tolist() == ["ok", "ok"]


@pytest.mark.parametrize("status", ["running", "failed", "oom", "timeout", "unsupported"])
def test_a_run_without_records_is_one_row_of_its_status(write_run, tmp_path, status):
    write_run("a", None, status=status, reason="because")
    runs = load_runs([tmp_path])
    assert runs[["status", "reason"]].to_numpy().tolist() == [[status, "because"]]


def test_a_line_still_being_written_is_left_out(write_run, record, tmp_path):
    folder = write_run("a", [record("phase1_forward", "dense_single")], status="running")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"schema": 1, "phase": "phase1_for')
    assert len(load_runs([tmp_path])) == 1


def test_a_folder_that_has_just_been_made_loads(write_run, tmp_path):
    folder = write_run("a", None, status="running")
    os.unlink(folder / "config.yaml")
    os.unlink(folder / "env.json")
    assert load_runs([tmp_path])["status"].tolist() == ["running"]


def test_a_configuration_is_read_as_yaml_reads_it_though_sections_are_parsed_apart(write_run, tmp_path):
    folder = write_run("a", None)
    text = "a:\n  b: 1.5\n  'N': 8\n  list:\n  - 1\n  - x: 2\nc: null\nd: >\n  folded\n  text\n'e f': {g: yes}\n"
    (folder / "config.yaml").write_text(text)
    row = load_runs([tmp_path]).iloc[0].to_dict()
    flat = pd.json_normalize(yaml.safe_load(text)).iloc[0].to_dict()
    assert {key.removeprefix("config."): value for key, value in row.items() if key.startswith("config.")} == flat


def test_a_folder_that_is_being_cleared_for_another_try_is_passed_over(write_run, tmp_path, monkeypatch):
    write_run("a", None)
    gone = write_run("b", None)
    found = load.run_folders(tmp_path)
    (gone / "status.json").unlink()
    monkeypatch.setattr(load, "run_folders", lambda path: found)
    assert len(load_runs([tmp_path])) == 1


def test_a_file_that_is_no_record_is_named(write_run, tmp_path):
    folder = write_run("a", [])
    (folder / "metrics.jsonl").write_text("not json\n")
    with pytest.raises(ValueError, match=r"a/metrics\.jsonl: not JSON"):
        load_runs([tmp_path])


def test_a_run_below_two_of_the_paths_counts_once(write_run, record, tmp_path):
    folder = write_run("a", [record("phase1_forward", "dense_single")])
    write_run("b", [record("phase1_forward", "block_shock")])
    assert len(load_runs([folder, tmp_path, str(tmp_path)])) == 2


def test_a_missing_path_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_runs([tmp_path / "nowhere"])


def test_no_runs_is_an_empty_table(tmp_path: Path):
    assert load_runs([tmp_path]).empty
