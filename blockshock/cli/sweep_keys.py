"""Keys of what a sweep's jobs choose, such as `phase.at_most=16` where a preset has a phase, are left to the jobs.

left_to_jobs(["-m", "+sweep=largest_batch", "phase.at_most=16"])    # [..., "phase.at_most=choice('16')"]
as_typed(["phase.at_most=choice('16')"])                            # ["phase.at_most=16"]

Before a sweep Hydra composes the configuration once, with every override that is no sweep. That configuration has the
default phase, method, mask and workload, whatever the jobs have, and a key that only they have would be rejected. What
looks like a sweep is left to the sweeper, and ours gives each job what was typed.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from blockshock.config import CONF, GROUPS

_typed: dict[str, str] = {}  # what Hydra is given instead -> as it was typed


def left_to_jobs(arguments: Sequence[str]) -> list[str]:
    """`arguments` of a command line, for Hydra. As they are without -m, or with a sweeper of others."""
    if not {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments):
        return list(arguments)
    parsed = {argument: _parsed(argument) for argument in arguments if "=" in argument and argument[0] != "-"}
    overrides = [override for override in parsed.values() if override]
    given = {o.key_or_group for o in overrides if not o.is_sweep_override()}
    if "hydra/sweeper" in given:
        return list(arguments)
    swept = _of_presets(overrides) - given | {o.key_or_group for o in overrides if o.is_sweep_override()}
    return [_left_to_jobs(argument, parsed.get(argument), swept & set(GROUPS)) for argument in arguments]


def as_typed(overrides: Sequence[str]) -> list[str]:
    return [_typed.get(override, override) for override in overrides]


def _left_to_jobs(argument: str, override: Override | None, swept: set[str]) -> str:
    if override is None or override.is_sweep_override() or override.is_delete():
        return argument
    group, dot, _ = override.key_or_group.partition(".")
    if not dot or group not in swept:
        return argument
    key, _, value = argument.partition("=")
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    instead = f"{key}=choice('{quoted}')"
    _typed[instead] = argument
    return instead


def _of_presets(overrides: Sequence[Override]) -> set[str]:
    """What the presets that are asked for set job by job."""
    keys: set[str] = set()
    for override in overrides:
        path = CONF / "sweep" / f"{override.value()}.yaml"
        if override.key_or_group == "sweep" and path.exists():
            sweeper = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper") or {}
            for values in (sweeper.get("params"), *(sweeper.get("cases") or {}).values()):
                keys |= set(map(str, values or {}))
    return keys


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:  # is said where Hydra parses it
        return None
