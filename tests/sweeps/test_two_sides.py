"""Two sweeps side by side: a row per cell, a verdict from its interval, an exit status for CI, and what is refused."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeps import load_runs
from sweeps.report.command import main
from sweeps.report.records.packed import pack
from sweeps.report.tables.intervals import EQUAL, FASTER, OPEN, SLOWER
from sweeps.report.tables.two_sides import in_short, over, two_sides
from tests.sweeps.conftest import make_record, writer

QUIET = (0.999, 0.9995, 1.0, 1.0005, 1.001)  # five blocks of one job, relative to its median
NOISY = (0.9, 0.95, 1.0, 1.05, 1.1)
Side = Callable[..., Path]


@pytest.fixture
def side(tmp_path: Path) -> Side:
    """`side("a", {"dense_single": 1.0, "block_shock": 1.2}, spread=QUIET)`: a sweep of a forward job per method."""

    def write(
        name: str, times: dict[str, float], spread: Sequence[float] = QUIET, host: str = "one", **given: Any
    ) -> Path:
        top = tmp_path / name
        write_run = writer(top)
        for method, median in times.items():
            record = make_record("phase1_forward", method, forward=median, memory_peak_bytes=2**20, **given)
            record["timings_ms"]["forward"]["blocks_p50_ms"] = [median * factor for factor in spread]
            number = len(list(top.glob("*")))
            folder = write_run(f"{method}{number}", [record])
            environment = json.loads((folder / "env.json").read_text())
            (folder / "env.json").write_text(json.dumps({**environment, "host": host}))
        return top

    return write


def verdicts(a: Path, b: Path) -> dict[str, str]:
    cells = two_sides(load_runs([a]), load_runs([b]))
    return dict(zip(cells["method"], cells["verdict"], strict=True))


def report(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["blockshock-report", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_each_cell_has_its_verdict(side: Side) -> None:
    times = {"dense_single": 1.0, "block_shock": 2.0, "dense_tp_row": 3.0, "dense_tp_column": 4.0}
    changed = {"dense_single": 1.0, "block_shock": 2.2, "dense_tp_row": 2.7, "dense_tp_column": 4.04}
    assert verdicts(side("a", times), side("b", changed)) == {
        "dense_single": EQUAL,
        "block_shock": SLOWER,
        "dense_tp_row": FASTER,
        "dense_tp_column": EQUAL,  # slower by 1%, which is within 2%
    }


def test_noise_leaves_a_cell_undecided_and_so_do_too_few_repeats(side: Side) -> None:
    times = {"dense_single": 1.0}
    assert verdicts(side("a", times, NOISY), side("b", {"dense_single": 1.02}, NOISY)) == {"dense_single": OPEN}
    few = two_sides(load_runs([side("c", times, (1.0, 1.0))]), load_runs([side("d", {"dense_single": 1.5}, (1.0,))]))
    assert few["verdict"].tolist() == [OPEN]
    assert few["ratio"].tolist() == pytest.approx([1.5])
    assert few["ratio_lo"].isna().all()


def test_a_side_beside_itself_is_the_same_and_a_packed_one_is_like_its_folders(side: Side, tmp_path: Path) -> None:
    a = side("a", {"dense_single": 1.0, "block_shock": 2.0})
    pack(sorted(a.iterdir()), a, tmp_path / "runs.jsonl.gz", [])
    cells = two_sides(load_runs([a]), load_runs([tmp_path / "runs.jsonl.gz"]))
    assert cells["ratio"].tolist() == [1.0, 1.0]
    assert set(cells["verdict"]) == {EQUAL}
    assert cells["memory_ratio"].tolist() == [1.0, 1.0]
    assert in_short(cells).startswith("B takes 1.000 times A's time (geometric mean of 2 cells): 0 slower, 0 faster, 2")


def test_the_mean_is_geometric_and_what_one_side_has_alone_is_counted(side: Side) -> None:
    a = side("a", {"dense_single": 1.0, "block_shock": 1.0, "dense_tp_row": 1.0})
    b = side("b", {"dense_single": 2.0, "block_shock": 0.5, "dense_tp_column": 1.0})
    said = in_short(two_sides(load_runs([a]), load_runs([b])))
    assert said.startswith("B takes 1.000 times A's time (geometric mean of 2 cells): 1 slower, 1 faster")
    assert said.endswith("; 1 only in A, 1 only in B")


def test_machines_are_never_merged(side: Side) -> None:
    """A machine that both sides have is beside itself; machines that differ are beside one another, and named."""
    a = side("a", {"dense_single": 1.0}, host="one")
    side("a/other", {"dense_single": 8.0}, host="two")
    b = side("b", {"dense_single": 1.0}, host="one")
    cells = two_sides(load_runs([a]), load_runs([b]))
    assert cells["ratio"].tolist() == pytest.approx([1.0])
    c = side("c", {"dense_single": 4.0}, host="three")
    cells = two_sides(load_runs([a]), load_runs([c]))
    assert sorted(cells["ratio"]) == pytest.approx([0.5, 4.0])
    assert all("three" in machine for machine in cells["b_machine"])


def test_repeats_with_other_seeds_are_one_cell(side: Side) -> None:
    a, b = (side(name, {"dense_single": factor}, (1.0,)) for name, factor in (("a", 1.0), ("b", 1.1)))
    for number, (top, factor) in itertools.product(range(4), ((a, 1.0), (b, 1.1))):
        side(f"{top.name}/more{number}", {"dense_single": factor * QUIET[number]}, (1.0,), seed=number)
    cells = two_sides(load_runs([a]), load_runs([b]))
    assert len(cells) == 1
    assert cells["verdict"].tolist() == [SLOWER]


def test_contenders_of_a_benchmark_are_cells_of_their_own(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 2.0)):
        rows = [
            make_record("benchmark", "block_shock", part="forward", variant=variant, kernel="", quantity="time")
            | {"p50_us": 10.0 * own, "rounds_us": [10.0 * own * quiet for quiet in QUIET]}
            for variant, own in (("packed", factor), ("masked", 1.0))
        ]
        writer(tmp_path / name)("run", rows)
    cells = two_sides(load_runs([tmp_path / "a"]), load_runs([tmp_path / "b"])).set_index("variant")
    assert cells["ratio"].to_dict() == pytest.approx({"packed": 2.0, "masked": 1.0})
    assert cells.loc["packed", "a_ms"] == pytest.approx(0.01)


def test_what_is_over_a_limit_is_so_by_its_interval_or_without_one_by_its_median(side: Side) -> None:
    a, b = side("a", {"dense_single": 1.0}, NOISY), side("b", {"dense_single": 1.07}, NOISY)
    assert over(two_sides(load_runs([a]), load_runs([b])), 0.05).empty
    c, d = side("c", {"dense_single": 1.0}, (1.0,)), side("d", {"dense_single": 1.07}, (1.0,))
    assert len(over(two_sides(load_runs([c]), load_runs([d])), 0.05)) == 1


def test_the_command_prints_what_changed_writes_all_and_its_status_is_for_ci(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    a = side("a", {"dense_single": 1.0, "block_shock": 2.0})
    b = side("b", {"dense_single": 1.0, "block_shock": 2.2})
    status, out, _ = report(monkeypatch, capsys, "--compare", a, b, "--out", tmp_path / "out")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("A: ")
    assert "block_shock" in out
    assert "dense_single" not in out  # it is the same
    assert "1.100" in out
    written = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert written.set_index("method")["verdict"].to_dict() == {"dense_single": EQUAL, "block_shock": SLOWER}
    assert "dense_single" in (tmp_path / "out" / "comparison.md").read_text()
    assert report(monkeypatch, capsys, "--compare", a, b, "--fail-over", "15%")[0] == 0
    status, _, error = report(monkeypatch, capsys, "--compare", a, b, "--fail-over", "0.05")
    assert (status, error) == (1, "1 cell of B slower by more than 5.0%\n")


def test_what_cannot_be_compared_is_one_line(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    a, b = side("a", {"dense_single": 1.0}), side("b", {"dense_single": 1.0}, N=128)
    going = side("going", {"dense_single": 1.0})
    writer(going)("later", [], "running")
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, said in (
        ((a,), "--compare takes two folders, A and B; 1 folder given"),
        ((a, b, a), "--compare takes two folders, A and B; 3 folders given"),
        ((a, a / ".." / "a"), "A and B are the same"),
        ((a, going), "1 job still running"),
        ((a, empty), "no run folder here"),
        ((a, tmp_path / "nowhere"), "nowhere"),
        ((a, b), "they differ in N (64; 128)"),
        ((a, b, "--fail-over", "fast"), "--fail-over=fast: give a share such as 5% or 0.05"),
    ):
        status, out, error = report(monkeypatch, capsys, "--compare", *arguments)
        assert status == 2
        assert said in error
        assert (out, error.count("\n")) == ("", 1)
    assert report(monkeypatch, capsys, a, "--fail-over", "5%")[0] == 2
