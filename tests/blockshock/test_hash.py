"""What is the same measurement, and what is said to a configuration of an earlier layout."""

import copy
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from blockshock.cli.main import CONF
from blockshock.cli.resolvers import register
from blockshock.config import GROUPS, load_job, plain
from blockshock.run_folder.folder import RunFolder
from blockshock.run_folder.naming import config_hash


def config(*overrides: str) -> dict:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = compose("config", overrides=["hardware=cpu", "model.N=64", *overrides])
        return load_job(plain(given)).config


LAYER = config("method=block_shock")
STEP = config("phase=checkpoint", "method=keep_all", "workload=tiny_gpt2")
LEAVES = [(group, key) for group, options in LAYER.items() for key in options]
NOT_MEASURED = {("experiment", "name"), ("experiment", "output_dir")} | {(group, "_target_") for group in GROUPS}
NOT_MEASURED |= {("hardware", key) for key in ("name", "recalibrate", "timeout_s")}


@given(st.sampled_from(LEAVES))
def test_the_hash_covers_every_key_that_changes_the_measurement_and_no_other(leaf):
    group, key = leaf
    other = copy.deepcopy(LAYER)
    other[group][key] = "another"
    assert (config_hash(other) == config_hash(LAYER)) == (leaf in NOT_MEASURED)


def test_a_models_step_is_the_same_measurement_whatever_the_layers_sizes_and_mask():
    other = config("phase=checkpoint", "method=keep_all", "workload=tiny_gpt2", "mask=random_2of4", "model.B=8")
    assert config_hash(other) == config_hash(STEP)
    assert config_hash(STEP | {"workload": STEP["workload"] | {"batch_size": 3}}) != config_hash(STEP)
    assert config_hash(STEP | {"model": STEP["model"] | {"dtype": "bf16"}}) != config_hash(STEP)


def test_a_status_of_the_schema_before_is_read_as_it_was(tmp_path):
    (tmp_path / "status.json").write_text(
        '{"schema": 1, "status": "ok", "reason": "", "started": "2026-01-01T00:00:00+00:00", "value": 1.5,'
        ' "ended": "2026-01-01T00:01:00+00:00", "config_hash": "a0dc650d8277", "pid": 7, "host": "h", "run_id": "r"}'
    )
    (tmp_path / "metrics.jsonl").write_text('{"schema": 1}\n')
    status = RunFolder(tmp_path).checked_status()
    assert (status["status"], status["value"]) == ("ok", 1.5)


@pytest.mark.parametrize(
    ("target", "source", "said"),
    [
        ("blockshock.kernels.halves.BlockShock", "", "write _target_: blockshock.methods.block_shock.BlockShock"),
        ("mine_a.Mine", "from blockshock.timing import region", "blockshock.timing is blockshock.measure.timing now"),
        ("mine_b.Mine", "from blockshock import distributed", "blockshock.distributed is blockshock.ranks.distributed"),
        ("mine_c.Mine", "import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("mine_d.Mine", "", "its class says `of`, which is `acts_on` now: write acts_on = 'model'"),
        ("mine_e.Other", "", "module 'mine_e' has no attribute 'Other'"),
        ("mine_f.number", "number = 1", "must be a dataclass whose fields are its options"),
    ],
)
def test_a_class_that_is_not_where_it_was_is_one_line_that_says_what_to_write(cli, tmp_path, target, source, said):
    body = "    of: ClassVar[str] = 'model'\n" if "acts_on" in said else ""
    text = f"from typing import ClassVar\nfrom dataclasses import dataclass\n{source}\n"
    module = target.split(".")[0]
    (tmp_path / f"{module}.py").write_text(f"{text}@dataclass\nclass Mine:\n{body}    name: str\n")
    Path(tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(f"_target_: {target}\nname: mine\n")
    sys.path.insert(0, str(tmp_path))
    done = cli("hardware=cpu", f"hydra.searchpath=[file://{tmp_path}/conf]", "method=mine")
    sys.path.remove(str(tmp_path))
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert said in done.err
    assert not list(tmp_path.rglob("status.json"))
