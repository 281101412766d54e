"""What the machine at hand has, and why a claim can't be measured on it."""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.artifact.claims import Again
from sweeps.text import counted

GB = 1e9


@dataclass(frozen=True)
class Machine:
    gpus: tuple[str, ...]  # a name each
    gpu_bytes: int  # of the smallest
    host_bytes: int

    def __str__(self) -> str:
        names = [f"{self.gpus.count(name)} × {name}" for name in dict.fromkeys(self.gpus)]
        return ", ".join(names) or "no GPU"


def this_machine() -> Machine:
    import psutil
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Machine(
        gpus=tuple(gpu.name for gpu in found),
        gpu_bytes=min((gpu.total_memory for gpu in found), default=0),
        host_bytes=psutil.virtual_memory().total,
    )


def obstacle(again: Again, cards: set[str], machine: Machine) -> str:
    """Why it can't be measured here; empty where it can. `cards`: the names of the GPUs that the record is of."""
    if again.gpus > len(machine.gpus):
        here = f"{len(machine.gpus)} here" if machine.gpus else "no GPU here"
        return f"needs {counted(again.gpus, 'GPU')}, {here}"
    if again.gpus and cards and (other := set(machine.gpus[: again.gpus]) - cards):
        return f"other card than the record's: {', '.join(sorted(other))}, not {', '.join(sorted(cards))}"
    there, where = (machine.gpu_bytes, "a GPU") if again.gpus else (machine.host_bytes, "this host")
    if again.gigabytes * GB > there:
        return f"needs {again.gigabytes:g} GB, {where} has {there / GB:.0f} GB"
    return ""
