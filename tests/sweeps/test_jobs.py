from __future__ import annotations

import json

from sweeps import load_runs
from sweeps.report.records.runs import environments, jobs, machines


def test_each_machine_and_set_of_versions_is_listed_once_with_its_jobs(write_run, tmp_path):
    gpu = {"name": "NVIDIA X", "memory_bytes": 80 * 2**30}
    hosts = [("one", 1), ("one", 2), ("one", 2), ("two", 1)]
    for i, (host, gpus) in enumerate(hosts):
        folder = write_run(f"{i}", None)
        (folder / "env.json").write_text(json.dumps({"host": host, "torch": "2.11", "gpus": [gpu] * gpus}))
    runs = load_runs([tmp_path])
    found = environments(runs)
    assert [(one["host"], one["GPU"], one["jobs"]) for one in found] == [
        ("one", "2 × NVIDIA X, 80 GiB", "3"),
        ("two", "1 × NVIDIA X, 80 GiB", "1"),
    ]
    assert machines(runs)["GPU"] == "2 × NVIDIA X"


def test_a_run_without_an_environment_adds_no_machine(write_run, tmp_path):
    (write_run("a", None, "running") / "env.json").unlink()
    assert environments(load_runs([tmp_path])) == []


def test_a_job_is_named_after_its_configuration(write_run, record, tmp_path):
    write_run("a", [record("phase1_forward", "block_shock", N=128, K=128, world_size=2)])
    write_run("b", [record("phase1_forward", "block_shock", N=128, K=64)])
    labels = jobs(load_runs([tmp_path]))["label"].tolist()
    assert labels == [
        "phase1_forward block_shock N=128 B=8 fp32 P=2",
        "phase1_forward block_shock N=128 K=64 B=8 fp32 P=1",
    ]
