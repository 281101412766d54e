"""What run folders hold, as types: status.json, env.json, a line of metrics.jsonl and a line of a packed experiment.

first_problem({"phase": "phase1_forward", "N": "a", ...}, flat)        # "N: expected whole number, got 'a'"; "": none

Phases add fields of their own to a record. Reports compute with those too, so a rule covers what the types can't: a
field whose name ends in a unit holds numbers. (msgspec names no key inside a mapping, such as timings_ms, either.)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from blockshock import SCHEMA
from blockshock.run_folder.files import Unreadable

PACKED_SCHEMA = 1
OF_MODELS = (
    "checkpoint",
    "largest_batch",
    "profile",
    "trace",
)  # phases whose workload may be a model, which has no N and no K
Size = Annotated[int, Meta(ge=1)]
# Records say a measurement's unit in its name.
_MEASUREMENT = re.compile(r"_(us|ms|s|bytes|gbs|tflops|unix|error)$|\.(limit|step|fraction|nodes|slowdown)$")


class Status(Struct):
    """status.json: how a run ended, or that it goes on."""

    status: Literal["ok", "oom", "unsupported", "failed", "timeout", "running"]
    reason: str
    started: str  # ISO 8601 with its zone
    config_hash: str
    ended: str | None = None
    schema: int = 1
    run_id: str | None = None
    value: float | None = None  # what the job returned to Hydra
    pid: int | None = None
    host: str | None = None


class Gpu(Struct):
    name: str
    memory_bytes: int


class Environment(Struct):
    """env.json: the machine and the versions. What else it holds is listed in reports as it is."""

    gpus: list[Gpu] | None = None


class Record(Struct):
    """One line of metrics.jsonl: one measurement. A phase's own fields come on top, measurements with their unit."""

    phase: str
    method: str
    B: Size
    world_size: Size
    dtype: str
    device: str
    N: Size | None = None  # of layers; models have none
    K: Size | None = None
    schema: int = 1
    mask: str | None = None
    workload: str | None = None
    part: str | None = None  # of benchmarks, with the four below
    variant: str | None = None
    kernel: str | None = None
    quantity: str | None = None
    timings_ms: dict[str, dict[str, Any]] | None = None  # region -> count, sum_ms, avg_ms, p50_ms, ...


class PackedRun(Struct):
    """One line of runs.jsonl.gz: one run folder."""

    schema: int
    folder: str  # below the folder that was packed; "." for that folder itself
    status: dict[str, Any]  # status.json
    config: dict[str, Any]  # config.yaml
    env: dict[str, Any]  # env.json
    records: list[dict[str, Any]]  # metrics.jsonl
    files: dict[str, str] = {}  # the run's own text files that reports read or that were asked for


def first_problem(record: Mapping[str, Any], flat: Mapping[str, Any]) -> str:
    """What is wrong with a record, "" if nothing. `flat`: its fields with dots (`timings_ms.forward.p50_ms`)."""
    wrong = mismatch(record, Record) or newer(record.get("schema"))
    if wrong:
        return wrong
    needed: tuple[str, ...] = ("part",) if record["phase"] in ("benchmark", "bench") else ()
    needed += () if record["phase"] in OF_MODELS else ("N", "K")
    missing = [name for name in needed if record.get(name) is None]
    if missing:
        return f"{missing[0]} is missing"
    for name, value in flat.items():
        if value is not None and _is_measurement(name) and not _is_number(value):
            return f"{name}: expected number, got {value!r}"
    return ""


def mismatch(found: Mapping[str, Any], kind: type[Struct]) -> str:
    """How `found` differs from `kind`, with the key in front: `N: expected int, got 'a'`; "" if it doesn't."""
    try:
        msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`")
        if said.startswith("Object missing required field"):
            return f"{f'{name}.' if name else ''}{said.split('`')[1]} is missing"
        value = found.get(name)
        expected = said.partition(", got")[0].replace("`", "").replace(" | null", "").replace("Expected", "expected")
        if name in found and value is None:
            return f"{name} is missing"
        return f"{name}: {expected}, got {value!r}" if name in found else f"{name}: {said.replace('`', '')}"
    return ""


def newer(schema: object, known: int = SCHEMA) -> str:
    """What to do where a file was written by a later version than this one; "" where it was not."""
    if isinstance(schema, int) and schema > known:
        return f"schema {schema} is newer than {known}, the newest that this version reads; upgrade block-shock"
    return ""


def checked_environment(env: dict[str, Any]) -> dict[str, Any]:
    """Raises Unreadable."""
    wrong = mismatch(env, Environment)
    if wrong:
        raise Unreadable(f"env.json: {wrong}")
    return env


@lru_cache(maxsize=65536)
def _is_measurement(name: str) -> bool:
    return bool(_MEASUREMENT.search(name))


def _is_number(value: Any) -> bool:
    """A finite number, or a list of what is one: of blocks, rounds or ranks."""
    if isinstance(value, list):
        return all(one is None or _is_number(one) for one in value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def json_schema() -> str:
    """The JSON Schema of every type here: the text of docs/reference/records.schema.json."""
    _, definitions = msgspec.json.schema_components((Status, Environment, Record, PackedRun))
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Block-Shock's records"}
    return json.dumps({**head, "versions": {"record": SCHEMA, "packed": PACKED_SCHEMA}, "$defs": definitions}, indent=1)
