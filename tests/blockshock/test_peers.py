"""PyTorch's own layers beside ours: the same results, a shard's bytes and work, and refusals before anything runs."""

import pytest

from blockshock.methods.torch_semi_structured import unsupported
from tests.blockshock import peer_tasks, rank_tasks

PEERS = {"dtensor_row": "dense_tp_row", "dtensor_column": "dense_tp_column"}
SPEC = {"mask": "complement_1100_0011", "N": 48, "K": 24, "B": 5, "seed": 3, "dtype": "float64"}


@pytest.mark.parametrize("method", PEERS)
def test_fused_adamw_steps_on_dtensors_equal_those_of_a_dense_layer(pools, method):
    settings = {"lr": 1e-2, "weight_decay": 0.1, "fused": True}
    spec = SPEC | {"method": method, "optimizer": "AdamW", "settings": settings}
    outcome = pools(2).run(rank_tasks.train_beside_dense, spec)
    assert outcome.status == "ok", outcome.reason
    difference, moved = outcome.value
    assert moved > 0.1  # the steps did something
    assert difference <= 1e-12


@pytest.mark.parametrize(("method", "ours"), PEERS.items())
def test_a_dtensor_method_holds_a_shard_and_does_the_work_of_the_method_it_is_the_peer_of(pools, method, ours):
    found, beside = (pools(2).run(peer_tasks.holdings, SPEC | {"method": name}).value for name in (method, ours))
    shard = 48 * 24 // 2 * 8  # bytes, in float64
    assert found["weight_bytes"] == found["gradient_bytes"] == found["storage_bytes"] == shard
    assert found["state_bytes"] == 2 * shard
    assert found["types"] == ["Tensor", "Tensor", "Tensor"]  # waited for: a measurement holds all of the collective
    assert found["given_weight_is_untouched"]
    assert found["flops"] == beside["flops"] == 3 * 2 * 5 * 48 * 24 // 2
    assert (found["costs"], found["roundings"]) == (beside["costs"], beside["roundings"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["method=dtensor_row", "model.K=65", "hardware.world_size=2"],
            "model.K=65: dtensor_row on 2 ranks needs a multiple of 2",
        ),
        (
            ["method=dtensor_column", "model.N=65", "hardware.world_size=2"],
            "model.N=65: dtensor_column on 2 ranks needs a multiple of 2",
        ),
        (["method=dtensor_row"], "dtensor_row shards over at least 2 ranks; one rank is dense_single"),
        (
            ["method=torch_semi_structured", "hardware.world_size=2"],
            "needs an NVIDIA GPU and a PyTorch with cuSPARSELt",
        ),
        (["method=torch_semi_structured"], "method=torch_semi_structured: needs an NVIDIA GPU"),
        (["method=torch_semi_structured", "method.recompress=often"], "method.recompress"),
    ],
)
def test_peers_refuse_what_they_cannot_run_in_one_line(cli, tmp_path, arguments, expected):
    done = cli("hardware=cpu", "model.N=64", "model.B=8", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert expected in done.err
    assert not list(tmp_path.rglob("status.json"))


@pytest.mark.parametrize(
    ("dtype", "rows", "features", "problem"),
    [
        ("bf16", 64, 48, None),
        ("fp16", 16, 16, None),
        ("fp32", 64, 64, "multiplies bf16 and fp16, not fp32"),
        ("bf16", 24, 64, "rows N=24 to be a multiple of 16"),
        ("bf16", 64, 40, "K=40 a multiple of 16"),
    ],
)
def test_pytorchs_sparse_tensor_is_refused_what_it_cannot_hold(monkeypatch, dtype, rows, features, problem):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)  # as on a login node: only types and sizes decide
    found = unsupported("cuda", dtype, rows, features)
    assert found is None if problem is None else problem in str(found)
