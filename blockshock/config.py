"""The typed configuration: what may be set, what it means, and the checks before any rank starts.

`experiment`, `model` and `hardware` are dataclasses here. The groups that users extend (`phase`, `method`, `mask`,
`workload`) each name a dataclass of their own in `_target_`; its fields are that option's schema. So an option is one
Python file and one YAML file.

    job = load_job(cfg)          # DictConfig from Hydra -> typed Job, or ConfigError
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from blockshock.errors import ConfigError, WrongValue, at_least, one_of
from blockshock.options import option_class

_HERE = Path(__file__).resolve().parent
# conf/ is inside of an installed package, and beside it in a checkout
CONF = next(folder for folder in (_HERE / "conf", _HERE.parent / "conf") if (folder / "config.yaml").is_file())
GROUPS = ("phase", "method", "mask", "workload")
YEAR_S = 31_536_000
SEEDS = (-(2**63), 2**64 - 1)  # what torch.Generator.manual_seed takes


@dataclass
class ExperimentConfig:
    name: str = MISSING  # of a sweep's folder; a run's folder is unique by itself
    seed: int = 0  # X, W, target and masks come from independent generators derived from it
    output_dir: str = "outputs"
    repeat: int = 0  # which process measures the same configuration again: hydra.sweeper.repeats counts it up


@dataclass
class ModelConfig:
    N: int = 1024  # output features
    K: int = 1024  # input features; follows N unless set
    B: int = 64  # rows of X: tokens or samples
    dtype: str = "auto"  # auto: bf16 on a GPU, fp32 on a CPU


@dataclass
class HardwareConfig:
    name: str = "auto"
    device: str = "auto"  # auto | cpu | cuda
    backend: str = "auto"  # auto: NCCL on GPUs, gloo on a CPU
    world_size: int = 1
    threads_per_rank: int | None = None  # CPU threads of a rank; default: the CPUs of the job shared out
    recalibrate: bool = False  # measure copy, matmul and all-reduce rates again
    timeout_s: float = 1800.0  # a collective or a job that takes longer has failed


@dataclass
class Config:
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    phase: Any = MISSING
    method: Any = MISSING
    mask: Any = MISSING
    workload: Any = MISSING


ConfigStore.instance().store(name="base_config", node=Config)


@dataclass(frozen=True)
class Job:
    """A checked configuration. `config` is the resolved plain dictionary that the run folder keeps."""

    experiment: ExperimentConfig
    model: ModelConfig
    hardware: HardwareConfig
    phase: Any
    method: Any
    mask: Any
    workload: Any
    config: dict[str, Any]


def load_job(cfg: DictConfig | dict[str, Any], elsewhere: bool = False) -> Job:
    """Resolve, type-check and cross-check a composed configuration.

    `elsewhere`: the job will run on other machines, whose GPUs can't be counted from here.
    Raises ConfigError: unknown or ill-typed option, impossible combination, hardware that is not there.
    """
    given = cfg if isinstance(cfg, dict) else plain(cfg)
    parts = {name: _typed(schema, given[name], name) for name, schema in _CORE.items()}
    check_place(parts["experiment"])
    _check_seed(parts["experiment"].seed)
    at_least("experiment.repeat", parts["experiment"].repeat, 0)
    _resolve_hardware(parts["hardware"], elsewhere)
    _resolve_dtype(parts["model"], parts["hardware"])
    for name in GROUPS:
        parts[name] = _typed(None, given[name], name)
    job = Job(**parts, config={})
    _check_sizes(job)
    _check_kinds(job)
    if kind(job) == "layer":
        check_mask(job)
    _check_options(job, ("workload", "method", "phase", "mask"))
    # only now has every `auto` that a check settles its value
    for name in _CORE:
        job.config[name] = dataclasses.asdict(parts[name])
    for name in GROUPS:
        job.config[name] = {"_target_": given[name]["_target_"], **dataclasses.asdict(parts[name])}
    return job


def with_choices(job: Job, **options: dict[str, Any]) -> Job:
    """`job` with other choices for groups (`method={"_target_": ..., ...}`), checked as `load_job` checks them.

    For phases that compare several choices in one job. The `config` of what is returned is empty.
    """
    chosen = {name: _typed(None, given, name) for name, given in options.items()}
    other = dataclasses.replace(job, **chosen, config={})
    _check_kinds(other)
    if kind(other) == "layer":
        check_mask(other)
    _check_options(other, chosen)
    return other


def _check_options(job: Job, groups: Iterable[str]) -> None:
    for name in groups:
        check = getattr(getattr(job, name), "check", None)
        if name == "method" and hasattr(job.method, "build"):  # what it builds may be more than one layer
            check = getattr(job.workload, "check_method", check)
        if check:
            check(job)


_CORE: dict[str, type] = {"experiment": ExperimentConfig, "model": ModelConfig, "hardware": HardwareConfig}


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved plain dictionary of a configuration, which may be one that can't run."""
    picked = OmegaConf.masked_copy(cfg, [*_CORE, *GROUPS])
    picked._set_parent(cfg._get_parent())
    container = OmegaConf.to_container(picked, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def typed_option(options: dict[str, Any], group: str, key: str) -> Any:
    """An option of `group` that another one holds under `key`, as an instance of its dataclass. Raises WrongValue."""
    return _typed(None, options, group, key)


def _typed(schema: type | None, options: dict[str, Any], group: str, key: str | None = None) -> Any:
    """`options` as an instance of `schema`, or of the dataclass that their `_target_` names; errors name `key`."""
    options, key = dict(options), key or group
    if schema is None:
        target = options.pop("_target_", None)
        if target is None:
            raise WrongValue(group, options.get("name"), "its YAML file has no `_target_` (a dataclass)")
        schema = option_class(str(target), group, CONF / group)
    try:
        return OmegaConf.to_object(OmegaConf.merge(_structured(schema), options))
    except ConfigKeyError as error:
        at_fault = error.object_type if dataclasses.is_dataclass(error.object_type) else schema
        problem = f"allowed keys: {', '.join(f.name for f in dataclasses.fields(at_fault))}"
        raise WrongValue(f"{key}.{error.full_key}", _given(options, str(error.full_key)), problem) from error
    except OmegaConfBaseException as error:
        problem = str(error.msg).splitlines()[0]
        raise WrongValue(f"{key}.{error.full_key}", _given(options, str(error.full_key)), problem) from error


@cache
def _structured(schema: type) -> Any:
    """Once for all jobs of a sweep. What is merged into it is merged into a copy."""
    return OmegaConf.structured(schema)


def _given(options: dict[str, Any], key: str) -> Any:
    """The value of a dotted key in nested options."""
    return OmegaConf.select(OmegaConf.create(options), key)


def check_place(experiment: ExperimentConfig) -> None:
    """Refuse a name that is not one folder's, and an empty output folder, which would be the file system's root."""
    name = experiment.name
    if not name or name in (".", "..") or "/" in name:
        raise ConfigError("experiment.name", name, "must be a folder's name, without / and other than . and ..")
    if not experiment.output_dir:
        raise ConfigError("experiment.output_dir", "", "names no folder; this one is experiment.output_dir=.")


def _check_seed(seed: int) -> None:
    if not SEEDS[0] <= seed <= SEEDS[1]:
        raise ConfigError("experiment.seed", seed, f"must be from {SEEDS[0]} to {SEEDS[1]}, as torch's are")


def _resolve_hardware(hardware: HardwareConfig, elsewhere: bool) -> None:
    import torch

    one_of("hardware.device", hardware.device, ("auto", "cpu", "cuda"))
    one_of("hardware.backend", hardware.backend, ("auto", "gloo", "nccl"))
    at_least("hardware.world_size", hardware.world_size, 1)
    if hardware.threads_per_rank is not None:
        at_least("hardware.threads_per_rank", hardware.threads_per_rank, 1)
    if not 0 < hardware.timeout_s <= YEAR_S:  # nan is neither
        problem = f"must be seconds, more than 0 and at most {YEAR_S} (a year)"
        raise ConfigError("hardware.timeout_s", hardware.timeout_s, problem)
    gpus = torch.cuda.device_count()
    if hardware.device == "auto" and elsewhere:
        problem = "what the cluster's nodes have can't be seen from here; say hardware=slurm (GPUs) or hardware=cpu"
        raise ConfigError("hardware.device", "auto", problem)
    if hardware.device == "auto":
        hardware.device = "cuda" if gpus else "cpu"
    if hardware.device == "cuda" and not gpus and not elsewhere:
        raise ConfigError("hardware.device", "cuda", "this machine has no CUDA GPU; use hardware=cpu")
    if hardware.backend == "auto":
        hardware.backend = "nccl" if hardware.device == "cuda" else "gloo"
    if hardware.backend == "nccl" and hardware.device == "cpu":
        raise ConfigError("hardware.backend", "nccl", "NCCL needs GPUs; on a CPU use hardware.backend=gloo")

    if elsewhere:
        return
    from blockshock.ranks.launched import launched

    joined = launched()
    if joined and joined.world_size != hardware.world_size:
        problem = f"torchrun or srun has started {joined.world_size} ranks; leave hardware.world_size out"
        raise ConfigError("hardware.world_size", hardware.world_size, problem)
    here = joined.local_world_size if joined else hardware.world_size  # other hosts hold the rest
    if joined and gpus == 1:
        here = 1  # a launcher that shows every rank a GPU of its own
    if hardware.device == "cuda" and here > gpus:
        raise ConfigError(
            "hardware.world_size",
            hardware.world_size,
            f"this machine has {gpus} GPU{'s' * (gpus != 1)}, one per rank",
        )


def _resolve_dtype(model: ModelConfig, hardware: HardwareConfig) -> None:
    from blockshock.dtypes import DTYPES

    one_of("model.dtype", model.dtype, ("auto", *DTYPES))
    if model.dtype == "auto":
        model.dtype = "bf16" if hardware.device == "cuda" else "fp32"
    from blockshock.measure.nvml import capability

    if model.dtype == "bf16" and hardware.device == "cuda" and (capability() or (8, 0)) < (8, 0):
        raise ConfigError("model.dtype", "bf16", "this GPU has no bf16 arithmetic; use fp16 or fp32")


def _check_sizes(job: Job) -> None:
    for name in ("N", "K", "B"):
        at_least(f"model.{name}", getattr(job.model, name), 1)


def kind(job: Job) -> str:
    """What the job works on: "layer", what a method builds over the ranks, or "model", a model's training step.

    Phases, methods and workloads say which in `acts_on` ("layer" is the default). A phase that acts on "any" leaves it
    to the method. One that acts on "built" takes whatever the method builds for the workload: also where that is "mlp",
    a pair of layers, or "model", a model whose MLPs are such pairs.
    """
    wanted = getattr(job.phase, "acts_on", "layer")
    wanted = getattr(job.method, "acts_on", "layer") if wanted == "any" else wanted
    return "layer" if wanted == "built" else wanted


def _check_kinds(job: Job) -> None:
    """The phase, the method and the workload must work on the same."""
    wanted, phase = kind(job), getattr(job.phase, "acts_on", "layer")
    decided_by = "method" if phase == "any" else "phase"
    layered = wanted == "layer" and phase in ("built", "any")
    fitting = {"workload": ("layer", "mlp", "model") if layered else (wanted,), "method": (wanted,)}
    for name, kinds in fitting.items():
        option = getattr(job, name)
        if getattr(option, "acts_on", "layer") not in kinds:
            what = "a linear layer" if wanted == "layer" else "a model's training step"
            hint = _FOR[wanted][name] + (f", or {_FOR[_OTHER[wanted]]['method'][4:]}" if decided_by == "method" else "")
            raise ConfigError(name, option.name, f"{decided_by}={getattr(job, decided_by).name} is for {what}; {hint}")


_OTHER = {"layer": "model", "model": "layer"}


_FOR = {
    "layer": {
        "workload": "use workload=gaussian or another kind of input",
        "method": "use method=block_shock or another layer",
    },
    "model": {
        "workload": "use workload=resnet152, bert, gpt2, llama, vit or a tiny_* of them",
        "method": "use method=keep_all, recompute_optimal or another training step",
    },
}


def check_mask(job: Job) -> None:
    """A mask that is not 2:4, or not what it claims, shows on a small matrix already."""
    import torch

    from blockshock.masks import halves, prunes

    if prunes(job.mask):
        return  # two of four in every window by construction, for any weight
    generator = torch.Generator().manual_seed(job.experiment.seed)
    halves(job.mask, torch.randn(16, 16, generator=generator), generator)
