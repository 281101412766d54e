"""Many run folders as one file: runs.jsonl.gz, one line of JSON a run, which reports read like the folders.

pack(Path("outputs/sweeps/first_picture"), Path("first_picture/runs.jsonl.gz"))
unpack(Path("first_picture/runs.jsonl.gz"), Path("outputs/sweeps/again"))

The same runs give the same bytes. What a line holds: docs/reference/files.md.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from omegaconf import OmegaConf

from blockshock.run_folder.files import Unreadable, read_text, write_atomically
from blockshock.run_folder.folder import UNREADABLE
from sweeps.report.records.folder import read_folder
from sweeps.report.records.schema import PACKED_SCHEMA, PackedRun, Status, checked_environment, mismatch, newer

PACKED = "runs.jsonl.gz"
# The batch analysis of phase=profile reads them back.
KEPT = ("profiler_summary.json", "profiler_stats_*.csv")
RESTORE = "restore the file, or pack its run folders again"
_DECODER = msgspec.json.Decoder(PackedRun)


def read_packed(path: Path) -> list[PackedRun]:
    """Every run of a packed experiment. Raises Unreadable, with what to do."""
    return list(_lines(path))


def pack(folders: Sequence[Path], top: Path, target: Path, keep: Sequence[str] = ()) -> list[str]:
    """Write the run folders `folders`, which lie at or below `top`, to `target`; what had to be left out, a line each.

    `keep`: patterns of further text files of the run folders. Raises ValueError where `target` holds runs that are not
    among the folders, and OSError.
    """
    runs, left_out = [], []
    for folder in folders:
        try:
            runs.append(_packed(folder, folder.relative_to(top).as_posix(), (*KEPT, *keep)))
        except Unreadable as error:
            left_out.append(f"{folder}/{error}")
    _keep_what_is_packed(target, runs)
    lines = "".join(_line(run) + "\n" for run in runs)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, gzip.compress(lines.encode(), compresslevel=9, mtime=0))
    return left_out


def unpack(path: Path, target: Path) -> list[Path]:
    """Write the run folders of a packed experiment below `target`; their paths.

    Raises Unreadable, and ValueError where one of the folders is there already.
    """
    runs = read_packed(path)
    folders = [target / run.folder for run in runs]
    there = [folder for folder in folders if (folder / "status.json").exists()]
    if there:
        raise ValueError(f"{there[0]}: a run folder is there already; give --out another folder")
    for run, folder in zip(runs, folders, strict=True):
        write_run(run, folder)
    return folders


def write_run(run: PackedRun, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texts = dict(run.files)
    if run.config:
        texts["config.yaml"] = OmegaConf.to_yaml(OmegaConf.create(run.config))
    if run.env:
        texts["env.json"] = _indented(run.env)
    if run.records:
        texts["metrics.jsonl"] = "".join(_compact(record) + "\n" for record in run.records)
    texts["status.json"] = _indented(run.status)  # last: it says that the others are there
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())


@contextmanager
def as_folders(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Run folders as `load_runs` names them; packed ones are unpacked until the block ends.

    Raises Unreadable.
    """
    with TemporaryDirectory() as temporary:
        unpacked: dict[Path, Path] = {}
        for path in paths:
            packs = [parent for parent in path.parents if parent.is_file()]
            if packs and path not in unpacked:
                for run in read_packed(packs[0]):
                    if packs[0] / run.folder in paths:
                        unpacked[packs[0] / run.folder] = Path(temporary, str(len(unpacked)))
                        write_run(run, unpacked[packs[0] / run.folder])
        yield [unpacked.get(path, path) for path in paths]


def _packed(folder: Path, name: str, keep: Sequence[str]) -> PackedRun:
    """Raises Unreadable where a file can't be read, or a record is none."""
    run = read_folder(folder)
    row = run.rows()[0]
    if row["status"] == UNREADABLE:
        raise Unreadable(row["reason"])
    own = sorted(path for path in folder.iterdir() if path.is_file())
    files = {path.name: read_text(path) for path in own if any(fnmatch(path.name, pattern) for pattern in keep)}
    return PackedRun(PACKED_SCHEMA, name, run.status, run.config, run.env, run.records, files)


def _keep_what_is_packed(target: Path, runs: Sequence[PackedRun]) -> None:
    if target.exists():
        lost = sorted({run.folder for run in read_packed(target)} - {run.folder for run in runs})
        if lost:
            raise ValueError(f"{target} holds {lost[0]}, which is no run folder now; choose another file with --out")


def _line(run: PackedRun) -> str:
    """One line. Raises ValueError for what JSON can't hold."""
    try:
        return _compact(msgspec.to_builtins(run))
    except ValueError as error:
        raise ValueError(
            f"{run.folder}/config.yaml: holds inf or NaN, which JSON can't; set a number or null"
        ) from error


def _lines(path: Path) -> Iterator[PackedRun]:
    for number, line in enumerate(_content(path).splitlines(), start=1):
        name = f"{path.name}: line {number}"
        try:
            # The schema first: what a later version writes may differ in anything else.
            later = newer(msgspec.json.decode(line, type=_Versioned).schema, PACKED_SCHEMA)
            run = _DECODER.decode(line) if not later else None
        except msgspec.MsgspecError as error:
            raise Unreadable(f"{name}: {error}; {RESTORE}") from error
        if run is None:
            raise Unreadable(f"{name}: {later}")
        _check(name, run)
        yield run


class _Versioned(msgspec.Struct):
    schema: int


def _check(name: str, run: PackedRun) -> None:
    wrong = mismatch(run.status, Status)
    if not wrong and run.status["status"] == "ok" and not run.records:
        wrong = "ok without records"
    if not wrong and any(
        PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts for path in _paths(run)
    ):
        wrong = "a path that leads out of the folder"
    if wrong:
        raise Unreadable(f"{name}: {wrong}; {RESTORE}")
    checked_environment(run.env)


def _paths(run: PackedRun) -> list[str]:
    return [run.folder, *run.files]


def _content(path: Path) -> bytes:
    try:
        content = gzip.decompress(path.read_bytes())
        if not content:
            raise EOFError
        return content
    except EOFError as error:
        raise Unreadable(f"{path.name}: cut short or empty; {RESTORE}") from error
    except gzip.BadGzipFile as error:
        raise Unreadable(f"{path.name}: not gzip, or damaged ({error}); {RESTORE}") from error
    except zlib.error as error:
        raise Unreadable(f"{path.name}: damaged ({error}); {RESTORE}") from error
    except OSError as error:
        raise Unreadable(f"{path.name}: {error.strerror}; {RESTORE}") from error


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _indented(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
