"""Sums of partial products: in chunks and whole, what is refused, what the record says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockshock.collectives import reductions
from blockshock.collectives.matmul_all_reduce import most_chunks, row_chunks
from tests.blockshock import collective_tasks


@given(st.integers(1, 100_000), st.integers(1, 64))
def test_chunks_cover_all_rows_in_tiles_and_have_256_each(rows, wanted):
    chunks = min(wanted, most_chunks(rows))
    found = row_chunks(rows, chunks)
    assert len(found) == chunks
    assert [row for part in found for row in (part.start, part.stop)][1:-1] == sorted(
        2 * [part.start for part in found[1:]]
    )  # each begins where the one before ends
    assert (found[0].start, found[-1].stop) == (0, rows)
    assert all(part.start % 128 == 0 for part in found)
    assert chunks == 1 or min(part.stop - part.start for part in found) >= 256


@pytest.mark.parametrize(
    ("world_size", "method", "mask"),
    [
        (2, "block_shock", "complement_1010_0101"),
        (2, "masked_split_dense", "random_2of4"),
        (3, "dense_tp_row", "complement_1100_0011"),
        (4, "block_shock", "checkerboard"),
    ],
)
@pytest.mark.parametrize("chunks", [2, 4])
def test_chunked_sums_are_the_whole_ones_to_the_bit_and_so_are_gradients(pools, world_size, method, mask, chunks):
    spec = {"method": method, "mask": mask, "N": 16, "K": 24, "B": 1100, "seed": 1, "dtype": "float32"}
    outcome = pools(world_size).run(collective_tasks.in_chunks_and_whole, spec, chunks)
    assert outcome.status == "ok", outcome.reason
    different, described = outcome.value
    assert different == []
    assert described["collective"] == {"implementation": "gloo", "chunks": chunks}


def test_a_way_is_not_chosen_for_being_timed_before_the_machine_got_hot(pools):
    first, second = pools(2).run(collective_tasks.timed_while_getting_hot, {"first": [8, 8], "last": [7, 7]}).value
    assert first == second
    assert first["last"] < first["first"]


def test_the_slowest_rank_decides_and_all_agree(pools):
    ways = {"slow on rank 1": [2, 8], "steady": [5, 5]}
    first, second = pools(2).run(collective_tasks.timed_while_getting_hot, ways).value
    assert first == second
    assert min(first, key=first.get) == "steady"


def test_one_rank_sums_nothing_and_says_nothing(pools):
    spec = {"method": "block_shock", "mask": "random_2of4", "N": 16, "K": 24, "B": 600, "seed": 1, "dtype": "float32"}
    different, described = pools(1).run(collective_tasks.in_chunks_and_whole, spec, 2).value
    assert different == []
    assert "collective" not in described


@pytest.mark.parametrize("method", ["block_shock", "masked_split_dense", "dense_tp_row"])
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("method.collective=two_shot", "method.collective=two_shot: needs GPUs and hardware.backend=nccl, not gloo"),
        ("method.collective=nccl", "method.collective=nccl: needs GPUs"),
        ("method.collective=two-shot", "did you mean 'two_shot'?"),
        ("method.overlap_chunks=0", "method.overlap_chunks=0: must be at least 1"),
        ("method.overlap_chunks=3", "chunks have 256 rows of X at least, so model.B=512 allows 2"),
    ],
)
def test_a_collective_that_cannot_run_is_refused_in_one_line(cli, method, option, said):
    done = cli(f"method={method}", "hardware=cpu", "hardware.world_size=2", "model.B=512", option)
    assert done.code == 2
    # Hydra's logging may complain before, of the stream that an earlier test of this process had and closed.
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("blockshock: method.")
    assert said in last


def test_options_of_a_sum_mean_nothing_on_one_rank(cli):
    small = ("hardware=cpu", "phase=phase0_correctness", "model.N=16", "model.B=8")
    assert cli(*small, "method.overlap_chunks=2", "method.collective=nccl").code == 0


def test_what_an_implementation_cannot_sum_is_said():
    bf16 = torch.bfloat16
    assert all(reductions.REDUCTIONS[name].unsupported(2, bf16, 1 << 20) is None for name in reductions.GPU_NAMES)
    assert reductions.REDUCTIONS["nccl"].unsupported(6, torch.float64, 2) is None
    assert reductions.REDUCTIONS["copy"].unsupported(2, torch.float64, 1 << 20) is None
    assert "pairs" in str(reductions.REDUCTIONS["copy"].unsupported(4, bf16, 1 << 20))
    assert "2, 4, 8 ranks" in str(reductions.REDUCTIONS["two_shot"].unsupported(6, bf16, 1 << 20))
    assert "not float16" in str(reductions.REDUCTIONS["one_shot"].unsupported(2, torch.float16, 1 << 20))
    assert "multiple of 16 bytes" in str(reductions.REDUCTIONS["two_shot"].unsupported(2, bf16, 24))


def test_each_reduction_is_listed_under_its_own_name():
    assert all(reduction.name == name for name, reduction in reductions.REDUCTIONS.items())
    assert {r.backend for r in reductions.REDUCTIONS.values()} == {"nccl", "gloo"}
