"""What a configuration is called: a hash of what it measures, and a folder name that people can read.

config_hash(job.config)     # "a0dc650d8277": the same for the same measurement, wherever it lands
job_label(job.config)       # "phase1_forward_block_shock_checkerboard_N4096-B64_bf16_P2_a0dc650d8277"
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from blockshock import SCHEMA

# Keys that say where a run lands or how it is watched, and nothing of what is measured.
_NOT_MEASURED = {
    "experiment": ("name", "output_dir"),
    "hardware": ("name", "recalibrate", "timeout_s"),
}
_UNSET = (("layers", None), ("layers_by", None), ("data_parallel", "none"))


def config_hash(config: dict[str, Any]) -> str:
    """Twelve hex digits over every key that changes the measurement and none that does not.

    An option counts by its name and its keys; its class may move to another module. A model's training step knows
    nothing of a linear layer's sizes and mask.
    """
    kept = {
        group: {key: value for key, value in _options(options).items() if _is_measured(group, key, value)}
        for group, options in config.items()
    }
    experiment = kept.get("experiment")
    if experiment and not experiment.get("repeat"):  # the first process of a configuration is that of a sweep without
        experiment.pop("repeat", None)
    if _is_model_step(config):
        kept |= {"mask": {}, "model": {"dtype": config["model"]["dtype"]}}
    text = json.dumps([SCHEMA, kept], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_measured(group: str, key: str, value: Any) -> bool:
    """A key that changes nothing where it is not set: it is the same measurement as before there was such a key."""
    unset = group == "workload" and (key, value) in _UNSET
    return key not in _NOT_MEASURED.get(group, ()) and not unset


def _options(value: Any) -> Any:
    """Without the classes of options, also of options within options, such as a benchmark's contenders."""
    if isinstance(value, dict):
        return {key: _options(child) for key, child in value.items() if key != "_target_"}
    return value


def _is_model_step(config: dict[str, Any]) -> bool:
    workload = config.get("workload", {})
    return "batch_size" in workload and not workload.get("layers")


def job_label(config: dict[str, Any]) -> str:
    """A folder name that a person can read and that no other configuration shares."""
    model, workload = config["model"], config["workload"]
    repeat = config.get("experiment", {}).get("repeat")
    last = [f"r{repeat}", config_hash(config)] if repeat else [config_hash(config)]
    if _is_model_step(config):
        length = f"-S{workload['seq_len']}" if workload.get("seq_len") else ""
        kind = workload.get("data_parallel", "none")
        ranks = [] if kind == "none" else [kind, f"P{config['hardware']['world_size']}"]
        name = workload.get("model", workload["name"]).replace("/", "-")
        parts = [name, f"B{workload['batch_size']}{length}", model["dtype"], *ranks, *last]
        return "_".join([config["phase"]["name"], config["method"]["name"], *parts])
    sizes = f"N{model['N']}" + (f"-K{model['K']}" if model["K"] != model["N"] else "") + f"-B{model['B']}"
    phase = config["phase"]
    compared = [phase["part"]] if "part" in phase else [config["method"]["name"], config["mask"]["name"]]
    by = (workload.get("layers_by") or {}).get("name")  # the method of a step's layers
    layers = workload.get("layers")  # of a model
    over_ranks = [workload["name"], *([layers] if layers != "mlp" else []), *([by] if by else [])] if layers else []
    return "_".join(
        [
            phase["name"],
            *compared,
            *over_ranks,
            sizes,
            model["dtype"],
            f"P{config['hardware']['world_size']}",
            *last,
        ]
    )
