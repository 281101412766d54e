"""Packed experiments: read like the folders, unpacked to the same bytes, and every fault named with what to do."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from blockshock.run_folder.folder import RunFolder
from sweeps import load_runs
from sweeps.report.command import main
from sweeps.report.records.schema import Status, json_schema, mismatch

REFERENCE = Path(__file__).parents[2] / "outputs" / "reference"


@pytest.fixture
def sweep(write_run, record):
    """Runs of several statuses, one in a folder of its own."""
    write_run(
        "a", [record("phase1_forward", "dense_single", forward=0.1 + 0.2), record("phase1_forward", "block_shock")]
    )
    write_run("below/b", [record("phase3_train_step", "block_shock", total_step=1e-9, N=128)])
    write_run("c", None, "failed", "rank 1: “ü” died")
    (write_run("d", [record("phase1_forward", "dense_single")]) / "kernels.csv").write_text("a,b\n1,2\n")
    return write_run("e", [], "running").parent


def report(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of blockshock-report."""
    monkeypatch.setattr(sys, "argv", ["blockshock-report", *map(str, arguments)])
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def packed(sweep, tmp_path, monkeypatch, capsys):
    assert report(monkeypatch, capsys, "--pack", sweep, "--out", tmp_path / "p" / "runs.jsonl.gz")[0] == 0
    return tmp_path / "p" / "runs.jsonl.gz"


def test_packed_runs_load_as_their_folders_do(sweep, packed):
    folders, pack = load_runs([sweep]), load_runs([packed.parent])
    pd.testing.assert_frame_equal(folders.drop(columns="folder"), pack.drop(columns="folder"))
    below = [
        [Path(folder).relative_to(top) for folder in runs["folder"]] for top, runs in ((sweep, folders), (packed, pack))
    ]
    assert below[0] == below[1]


def test_unpacking_writes_the_same_records_and_the_files_that_were_kept(sweep, tmp_path, monkeypatch, capsys):
    pack = tmp_path / "p" / "runs.jsonl.gz"
    report(monkeypatch, capsys, "--pack", sweep, "--out", pack, "--keep", "kernels*.csv")
    assert report(monkeypatch, capsys, "--unpack", pack, "--out", tmp_path / "again")[0] == 0
    for folder in ("a", "below/b", "d"):
        old, new = (top / folder / "metrics.jsonl" for top in (sweep, tmp_path / "again"))
        assert [json.loads(line) for line in new.open()] == [json.loads(line) for line in old.open()]
    assert (tmp_path / "again" / "d" / "kernels.csv").read_text() == "a,b\n1,2\n"
    pd.testing.assert_frame_equal(
        load_runs([sweep]).drop(columns="folder"),
        load_runs([tmp_path / "again"]).drop(columns="folder"),
        check_like=True,  # env.json is written with its keys in order
    )


def test_the_same_runs_give_the_same_bytes_at_any_time_and_place(sweep, packed, tmp_path, monkeypatch, capsys):
    for path in sweep.rglob("*"):
        os.utime(path, (1, 1))
    moved = sweep.rename(tmp_path / "moved")
    report(monkeypatch, capsys, "--pack", moved, "--out", tmp_path / "other.jsonl.gz")
    assert (tmp_path / "other.jsonl.gz").read_bytes() == packed.read_bytes()


def test_a_line_is_a_run(packed):
    lines = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).splitlines()]
    assert [line["folder"] for line in lines] == ["a", "below/b", "c", "d", "e"]
    assert lines[0]["records"][0]["timings_ms"]["forward"]["p50_ms"] == 0.1 + 0.2


def test_a_run_counts_once_beside_its_packed_copy(sweep, packed, monkeypatch, capsys):
    assert len(load_runs([sweep, packed])) == len(load_runs([sweep]))
    report(monkeypatch, capsys, "--pack", sweep)  # into the folder itself
    assert len(load_runs([sweep])) == len(load_runs([packed]))


def test_a_report_of_packed_runs_says_what_one_of_the_folders_says(sweep, packed, tmp_path, monkeypatch, capsys):
    for name, source in (("folders", sweep), ("packed", packed)):
        assert report(monkeypatch, capsys, source, "--out", tmp_path / name)[0] == 0
    for table in ("table.csv", "tables/forward.csv", "figures/throughput.csv"):
        assert (tmp_path / "folders" / table).read_bytes() == (tmp_path / "packed" / table).read_bytes()


def test_runs_that_can_not_be_read_are_named_and_left_out_of_a_pack(sweep, tmp_path, monkeypatch, capsys):
    (sweep / "d" / "metrics.jsonl").write_text("{}\n")
    status, out, err = report(monkeypatch, capsys, "--pack", sweep, "--out", tmp_path / "x.jsonl.gz")
    assert status == 0
    assert "packed 4 runs" in out
    (line,) = err.splitlines()
    assert "d/metrics.jsonl: line 1: phase is missing; this run is left out" in line


def rewrite(path: Path, change) -> None:
    """`path` with its first line, as an object, changed."""
    first, *others = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    line = json.loads(first)
    change(line)
    path.write_bytes(gzip.compress(json.dumps(line).encode() + b"\n" + b"".join(others)))


FAULTS = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-20]), r"cut short or empty; restore the file"),
    "empty": (lambda p: p.write_bytes(b""), r"cut short or empty; restore the file"),
    "not gzip": (lambda p: p.write_bytes(b"runs"), r"not gzip, or damaged \(.*\); restore the file"),
    "damaged": (lambda p: p.write_bytes(p.read_bytes()[:60] + bytes(20) + p.read_bytes()[80:]), r"damaged.*; restore"),
    "not JSON": (lambda p: p.write_bytes(gzip.compress(b"{")), r"line 1: .*truncated.*; restore the file"),
    "newer": (lambda p: rewrite(p, lambda line: line.update(schema=99)), r"line 1: schema 99 is newer .* upgrade"),
    "no folder": (lambda p: rewrite(p, lambda line: line.pop("folder")), r"line 1: .*missing.*folder.*; restore"),
    "outside": (lambda p: rewrite(p, lambda line: line.update(folder="../x")), r"line 1: .*leads out of the folder"),
    "status": (lambda p: rewrite(p, lambda line: line["status"].update(status="odd")), r"line 1: status: .*'odd'"),
    "no records": (lambda p: rewrite(p, lambda line: line.update(records=[])), r"line 1: ok without records"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_packed_file_with_a_fault_is_one_line_that_says_what_to_do(fault, packed, write_run, monkeypatch, capsys):
    spoil, reason = FAULTS[fault]
    spoil(packed)
    (row,) = load_runs([packed]).to_dict("records")
    assert row["status"] == "unreadable"
    assert re.search(reason, row["reason"])
    status, _, err = report(monkeypatch, capsys, packed, write_run("good"))  # the others are reported
    assert status == 0
    (line,) = err.splitlines()
    assert re.search(rf"/runs\.jsonl\.gz: {reason}", line)
    status, _, err = report(monkeypatch, capsys, "--unpack", packed)
    assert (status, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    "case",
    ["two into one", "nothing to pack", "nothing to unpack", "nothing to keep", "would be lost", "there already"],
)
def test_what_can_not_be_packed_or_unpacked_is_one_line_and_exit_2(case, sweep, packed, tmp_path, monkeypatch, capsys):
    (tmp_path / "none").mkdir()
    arguments, said = {
        "two into one": (["--pack", sweep, tmp_path, "--out", tmp_path / "o.gz"], "one by one"),
        "nothing to pack": (["--pack", tmp_path / "none"], "no run folder here"),
        "nothing to unpack": (["--unpack", tmp_path / "none"], "no runs.jsonl.gz here"),
        "nothing to keep": ([sweep, "--keep", "*.csv"], "only --pack keeps files"),
        "would be lost": (["--pack", sweep / "a", "--out", packed], "holds a, which is no run folder now"),
        "there already": (["--unpack", packed, "--out", sweep], "there already"),
    }[case]
    before = packed.read_bytes()
    status, _, err = report(monkeypatch, capsys, *arguments)
    assert (status, len(err.splitlines())) == (2, 1)
    assert said in err
    assert packed.read_bytes() == before


def test_a_folder_of_the_first_versions_is_refused_with_what_to_do(tmp_path, monkeypatch, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text('{"N": 4096}\n')
    status, _, err = report(monkeypatch, capsys, tmp_path)
    assert (status, len(err.splitlines())) == (2, 1)
    assert f"{tmp_path / 'old'} has records without one" in err
    assert "measure it again" in err


def test_single_figures_are_drawn_as_the_report_draws_them(sweep, tmp_path, monkeypatch, capsys):
    report(monkeypatch, capsys, sweep, "--out", tmp_path / "whole")
    assert report(monkeypatch, capsys, sweep, "--figures", "throughput", "--out", tmp_path / "one")[0] == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["throughput.png"]
    same = tmp_path / "whole" / "figures" / "throughput.png"
    assert (tmp_path / "one" / "throughput.png").read_bytes() == same.read_bytes()
    for name, said in (("thruoghput", "did you mean 'throughput'"), ("pareto", "nothing to draw for pareto")):
        status, _, err = report(monkeypatch, capsys, sweep, "--figures", name, "--out", tmp_path / "one")
        assert status == 2
        assert said in err


def test_committed_records_are_few_small_and_without_a_path_of_the_machine_that_measured():
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    packs = [path for path in files if path.name == "runs.jsonl.gz"]
    assert len(packs) >= 5
    assert {path.name for path in files} <= {"runs.jsonl.gz", "README.md"}
    assert len(files) <= 60
    assert sum(path.stat().st_size for path in files) <= 8e6
    for pack in packs:
        text = gzip.decompress(pack.read_bytes()).decode()
        assert not re.findall(r'"/(?:tmp|home|root|work|data|mnt|scratch)\b[^"]*', text)
        assert (pack.parent / "README.md").stat().st_size > 0
        runs = load_runs([pack])
        assert not (runs["status"] == "unreadable").any()


def test_a_status_that_a_job_writes_is_of_the_published_type(tmp_path):
    RunFolder(tmp_path).close({"phase": {"name": "x"}}, "unsupported", "needs two ranks", "an id")
    assert mismatch(json.loads((tmp_path / "status.json").read_text()), Status) == ""


def test_the_published_schema_is_that_of_the_types():
    """docs/reference/records.md says how to write it after a change."""
    published = Path(__file__).parents[2] / "docs" / "reference" / "records.schema.json"
    assert json.loads(published.read_text()) == json.loads(json_schema())
