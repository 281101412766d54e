"""Row-parallel in fp8: how it rounds, how far that may be from float64, and where it can't run."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockshock.measure import nvml
from blockshock.methods.fp8.dense_tp_row_fp8 import rounded
from blockshock.ranks.pool import RankPool
from tests.blockshock import rank_tasks

# Every value of e4m3 by its definition: 4 bits of exponent with bias 7, 3 of mantissa, no infinity, 448 at most.
E4M3 = sorted(
    {(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)}
    | {m / 8 * 2.0**-6 for m in range(8)}
)


@given(st.lists(st.floats(-2.0, 2.0, width=16), min_size=1, max_size=40), st.integers(-20, 20))
def test_a_tensor_is_rounded_to_the_nearest_value_of_e4m3_times_its_scale(values, exponent):
    x = (torch.tensor(values, dtype=torch.bfloat16) * 2.0**exponent).view(1, -1)
    x8, scale = rounded(x)
    largest = float(x.abs().max())
    assert math.frexp(float(scale))[0] == 0.5  # a power of two
    if largest > 2.0**-59:
        assert 224 < largest / float(scale) <= 448
    for exact, got in zip((x.double() / float(scale)).flatten().tolist(), x8.double().flatten().tolist(), strict=True):
        assert abs(got) in E4M3
        assert abs(got - exact) == min(abs(math.copysign(value, exact) - exact) for value in E4M3)


def test_zeros_have_a_scale():
    x8, scale = rounded(torch.zeros(2, 16, dtype=torch.bfloat16))
    assert torch.equal(x8.float(), torch.zeros(2, 16))
    assert math.isfinite(float(scale))


SIZE = {"N": 256, "K": 512, "B": 128, "dtype": "bfloat16", "seed": 5, "mask": "complement_1100_0011"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_y_errs_as_two_roundings_to_e4m3_explain_and_gradients_as_dense_ones(pools, ranks, dtype):
    outcome = pools(ranks).run(rank_tasks.check_method, SIZE | {"method": "dense_tp_row_fp8", "dtype": dtype})
    assert outcome.status == "ok", outcome.reason
    verdicts = outcome.value
    assert all(verdict["passed"] for verdict in verdicts.values()), verdicts
    # Each operand errs by up to half a unit in the last of 3 bits. Over the mantissas of a Gaussian that is between
    # 1/4 and all of the energy of an error uniform in half a unit of the power of two below.
    low, high = (math.sqrt(2 * 2.0**-6 / 12 * share) for share in (0.25, 1.0))
    assert low < verdicts["Y"]["relative_error"] < high
    for name in ("dX", "dW"):
        assert verdicts[name]["roundings"] == 1.0


def test_a_weight_that_changed_is_rounded_anew(pools):
    outcome = pools(2).run(rank_tasks.fp8_after_an_update, SIZE)
    assert outcome.status == "ok", outcome.reason
    assert outcome.value == {"before": False, "after": True, "same_storage": True}


JOB = ("phase=phase1_forward", "method=dense_tp_row_fp8", "hardware=cpu", "hardware.world_size=2", "model.B=16")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.N=64", "model.dtype=fp32"], "model.dtype=fp32"),
        (["model.N=72", "model.K=64", "model.dtype=bf16"], "model.N=72"),
        (["model.N=64", "model.K=48", "model.dtype=bf16"], "model.K=48"),
    ],
)
def test_what_it_can_not_multiply_is_rejected(cli, arguments, said):
    done = cli(*JOB, *arguments)
    assert done.code == 2
    assert said in done.err


def test_a_gpu_without_fp8_is_unsupported(cli, monkeypatch):
    monkeypatch.setattr(nvml, "capability", lambda: (8, 0))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    done = cli(*JOB[:2], "hardware=local_gpu", *JOB[3:], "model.N=64", "model.dtype=bf16")
    assert done.code == 2
    assert "needs a GPU with fp8 (compute capability 8.9), not 8.0; use dense_tp_row" in done.err


@pytest.mark.gpus
@pytest.mark.parametrize("size", [(2048, 4096, 16), (4096, 2048, 2048)])
def test_on_gpus_it_is_as_far_from_float64_as_its_roundings(size):
    spec = SIZE | dict(zip("NKB", size, strict=True)) | {"method": "dense_tp_row_fp8", "device": "cuda"}
    with RankPool(2) as pool:  # its own: ranks that have met over gloo can't meet over NCCL
        outcome = pool.run(rank_tasks.check_method, spec)
    assert outcome.status == "ok", outcome.reason
    assert all(verdict["passed"] for verdict in outcome.value.values()), outcome.value
    assert outcome.value["Y"]["relative_error"] > outcome.value["Y"]["limit"] / 4
