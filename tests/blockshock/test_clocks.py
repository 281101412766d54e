"""Clocks and what holds them down, from a stand-in for NVML's Python module: no GPU is asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from blockshock.cli import resolvers
from blockshock.cli.summary import print_summary
from blockshock.config import CONF, load_job
from blockshock.jobs.execution import Execution
from blockshock.measure import nvml
from blockshock.measure.clocks import ClockLog
from blockshock.measure.interleaved import interleaved
from blockshock.measure.timing import Timer
from blockshock.ranks.pool import RankPool
from blockshock.run_folder.folder import RunFolder
from tests.blockshock import rank_tasks
from tests.blockshock.fake_nvml import (
    BOOST,
    BRAKE,
    DISPLAY,
    HARDWARE,
    HARDWARE_HEAT,
    HEAT,
    IDLE,
    POWER,
    SET_CLOCKS,
    FakeNvml,
    OldNvml,
    SilentNvml,
)

GPU = torch.device("cuda", 0)
NULLS = dict.fromkeys(("sm_mhz", "memory_mhz", "power_w", "temperature_c", "power_cap", "slowdown", "throttled"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`gpu(fake)`: PyTorch and NVML both see one GPU, also where a test's device is the CPU."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1f"))

    def install(fake: FakeNvml) -> FakeNvml:
        monkeypatch.setattr(nvml, "pynvml", fake)
        real = nvml.handle_of
        monkeypatch.setattr(nvml, "handle_of", lambda device: real(GPU))
        return fake

    return install


def summary_of(samples: int) -> dict[str, Any]:
    log = ClockLog(GPU)
    for _ in range(samples):
        log.sample()
    return log.summary()


def test_a_summary_has_the_medians_of_the_samples(gpu):
    fake = gpu(FakeNvml((1980, 300_000, 40, 0), (1755, 700_000, 61, 0), (1800, 650_000, 50, 0)))
    found = summary_of(3)
    assert fake.asked == ["GPU-1f"]
    assert found == {
        **{"sm_mhz": 1800, "memory_mhz": 3201, "power_w": 650.0, "temperature_c": 50, "samples": 3},
        **{"power_cap": 0.0, "slowdown": 0.0, "throttled": ""},
    }


@pytest.mark.parametrize(
    ("bits", "power_cap", "slowdown", "throttled"),
    [
        (IDLE | SET_CLOCKS | BOOST | DISPLAY, 0.0, 0.0, ""),
        (POWER | IDLE, 1.0, 0.0, "power cap"),
        (HEAT, 0.0, 1.0, "thermal slowdown"),
        (HARDWARE | HARDWARE_HEAT, 0.0, 1.0, "hardware thermal slowdown, hardware slowdown"),
        (BRAKE | POWER, 1.0, 1.0, "power cap, power brake"),
    ],
)
def test_a_power_cap_is_told_from_a_slowdown_and_idle_or_set_clocks_are_neither(
    gpu, bits, power_cap, slowdown, throttled
):
    gpu(FakeNvml((1500, 1, 1, bits)))
    found = summary_of(2)
    assert (found["power_cap"], found["slowdown"], found["throttled"]) == (power_cap, slowdown, throttled)


def test_shares_count_the_samples_in_which_it_was_seen(gpu):
    gpu(FakeNvml((1, 1, 1, POWER), (1, 1, 1, POWER | HEAT), (1, 1, 1, HARDWARE), (1, 1, 1, 0)))
    found = summary_of(4)
    assert (found["power_cap"], found["slowdown"]) == (0.5, 0.5)
    assert found["throttled"] == "power cap, thermal slowdown, hardware slowdown"


def test_a_driver_with_the_older_name_is_asked_by_it(gpu):
    gpu(OldNvml((1, 1, 1, HEAT)))
    assert summary_of(1)["throttled"] == "thermal slowdown"


def test_a_driver_that_does_not_say_why_leaves_that_open(gpu):
    gpu(SilentNvml((1410, 1, 1, HEAT)))
    found = summary_of(1)
    assert (found["sm_mhz"], found["throttled"], found["slowdown"]) == (1410, None, None)


@pytest.mark.parametrize("module", [None, "breaks"])
def test_without_nvml_every_field_is_null(gpu, monkeypatch, module):
    if module:
        broken = gpu(FakeNvml((1, 1, 1, POWER)))

        def no_driver() -> None:
            raise broken.NVMLError("Driver Not Loaded")

        broken.nvmlInit = no_driver
    else:
        monkeypatch.setattr(nvml, "pynvml", None)
    assert summary_of(3) == {**NULLS, "samples": 0}


def test_of_several_ranks_the_lowest_clock_and_the_highest_power_count_and_any_ranks_throttling():
    with RankPool(2) as pool:
        outcome = pool.run(rank_tasks.clocks_of_two)
    assert outcome.status == "ok", outcome.reason
    assert outcome.value == {
        **{"sm_mhz": 1410, "memory_mhz": 3201, "power_w": 700.0, "temperature_c": 80, "samples": 2},
        **{"power_cap": 1.0, "slowdown": 0.5, "throttled": "power cap, thermal slowdown"},
    }


def test_each_step_of_a_comparison_is_sampled_once_in_each_of_its_counted_turns(gpu):
    fake = gpu(FakeNvml(*((1000 + n, 1, 1, 0) for n in range(99))))
    calls = {"a": 0, "b": 0}

    def step(name: str) -> Any:
        def run() -> None:
            calls[name] += 1

        return run

    turns = interleaved(Timer("sync", torch.device("cpu")), {name: step(name) for name in calls}, 1, 4, rounds=3)
    assert {name: of.clocks["samples"] for name, of in turns.items()} == {"a": 3, "b": 3}
    assert fake.at == 5
    # The order rotates: b a | a b | b a, after the round that warms up.
    assert (turns["a"].clocks["sm_mhz"], turns["b"].clocks["sm_mhz"]) == (1002, 1003)
    assert calls == {"a": 1 + 4 * 4, "b": 1 + 4 * 4}


@pytest.mark.parametrize(
    ("arguments", "records", "samples"),
    [
        (["phase=phase1_forward", "method=dense_single", "phase.blocks=3"], 1, 3),
        (["phase=benchmark", "phase/part=product", "phase.rounds=2"], 7, 2),
    ],
)
def test_records_hold_the_clocks_of_their_own_time(gpu, capsys, tmp_path: Path, arguments, records, samples):
    gpu(FakeNvml((1410, 699_500, 71, POWER)))
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sizes = ["hardware=cpu", "model.N=64", "model.B=8", "phase.warmup_iters=1", "phase.timed_iters=2"]
        job = load_job(compose("config", [*arguments, *sizes]))
    folder = tmp_path / "run"
    folder.mkdir()
    job.phase.run(Execution(job, torch.device("cpu"), RunFolder(folder), "test"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == records
    print_summary(folder)
    assert capsys.readouterr().out.count("power cap") == records
    for line in lines:
        assert line["clocks"]["samples"] == samples
        assert (line["clocks"]["sm_mhz"], line["clocks"]["power_w"]) == (1410, 699.5)
        assert (line["clocks"]["throttled"], line["clocks"]["power_cap"]) == ("power cap", 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["cuda_graph", "cuda_events"])
def test_a_sample_is_taken_when_the_work_is_queued_and_not_yet_done(mode):
    timer, done = Timer(mode, torch.device("cuda")), []
    timer.while_running = lambda: done.append(torch.cuda.current_stream().query())
    timer.measure("total_step", lambda: torch.cuda._sleep(20_000_000), 1, 5)
    assert done
    assert not any(done)
