"""Inputs of plus and minus one."""

from dataclasses import dataclass

from blockshock.workloads import normal


@dataclass
class Signs:
    name: str

    def make(self, batch, features, generator):
        return normal(batch, features, generator=generator).sign()
