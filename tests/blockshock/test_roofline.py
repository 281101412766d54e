"""Floors are the sums one does by hand."""

import pytest
import torch

from blockshock.kernels.layouts import PackedLayout
from blockshock.measure import cache, calibration
from blockshock.measure.calibration import Rates
from blockshock.measure.roofline import Cost, all_gather, all_reduce, floor
from tests.blockshock.rank_tasks import method_yaml, problem_of
from tests.blockshock.test_packing import half_mask

RATES = Rates(copy_gbs=4000.0, matmul_tflops=800.0, link_gbs=400.0)


def costs(method: str, mask: str = "complement_1100_0011", **options):
    problem = problem_of({"mask": mask, "N": 64, "K": 32, "B": 16, "seed": 0, "dtype": "bfloat16"})
    return method_yaml(method, **options).build(problem, problem.weight()).costs()


def test_a_dense_layer_reads_its_weight_once():
    forward = costs("dense_single")["forward"]
    assert forward.flops == 2 * 16 * 64 * 32
    assert forward.memory_bytes == 2 * (16 * 32 + 64 * 32 + 16 * 64)
    assert forward.link_bytes == 0


def test_on_one_rank_the_halves_do_the_dense_work_between_them():
    for method in ("block_shock", "masked_split_dense"):
        found, dense = costs(method), costs("dense_single")
        assert {name: cost.flops for name, cost in found.items()} == {n: c.flops for n, c in dense.items()}
    # packed halves: the weight's bytes once; X by halves; Y twice, once a partial product
    assert costs("block_shock")["forward"].memory_bytes == 2 * (64 * 32 + 16 * 32 + 2 * 16 * 64)
    # masked halves: the weight's bytes twice
    assert costs("masked_split_dense")["forward"].memory_bytes == 2 * (2 * 64 * 32 + 16 * 32 + 2 * 16 * 64)


def test_a_mask_without_structure_adds_two_bits_of_metadata_to_each_value_and_reads_all_of_x():
    found = costs("block_shock", mask="random_2of4")["forward"].memory_bytes
    values, metadata = 2 * 64 * 32, 64 * 32 * 2 / 8
    assert found == values + metadata + 2 * (2 * 16 * 32 + 2 * 16 * 64)
    layout = PackedLayout.of(half_mask("random", 64, 32, torch.Generator().manual_seed(0)), None)
    packed = layout.rows * layout.features // 2 * 2 + layout.metadata_bits / 8
    assert packed / (64 * 32 * 2) == 9 / 16  # of the dense bf16 weight


@pytest.mark.parametrize(("ranks", "sent"), [(1, 0), (2, 1000), (4, 1500), (8, 1750)])
def test_an_all_reduce_sends_twice_what_an_all_gather_does(ranks, sent):
    assert all_reduce(ranks, 1000).link_bytes == sent
    assert all_gather(ranks, 1000).link_bytes == sent / 2


def test_the_floor_of_a_stage_is_its_largest_part_and_stages_add_up():
    memory_bound = Cost(flops=8e9, memory_bytes=4e9, link_bytes=4e7)  # 0.01 ms, 1 ms, 0.1 ms
    link_bound = Cost(flops=8e9, memory_bytes=4e6, link_bytes=4e8)  # 0.01 ms, 0.001 ms, 1 ms
    found = floor([memory_bound], RATES)
    assert (found["floor_ms"], found["bound"]) == (pytest.approx(1.0), "memory")
    assert found["compute_ms"] == pytest.approx(0.01)
    both = floor([memory_bound, memory_bound, link_bound], RATES)
    assert (both["floor_ms"], both["bound"]) == (pytest.approx(3.0), "memory")


def test_rates_are_measured_once_and_again_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    count = []

    def measure(dtype, device):
        count.append(1)
        return Rates(float(len(count)), 1.0, 0.0)

    monkeypatch.setattr(calibration, "measure", measure)
    cpu = torch.device("cpu")
    assert calibration.rates(torch.float32, cpu, "gloo").copy_gbs == 1
    assert calibration.rates(torch.float32, cpu, "gloo").copy_gbs == 1
    assert calibration.rates(torch.float32, cpu, "gloo", again=True).copy_gbs == 2
    assert calibration.rates(torch.bfloat16, cpu, "gloo").copy_gbs == 3
    assert len(cache.load(cache.cache_path(cpu))["rates"]) == 2


def test_rates_are_the_work_done_over_the_best_of_its_times(monkeypatch):
    ran = []

    class Clock:
        """Takes every piece of work for 4, 2 and 3 ms."""

        def __init__(self, mode: str, device: torch.device) -> None:
            pass

        def measure(self, outer: str, work, warmup_iters: int, timed_iters: int) -> dict[str, list[float]]:
            ran.append(work())
            return {outer: [4.0, 2.0, 3.0]}

    monkeypatch.setattr(calibration, "Timer", Clock)
    rates = calibration.measure(torch.float32, torch.device("cpu"))
    copied, *products = ran[0], *(result for result in ran if result.dim() == 2)
    assert rates.copy_gbs == pytest.approx(2 * copied.nbytes / 2e-3 / 1e9)  # read and written
    assert rates.matmul_tflops == pytest.approx(2 * len(products[-1]) ** 3 / 2e-3 / 1e12)
    assert rates.link_gbs == 0
