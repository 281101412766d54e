"""What a GPU ran at while something was timed: clocks, power, temperature, and what held its clock down.

    log = ClockLog(device)
    timer.while_running = log.sample       # once per block or turn
    record["clocks"] = log.summary()       # a collective

The thread that waits for the device takes the samples, once per block, after all of its work is queued: the host has no
part in what is timed from there on. A sampling thread would contend with it for Python's lock while it queues work.
(With timing=sync the host takes part in every iteration: there a sample follows the block.)
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch

from blockshock.measure import nvml
from blockshock.ranks import distributed

NUMBERS = ("sm_mhz", "memory_mhz", "power_w", "temperature_c")
LOWEST = ("sm_mhz", "memory_mhz")  # of the ranks; of the other numbers the highest counts
REASONS = (nvml.POWER_CAP, *nvml.SLOWDOWNS)


class ClockLog:
    """Samples of one device. Empty where NVML is missing and on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._handle = nvml.handle_of(device)
        self._samples: list[dict[str, float]] = []
        self._reasons: list[frozenset[str]] = []

    def sample(self) -> None:
        found = nvml.readings(self._handle)
        if found:
            self._samples.append(found)
        reasons = nvml.clock_limits(self._handle)
        if reasons is not None:
            self._reasons.append(reasons)

    def summary(self) -> dict[str, Any]:
        """Medians over the samples, of the rank with the lowest clock, the highest power and temperature.

        `power_cap`: the largest share of a rank's samples in which its power limit held the clock down; `slowdown`: in
        which heat or the hardware did; `throttled`: what was seen, in words, "" if nothing was. Each is None where NVML
        does not say. A collective.
        """
        values = [self._median(name) for name in NUMBERS]
        values += [self._share(frozenset({reason})) for reason in REASONS]
        values += [self._share(frozenset(nvml.SLOWDOWNS)), float(len(self._samples))]
        found = [value if math.isfinite(value) else None for value in distributed.max_over_ranks(values)]
        numbers = dict(zip(NUMBERS, found, strict=False))
        shares = dict(zip(REASONS, found[len(NUMBERS) :], strict=False))
        signed = {name: -value if value is not None and name in LOWEST else value for name, value in numbers.items()}
        told = shares[nvml.POWER_CAP] is not None
        return {
            **signed,
            "samples": int(found[-1] or 0),
            "power_cap": shares[nvml.POWER_CAP],
            "slowdown": found[-2],
            "throttled": ", ".join(reason for reason in REASONS if shares[reason]) if told else None,
        }

    def _median(self, name: str) -> float:
        """To be maximised over the ranks: minus infinity where there is none."""
        values = [sample[name] for sample in self._samples if name in sample]
        return statistics.median(values) * (-1 if name in LOWEST else 1) if values else -math.inf

    def _share(self, reasons: frozenset[str]) -> float:
        seen = self._reasons
        return sum(bool(reasons & one) for one in seen) / len(seen) if seen else -math.inf
