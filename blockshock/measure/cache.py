"""What was measured on this machine once, and need not be measured again: rates, and which way of computing is fastest.

    times = cached_measurement("product", {"N": 4096}, device, measure, ["gather", "triton"])

It is a collective; what is kept is JSON. There is one file per host, device and set of versions (driver, PyTorch, NCCL,
Triton, cuSPARSELt, our own kernels) under $XDG_CACHE_HOME/blockshock (~/.cache/blockshock), so that a change of any of
them starts afresh. `blockshock-tune` shows it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from blockshock.locks import locked
from blockshock.measure import nvml
from blockshock.measure.cpu import cpu_name
from blockshock.ranks import distributed

log = logging.getLogger("blockshock")
WAIT_S = 30.0  # for another job that writes its entry, which takes milliseconds


def cached_measurement(
    section: str,
    key: dict[str, Any],
    device: torch.device,
    measure: Callable[[], dict[str, Any]],
    names: Collection[str],
    again: bool = False,
) -> dict[str, Any]:
    """What `measure` returned for `key` on this machine, now or at an earlier time. Measures anew when `again`.

    `names`: what is in it. An entry with other names, of another version or a hand's, is measured again too. A
    collective: rank 0's view of the disk decides for all ranks whether to measure, and its result is everyone's.
    """
    path, name = cache_path(device), key_name(key)
    known = None
    if distributed.rank() == 0 and not again:
        known = load(path).get(section, {}).get(name)
        if not (isinstance(known, dict) and known.keys() == set(names)):
            known = None
    known = distributed.from_rank_0(known)
    if known is not None:
        return known
    result = distributed.from_rank_0(measure())
    if distributed.rank() == 0:
        _keep(path, section, name, result)
    return result


def key_name(key: dict[str, Any]) -> str:
    """`kernel=triton N=4096`: what a key is called in the file."""
    return " ".join(f"{name}={value}" for name, value in key.items())


def load(path: Path) -> dict[str, dict[str, Any]]:
    """{section: {key: what was measured}}; empty where there is no file, or none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):  # not there, not readable, cut short: what can't be read is measured again
        return {}
    sections = content.items() if isinstance(content, dict) else ()
    return {name: entries for name, entries in sections if isinstance(entries, dict)}


def _keep(path: Path, section: str, name: str, entry: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), WAIT_S):  # jobs at the same time must not lose each other's entries
            known = load(path)
            known.setdefault(section, {})[name] = entry
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
            temporary.replace(path)
    except OSError as error:  # what was measured is known all the same; the next job measures it again
        log.warning("measurements can't be kept in %s: %s", path, error.strerror or error)


def cache_folder() -> Path:
    """Where measurements are kept: $XDG_CACHE_HOME, else the home folder's .cache, else the temporary folder."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "blockshock"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and this user is in no list of users: as in many containers
        return _without_home("there is no home folder")
    if not home.is_dir():
        return _without_home(f"the home folder {home} is not there")
    return home / ".cache" / "blockshock"


@cache
def _without_home(why: str) -> Path:
    """A folder of this user's in the temporary one; says so once."""
    folder = Path(tempfile.gettempdir()) / f"blockshock-{os.getuid()}"
    if distributed.rank() == 0:
        log.warning("%s: measurements are kept in %s; set XDG_CACHE_HOME to keep them elsewhere", why, folder)
    return folder


def cache_path(device: torch.device) -> Path:
    """The file of this device under these versions of the libraries that compute on it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()}-{os.cpu_count()}-cores"
    text = "-".join([socket.gethostname(), name, "torch", torch.__version__, *_versions(device.type)])
    return cache_folder() / f"measured-{''.join(c if c.isalnum() else '-' for c in text)}.json"


@cache
def _versions(device_type: str) -> tuple[str, ...]:
    """What decides how fast kernels are, where PyTorch's own version does not settle it."""
    if device_type != "cuda":
        return ()
    kernels = Path(__file__).parents[1] / "kernels"
    sources = sorted(path for path in kernels.rglob("*") if path.suffix in (".py", ".cu"))
    ours = crc32(b"".join(path.read_bytes() for path in sources))
    parts = [
        "driver",
        str(nvml.driver_version()),
        "nccl",
        *map(str, torch.cuda.nccl.version()),
        "kernels",
        f"{ours:08x}",
    ]
    if importlib.util.find_spec("triton"):
        with suppress(PackageNotFoundError):  # a build of PyTorch may carry Triton under another name
            parts += ["triton", version("triton")]
    if torch.backends.cusparselt.is_available():
        parts += ["cusparselt", str(torch.backends.cusparselt.version())]
    return tuple(parts)
