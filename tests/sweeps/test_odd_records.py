"""One odd record, or a user's settings, and the report is written all the same."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

from sweeps import load_runs
from sweeps.applications.block_shock import BlockShock
from sweeps.report.command import main, write_report
from sweeps.report.figures import FIGURES
from sweeps.report.figures.draw import own_style
from sweeps.report.listings import LISTINGS
from sweeps.report.tables.layers import results
from sweeps.report.tables.report_data import read_report_data


def tables(report: Path) -> pd.DataFrame:
    return pd.read_csv(report.with_name("table.csv"))


@pytest.fixture
def good(write_run, record):
    """Two methods at two sizes."""
    for n in (64, 128):
        for method, ranks in (("dense_single", 1), ("dense_tp_row", 2)):
            write_run(f"{method}{n}", [record("phase1_forward", method, N=n, K=n, world_size=ranks, forward=n / 64)])


@pytest.mark.parametrize("time", [0.0, -1.0])
def test_a_time_that_no_clock_measures_counts_as_none(good, write_run, record, tmp_path, time):
    write_run("odd", [record("phase1_forward", "block_shock", N=256, K=256, world_size=2, forward=time)])
    report = write_report([tmp_path / "sweep"], tmp_path / "out")
    table = tables(report).set_index(["method", "N"])
    assert table.loc[("dense_tp_row", 128), "forward_p50_ms"] == 2.0
    assert pd.isna(table.loc[("block_shock", 256), "forward_p50_ms"])
    assert (tmp_path / "out" / "figures" / "throughput.png").exists()
    assert "is not shown" not in report.read_text()


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_a_number_that_is_none_makes_its_run_unreadable_and_no_other(good, write_run, tmp_path, number):
    metrics = write_run("odd") / "metrics.jsonl"
    line = metrics.read_text().replace('"timings_ms": {}', f'"timings_ms": {{"forward": {{"p50_ms": {number}}}}}')
    metrics.write_text(line)
    runs = load_runs([tmp_path / "sweep"])
    assert sorted(runs["status"]) == ["ok"] * 4 + ["unreadable"]
    (reason,) = runs.loc[runs["status"] == "unreadable", "reason"]
    assert reason.startswith("metrics.jsonl: line 1: timings_ms.forward.p50_ms: expected number, got ")
    write_report([tmp_path / "sweep"], tmp_path / "out")


NAMES = ["$a_b$", "_hidden", "$\\frac{", "<b>", "ü € 名", "=1+2"]


def test_a_name_is_drawn_as_it_is_spelled(write_run, record, tmp_path):
    for i, name in enumerate(NAMES):
        for n in (64, 128, 256):
            write_run(f"{i}-{n}", [record("phase1_forward", name, N=n, K=n, forward=1.0 + i)])
    report = write_report([tmp_path / "sweep"], tmp_path / "out")
    assert "is not shown" not in report.read_text()
    (plot,) = (spec for spec in FIGURES if spec.name == "throughput")
    with own_style():
        (legend,) = plot.draw(plot.select(read_report_data([tmp_path / "sweep"]))).legends
    assert set(NAMES) <= {text.get_text() for text in legend.get_texts()}


def test_a_users_matplotlibrc_changes_no_figure(good, tmp_path):
    plain = write_report([tmp_path / "sweep"], tmp_path / "plain")
    with mpl.rc_context({"text.usetex": True, "figure.figsize": (1, 1), "axes.prop_cycle": "cycler('color', ['r'])"}):
        odd = write_report([tmp_path / "sweep"], tmp_path / "odd")
    for name in ("throughput.svg", "throughput.png"):
        assert (plain.parent / "figures" / name).read_bytes() == (odd.parent / "figures" / name).read_bytes()


def test_a_figure_and_a_table_that_fail_are_a_line_each_and_the_others_are_there(good, monkeypatch, tmp_path, capsys):
    def fail(_: object) -> None:
        raise KeyError("odd")

    figures = [replace(spec, draw=fail) if spec.name == "throughput" else spec for spec in FIGURES]
    tables = [replace(one, show=fail) if one.name == "forward" else one for one in LISTINGS]
    monkeypatch.setattr("sweeps.report.command.FIGURES", figures)
    monkeypatch.setattr("sweeps.report.listings.LISTINGS", tables)
    monkeypatch.setattr(sys, "argv", ["blockshock-report", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")])
    main()
    said = capsys.readouterr().err.splitlines()
    page = (tmp_path / "out" / "report.html").read_text()
    for what in ("the table “Forward pass”", "the figure “Throughput”"):
        line = f"{what} is not shown: KeyError: 'odd'"
        assert f"blockshock-report: {line}" in said
        assert line.replace("'", "&#39;") in page
    assert (tmp_path / "out" / "figures" / "speedup_over_dense.png").exists()
    assert not (tmp_path / "out" / "figures" / "throughput.png").exists()


def test_links_to_run_folders_are_followed_and_a_circle_ends(good, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked").symlink_to(tmp_path / "sweep" / "dense_single64")
    (elsewhere / "all").symlink_to(tmp_path / "sweep")
    (elsewhere / "circle").symlink_to(elsewhere)
    assert len(load_runs([elsewhere])) == 4
    assert len(load_runs([elsewhere / "linked"])) == 1


def test_control_characters_of_a_reason_do_not_reach_the_terminal(good, write_run, tmp_path, monkeypatch, capsys):
    folder = write_run("odd")
    (folder / "config.yaml").write_text("a: \x1b]0;title\x07\n")
    (folder / "status.json").write_text('{"status": "\\u001b[2J"}')
    monkeypatch.setattr(sys, "argv", ["blockshock-report", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")])
    main()
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert all(character.isprintable() or character == "\n" for character in text)


def test_a_text_that_begins_like_a_formula_is_text_in_a_spreadsheet(write_run, record, tmp_path):
    formulas = ["=cmd()", "+1+2", "-2+3", "@sum(1)", "-1.5%"]
    for i, name in enumerate(formulas):
        write_run(f"{i}", [record("phase1_forward", name, forward=1.0)])
    write_report([tmp_path / "sweep"], tmp_path / "out")
    files = [*(tmp_path / "out").rglob("*.csv")]
    assert len(files) >= 3
    for file in files:
        cells = [cell for row in csv.reader(file.open(newline="")) for cell in row]
        assert not {"=cmd()", "+1+2", "-2+3", "@sum(1)"} & set(cells)
    assert set(tables(tmp_path / "out" / "report.html")["method"]) == {"'=cmd()", "'+1+2", "'-2+3", "'@sum(1)", "-1.5%"}


def test_a_terminal_without_utf_8_gets_the_report(good, tmp_path):
    command = [sys.executable, "-m", "sweeps.report.command", tmp_path / "sweep", "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"report: " in done.stdout


def system(folder: Path, **facts: str) -> None:
    (folder / "env.json").write_text(json.dumps({"torch": "2.11", "driver": "580", "host": "one", **facts}))


@pytest.mark.parametrize("fact", ["torch", "driver", "host"])
def test_runs_of_other_machines_drivers_or_versions_are_not_one_median(write_run, record, tmp_path, fact):
    for i, (time, value) in enumerate(((1.0, "a"), (3.0, "a"), (9.0, "b"))):
        system(write_run(f"{i}", [record("phase1_forward", "dense_single", forward=time)]), **{fact: value})
    table = results(load_runs([tmp_path / "sweep"])).set_index(fact)
    assert table["forward_p50_ms"].to_dict() == {"a": 2.0, "b": 9.0}


def test_a_speedup_is_over_the_baseline_of_the_same_machine_or_of_the_fastest_of_its_kind(write_run, record, tmp_path):
    for host, time in (("one", 4.0), ("two", 8.0)):
        system(write_run(host, [record("phase1_forward", "dense_single", forward=time)]), host=host)
    for host in ("two", "three"):
        system(
            write_run(f"tp-{host}", [record("phase1_forward", "dense_tp_row", world_size=2, forward=2.0)]), host=host
        )
    table = results(load_runs([tmp_path / "sweep"]))
    ours = table[table["method"] == "dense_tp_row"].set_index("host")
    assert ours["speedup"].to_dict() == {"two": 4.0, "three": 2.0}


def test_a_speedup_is_never_over_another_version_of_torch(write_run, record, tmp_path):
    system(write_run("old", [record("phase1_forward", "dense_single", forward=4.0)]), torch="2.10")
    system(write_run("new", [record("phase1_forward", "dense_tp_row", world_size=2, forward=2.0)]))
    assert results(load_runs([tmp_path / "sweep"]))["speedup"].dropna().tolist() == [1.0]


def test_a_sweep_whose_report_can_not_be_written_says_so_and_goes_on(good, tmp_path, capsys):
    (tmp_path / "sweep" / "report").write_text("a file where the folder should be")
    BlockShock().report([tmp_path / "sweep"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"no report in {tmp_path / 'sweep'}: ")
    assert line.endswith(f"write it elsewhere with: blockshock-report {tmp_path / 'sweep'} --out FOLDER")
