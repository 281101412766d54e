"""A file as a lock between processes, also on file systems without `flock`.

with locked(folder / "measured.lock", wait_s=10):       # filelock.Timeout where another process keeps it longer
    ...
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # Lustre and NFS as some sites mount them


@contextmanager
def locked(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock `path`. Raises filelock.Timeout after `wait_s` seconds, OSError where the file can't be made."""
    lock = _acquired(path, wait_s)
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path, wait_s: float) -> BaseFileLock:
    native, soft = FileLock(path, timeout=wait_s), SoftFileLock(path.with_name(f"{path.name}.owner"), timeout=wait_s)
    if not _has_flock(path):
        soft.acquire()
        return soft
    try:
        native.acquire()
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        soft.acquire()
        return soft
    return native


def _has_flock(path: Path) -> bool:
    """Asked by giving back a lock that nobody holds: filelock would warn, in words of its own."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return False
    finally:
        os.close(descriptor)
    return True
