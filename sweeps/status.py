"""`blockshock-status DIR`: what is done, what runs and since when, what failed and why, and how to go on. One screen.

Reads run folders and sweep.json only, and asks SLURM where a sweep has jobs there; changes nothing.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape

from blockshock.cli.pipes import closed_pipe_ends_quietly
from blockshock.cli.startup import check_packages, versions
from blockshock.run_folder.files import Unreadable, printable
from blockshock.run_folder.folder import RunFolder, process_start
from sweeps.applications.application import application_named
from sweeps.launchers import slurm_queue
from sweeps.launchers.sweep.manifest import NAME, Manifest
from sweeps.launchers.sweep.progress import COLOURS
from sweeps.text import any_terminal, clock, counted, shown

SHOWN = 10  # lines a section
LARGEST_PID = 2**22  # of Linux; what is above was not written by us
BAD = ("unreadable", "failed", "oom", "timeout", "unsupported")  # in this order, with their reasons
ORDER = ("ok", "running", "in the queue", "died", *BAD, "not started")


@dataclass(frozen=True)
class Row:
    """One job: `state` is a word of ORDER."""

    name: str
    state: str
    detail: str = ""
    age_s: float = 0.0


def rows_of(sweep: Path) -> list[Row]:
    """Every job of one sweep's folder (or of any folder of run folders), those without a folder yet included.

    Raises Unreadable for a broken sweep.json.
    """
    manifest = Manifest.read(sweep)
    folder_of = application_named(manifest.application).folder if manifest else RunFolder
    found = dict(_statuses(sweep, folder_of))
    ids = manifest.slurm if manifest else {}
    asked = slurm_queue.states(dict.fromkeys(ids.values(), sweep)) if ids and slurm_queue.available() else None
    names = [*found, *(name for name in (manifest.jobs if manifest else {}) if name not in found)]
    return [_row(name, found.get(name), ids.get(name), asked, sweep) for name in names]


def _statuses(sweep: Path, folder_of: Callable[[Path], RunFolder]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(sweep.rglob("status.json")):
        with suppress(FileNotFoundError):  # the folder was deleted meanwhile
            yield str(path.parent.relative_to(sweep)), folder_of(path.parent).checked_status()


def _row(
    name: str,
    status: dict[str, Any] | None,
    id_: str | None,
    asked: dict[str, slurm_queue.State] | None,
    sweep: Path,
) -> Row:
    in_queue = asked.get(id_) if asked and id_ else None
    if in_queue and in_queue.goes_on and (status is None or _starts_over(status, in_queue)):
        if in_queue.waits:
            return Row(name, "in the queue", f"SLURM {id_}: {in_queue.detail or in_queue.name.lower()}")
        return Row(name, "running", f"SLURM {id_}: {in_queue.name.lower()}, its process starts")
    if status is None:
        return _without_status(name, id_, asked, sweep)
    if status["status"] != "running":
        return Row(name, status["status"], status["reason"])
    age = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(status["started"])).total_seconds())
    where = f"{status.get('host')}, process {status.get('pid')}" + (f", SLURM {id_}" if id_ else "")
    if id_ and asked is not None:
        if in_queue and in_queue.goes_on:
            return Row(name, "running", where, age)
        log = slurm_queue.read_log(sweep / ".submitit", id_)
        # Only a job that SLURM knows as ours: the id may be another's by now.
        return Row(name, "died", slurm_queue.how_it_ended(id_, log, ask=in_queue is not None)[1], age)
    if _process_is_gone(status):
        return Row(name, "died", f"its process ({where}) is gone without a report", age)
    return Row(name, "running", where, age)


def _without_status(name: str, id_: str | None, asked: dict[str, slurm_queue.State] | None, sweep: Path) -> Row:
    """A job that has written nothing, and is not in the queue: SLURM or its log may know how it ended."""
    if id_ is None or asked is None:
        return Row(name, "not started")
    log = slurm_queue.read_log(sweep / ".submitit", id_)
    if id_ not in asked and not log:
        return Row(name, "not started")
    return Row(name, "died", slurm_queue.how_it_ended(id_, log, ask=id_ in asked)[1])


def _starts_over(status: dict[str, Any], in_queue: slurm_queue.State) -> bool:
    """Whether the status is of an earlier start of a job that SLURM has requeued."""
    return status["status"] != "ok" and bool(in_queue.waits or status.get("requeued"))


def _process_is_gone(status: dict[str, Any]) -> bool:
    """Whether the process that wrote a status on this host has ended. Its number may be another's by now."""
    if status.get("host") != socket.gethostname():
        return False
    pid, started = status.get("pid") or 0, status.get("pid_started")
    if not (0 < pid < LARGEST_PID and psutil.pid_exists(pid)):
        return True
    return started is not None and process_start(pid) not in (None, started)


def sweeps_in(folder: Path) -> list[Path]:
    """The sweeps at or below `folder`; `folder` itself where there are run folders and no sweep."""
    found = sorted(path.parent for path in folder.rglob(NAME))
    return found or ([folder] if any(folder.rglob("status.json")) else [])


def show(sweep: Path, console: Console) -> None:
    rows = rows_of(sweep)
    by_state: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_state[row.state].append(row)
    counts = "  ".join(
        f"[{COLOURS.get(state, 'default')}]{len(by_state[state])} {state}[/]" for state in ORDER if by_state[state]
    )
    console.print(f"[bold]{escape(printable(shown(sweep)))}[/]: {counted(len(rows), 'job')}  {counts}", highlight=False)
    for state in ("running", "died"):
        oldest = sorted(by_state[state], key=lambda row: -row.age_s)
        _lines(console, state, [f"{clock(r.age_s):>8}  {r.name}  ({r.detail})" for r in oldest])
    waiting = Counter(row.detail.partition(": ")[2] for row in by_state["in the queue"])
    _lines(console, "in the queue", [f"{n:>8}  {why}" for why, n in waiting.most_common()])
    for state in BAD:
        _lines(console, state, _by_reason(by_state[state]))
    manifest = Manifest.read(sweep)
    if manifest and any(by_state[state] for state in ("died", "unreadable", "failed", "timeout", "not started")):
        console.print("run what is not ok with:", highlight=False)
        console.print(f"  {escape(manifest.resume_command(sweep))}", soft_wrap=True, highlight=False)


def _by_reason(rows: list[Row]) -> list[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        reasons[row.detail].append(row.name)
    most = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return [f"{len(names):>8}  {why}  ({names[0]}{', ...' if len(names) > 1 else ''})" for why, names in most]


def _lines(console: Console, title: str, lines: list[str]) -> None:
    if not lines:
        return
    console.print(f"[{COLOURS.get(title, 'bold')}]{title}[/]", highlight=False)
    for line in lines[:SHOWN]:
        console.print(
            escape(printable(line)), overflow="ellipsis", no_wrap=console.is_terminal, soft_wrap=True, highlight=False
        )
    if len(lines) > SHOWN:
        console.print(f"          and {len(lines) - SHOWN} more", highlight=False)


def main() -> None:
    """The console script `blockshock-status`."""
    any_terminal()
    with closed_pipe_ends_quietly():
        _main()


def _main() -> None:
    folder = _parser().parse_args().folder
    check_packages("blockshock-status")
    sweeps = sweeps_in(folder) if folder.is_dir() else []
    if not sweeps:
        problem = "no run folder or sweep here" if folder.is_dir() else "no such folder"
        print(printable(f"blockshock-status: {folder}: {problem}"), file=sys.stderr)
        sys.exit(2)
    console = Console(width=None if sys.stdout.isatty() else 200)
    broken = False
    for sweep in sweeps:
        try:
            show(sweep, console)
        except Unreadable as error:  # of one sweep; the others have theirs
            hint = "restore it, or delete it to see the folders without it"
            print(printable(f"blockshock-status: {sweep}/{error}; {hint}"), file=sys.stderr)
            broken = True
    if broken:
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockshock-status",
        description="Shows which jobs of a sweep are done, running or failed, why, and the command that resumes it.\n\n"
        "    blockshock-status outputs/sweeps/first_picture     # at any time, from any terminal\n\n"
        "Exit status: 0, or 2 if there is no run or sweep, or its sweep.json is broken.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=versions())
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder of a sweep, or any folder above some")
    return parser


if __name__ == "__main__":
    main()
