"""Tries everything that measurements need on this machine, and says what works, what is missing and what to do.

    blockshock-doctor              # one line per check; takes about half a minute
    blockshock-doctor --json       # the same, for programs

A check ends as `works`, `limited` (slower or less exact), `missing` (some work can do without it) or `broken` (no work
can). Exit status: 0, or 1 if something is broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from blockshock.cli.pipes import closed_pipe_ends_quietly
from blockshock.cli.startup import check_packages, end_at_once, versions
from blockshock.doctor.finding import BROKEN, LIMITED, MISSING, STATES, WORKS, Check, Finding

COLOURS = {WORKS: "green", LIMITED: "yellow", MISSING: "dim", BROKEN: "bold red"}


@closed_pipe_ends_quietly()
def main(argv: Sequence[str] | None = None) -> None:
    """Run every check and print what was found. Exit status 1 if something that all work needs is broken."""
    options = _parser().parse_args(argv)
    check_packages("blockshock-doctor")
    end_at_once()
    findings: list[tuple[str, Finding]] = []
    console = Console(highlight=False, soft_wrap=True)
    with _libraries_silent():
        for check in _checks():
            if not options.json and console.is_terminal:
                with console.status(f"checking {check.name}"):
                    finding = check.run()
            else:
                finding = check.run()
            findings.append((check.name, finding))
            if not options.json:
                _show(console, check.name, finding)
    if options.json:
        rows = [{"check": name, **dataclasses.asdict(finding)} for name, finding in findings]
        print(json.dumps({"version": versions(), "checks": rows}, indent=1))
    else:
        console.print(_in_short(findings))
    if any(finding.state == BROKEN for _, finding in findings):
        sys.exit(1)


@contextmanager
def _libraries_silent() -> Iterator[None]:
    """What a library would warn of is a finding."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _checks() -> Iterator[Check]:
    """Those of the host first: they need no PyTorch, whose import may be what fails."""
    from blockshock.doctor import host

    yield from host.CHECKS
    try:
        from blockshock.doctor import devices, rank_sum
    except (ImportError, OSError) as error:
        problem = error  # an extension module that does not load
        yield Check("PyTorch", lambda: Finding(BROKEN, str(problem).splitlines()[0], "install PyTorch anew"), True)
        return
    yield from devices.CHECKS
    yield from rank_sum.CHECKS


def _show(console: Console, name: str, finding: Finding) -> None:
    colour = COLOURS[finding.state]
    console.print(f"[{colour}]{finding.state:<8}[/] {name:<14} {escape(finding.found)}")
    if finding.remedy and finding.state != WORKS:
        console.print(f"{'':<23} [dim]→ {escape(finding.remedy)}[/]")


def _in_short(findings: Sequence[tuple[str, Finding]]) -> str:
    counts = {state: sum(finding.state == state for _, finding in findings) for state in STATES}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockshock-doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=versions())
    parser.add_argument(
        "--json", action="store_true", help="print JSON: version, and check, state, found, remedy of each"
    )
    return parser


if __name__ == "__main__":
    main()
