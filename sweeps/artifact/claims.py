"""docs/claims.yaml: what README and docs say, how each number follows from a record, and what measures it again.

claims = read_claims(CLAIMS).claims
claims["premise"].values["share"]     # Value(table="premise", value="share_of_limit", take="max", ...)

A claim has a `record` that it is computed from, or `again`, the commands that measure it, or both. The same queries are
put to the record and to what was measured again.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from blockshock.errors import nearest
from sweeps.artifact.tables import TABLES
from sweeps.artifact.values import COMPARISONS, FORMATS, TAKES

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ROOT / "docs" / "claims.yaml"
RECORDS = ROOT / "outputs" / "reference"
COMMANDS = {"blockshock": "blockshock", "blockshock-report": "sweeps.report.command"}  # -> what `python -m` runs

T = TypeVar("T")
Positive = Annotated[float, Meta(gt=0)]


class ClaimsError(ValueError):
    """A claims file that can't be used: `claims.yaml: claims.NAME...: problem`."""


class Query(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rows of one of the report's tables."""

    table: str
    where: str = ""  # pandas' DataFrame.query; empty: every row


class Value(Query, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One number (or `take: all`, a row of them) of a table."""

    value: str  # a column, or an expression of columns for pandas' DataFrame.eval
    take: str = "only"
    show: str = ".2f"  # as pages print it: a format of Python's, or one of values.FORMATS
    expected: float | str | None = None
    compare: str = "about"  # to what is expected, when it is measured again: one of values.COMPARISONS


class Lines(Query, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line of a page for each row of a table."""

    page: str
    line: str  # with {column} or {column:format}
    columns: dict[str, str] = {}  # further ones, each an expression


class Again(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How it is measured again. Where the claim has a record, on a card of the record's name."""

    commands: Annotated[list[str], Meta(min_length=1)]  # {out}: the folder of this claim
    minutes: Positive
    gigabytes: Positive  # of a GPU's memory; without a GPU, of the host's
    gpus: Annotated[int, Meta(ge=0)] = 0
    within: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # of the expected value, either way


class Claim(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    claim: Annotated[str, Meta(min_length=1)]
    record: str | None = None  # a folder of outputs/reference
    values: dict[str, Value] = {}
    printed: dict[str, list[str]] = {}  # page -> what stands there, with {name} for each value
    lines: list[Lines] = []
    again: Again | None = None

    @property
    def pages(self) -> list[str]:
        return list(dict.fromkeys([*self.printed, *(lines.page for lines in self.lines)]))


class Claims(Struct, frozen=True, forbid_unknown_fields=True):
    claims: dict[str, Any]  # of Claim, once read
    # Page -> reason -> regular expressions of the numbers on it that no committed record holds.
    without_record: dict[str, dict[str, list[str]]] = {}


def read_claims(path: Path) -> Claims:
    """Raises ClaimsError, in one line, for a file that is missing, misspelt or that names what is not there."""
    try:
        found = msgspec.convert(_yaml(path), Claims)
        for name, value in found.claims.items():
            claim = _part(f"claims.{name}", value, Claim)
            found.claims[name] = claim
            for problem in _problems(claim):
                raise ClaimsError(f"claims.{name}: {problem}")
        for page in found.without_record:
            if not (ROOT / page).is_file():
                raise ClaimsError(f"without_record: no page {page}")
    except (msgspec.ValidationError, ClaimsError) as error:
        raise ClaimsError(f"{path.name}: {error}") from None
    return found


def _yaml(path: Path) -> Any:
    try:
        return msgspec.yaml.decode(path.read_bytes())
    except FileNotFoundError:
        raise ClaimsError("no such file; claims belong to a checkout, run the command in one") from None
    except OSError as error:
        raise ClaimsError(str(error.strerror)) from None
    except msgspec.DecodeError as error:  # of PyYAML, over several lines
        raise ClaimsError(f"not YAML ({' '.join(str(error).split())})") from None


def _part(place: str, value: Any, kind: type[T]) -> T:
    """msgspec names no key of a mapping in its messages: each claim is converted by itself, and its values too."""
    if kind is Claim and isinstance(value, dict) and isinstance(value.get("values"), dict):
        for name, one in value["values"].items():
            _part(f"{place}.values.{name}", one, Value)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        raise ClaimsError(f"{place}{where.rstrip('`')}: {problem}") from None


def fields_of(template: str) -> set[str]:
    """The names in braces. Raises ValueError for a brace that is not closed."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def _problems(claim: Claim) -> Iterator[str]:
    if claim.record is None and claim.again is None:
        yield "give a record, or again with commands, or both"
    if claim.record is not None and not (RECORDS / claim.record / "runs.jsonl.gz").is_file():
        yield f"record={claim.record}: no such folder in outputs/reference"
    if not claim.values and not claim.lines:
        yield "give values or lines"
    for name, value in claim.values.items():
        yield from (f"values.{name}.{problem}" for problem in _wrong_value(value))
    for lines in claim.lines:
        yield from (f"lines.{problem}" for problem in _wrong_query(lines))
    for page in claim.pages:
        if not (ROOT / page).is_file():
            yield f"printed: no page {page}"
    for sentences in claim.printed.values():
        for sentence in sentences:
            yield from _wrong_sentence(sentence, claim.values)
    if claim.again:
        yield from _wrong_commands(claim)


def _wrong_value(value: Value) -> Iterator[str]:
    yield from _wrong_query(value)
    yield from _unknown("take", value.take, TAKES)
    yield from _unknown("compare", value.compare, COMPARISONS)
    if value.show not in FORMATS:
        try:
            format(1.0, value.show)
        except ValueError:
            yield f"show={value.show}: give a format of Python's such as .2f, or one of {', '.join(FORMATS)}"


def _wrong_query(query: Query) -> Iterator[str]:
    yield from _unknown("table", query.table, TABLES)


def _unknown(key: str, value: str, allowed: Mapping[str, object]) -> Iterator[str]:
    if value not in allowed:
        yield f"{key}={value}: allowed: {', '.join(allowed)}{nearest(value, allowed)}"


def _wrong_sentence(sentence: str, values: Mapping[str, Value]) -> Iterator[str]:
    try:
        named = fields_of(sentence)
    except ValueError as error:
        yield f"printed: {sentence!r}: {error}"
        return
    for name in sorted(named - set(values)):
        yield f"printed: {{{name}}} is not among its values: {', '.join(values) or 'it has none'}"
    if not named:
        yield f"printed: {sentence!r} has no value in braces"
    if any(spec or conversion for _, _, spec, conversion in string.Formatter().parse(sentence)):
        yield f"printed: {sentence!r}: say the format as the value's show"


def _wrong_commands(claim: Claim) -> Iterator[str]:
    assert claim.again
    for command in claim.again.commands:
        if command.split(" ", 1)[0] not in COMMANDS:
            yield f"again.commands: {command.split(' ', 1)[0]!r} can't be run: allowed: {', '.join(COMMANDS)}"
    if not any(isinstance(value.expected, float | int) for value in claim.values.values()):
        yield "again: no value has an expected number to compare with"
