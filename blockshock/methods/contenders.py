"""No method of its own: it stands for the methods that phase=benchmark compares, which `phase.contenders` lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockshock.errors import ConfigError

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class Contenders:
    name: str

    def check(self, job: Job) -> None:
        if not hasattr(job.phase, "contenders"):
            problem = "stands for what phase=benchmark compares; use method=block_shock or another layer"
            raise ConfigError("method", self.name, problem)
