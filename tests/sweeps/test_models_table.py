"""The report's table of models over ranks."""

import pytest

from sweeps import load_runs
from sweeps.report.figures import FIGURES
from sweeps.report.figures.draw import own_style
from sweeps.report.listings.models import MODELS
from sweeps.report.tables.layers import results
from sweeps.report.tables.models import models
from sweeps.report.tables.report_data import read_report_data
from tests.import_graph import ROOT

MODEL = {"workload": "gpt2", "workload_config": {"name": "gpt2", "layers": "mlp"}, "world_size": 2}


def sends(forward, backward):
    return {"layer": {"pairing": "auto", "collectives": {"forward": forward, "backward": backward}}}


@pytest.fixture
def sweep(write_run, record, tmp_path):
    ours = sends({"reduce_scatter": 12, "all_reduce": 12}, {"all_gather": 24})
    theirs = sends({"all_reduce": 12}, {"all_reduce": 12})
    for name, method, sent, step in (("a", "block_shock", ours, 3.0), ("b", "dense_tp_row", theirs, 2.0)):
        training = {"training": {"optimizer": "adamw", "loss": "cross_entropy"}}
        write_run(name, [record("phase3_train_step", method, total_step=step, **MODEL, **sent, **training)])
    curve = [(4.0, 4.25, 4.5), (2.0, 2.125, 2.0), (1.0, 1.0, 1.25)]  # ours, dense in the same dtype, dense in float64
    drift = [
        record(
            "phasex_drift",
            "block_shock",
            **MODEL,
            **ours,
            drift={"mode": "train", "step": step, "loss": a, "dense_loss": b, "exact_loss": c, "output_error": 0.0},
        )
        for step, (a, b, c) in enumerate(curve, start=1)
    ]
    write_run("c", drift)
    write_run("one-layer", [record("phase3_train_step", "dense_single", total_step=1.0)])
    return tmp_path


def test_a_row_has_the_step_what_it_sends_and_the_loss_next_to_float64s(sweep):
    runs = load_runs([sweep])
    rows = models(runs, results(runs)).set_index("method")
    assert sorted(rows.index) == ["block_shock", "dense_tp_row"]
    ours, theirs = rows.loc["block_shock"], rows.loc["dense_tp_row"]
    assert (ours["step_p50_ms"], theirs["step_p50_ms"]) == (3.0, 2.0)
    assert ours["step_speedup_row"] == pytest.approx(2 / 3)
    assert ours["forward_collectives"] == "12 all-reduce, 12 reduce-scatter"
    assert ours["backward_collectives"] == "24 all-gather"
    assert theirs["backward_collectives"] == "12 all-reduce"
    assert (ours["train_steps"], ours["train_loss"]) == (3, 1.0)
    assert ours["loss_distance"] == 0.5  # at the first step
    assert ours["dense_loss_distance"] == 0.25
    assert theirs[["train_loss", "loss_distance"]].isna().all()


def test_the_listing_shows_them_and_marks_the_fastest(sweep, tmp_path):
    page = MODELS.write(read_report_data([sweep]), tmp_path)
    assert list(page.shown["loss (steps)"]) == ["", "1.0000 (3)"]
    assert page.best == {(0, "step, ms")}
    assert "24 all-gather" in (tmp_path / "models.csv").read_text()


def test_records_without_a_model_over_ranks_have_no_such_table(write_run, record, tmp_path):
    write_run("a", [record("phase3_train_step", "dense_single", total_step=1.0)])
    assert MODELS.write(read_report_data([tmp_path]), tmp_path) is None


def test_losses_without_steps_are_listed_too(write_run, record, tmp_path):
    found = {"mode": "train", "step": 1, "loss": 2.0, "dense_loss": 2.0, "exact_loss": 2.0, "output_error": 0.0}
    write_run("a", [record("phasex_drift", "dense_tp_row", **MODEL, drift=found)])
    [row] = MODELS.select(read_report_data([tmp_path])).to_dict("records")
    assert (row["train_loss"], row["forward_collectives"]) == (2.0, "")


def test_steps_without_losses_are_listed_too(write_run, record, tmp_path):
    training = {"training": {"optimizer": "adamw", "loss": "cross_entropy"}}
    write_run("a", [record("phase3_train_step", "dense_tp_row", total_step=2.0, **MODEL, **training)])
    rows = MODELS.select(read_report_data([tmp_path]))
    assert list(rows["step_p50_ms"]) == [2.0]
    assert rows["train_loss"].isna().all()
    assert "loss (steps)" not in MODELS.show(rows)


@pytest.mark.parametrize("name", ["hypotheses", "training_step"])
def test_figures_of_several_models_say_which_is_which_within_their_width(name):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    (plot,) = (plot for plot in FIGURES if plot.name == name)
    with own_style():  # another's, of this process, may have larger letters
        figure = plot.draw(plot.select(read_report_data([ROOT / "outputs" / "reference" / "models_over_ranks_h200"])))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    drawn = [axis.title for axis in figure.axes] + [label for axis in figure.axes for label in axis.get_yticklabels()]
    for model in ("gpt2", "llama"):
        assert any(model in text.get_text() for text in drawn)
    for text in drawn:
        box = text.get_window_extent(canvas.get_renderer())
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.width, text.get_text()


def test_the_figure_of_losses_says_how_far_they_are_next_to_dense_runs(sweep, write_run, record):
    [losses], [drift] = ([plot for plot in FIGURES if plot.name == name] for name in ("losses", "drift"))
    data = read_report_data([sweep])
    rows = losses.select(data).set_index("step")
    assert list(rows["median"]) == [0.5, 0.25, 0.25]  # of the distances 0.5, 0 and 0.25, means so far
    assert list(rows["dense"]) == [0.25, 0.1875, pytest.approx(0.625 / 3)]
    assert drift.select(data).empty  # it is of layers
    assert losses.draw(losses.select(data)).get_suptitle().replace("\n", " ") == (
        "Over 3 steps Block-Shock's training loss is up to 2.00 times as far from float64's as dense runs'"
    )
    found = {"mode": "train", "step": 1, "loss": 3.0, "dense_loss": 2.0, "exact_loss": 2.0, "output_error": 0.0}
    write_run("another dense one", [record("phasex_drift", "dense_tp_row", **MODEL, drift=found)])
    title = losses.draw(losses.select(read_report_data([sweep]))).get_suptitle().replace("\n", " ")
    assert title == "Over 3 steps Block-Shock's training loss stays as near to float64's as that of dense runs"
