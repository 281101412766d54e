"""A sweep that was recorded before the hash of a configuration changed."""

import json

import pytest


@pytest.mark.slow
def test_what_was_recorded_before_the_hash_changed_is_measured_anew_and_said_once(cli, tmp_path):
    sweep = tmp_path / "outputs" / "sweeps" / "old"
    folder = sweep / "phase0_correctness_dense_single_complement_1100_0011_N8-B4_fp32_P1_0123456789ab"
    folder.mkdir(parents=True)
    overrides = ["hardware=cpu", "phase=phase0_correctness", "method=dense_single", "model.N=8", "model.B=4"]
    (sweep / "sweep.json").write_text(
        json.dumps(
            {
                "arguments": ["-m", *overrides, "experiment.name=old"],
                "hydra_overrides": [],
                "skip_unsupported": False,
                "jobs": {folder.name: [*overrides, "experiment.name=old"]},
                "slurm": {},
                "schema": 1,
            }
        )
    )
    moment = "2026-01-01T00:00:00+00:00"
    status = {"schema": 1, "status": "ok", "reason": "", "started": moment, "ended": moment, "pid": 1, "host": "h"}
    (folder / "status.json").write_text(json.dumps({**status, "config_hash": "0123456789ab", "run_id": "r"}))
    (folder / "metrics.jsonl").write_text('{"schema": 1}\n')
    before = (folder / "status.json").read_bytes()

    resume = ("-m", "hydra.launcher.resume=outputs/sweeps/old", "hydra.launcher.report=false")
    done = cli(*resume)
    assert done.code == 0, done.err
    assert "1 ok" in done.err
    assert "1 were recorded before the configuration's hash changed" in done.err
    assert (folder / "status.json").read_bytes() == before
    assert len(list(sweep.glob("*/metrics.jsonl"))) == 2

    again = cli(*resume)
    assert again.code == 0, again.err
    assert "1 were measured before and kept" in again.err
    assert "hash changed" not in again.err
