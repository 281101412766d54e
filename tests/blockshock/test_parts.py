"""A forward's parts multiply and join what the forward does, and records and sweeps hold their times."""

import json
from collections.abc import Iterator

import pytest

from blockshock.ranks.pool import RankPool
from sweeps import load_runs
from sweeps.report.tables.benchmarks import benchmarks
from sweeps.report.tables.diagram.forward_parts import forward_parts
from tests.blockshock import parts_tasks

SIZE = {"N": 96, "K": 96, "B": 512, "dtype": "float32", "seed": 3, "mask": "complement_1100_0011"}
LAYERS = ["dense_tp_row", "dense_tp_column", "dtensor_row", "dtensor_column", "masked_split_dense", "block_shock"]


@pytest.mark.parametrize("method", LAYERS)
def test_the_collective_of_the_parts_returns_what_the_forward_does(pools, method):
    outcome = pools(2).run(parts_tasks.compare_with_forward, SIZE | {"method": method})
    assert outcome.status == "ok", outcome.reason
    assert max(outcome.value["differences"]) < 1e-6
    assert outcome.value["chunks"] == 1


@pytest.mark.parametrize(("method", "mask"), [("block_shock", "window_4of6"), ("block_shock", "random_2of4")])
def test_so_it_does_for_windows_and_in_chunks(pools, method, mask):
    spec = SIZE | {"method": method, "mask": mask, "options": {"overlap_chunks": 2}}
    outcome = pools(2).run(parts_tasks.compare_with_forward, spec)
    assert outcome.status == "ok", outcome.reason
    assert max(outcome.value["differences"]) < 1e-6
    assert outcome.value["chunks"] == 2


def test_a_layer_that_gathers_after_its_sum_has_no_parts(pools):
    spec = SIZE | {"method": "block_shock", "options": {"shard": "outputs"}}
    outcome = pools(4).run(parts_tasks.compare_with_forward, spec)
    assert (outcome.status, outcome.value) == ("ok", None)


@pytest.mark.parametrize(("chunks", "rows"), [(1, [1024]), (4, [256] * 4)])
def test_the_matmul_part_multiplies_the_chunks_of_the_forward_and_the_collective_nothing(pools, chunks, rows):
    outcome = pools(2).run(parts_tasks.rows_multiplied, {"chunks": chunks})
    assert outcome.status == "ok", outcome.reason
    assert outcome.value == [rows, rows, []]


@pytest.mark.slow
def test_the_phase_diagrams_sweep_records_all_parts_and_a_benchmark_without_it_none(cli, tmp_path):
    short = ["phase.timed_iters=2", "phase.rounds=2", "hydra.launcher.report=false"]
    done = cli("-m", "+sweep=phase_diagram", "model.N=96", "hardware=cpu", *short)
    assert done.code == 0, done.err
    found = forward_parts(benchmarks(load_runs([tmp_path])))
    measured = {"dtensor_row", "dtensor_column", "dense_tp_row", "dense_tp_column"}
    measured |= {"block_shock/1100", "block_shock/checkerboard", "block_shock/random", "block_shock/4of6"}
    assert set(found["contender"]) == measured
    assert (found[["matmul_us", "collective_us", "inside_us", "empty_us", "floor_ms"]] > 0).all(axis=None)
    plain = cli("phase=benchmark", "hardware=cpu", "hardware.world_size=2", "model.N=96", "model.B=16", *short[:2])
    assert plain.code == 0, plain.err
    [path] = (tmp_path / "outputs" / "runs").rglob("metrics.jsonl")
    assert all("parts" not in json.loads(line) for line in path.read_text().splitlines())


WAYS = [("nccl", 1), ("one_shot", 1), ("two_shot", 1), ("copy", 1), ("nccl", 4), ("two_shot", 4), ("copy", 4)]


@pytest.fixture(scope="module")
def gpu_pool() -> Iterator[RankPool]:
    """Its own: ranks that have met over gloo can't meet over NCCL."""
    with RankPool(2) as pool:
        yield pool


@pytest.mark.gpus
@pytest.mark.parametrize(("collective", "chunks"), WAYS)
def test_on_gpus_every_reduction_returns_as_a_part_what_the_forward_does(gpu_pool, collective, chunks):
    options = {"collective": collective, "overlap_chunks": chunks}
    large = {"N": 2048, "K": 2048, "B": 2048, "dtype": "bfloat16", "device": "cuda"}
    for method, mask in (("dense_tp_row", "complement_1100_0011"), ("block_shock", "random_2of4")):
        spec = SIZE | large | {"method": method, "mask": mask, "options": options}
        outcome = gpu_pool.run(parts_tasks.compare_with_forward, spec)
        assert outcome.status == "ok", outcome.reason
        assert max(outcome.value["differences"]) <= 2**-7  # two bf16 roundings of one sum
        assert outcome.value["chunks"] == chunks


@pytest.mark.gpus
@pytest.mark.parametrize("method", ["dense_tp_column", "dtensor_row", "dtensor_column"])
def test_on_gpus_so_do_the_other_dense_layers(gpu_pool, method):
    spec = SIZE | {"N": 2048, "K": 2048, "dtype": "bfloat16", "device": "cuda", "method": method}
    outcome = gpu_pool.run(parts_tasks.compare_with_forward, spec)
    assert outcome.status == "ok", outcome.reason
    assert max(outcome.value["differences"]) <= 2**-7
