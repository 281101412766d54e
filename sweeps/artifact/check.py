"""Is a claim true? Computed from its record, or measured again on this machine.

outcome = recompute("h1_forward", claim)                  # Outcome(state="pass", said="2 numbers, on 2 pages")
outcome = measure("h1_forward", claim, this_machine(), Path("outputs/artifact"), done={})
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from sweeps.artifact import pages
from sweeps.artifact.claims import COMMANDS, RECORDS, Claim, Lines, Value
from sweeps.artifact.machine import Machine, obstacle
from sweeps.artifact.tables import TABLES
from sweeps.artifact.values import COMPARISONS, NoNumber, Number, column, numbers, rows, written
from sweeps.launchers.sweep.manifest import hydra_quoted
from sweeps.report.tables.report_data import ReportData, read_report_data
from sweeps.text import counted, shown

PASS, FAIL, NOT_HERE = "pass", "fail", "not here"
RECORD, AGAIN = "from the record", "measured again"
Tables = Callable[[str], pd.DataFrame]
Done = dict[tuple[str, ...], tuple[Path, str]]


@dataclass(frozen=True)
class Outcome:
    name: str
    kind: str  # RECORD or AGAIN
    state: str  # PASS, FAIL or NOT_HERE
    said: str  # what was found, or what failed, or why not here
    seconds: float = 0.0


def recompute(name: str, claim: Claim) -> Outcome:
    """Each number of the claim from the record, and whether it stands on each page as the claims file says."""
    started = time.monotonic()
    try:
        data = _record(str(claim.record))
        values = {key: _value(data, value) for key, value in claim.values.items()}
        problem = _differs(claim, values) or _not_printed(claim, data, values)
    except NoNumber as error:
        problem = str(error)
    if not problem:
        counts = [counted(len(claim.values), "number")] if claim.values else []
        counts += [counted(sum(len(lines_of(data, one)) for one in claim.lines), "line")] if claim.lines else []
    said = problem or f"{', '.join(counts)}, on {', '.join(claim.pages) or 'no page'}"
    return Outcome(name, RECORD, FAIL if problem else PASS, said, time.monotonic() - started)


def measure(name: str, claim: Claim, machine: Machine, out: Path, done: Done) -> Outcome:
    """Run the commands, then put the same queries to what they recorded. Logs and run folders go into out/name.

    `done`: commands that ran already, with their folder and what went wrong; claims share them.
    """
    assert claim.again
    cards = _cards(claim.record) if claim.record else set()
    if why := obstacle(claim.again, cards, machine):
        return Outcome(name, AGAIN, NOT_HERE, why)
    started = time.monotonic()
    commands = tuple(claim.again.commands)
    if commands not in done:
        done[commands] = (out / name, _run(claim.again.commands, out / name))
    folder, problem = done[commands]
    said = []
    if not problem:
        try:
            data = _tables(read_report_data([folder]))
            for key, value in claim.values.items():
                if value.expected is not None:
                    found = _value(data, value)
                    said.append(f"{key} {written(found, value.show)}")
                    problem = problem or _off(key, value, found, claim.again.within)
        except (NoNumber, ValueError) as error:
            problem = str(error)
    return Outcome(name, AGAIN, FAIL if problem else PASS, problem or ", ".join(said), time.monotonic() - started)


def sentences(claim: Claim) -> dict[str, list[str]]:
    """What the claim says stands on each page, with the numbers of the record. Raises NoNumber."""
    data = _record(str(claim.record))
    text = {key: written(_value(data, value), value.show) for key, value in claim.values.items()}
    found = {page: [template.format(**text) for template in templates] for page, templates in claim.printed.items()}
    for lines in claim.lines:
        found.setdefault(lines.page, []).extend(lines_of(data, lines))
    return found


def lines_of(data: Tables, lines: Lines) -> list[str]:
    """The template filled in for each row. Raises NoNumber."""
    chosen = rows(data(lines.table), lines.where)
    chosen = chosen.assign(**{name: column(chosen, expression) for name, expression in lines.columns.items()})
    try:
        return [lines.line.format_map(row) for row in _text_keys(chosen)]
    except (KeyError, ValueError, TypeError) as error:
        raise NoNumber(f"line: {lines.line!r}: {type(error).__name__}: {error}") from error


def _text_keys(table: pd.DataFrame) -> list[dict[str, object]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


@cache
def _record(name: str) -> Tables:
    return _tables(read_report_data([RECORDS / name]))


def _tables(data: ReportData) -> Tables:
    """By name, each made once: intervals take a while."""
    return cache(lambda name: TABLES[name](data))


def _cards(record: str) -> set[str]:
    """The names of the GPUs that the record was measured on."""
    found = _record(record)("runs").get("env.gpus", pd.Series(dtype=object))
    return {gpu["name"] for gpus in found if isinstance(gpus, list) for gpu in gpus}


def _value(data: Tables, value: Value) -> Number:
    return numbers(data(value.table), value.value, value.where, value.take)


def _differs(claim: Claim, values: dict[str, Number]) -> str:
    """From what is expected, in the digits that pages print."""
    for key, value in claim.values.items():
        expected = value.expected
        if expected is not None and written(values[key], value.show) != written(expected, value.show):
            return f"{key} is {written(values[key], value.show)}, expected {written(expected, value.show)}"
    return ""


def _not_printed(claim: Claim, data: Tables, values: dict[str, Number]) -> str:
    text = {key: written(values[key], value.show) for key, value in claim.values.items()}
    for page, templates in claim.printed.items():
        for lost in pages.missing([template.format(**text) for template in templates], page):
            return f"{page} does not say: {lost!r}"
    for lines in claim.lines:
        for lost in pages.missing(lines_of(data, lines), lines.page):
            return f"{lines.page} does not say: {lost!r}"
    return ""


def _off(key: str, value: Value, found: Number, within: float) -> str:
    """Empty where it is as expected: a number within the tolerance, anything else equal."""
    expected = value.expected
    if isinstance(expected, str) or isinstance(found, str | list):
        return "" if written(found, value.show) == expected else f"{key} is {found}, expected {expected}"
    assert expected is not None
    if COMPARISONS[value.compare](found, expected, within):
        return ""
    allowed = f" within {within:.0%}" if within else ""
    return f"{key} is {written(found, value.show)}, expected {value.compare} {written(expected, value.show)}{allowed}"


def _run(commands: list[str], folder: Path) -> str:
    """Why it failed; empty where every command ended well. What they print goes into command.log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "command.log"
    with log.open("w", encoding="utf-8") as printed:
        for command in commands:
            words = [word.replace("{out}", str(folder)) for word in shlex.split(command)]
            if words[0] == "blockshock":
                words.append(f"experiment.output_dir={hydra_quoted(str(folder))}")
            printed.write(f"$ {shlex.join(words)}\n")
            printed.flush()
            started = [sys.executable, "-P", "-m", COMMANDS[words[0]], *words[1:]]
            status = subprocess.run(started, stdout=printed, stderr=subprocess.STDOUT, check=False).returncode
            if status:
                return f"exit status {status} of: {command}; see {shown(log)}"
    return ""
