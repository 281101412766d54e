"""OmegaConf resolvers that conf/ uses: `${run_id:}`, `${launched_world_size:}`, `${on_gpu:a,b}`, `${or_else:a,b}`."""

import secrets
from datetime import datetime

from omegaconf import DictConfig, OmegaConf

_run_id: str | None = None


def run_id() -> str:
    """This process's run, which names its folder."""
    global _run_id
    if _run_id is None:
        _run_id = new_run_id()
    return _run_id


def new_run_id() -> str:
    """A unique name: `20260102-030405-1a2b3c`."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def use_run_id(text: str) -> None:
    """Take another process's: rank 0's, or the launcher's. Never the environment's, which names runs that ended."""
    global _run_id
    _run_id = text


def launched_world_size() -> int:
    """The ranks that torchrun or srun has started already, else 1."""
    from blockshock.ranks.launched import launched

    info = launched()
    return info.world_size if info else 1


def on_gpu(if_gpu: object, otherwise: object, *, _root_: DictConfig) -> object:
    """The first value where jobs run on GPUs, the second elsewhere: presets choose their sizes with it."""
    import torch

    device = OmegaConf.select(_root_, "hardware.device")
    there = device == "cuda" if device in ("cuda", "cpu") else torch.cuda.device_count() > 0
    return if_gpu if there else otherwise


def or_else(value: object, otherwise: object) -> object:
    """`value`, or where that is null, `otherwise`."""
    return otherwise if value is None else value


def register() -> None:
    OmegaConf.register_new_resolver("run_id", run_id, replace=True)
    OmegaConf.register_new_resolver("launched_world_size", launched_world_size, replace=True)
    OmegaConf.register_new_resolver("on_gpu", on_gpu, replace=True)
    OmegaConf.register_new_resolver("or_else", or_else, replace=True)
