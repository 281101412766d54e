"""What was measured on a machine is kept, shown, forgotten, and measured again where it can't be read."""

import json

import pytest
import torch

from blockshock.cli import tune
from blockshock.measure.cache import cache_path, cached_measurement, load

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_measured_is_measured_once_for_a_key_and_again_on_request():
    calls = []

    def measure():
        calls.append(1)
        return {"gather": float(len(calls))}

    assert cached_measurement("product", {"N": 1}, CPU, measure, ["gather"]) == {"gather": 1.0}
    assert cached_measurement("product", {"N": 1}, CPU, measure, ["gather"]) == {"gather": 1.0}
    assert cached_measurement("product", {"N": 2}, CPU, measure, ["gather"]) == {"gather": 2.0}
    assert cached_measurement("product", {"N": 1}, CPU, measure, ["gather"], again=True) == {"gather": 3.0}
    assert load(cache_path(CPU)) == {"product": {"N=1": {"gather": 3.0}, "N=2": {"gather": 2.0}}}


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"product": 3}', "\udcff"])
def test_a_file_that_cant_be_read_is_measured_again_and_replaced(content):
    path = cache_path(CPU)
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert cached_measurement("product", {"N": 1}, CPU, lambda: {"gather": 1.0}, ["gather"]) == {"gather": 1.0}
    assert json.loads(path.read_text()) == {"product": {"N=1": {"gather": 1.0}}}


@pytest.mark.parametrize("entry", [{"copy_gbs": 1.0}, {"gather": 1.0, "other": 2.0}, [1.0], 3, None])
def test_an_entry_of_another_shape_is_measured_again_and_shown_as_it_is(entry, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = cache_path(CPU)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"product": {"N=1": entry}, "rates": {"a": entry, "b": {"copy_gbs": "x"}}}))
    tune.main([])
    assert "not readable: {'copy_gbs': 'x'}" in capsys.readouterr().out
    assert cached_measurement("product", {"N": 1}, CPU, lambda: {"gather": 1.0}, ["gather"]) == {"gather": 1.0}


def test_rates_are_shown_with_units_and_only_those_that_were_measured(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rates = {"copy_gbs": 12.34567, "matmul_tflops": 0.0012, "link_gbs": 0.0}
    cached_measurement("rates", {"dtype": "float16"}, CPU, lambda: rates, rates)
    tune.main([])
    assert "copy 12.35 GB/s, matmul 0.0012 TFLOP/s" in capsys.readouterr().out


def test_what_cannot_be_forgotten_is_said_in_one_line(capsys):
    cache_path(CPU).mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        tune.main(["--forget"])
    err = capsys.readouterr().err
    assert (stop.value.code, "Is a directory; take it away by hand" in err, err.count("\n")) == (2, True, 1)


def test_a_folder_that_cant_be_written_costs_a_warning_and_no_job(monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert cached_measurement("product", {"N": 1}, CPU, lambda: {"gather": 1.0}, ["gather"]) == {"gather": 1.0}
    assert "can't be kept" in caplog.text


def test_tune_chooses_kernels_shows_them_and_forgets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    tune.main(["--n", "64", "--batch", "8", "--mask", "checkerboard", "--dtype", "fp32"])
    assert "N=64 B=8 checkerboard: {'name': 'gather'" in capsys.readouterr().out
    cached_measurement("product", {"N": 1}, CPU, lambda: {"gather": 0.002, "triton": 0.001}, ["gather", "triton"])
    tiles = {"tiles": {"rows": 64}, "ms": 0.003, "tried": 5}
    cached_measurement("triton", {"N": 1}, CPU, lambda: tiles, tiles)
    tune.main([])
    shown = capsys.readouterr().out
    assert "triton, not gather 2.0" in shown
    assert "rows=64 (of 5)" in shown
    tune.main(["--forget"])
    assert not cache_path(CPU).exists()
    tune.main([])
    assert "nothing is known yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--n", "6", "--batch", "4"], "--n=6: must be multiples of 4"),
        (["--n", "²", "--batch", "4"], "must be positive whole numbers"),
        (["--n", "64"], "--n=64: needs --batch too"),
        (["--n", "64", "--batch", "8", "--mask", "nope"], "--mask=nope: allowed: checkerboard"),
    ],
)
def test_what_cant_be_tuned_is_refused_in_one_line(arguments, problem, capsys):
    with pytest.raises(SystemExit) as refused:
        tune.main(arguments)
    assert refused.value.code == 2
    err = capsys.readouterr().err
    assert problem in err
    assert err.count("\n") == 1
