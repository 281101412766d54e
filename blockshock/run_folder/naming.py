"""What a configuration is called: a hash of what it measures, and a folder name that people can read.

config_hash(job.config)     # "a0dc650d8277": the same for the same measurement, wherever it lands
job_label(job.config)       # "phase1_forward_block_shock_checkerboard_N4096-B64_bf16_P2_a0dc650d8277"
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from blockshock import SCHEMA
from blockshock.config import GROUPS

# Keys that say where a run lands, how it is watched, or where an option's class is, and nothing of what is measured.
_NOT_MEASURED = {
    "experiment": ("name", "output_dir"),
    "hardware": ("name", "recalibrate", "timeout_s"),
    **dict.fromkeys(GROUPS, ("_target_",)),
}


def config_hash(config: dict[str, Any]) -> str:
    """Twelve hex digits over every key that changes the measurement and none that does not.

    An option counts by its name and its keys; its class may move to another module. A model's training step knows
    nothing of a linear layer's sizes and mask.
    """
    kept = {
        group: {key: value for key, value in options.items() if key not in _NOT_MEASURED.get(group, ())}
        for group, options in config.items()
    }
    if _is_model_step(config):
        kept |= {"mask": {}, "model": {"dtype": config["model"]["dtype"]}}
    text = json.dumps([SCHEMA, kept], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_model_step(config: dict[str, Any]) -> bool:
    return "batch_size" in config.get("workload", {})


def job_label(config: dict[str, Any]) -> str:
    """A folder name that a person can read and that no other configuration shares."""
    model, workload = config["model"], config["workload"]
    if _is_model_step(config):
        length = f"-S{workload['seq_len']}" if workload.get("seq_len") else ""
        parts = [workload["name"], f"B{workload['batch_size']}{length}", model["dtype"], config_hash(config)]
        return "_".join([config["phase"]["name"], config["method"]["name"], *parts])
    sizes = f"N{model['N']}" + (f"-K{model['K']}" if model["K"] != model["N"] else "") + f"-B{model['B']}"
    return "_".join(
        [
            config["phase"]["name"],
            config["method"]["name"],
            config["mask"]["name"],
            sizes,
            model["dtype"],
            f"P{config['hardware']['world_size']}",
            config_hash(config),
        ]
    )
