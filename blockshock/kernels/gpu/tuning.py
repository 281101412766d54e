"""Choosing the tiles of one of our own kernels for one shape: measured once a machine, then remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol, TypeVar
from zlib import crc32

import torch

from blockshock.measure.cache import cached_measurement
from blockshock.measure.timing import quick_time_ms
from blockshock.ranks.distributed import max_over_ranks


class TileChoice(Protocol):
    """A frozen dataclass that says how a kernel cuts up its work."""

    @property
    def batch(self) -> int: ...  # rows of X that one program takes


Choice = TypeVar("Choice", bound=TileChoice)


def for_batch(choices: Sequence[Choice], batch: int) -> list[Choice]:
    """Those whose tiles are not taller than they must be: X's rows in one tile where one is tall enough."""
    tallest = min((t.batch for t in choices if t.batch >= batch), default=max((t.batch for t in choices), default=0))
    return [t for t in choices if t.batch <= tallest]


class Tuned:
    """The tiles chosen of `choices`, and the workspace that a launch of up to `batch` rows of X needs.

    `run(tiles, work)` is the kernel on data of the shape that `key` describes; `workspace(tiles, batch)` makes what it
    needs beside them. The slowest rank's times decide. Choices that this GPU has no room for are passed over.
    """

    def __init__(
        self,
        section: str,
        choices: Sequence[Any],
        key: dict[str, Any],
        device: torch.device,
        run: Callable[[Any, Any], Any],
        workspace: Callable[[Any, int], Any],
    ) -> None:
        self.batch, self._workspace = int(key["B"]), workspace
        self._choices = list(choices)
        self.tiles = self._choices[0]
        if len(self._choices) > 1 and device.type == "cuda":
            among = f"{crc32(repr(self._choices).encode()):08x}"  # other choices are measured anew
            measure = partial(self._measure, run, device)
            fastest = cached_measurement(section, key | {"among": among}, device, measure, ("tiles", "ms", "tried"))
            self.tiles = next(t for t in self._choices if asdict(t) == fastest["tiles"])
        self._work = workspace(self.tiles, self.batch)

    def _measure(self, run: Callable[[Any, Any], Any], device: torch.device) -> dict[str, Any]:
        times = []
        for tiles in self._choices:
            step = partial(run, tiles, self._workspace(tiles, self.batch))
            times.append(quick_time_ms(step, device) if _has_room(step) else float("inf"))
        slowest = max_over_ranks(times)
        best = self._choices[slowest.index(min(slowest))]
        return {"tiles": asdict(best), "ms": min(slowest), "tried": len(slowest)}

    def work(self, batch: int) -> Any:
        """The prepared workspace; a new one for more rows of X than were planned for."""
        return self._work if batch <= self.batch else self._workspace(self.tiles, batch)


def _has_room(step: Callable[[], Any]) -> bool:
    from blockshock.kernels.gpu.triton_support import triton

    try:
        step()
    except triton.runtime.errors.OutOfResources:  # this GPU has less shared memory
        return False
    return True
