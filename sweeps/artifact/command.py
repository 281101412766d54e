"""Checks the numbers of README and docs on this machine, claim by claim.

    blockshock-artifact                    # every check that this machine can run; those without a GPU come first
    blockshock-artifact --minutes 5        # leave out measurements that take longer
    blockshock-artifact --only h1_forward  # one claim; may be given again
    blockshock-artifact --list             # the claims, and what each needs

A claim is checked in two ways. Its numbers are computed from the committed record and looked up on the pages that print
them, in seconds and without a GPU. Where the machine allows, they are also measured again. A check ends with `pass`,
`fail`, or `not here` and the reason.

Exit status: 0, 1 if a claim failed, or 2 for wrong options or a wrong claims file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import msgspec
import pandas as pd
from rich.console import Console
from rich.markup import escape

from blockshock.cli.pipes import closed_pipe_ends_quietly
from blockshock.cli.startup import check_packages, end_at_once, versions
from blockshock.errors import REFUSED, ConfigError, one_of, writable
from blockshock.run_folder.files import printable
from sweeps.artifact.check import AGAIN, FAIL, NOT_HERE, PASS, RECORD, Done, Outcome, measure, recompute
from sweeps.artifact.claims import CLAIMS, Again, Claim, ClaimsError, read_claims
from sweeps.artifact.machine import Machine, this_machine
from sweeps.text import any_terminal, clock, counted, markdown, shown

BY_SIGINT = 128 + signal.SIGINT
COLOURS = {PASS: "green", FAIL: "bold red", NOT_HERE: "dim"}


@closed_pipe_ends_quietly()
def main(argv: Sequence[str] | None = None) -> None:
    """The console script `blockshock-artifact`."""
    any_terminal()
    options = _parser().parse_args(argv)
    check_packages("blockshock-artifact")
    end_at_once()
    try:
        claims = _chosen(options)
        if options.markdown and not options.list:
            raise ConfigError("--markdown", "true", "is a form of --list; give it too")
        if options.list:
            _list(claims, options)
            return
        out = options.out or Path("outputs", "artifact", f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
        writable("--out", out)
    except (ClaimsError, ConfigError) as error:
        print(f"blockshock-artifact: {printable(str(error))}", file=sys.stderr)
        sys.exit(REFUSED)
    machine = this_machine()
    console = Console(highlight=False, soft_wrap=True)
    outcomes = []
    try:
        for outcome in _outcomes(claims, machine, out, options.minutes, None if options.json else console):
            outcomes.append(outcome)
            if not options.json:
                _show(console, outcome)
    except KeyboardInterrupt:
        print(f"blockshock-artifact: interrupted; --out {shown(out)} resumes its sweeps", file=sys.stderr)
        sys.exit(BY_SIGINT)
    if options.json:
        rows = [dataclasses.asdict(outcome) for outcome in outcomes]
        print(json.dumps({"version": versions(), "machine": str(machine), "checks": rows}, indent=1))
    else:
        console.print(_in_short(outcomes, machine))
    if any(outcome.state == FAIL for outcome in outcomes):
        sys.exit(1)


def _chosen(options: argparse.Namespace) -> dict[str, Claim]:
    """The claims to check, those without a record first: they show on a CPU that everything works."""
    found = read_claims(options.claims).claims
    for name in options.only:
        one_of("--only", name, found)
    wanted = {name: claim for name, claim in found.items() if not options.only or name in options.only}
    return _in_order(wanted)


def _in_order(claims: dict[str, Claim]) -> dict[str, Claim]:
    return dict(sorted(claims.items(), key=lambda item: item[1].record is not None))


def _outcomes(
    claims: dict[str, Claim], machine: Machine, out: Path, minutes: float | None, console: Console | None
) -> Iterator[Outcome]:
    """First what needs no record, then what follows from one, then what is measured again."""
    measured = [(name, claim) for name, claim in claims.items() if claim.again and _short(claim.again, minutes)]
    ways = [(name, claim, AGAIN) for name, claim in measured if claim.record is None]
    ways += [(name, claim, RECORD) for name, claim in claims.items() if claim.record is not None]
    ways += [(name, claim, AGAIN) for name, claim in measured if claim.record is not None]
    done: Done = {}
    for name, claim, kind in ways:
        waits = console.status(f"{name}: {kind}") if console and console.is_terminal else nullcontext()
        with waits:
            outcome = recompute(name, claim) if kind == RECORD else measure(name, claim, machine, out, done)
        yield outcome


def _short(again: Again, minutes: float | None) -> bool:
    return minutes is None or again.minutes <= minutes


def _show(console: Console, outcome: Outcome) -> None:
    colour, took = COLOURS[outcome.state], clock(outcome.seconds) if outcome.seconds >= 1 else ""
    line = f"{outcome.name:<30} {outcome.kind:<16} {took:>5}  {printable(outcome.said)}"
    console.print(f"[{colour}]{outcome.state:<8}[/] {escape(line)}")


def _in_short(outcomes: Sequence[Outcome], machine: Machine) -> str:
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in COLOURS}
    return f"{', '.join(f'{count} {state}' for state, count in counts.items() if count)} ({machine})"


def _list(claims: dict[str, Claim], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps([{"name": name, **msgspec.to_builtins(claim)} for name, claim in claims.items()], indent=1))
        return
    if options.markdown:
        print(as_markdown(claims), end="")
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, claim in claims.items():
        console.print(f"[bold]{escape(name)}[/]: {escape(claim.claim)}")
        if claim.record:
            console.print(f"    record: {claim.record}; printed in {', '.join(claim.pages) or 'no page'}")
        if claim.again:
            console.print(f"    again: {_needs(claim.again)}")
            for command in claim.again.commands:
                console.print(f"      {escape(command)}")


def as_markdown(claims: dict[str, Claim]) -> str:
    """The page docs/reference/claims.md."""
    rows = []
    for name, claim in claims.items():
        pages = ", ".join(map(_link, claim.pages))
        rows.append([f"`{name}`", claim.claim, claim.record or "", pages, _needs(claim.again) if claim.again else ""])
    table = pd.DataFrame(rows, columns=["claim", "what it says", "record", "printed in", "measured again"])
    return PAGE_HEAD + markdown(table)


PAGE_HEAD = """# Claims

`blockshock-artifact --list --markdown` writes this page from [claims.yaml](../claims.yaml);
[artifact.md](../artifact.md) says how claims are checked. Minutes are upper estimates. GB is memory of a GPU, or of the
host where none is needed.

"""


def _link(page: str) -> str:
    """From docs/reference; README is the site's first page and no page of its own there."""
    name = page.removeprefix("docs/")
    return f"[{name}](../{name})" if page != name else name


def _needs(again: Again) -> str:
    """`2 GPUs, 10 min, 4 GB, within 5%`"""
    parts = [counted(again.gpus, "GPU") if again.gpus else "CPU", f"{again.minutes:g} min", f"{again.gigabytes:g} GB"]
    return ", ".join([*parts, f"within {again.within:.0%}"] if again.within else parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockshock-artifact", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=versions())
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="check this claim; may be repeated")
    parser.add_argument("--minutes", metavar="M", type=float, help="leave out measurements that take longer")
    parser.add_argument("--list", action="store_true", help="show the claims and what each needs; check nothing")
    parser.add_argument("--markdown", action="store_true", help="with --list: as docs/reference/claims.md")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="where measurements go (default: outputs/artifact/<date and time>); given again, its sweeps resume",
    )
    parser.add_argument(
        "--claims", metavar="FILE", type=Path, default=CLAIMS, help="another claims file (default: docs/claims.yaml)"
    )
    return parser


if __name__ == "__main__":
    main()
