from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

from sweeps import load_runs
from sweeps.figures import FIGURES, Measured
from sweeps.palette import COLOURS, palette
from sweeps.report import main, write_report
from sweeps.tables import drift, results


@pytest.fixture
def mixed(write_run, record, tmp_path):
    """A sweep with every status."""
    for n in (64, 128):
        for method, time in (("dense_single", 1.0), ("block_shock", 0.5)):
            write_run(f"{method}{n}", [record("phase1_forward", method, forward=time * n, floor=n / 4, N=n, K=n)])
    regions = {"forward": 1.0, "backward": 2.0, "opt_step": 0.5, "compress": 0.25, "total_step": 4.0}
    write_run("train", [record("phase3_train_step", "block_shock", **regions)])
    drifted = {"mode": "apply", "output_error": 1e-3, "dense_output_error": 1e-3}
    write_run("drift", [record("phasex_drift", "block_shock", drift={**drifted, "step": s}) for s in (1, 2)])
    write_run("oom", None, "oom", "N=9999 B=9: out of memory")
    write_run("failed", None, "failed", "rank 1: <script>alert(1)</script>")
    write_run("timeout", None, "timeout", "no answer for 7 s")
    write_run("running", [], "running")
    for i in range(3):
        write_run(f"unsupported{i}", None, "unsupported", "needs two ranks")
    return tmp_path / "sweep"


class Resources(HTMLParser):
    """What a browser would fetch, and the ids and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "src" or (name == "href" and tag == "link"):
                self.fetched.append(value)
            elif name == "href":
                self.links.append(value)
            elif name == "id":
                self.ids.add(value)


def test_every_file_is_written_and_every_link_leads_somewhere(mixed, tmp_path):
    report = write_report([mixed], tmp_path / "out")
    assert report == tmp_path / "out" / "report.html"
    page = Resources(report.read_text())
    assert {"table.csv", "table.md", "figures/throughput.png", "figures/drift.svg"} <= set(page.links)
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (report.parent / link).stat().st_size > 0


def test_the_page_needs_no_other_file_and_no_network(mixed, tmp_path):
    text = write_report([mixed], tmp_path / "out").read_text()
    page = Resources(text)
    assert len(page.fetched) == len(FIGURES)
    assert all(source.startswith("data:image/") for source in page.fetched)
    assert not re.search(r"https?://", text)
    assert not re.search(r"@import|url\(", text)


def test_every_status_is_counted_and_every_reason_told(mixed, tmp_path):
    text = write_report([mixed], tmp_path / "out").read_text()
    for chip in ("6 ok", "1 running", "1 failed", "1 oom", "1 timeout", "3 unsupported"):
        assert f">{chip}<" in text
    for told in ("out of memory", "no answer for 7 s", "3 × needs two ranks", "9.9.9+hand", "by_hand", "Hand CPU"):
        assert told in text


def test_what_a_run_says_is_text_and_never_markup(mixed, tmp_path):
    text = write_report([mixed], tmp_path / "out").read_text()
    assert "script" not in Resources(text).tags
    assert "&lt;script&gt;" in text


def test_table_csv_holds_the_raw_numbers(mixed, tmp_path):
    table = pd.read_csv(write_report([mixed], tmp_path / "out").with_name("table.csv"))
    row = table[(table["method"] == "block_shock") & (table["N"] == 128)].iloc[0]
    assert row[["forward_p50_ms", "speedup", "roofline_fraction"]].tolist() == [64.0, 2.0, 0.5]


@pytest.mark.parametrize(("floor", "said"), [(2.0, True), (0.5, False)])
def test_a_fraction_above_one_is_explained_beside_the_table(write_run, record, tmp_path, floor, said):
    write_run("a", [record("phase1_forward", "dense_single", forward=1.0, floor=floor)])
    text = write_report([tmp_path], tmp_path / "out").read_text()
    assert ("means that the data was served from a cache" in text) is said


def test_a_sweep_without_any_record_still_tells_why(write_run, tmp_path):
    write_run("a", None, "oom", "too big")
    report = write_report([tmp_path], tmp_path / "out")
    assert "too big" in report.read_text()
    assert not list((tmp_path / "out" / "figures").iterdir())


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.name)
def test_nothing_is_drawn_from_an_empty_selection(plot, write_run, record, tmp_path):
    write_run("a", [record("phase0_correctness", "dense_single", error=1.0, limit=2.0)])
    runs = load_runs([tmp_path])
    assert len(results(runs)) == 1
    assert plot.draw(Measured(results(runs), drift(runs))) is None


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.name)
def test_each_figure_has_labelled_axes_and_no_empty_panel(plot, mixed):
    runs = load_runs([mixed])
    figure = plot.draw(Measured(results(runs), drift(runs)))
    for axes in figure.axes:
        assert axes.has_data()
        assert axes.get_xlabel()
        assert axes.get_legend() is None  # it stands outside


def test_the_sizes_measured_are_the_ticks(mixed):
    runs = load_runs([mixed])
    figure = FIGURES[0].draw(Measured(results(runs), drift(runs)))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["64", "128"]


def test_figures_of_an_earlier_report_that_have_nothing_to_show_are_removed(mixed, write_run, tmp_path):
    write_report([mixed], tmp_path / "out")
    write_report([write_run("alone", None, "failed", "x")], tmp_path / "out")
    assert not list((tmp_path / "out" / "figures").iterdir())


def test_a_method_has_one_colour_everywhere_and_no_two_share_one():
    assert palette(["block_shock"])["block_shock"] == palette(["mine", "block_shock"])["block_shock"]
    assert palette(["mine"])["mine"] == palette(["mine", *COLOURS])["mine"]
    many = palette([*COLOURS, "mine", "yours", "theirs"])
    assert len(set(many.values())) == len(many)


def run_cli(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["blockshock-report", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_prints_a_table_and_where_the_report_is(mixed, monkeypatch, capsys):
    assert run_cli(monkeypatch, mixed) == 0
    out = capsys.readouterr().out
    assert f"report: {mixed / 'report' / 'report.html'}" in out
    assert (mixed / "report" / "report.html").exists()
    assert re.search(r"block_shock +128 +8 +1 +64\.0 +2\.00×", out)


def test_the_report_of_a_sweep_does_not_change_the_next_one(mixed, monkeypatch):
    run_cli(monkeypatch, mixed)
    first = (mixed / "report" / "table.csv").read_text()
    assert run_cli(monkeypatch, mixed) == 0
    assert (mixed / "report" / "table.csv").read_text() == first


@pytest.mark.parametrize("case", ["missing", "no runs", "no records", "no argument", "out is a file"])
def test_bad_input_is_one_line_and_exit_2(case, mixed, write_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    arguments = {
        "missing": [tmp_path / "nowhere"],
        "no runs": [tmp_path / "empty"],
        "no records": [write_run("alone", None, "failed", "x")],
        "no argument": ["--out", tmp_path],
        "out is a file": [mixed, "--out", tmp_path / "file"],
    }
    assert run_cli(monkeypatch, *arguments[case]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[-1].startswith("blockshock-report: ")
    assert case == "no argument" or len(lines) == 1


def test_importing_the_report_loads_neither_torch_nor_matplotlib():
    code = "import sys, sweeps.report; print(sorted({'torch', 'matplotlib', 'seaborn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
