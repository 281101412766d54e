from __future__ import annotations

import functools
import itertools
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

from sweeps.report.command import main, write_report
from sweeps.report.figures import BENCHMARK_FIGURES, FIGURES
from sweeps.report.figures.shared.panels import round_ticks
from sweeps.report.figures.shared.style import COLOURS, RECOMPUTATION, palette
from sweeps.report.tables.report_data import ReportData, read_report_data
from tests.sweeps.conftest import benchmark_rows, make_checkpointed, make_largest, make_record, write_front, writer


def measured(folder) -> ReportData:
    return read_report_data([folder])


@pytest.fixture
def mixed(tmp_path):
    """A sweep with every status, and something for every figure."""
    write_mixed(writer(tmp_path / "sweep"))
    return tmp_path / "sweep"


@pytest.fixture
def layers(tmp_path):
    """Its layers alone, for what is no matter of figures."""
    write_layers(writer(tmp_path / "sweep"))
    return tmp_path / "sweep"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of it, which no test changes."""
    top = tmp_path_factory.mktemp("mixed")
    write_mixed(writer(top / "sweep"))
    return write_report([top / "sweep"], top / "out")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """It and benchmarks, read."""
    top = tmp_path_factory.mktemp("everything")
    write_mixed(writer(top))
    for ranks in (1, 2):
        writer(top)(f"bench{ranks}", benchmark_rows(ranks))
    return measured(top)


@pytest.fixture(scope="module")
def drawn(everything):
    """`drawn(plot)`: its figure of everything, drawn once and changed by no test; and the renderer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    @functools.cache
    def draw(plot):
        figure = plot.draw(plot.select(everything))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return figure, canvas.get_renderer()

    return draw


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory):
    """A layer of which nothing was measured but its correctness."""
    top = tmp_path_factory.mktemp("unmeasured")
    writer(top)("a", [make_record("phase0_correctness", "dense_single")])
    return measured(top)


def write_layers(write_run):
    sparse = {"layer": {"kernel": {"name": "cusparselt"}}}
    for n in (64, 128):
        times = [("dense_single", 1, 1.0, {}), ("dense_tp_row", 2, 0.8, {}), ("block_shock", 2, 0.9, sparse)]
        for method, ranks, time, layer in [*times, ("block_shock", 1, 0.5, sparse)]:
            given = {"N": n, "K": n, "world_size": ranks, "floor": n / 4, "error": 1e-3, "limit": 2e-3, **layer}
            given |= {"allreduce": 0.1 * n} if ranks > 1 else {}
            write_run(f"{method}{n}x{ranks}", [make_record("phase1_forward", method, forward=time * n, **given)])


def write_mixed(write_run):
    record, checkpointed = make_record, make_checkpointed
    write_layers(write_run)
    regions = {"forward": 1.0, "backward": 2.0, "opt_step": 0.5, "compress": 0.25, "total_step": 4.0}
    write_run("train", [record("phase3_train_step", "block_shock", **regions)])
    for ranks in (1, 2):
        method = "dense_single" if ranks == 1 else "dense_tp_row"
        write_run(f"train{ranks}", [record("phase3_train_step", method, world_size=ranks, **regions)])
    for batch in (4, 8):
        write_run(f"keep{batch}", [checkpointed("keep_all", 80, 2.0 * batch, B=batch)])
        write_run(f"optimal{batch}", [checkpointed("recompute_optimal", 50, 2.5 * batch, B=batch, budget=0.5)])
    write_front(write_run)
    for memory in (24, 40, 80):
        write_run(f"compiled{memory}", [make_largest("torch_compile", memory, memory // 2)])
        write_run(f"budget{memory}", [make_largest("recompute_compiled", memory, 2 * memory)])
    drifted = {"mode": "apply", "output_error": 1e-3, "dense_output_error": 1e-3}
    write_run("drift", [record("phasex_drift", "block_shock", drift={**drifted, "step": s}) for s in (1, 2)])
    trained = {"mode": "train", "output_error": 1e-3, "dense_output_error": 1e-3, "exact_loss": 5.0, "dense_loss": 5.01}
    model = {"workload": "gpt2", "workload_config": {"name": "gpt2", "layers": "mlp"}, "world_size": 2}
    losses = [{**trained, "step": step, "loss": loss} for step, loss in ((1, 5.002), (2, 5.03))]
    write_run("losses", [record("phasex_drift", "block_shock", **model, drift=drift) for drift in losses])
    trace = {f"{name}_ms": [0.5] for name in ("forward", "backward", "optimizer", "other", "idle")}
    trace |= {"exposed_communication_ms": [0.5], "step_ms": [3.0], "kernels": [5], "backend": "kineto"}
    trace |= {"slowdown": 0.01, "attributed": 1.0}
    write_run("trace", [record("trace", "dense_single", total_step=3.0, trace=trace)])
    write_run("oom", None, "oom", "N=9999 B=9: out of memory")
    write_run("failed", None, "failed", "rank 1: <script>alert(1)</script>")
    write_run("timeout", None, "timeout", "no answer for 7 s")
    write_run("running", [], "running")
    for i in range(3):
        write_run(f"unsupported{i}", None, "unsupported", "needs two ranks")


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


def test_every_file_is_written_and_every_link_leads_somewhere(report):
    assert (report.name, report.parent.name) == ("report.html", "out")
    assert "is not shown" not in report.read_text()  # as the page says of a table or a figure that fails
    page = Resources(report.read_text())
    assert {"table.csv", "table.md", "figures/throughput.png", "figures/drift.svg"} <= set(page.links)
    embedded = [link for link in page.links if link.startswith("data:text/csv;base64,")]
    assert len(embedded) == len(FIGURES) - len(BENCHMARK_FIGURES)  # each figure's data
    for link in set(page.links) - set(embedded):
        assert link[1:] in page.ids if link.startswith("#") else (report.parent / link).stat().st_size > 0


def test_the_page_needs_no_other_file_and_no_network(report):
    text = report.read_text()
    page = Resources(text)
    assert len(page.fetched) == len(FIGURES) - len(BENCHMARK_FIGURES)
    assert all(source.startswith("data:image/") for source in page.fetched)
    assert not re.search(r"https?://", text)
    assert not re.search(r"@import|url\(", text)


def test_every_status_is_counted_and_every_reason_told(report):
    text = report.read_text()
    for chip in ("36 ok", "1 running", "1 failed", "1 oom", "1 timeout", "3 unsupported"):
        assert f">{chip}<" in text
    for told in ("out of memory", "no answer for 7 s", "3 × needs two ranks", "9.9.9+hand", "by_hand", "Hand CPU"):
        assert told in text


def test_what_a_run_says_is_text_and_never_markup(report):
    text = report.read_text()
    assert Resources(text).tags.count("script") == 1  # the page's own, which the policy names by its hash
    assert "&lt;script&gt;" in text


def test_the_pictures_that_a_run_drew_are_in_the_page_or_linked(write_run, record, tmp_path):
    from PIL import Image

    trace = {f"{name}_ms": [0.5] for name in ("step", "forward", "backward", "optimizer", "other", "idle")}
    trace |= {"exposed_communication_ms": [0.0], "kernels": [5], "backend": "kineto", "slowdown": 0.0}
    folder = write_run("trace", [record("trace", "dense_single", trace={**trace, "attributed": 1.0})])
    Image.new("RGB", (30, 20), "red").save(folder / "step_breakdown.png")
    (folder / "bottlenecks.png").write_bytes(b"x" * 700_000)
    page = Resources(write_report([tmp_path], tmp_path / "out").read_text())
    assert sum(source.startswith("data:image/png") for source in page.fetched) == 1
    (large,) = (link for link in page.links if link.endswith("bottlenecks.png"))
    assert (tmp_path / "out" / large).resolve() == folder / "bottlenecks.png"


def test_table_csv_holds_the_raw_numbers(report):
    table = pd.read_csv(report.with_name("table.csv"))
    row = table[(table["method"] == "block_shock") & (table["N"] == 128) & (table["world_size"] == 1)].iloc[0]
    assert row[["forward_p50_ms", "speedup", "roofline_fraction"]].tolist() == [64.0, 2.0, 0.5]
    forward = pd.read_csv(report.parent / "tables" / "forward.csv")
    assert forward["forward_p50_ms"].tolist() == table["forward_p50_ms"].dropna().tolist()


def test_a_profile_is_a_row_of_people_s_units_and_not_its_raw_record(write_run, record, tmp_path):
    measured = {"nodes": 9, "simulated_peak_bytes": 3 * 2**20, "measured_peak_bytes": 2**21, "node_time_s": 0.004}
    write_run("a", [record("profile", "keep_all", B=4, profile=measured)])
    write_report([tmp_path], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "tables" / "profiles.csv")
    assert table[["B", "simulated peak, MiB", "measured peak, MiB", "Σ nodes, ms"]].to_numpy().tolist() == [
        [4, 3, 2, 4]
    ]


@pytest.mark.parametrize(("floor", "said"), [(2.0, True), (0.5, False)])
def test_a_fraction_above_one_is_explained_beside_the_table(write_run, record, tmp_path, floor, said):
    write_run("a", [record("phase1_forward", "dense_single", forward=1.0, floor=floor)])
    text = write_report([tmp_path], tmp_path / "out").read_text()
    assert ("served from a cache, not from the memory" in text) is said


def test_a_sweep_without_any_record_still_tells_why(write_run, tmp_path):
    write_run("a", None, "oom", "too big")
    report = write_report([tmp_path], tmp_path / "out")
    assert "too big" in report.read_text()
    assert not list((tmp_path / "out" / "figures").iterdir())


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.name)
def test_nothing_is_drawn_from_an_empty_selection(plot, unmeasured):
    assert len(unmeasured.table) == 1
    assert plot.select(unmeasured).empty


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.name)
def test_a_figure_has_labelled_axes_no_empty_panel_and_no_tick_labels_that_touch(plot, drawn):
    figure, renderer = drawn(plot)
    assert figure.axes
    for axes in figure.axes:
        assert axes.has_data()
        assert axes.get_xlabel()
        assert axes.get_legend() is None  # it stands outside
        if axes.get_label() == "<colorbar>":
            continue
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent(renderer) for label in labels if label.get_text()]
            assert boxes
            assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.name)
def test_a_figure_s_title_fits_and_is_its_alternative_text(plot, drawn):
    """A message in the title, inside of the figure; the page's alternative text repeats it."""
    figure, renderer = drawn(plot)
    box = figure._suptitle.get_window_extent(renderer)
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.name)
def test_text_in_a_figure_has_a_contrast_of_4_5(plot, drawn):
    from matplotlib.colors import to_rgb
    from matplotlib.text import Text

    figure, _ = drawn(plot)
    for text in figure.findobj(Text):
        ink = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(text.get_color())
        ]
        light = 0.2126 * ink[0] + 0.7152 * ink[1] + 0.0722 * ink[2]
        on_a_cell = text.axes is not None and text in text.axes.texts and plot.name.startswith(("speedup", "bench"))
        if text.get_text().strip() and not on_a_cell:  # test_benchmarks judges those
            assert 1.05 / (light + 0.05) >= 4.5, (text.get_text(), text.get_color())


def test_the_sizes_measured_are_the_ticks(everything):
    (spec,) = (spec for spec in FIGURES if spec.name == "strong_scaling")
    figure = spec.draw(spec.select(everything))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "2"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 3.2, [1, 1.25, 1.5, 2, 2.5, 3]),
        (0.3, 70, [0.5, 1, 2, 5, 10, 20, 50]),
        (1e-9, 2e9, [1e-9, 1e-6, 1e-3, 1, 1e3, 1e6, 1e9]),
        (0.99, 1.04, [0.99, 1.0, 1.01, 1.02, 1.03, 1.04]),
    ],
)
def test_log_ticks_are_round_and_few(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_long_tick_labels_of_small_errors_do_not_touch(write_run, record, tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for i, error in enumerate((7.2e-8, 3e-7, 5e-7)):
        for device in ("one", "two"):  # panels side by side are narrower
            line = record("phase1_forward", "dense_single", forward=1.0, error=error, limit=6e-7, B=8 * (i + 1))
            write_run(f"{device}{i}", [{**line, "device": device}])
    (plot,) = (plot for plot in FIGURES if plot.name == "errors")
    figure = plot.draw(plot.select(measured(tmp_path)))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        boxes = [label.get_window_extent(canvas.get_renderer()) for label in axes.get_xticklabels()]
        assert len(boxes) >= 2
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_figures_and_tables_of_an_earlier_report_that_have_nothing_to_show_are_removed(report, write_run, tmp_path):
    shutil.copytree(report.parent, tmp_path / "out")
    write_report([write_run("alone", None, "failed", "x")], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["report.html"]


def test_a_method_has_one_colour_everywhere_and_no_two_share_one():
    assert palette(["block_shock"])["block_shock"] == palette(["mine", "block_shock"])["block_shock"]
    assert palette(["mine"])["mine"] == palette(["mine", *COLOURS])["mine"]
    for family in (COLOURS, RECOMPUTATION):
        many = palette([*family, "mine", "yours"])
        assert len(set(many.values())) == len(many)


def run_cli(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["blockshock-report", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_prints_a_table_and_where_the_report_is(layers, monkeypatch, capsys):
    assert run_cli(monkeypatch, layers) == 0
    out = capsys.readouterr().out
    assert f"report: {layers / 'report' / 'report.html'}" in out
    assert (layers / "report" / "report.html").exists()
    assert re.search(r"block_shock +cusparselt +128 +8 +1 +64\.0 +2\.00×", out)


def test_the_report_of_a_sweep_does_not_change_the_next_one(mixed, report, monkeypatch):
    shutil.copytree(report.parent, mixed / "report")
    assert run_cli(monkeypatch, mixed) == 0
    assert (mixed / "report" / "table.csv").read_text() == (report.parent / "table.csv").read_text()


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
    assert case != "out is a file" or "--out" in lines[0]


def test_a_run_that_can_not_be_read_is_named_and_the_others_are_reported(layers, write_run, monkeypatch, capsys):
    (write_run("cut") / "status.json").write_text('{"sta')
    (write_run("gone") / "metrics.jsonl").unlink()
    (write_run("wrong") / "env.json").write_text("[]")
    assert run_cli(monkeypatch, layers) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(f"{layers}/")[2].partition(":")[0] for line in said] == [
        *("cut/status.json", "gone/metrics.jsonl", "wrong/env.json")
    ]
    text = (layers / "report" / "report.html").read_text()
    assert ">3 unreadable<" in text
    assert "its records are gone" in text


def test_one_comparison_and_one_run_are_not_told_in_the_plural(write_run, tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, write_run("alone", None, "failed", "x")) == 2
    assert "no records in 1 failed run;" in capsys.readouterr().err


def test_importing_the_report_loads_neither_torch_nor_matplotlib():
    code = "import sys, sweeps.report; print(sorted({'torch', 'matplotlib', 'seaborn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
