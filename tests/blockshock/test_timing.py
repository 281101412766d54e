"""Times are what they say."""

import statistics
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockshock.measure.summarize import summarize, summarize_blocks
from blockshock.measure.timing import Timer, region

CPU = torch.device("cpu")


def test_a_sleep_of_50_ms_reads_no_less():
    samples = Timer("sync", CPU).measure("total_step", lambda: time.sleep(0.050), 1, 3)["total_step"]
    assert min(samples) >= 50.0


def test_a_step_of_50_ms_by_the_clock_reads_50_ms(monkeypatch):
    clock = iter(range(10**6))
    now = [0.0]

    def step():
        now[0] += 0.050 * (1 + next(clock))

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    samples = Timer("sync", CPU).measure("total_step", step, 1, 5)["total_step"]
    assert samples == pytest.approx([100, 150, 200, 250, 300])


def test_regions_nest_and_repeated_ones_add_up():
    def step():
        with region("forward"):
            time.sleep(0.004)
            for _ in range(2):
                with region("allreduce"):
                    time.sleep(0.003)

    samples = Timer("sync", CPU).measure("total_step", step, 1, 4)
    assert {name: len(values) for name, values in samples.items()} == {"allreduce": 4, "forward": 4, "total_step": 4}
    for total, forward, reduce_ in zip(samples["total_step"], samples["forward"], samples["allreduce"], strict=True):
        assert reduce_ >= 6.0
        assert forward >= reduce_ + 4.0
        assert total >= forward


def test_a_region_outside_of_a_measurement_costs_and_changes_nothing():
    with region("forward"):
        value = 1
    assert value == 1


def test_warm_up_iterations_run_and_are_not_counted():
    calls = []
    samples = Timer("sync", CPU).measure("total_step", lambda: calls.append(1), 3, 5)
    assert len(calls) == 8
    assert len(samples["total_step"]) == 5


def test_mode_none_runs_the_step_and_times_nothing():
    calls = []
    assert Timer("none", CPU).measure("total_step", lambda: calls.append(1), 2, 5) == {}
    assert len(calls) == 7


@pytest.mark.parametrize("mode", ["cuda_events", "cuda_graph"])
def test_gpu_modes_are_refused_on_a_cpu(mode):
    with pytest.raises(ValueError, match="needs a CUDA device"):
        Timer(mode, CPU)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50))
def test_statistics_are_numpys(samples):
    got = summarize(samples)
    assert got["count"] == len(samples)
    want = {
        "sum_ms": np.sum(samples), "avg_ms": np.mean(samples), "p50_ms": np.percentile(samples, 50),
        "p95_ms": np.percentile(samples, 95), "min_ms": np.min(samples), "max_ms": np.max(samples),
    }  # fmt: skip
    assert got == pytest.approx({"count": len(samples), **want})


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["cuda_events", "cuda_graph"])
@pytest.mark.parametrize("size", [2048, 8192])
def test_a_matmuls_time_agrees_with_tritons_do_bench(mode, size):
    from triton.testing import do_bench

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    expected = do_bench(lambda: a @ b, warmup=100, rep=300, return_mode="median")
    timer = Timer(mode, torch.device("cuda"), flush_l2=True)
    samples = timer.measure("total_step", lambda: a @ b, 10, 100)["total_step"]
    assert statistics.median(samples) == pytest.approx(expected, rel=0.10)


@pytest.mark.gpu
def test_inner_regions_of_a_graph_are_timed_and_cost_the_whole_nothing():
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)

    def step():
        with region("forward"):
            b = a @ a
        with region("backward"):
            _ = b @ a @ a

    samples = Timer("cuda_graph", torch.device("cuda")).measure("total_step", step, 3, 30)
    median = {name: statistics.median(values) for name, values in samples.items()}
    assert median["backward"] / median["forward"] == pytest.approx(2, rel=0.15)
    assert median["forward"] + median["backward"] == pytest.approx(median["total_step"], rel=0.10)


@pytest.mark.gpu
def test_a_graph_hides_what_the_host_costs_and_events_show_it():
    x = torch.randn(64, 64, device="cuda")

    def slow_host():
        time.sleep(0.002)
        x.mul_(1.0)

    events = Timer("cuda_events", torch.device("cuda")).measure("total_step", slow_host, 3, 20)["total_step"]
    graph = Timer("cuda_graph", torch.device("cuda")).measure("total_step", slow_host, 3, 20)["total_step"]
    assert statistics.median(events) > 2.0
    assert statistics.median(graph) < 0.1


def test_blocks_are_summarised_together_and_each_keeps_its_median():
    found = summarize_blocks([[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]])
    assert found["blocks_p50_ms"] == [2.0, 5.0]
    assert found == {**summarize([1.0, 2.0, 9.0, 4.0, 5.0, 6.0]), "blocks_p50_ms": [2.0, 5.0]}


def test_a_wall_clock_that_is_set_back_changes_no_measured_time(monkeypatch):
    moments = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    samples = Timer("sync", torch.device("cpu")).measure("total_step", lambda: time.time(), 1, 5)
    assert len(samples["total_step"]) == 5
    assert all(0 <= ms < 3.6e6 for ms in samples["total_step"])
