"""Which job starts next, and on which GPUs: the widest that fits, on GPUs that lie side by side.

choose([1, 4, 2], free=[0, 1, 2, 3, 6])      # (1, (0, 1, 2, 3)): the job of four GPUs
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout


def choose(demands: Sequence[int], free: Collection[int]) -> tuple[int, tuple[int, ...]] | None:
    """(index of the next job, its GPUs), or None when none fits.

    demands: how many GPUs each waiting job needs, none for a job on the CPU. The widest goes first: with sizes that
    double, what a job leaves free then always fits a waiting one. Among equals the first, so that order is kept.
    """
    fitting = [index for index, demand in enumerate(demands) if demand <= len(free)]
    if not fitting:
        return None
    index = max(fitting, key=lambda i: demands[i])
    return index, side_by_side(free, demands[index])


def side_by_side(free: Collection[int], count: int) -> tuple[int, ...]:
    """`count` of the `free` GPUs, the least far apart: neighbours share switches and memory controllers."""
    ordered = sorted(free)
    windows = [tuple(ordered[i : i + count]) for i in range(len(ordered) - count + 1)]
    return min(windows, key=lambda w: (w[-1] - w[0], w[0] % count, w[0])) if count else ()


def share_of_cores(cores: Sequence[int], places: Collection[int], of: int) -> tuple[int, ...]:
    """The cores of a job that holds `places` (its GPUs, or its slot on a CPU) among `of`: disjoint between jobs.

    All cores when there are fewer than places.
    """
    if len(cores) < of:
        return tuple(cores)
    return tuple(core for i, core in enumerate(cores) if i * of // len(cores) in places)


class Machine:
    """This machine's GPUs and who holds them, by index; its cores."""

    def __init__(self, gpus: list[str], cores: list[int], jobs_per_gpu: int = 1) -> None:
        """`gpus`: as CUDA_VISIBLE_DEVICES names them. `jobs_per_gpu`: how many jobs share one, where they may."""
        self.gpus, self.cores, self.jobs_per_gpu = gpus, cores, jobs_per_gpu
        self._jobs = [0] * len(gpus)  # that hold each
        self._shared = [False] * len(gpus)

    @cached_property
    def claims(self) -> GpuClaims:
        from blockshock.measure import nvml

        return GpuClaims(nvml.uuid_of)

    def free(self, use_busy: bool) -> list[int]:
        """GPUs that no one uses, claimed for us (see `release`); with `use_busy` all that no job of ours has."""
        from blockshock.measure import nvml

        mine = [gpu for gpu, jobs in enumerate(self._jobs) if not jobs]
        if use_busy:
            return mine
        return [gpu for gpu in mine if not nvml.in_use(self.gpus[gpu]) and self.claims.claim([self.gpus[gpu]])]

    def with_room(self) -> int | None:
        """The GPU that the fewest jobs share, where one more may."""
        shared = [gpu for gpu, jobs in enumerate(self._jobs) if self._shared[gpu] and 0 < jobs < self.jobs_per_gpu]
        return min(shared, key=self._jobs.__getitem__, default=None)

    def hold(self, gpus: Iterable[int], shared: bool) -> None:
        """A job runs on them."""
        for gpu in gpus:
            self._jobs[gpu] += 1
            self._shared[gpu] = shared

    def leave(self, gpus: Iterable[int]) -> None:
        """The job has ended; the last one gives a GPU back to all."""
        for gpu in gpus:
            self._jobs[gpu] -= 1
            if not self._jobs[gpu]:
                self.release([gpu])

    def release(self, gpus: Iterable[int]) -> None:
        """Give back what `free` has claimed. Without GPUs nothing of PyTorch is imported."""
        names = [self.gpus[gpu] for gpu in gpus]
        if names:
            self.claims.release(names)


class GpuClaims:
    """This machine's GPUs that launchers of any user hold, each by a lock that ends with its process.

    Between a job's start and its first CUDA context no one else can see which GPU it is about to use.
    """

    def __init__(self, name_of: Callable[[str], str], folder: Path | None = None) -> None:
        """`name_of`: a GPU's name on the whole machine, whatever CUDA_VISIBLE_DEVICES calls it."""
        self._name_of = name_of
        self._folder = folder or Path(tempfile.gettempdir()) / "block-shock-gpus"
        self._held: dict[str, FileLock] = {}

    def claim(self, gpus: Iterable[str]) -> bool:
        """Hold all of `gpus`, or none of them where another launcher has one."""
        taken: list[str] = []
        for gpu in gpus:
            lock = self._lock(gpu)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                self.release(taken)
                return False
            self._held[gpu] = lock
            taken.append(gpu)
        return True

    def release(self, gpus: Iterable[str]) -> None:
        """Give back those of `gpus` that are held here."""
        for gpu in gpus:
            lock = self._held.pop(gpu, None)
            if lock:
                lock.release()

    def _lock(self, gpu: str) -> FileLock:
        if not self._folder.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(0o1777)  # as /tmp is: other users' launchers lock here too
        return FileLock(self._folder / f"{self._name_of(gpu)}.lock", mode=0o666)
