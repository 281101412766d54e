from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from blockshock import SCHEMA
from blockshock.run_folder.folder import RunFolder
from sweeps import load_runs
from sweeps.report.records import load
from tests.sweeps.conftest import make_record


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
    found = load.find_runs([tmp_path])
    (gone / "status.json").unlink()
    monkeypatch.setattr(load, "find_runs", lambda paths: found)
    assert len(load_runs([tmp_path])) == 1


BROKEN_STATUS = {
    '{"sta': r"status\.json: not JSON",
    "": r"status\.json: empty",
    "[1,2]": r"status\.json: not a JSON object",
    "{}": r"status\.json: status is missing",
    '{"status":"weird"}': r"status\.json: reason is missing",
}


@pytest.mark.parametrize("text", BROKEN_STATUS)
def test_a_run_whose_status_is_broken_is_unreadable_and_the_others_load(write_run, tmp_path, text):
    folder = write_run("a")
    write_run("b")
    (folder / "status.json").write_text(text)
    runs = load_runs([tmp_path]).set_index("folder")
    assert runs.loc[str(folder), "status"] == "unreadable"
    assert re.match(BROKEN_STATUS[text], runs.loc[str(folder), "reason"])
    assert runs["status"].tolist() == ["unreadable", "ok"]
    assert not RunFolder(folder).is_done()


def test_a_status_that_does_not_exist_or_a_time_that_is_none_is_unreadable(write_run):
    folder = write_run("a")
    good = json.loads((folder / "status.json").read_text())
    for key, value in (("status", "weird"), ("started", "yesterday"), ("started", "2026-01-02"), ("pid", "one")):
        (folder / "status.json").write_text(json.dumps({**good, key: value}))
        assert RunFolder(folder).status()["status"] == "unreadable"


GOOD = make_record("phase1_forward", "block_shock", forward=1.0)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.yaml", b"a: [", r"config\.yaml: not YAML"),
        ("config.yaml", b"- a", r"config\.yaml: not keys and values"),
        ("config.yaml", b"\xff\xfe\x00", r"config\.yaml: not text"),
        ("env.json", b"{", r"env\.json: not JSON"),
        ("env.json", b"[]", r"env\.json: not a JSON object"),
        ("env.json", b'{"gpus": [1]}', r"env\.json: gpus\[0\]: Expected object, got int"),
        ("metrics.jsonl", b"\xff\x00\n", r"metrics\.jsonl: not text"),
        ("metrics.jsonl", b"not json\n", r"metrics\.jsonl: line 1: not JSON"),
        ("metrics.jsonl", b"[1]\n", r"metrics\.jsonl: line 1: not a JSON object"),
        ("metrics.jsonl", b"{}\n", r"metrics\.jsonl: line 1: phase is missing"),
        ("metrics.jsonl", json.dumps(GOOD).encode(), r"metrics\.jsonl: line 1: not whole"),
        ("metrics.jsonl", b"", r"metrics\.jsonl: missing or empty, its records are gone"),
        ("metrics.jsonl", None, r"metrics\.jsonl: missing or empty, its records are gone"),
    ],
)
def test_a_run_with_a_broken_file_is_one_row_that_names_the_file(write_run, tmp_path, name, content, reason):
    folder = write_run("a", [GOOD, GOOD])
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    (row,) = load_runs([tmp_path]).to_dict("records")
    assert row["status"] == "unreadable"
    assert re.match(reason, row["reason"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"N": "a"}, "N: expected int, got 'a'"),
        ({"N": None}, "N is missing"),
        ({"N": 0}, "N: expected int >= 1, got 0"),
        ({"dtype": 3}, "dtype: expected str, got 3"),
        ({"timings_ms": {"forward": 1.0}}, "timings_ms[...]: Expected object, got float"),
        ({"schema": 99}, f"schema 99 is newer than {SCHEMA}, the newest that this version reads; upgrade block-shock"),
        ({"memory_peak_bytes": "much"}, "memory_peak_bytes: expected number, got 'much'"),
        ({"timings_ms": {"forward": {"p50_ms": [1, "x"]}}}, "timings_ms.forward.p50_ms: expected number, got [1, 'x']"),
    ],
)
def test_a_record_of_wrong_types_is_told_by_its_line(write_run, tmp_path, given, reason):
    write_run("a", [GOOD, {**GOOD, **given}])
    assert load_runs([tmp_path])["reason"].tolist() == [f"metrics.jsonl: line 2: {reason}"]


def test_a_run_below_two_of_the_paths_counts_once(write_run, record, tmp_path):
    folder = write_run("a", [record("phase1_forward", "dense_single")])
    write_run("b", [record("phase1_forward", "block_shock")])
    assert len(load_runs([folder, tmp_path, str(tmp_path)])) == 2


def test_a_missing_path_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_runs([tmp_path / "nowhere"])


def test_no_runs_is_an_empty_table(tmp_path: Path):
    assert load_runs([tmp_path]).empty
