"""On GPUs: every way to sum, eagerly and in CUDA graphs, on ranks that are out of step."""

import pytest
import torch

from blockshock.collectives import reductions
from blockshock.ranks.pool import RankPool
from tests.blockshock import collective_tasks, rank_tasks

DTYPES = ("bfloat16", "float16", "float32", "float64")


@pytest.fixture(scope="module")
def two_gpus():
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def four_gpus():
    if torch.cuda.device_count() < 4:
        pytest.skip("needs 4 GPUs: two pairs")
    with RankPool(4) as pool:
        yield pool


def cases(ranks):
    return [
        (name, dtype)
        for name in reductions.GPU_NAMES
        for dtype in DTYPES
        if reductions.REDUCTIONS[name].unsupported(ranks, getattr(torch, dtype), 1 << 20) is None
    ]


@pytest.mark.gpus
@pytest.mark.parametrize(("name", "dtype"), cases(2))
def test_two_ranks_sum_right_in_every_call_chunk_and_replay(two_gpus, name, dtype):
    outcome = two_gpus.run(collective_tasks.every_way, name, dtype, 2)
    assert outcome.status == "ok", outcome.reason
    assert outcome.value == []


@pytest.mark.gpus
@pytest.mark.parametrize(("name", "dtype"), [case for case in cases(2) if case[1] == "bfloat16"])
def test_two_pairs_of_four_ranks_sum_beside_each_other(four_gpus, name, dtype):
    outcome = four_gpus.run(collective_tasks.every_way, name, dtype, 2)
    assert outcome.status == "ok", outcome.reason
    assert outcome.value == []


@pytest.mark.gpus
@pytest.mark.parametrize(("name", "dtype"), cases(4))
def test_four_ranks_sum_right_in_every_call_chunk_and_replay(four_gpus, name, dtype):
    outcome = four_gpus.run(collective_tasks.every_way, name, dtype, 4)
    assert outcome.status == "ok", outcome.reason
    assert outcome.value == []


@pytest.mark.gpus
@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("name", reductions.GPU_NAMES)
@pytest.mark.parametrize(
    ("method", "mask"),
    [("block_shock", "complement_1010_0101"), ("block_shock", "random_2of4"), ("dense_tp_row", "checkerboard"),
     ("masked_split_dense", "checkerboard")],
)  # fmt: skip
def test_a_layers_result_and_gradients_are_the_dense_ones_whatever_sums(two_gpus, method, mask, name, chunks):
    spec = {
        "method": method, "mask": mask, "N": 512, "K": 512, "B": 1088, "seed": 7, "dtype": "bfloat16",
        "device": "cuda", "options": {"collective": name, "overlap_chunks": chunks},
    }  # fmt: skip
    outcome = two_gpus.run(rank_tasks.compare_with_dense, spec)
    assert outcome.status == "ok", outcome.reason
    errors, same_weight = outcome.value
    assert same_weight
    assert max(errors) <= 2 * torch.finfo(torch.bfloat16).eps, dict(zip(("Y", "dX", "dW"), errors, strict=True))


@pytest.mark.gpus
def test_auto_takes_the_fastest_of_all_ways_on_every_rank_and_measures_once(two_gpus, tmp_path):
    outcome = two_gpus.run(collective_tasks.choose_twice, {}, str(tmp_path))
    assert outcome.status == "ok", outcome.reason
    everyone, products = outcome.value
    assert everyone[0] == everyone[1]
    first, second = everyone[0]
    assert first == second
    assert products[0] > 0
    assert products[1] == 0  # remembered
    collective = first["collective"]
    measured = collective["measured_ms"]
    fastest = min(measured, key=measured.get)
    assert fastest == f"{collective['implementation']}/{collective['chunks']}"
    names = set(reductions.GPU_NAMES) - set(collective.get("impossible", {}))
    assert set(measured) == {f"{name}/{chunks}" for name in names for chunks in (1, 2, 4)}


@pytest.mark.gpus
def test_what_the_user_says_is_taken_without_measuring(two_gpus, tmp_path):
    options = {"collective": "nccl", "overlap_chunks": 2}
    everyone, products = two_gpus.run(collective_tasks.choose_twice, options, str(tmp_path)).value
    assert everyone == [[{"collective": {"implementation": "nccl", "chunks": 2}}] * 2] * 2
    assert products == [0, 0]


@pytest.mark.gpus
def test_symmetric_memory_is_shared_grows_and_is_not_reused_where_a_peer_has_dropped_it(two_gpus):
    outcome = two_gpus.run(collective_tasks.buffers_grow_and_go)
    assert outcome.status == "ok", outcome.reason
    held, same, total = outcome.value
    assert held == [0, 1 << 21, (1 << 21) + (1 << 23)]
    assert same
    assert total == [3.0] * 4


@pytest.mark.gpus
def test_every_sum_can_be_timed_in_a_graph_and_eagerly(two_gpus):
    outcome = two_gpus.run(collective_tasks.time_sums, list(reductions.GPU_NAMES))
    assert outcome.status == "ok", outcome.reason
    for modes in outcome.value.values():
        assert all(ms > 0 for ms in modes.values())
