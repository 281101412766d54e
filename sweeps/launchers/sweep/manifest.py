"""A sweep's own file, sweep.json: which jobs belong to it, how it is resumed, and where SLURM has them.

manifest = Manifest.read(Path("outputs/sweeps/mine"))       # None where no sweep of ours has been
manifest.jobs            # {"phase1_forward_..._8a52": ["model.N=64", ...]}: also those not started yet
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from blockshock.errors import ConfigError
from blockshock.run_folder.files import Unreadable, read_object, write_atomically
from sweeps.text import shown

NAME = "sweep.json"
_KINDS = {"arguments": list, "hydra_overrides": list, "skip_unsupported": bool, "jobs": dict, "slurm": dict}


@dataclass
class Manifest:
    arguments: list[str]  # of the blockshock command that started the sweep last
    hydra_overrides: list[str]  # those of them that are Hydra's own, but the launcher's options
    skip_unsupported: bool = False
    jobs: dict[str, list[str]] = field(default_factory=dict)  # name of the job's folder -> its overrides
    slurm: dict[str, str] = field(default_factory=dict)  # name -> SLURM's job id, of the last submission
    command: list[str] = field(default_factory=lambda: ["blockshock"])  # the program, as it was started
    application: str = "sweeps.applications.block_shock.BlockShock"  # what can read the jobs' folders
    schema: int = 1

    @staticmethod
    def read(sweep: Path) -> Manifest | None:
        """The manifest in this folder, None where there is none. Raises Unreadable."""
        path = sweep / NAME
        if not path.exists():
            return None
        found = read_object(path, _KINDS)
        unknown = sorted(set(found) - set(Manifest.__dataclass_fields__))
        if unknown:
            raise Unreadable(f"{NAME}: unknown key {unknown[0]}")
        texts = [*found["arguments"], *found["hydra_overrides"], *found["slurm"].values()]
        for overrides in found["jobs"].values():
            texts += overrides if isinstance(overrides, list) else [overrides, None]
        if not all(isinstance(text, str) for text in texts):
            raise Unreadable(f"{NAME}: its arguments, jobs or slurm hold something else than texts")
        return Manifest(**found)

    def superseded_by(self, jobs: dict[str, list[str]]) -> list[str]:
        """The names of jobs here that `jobs` have under another name: what is hashed of a configuration has changed."""
        return [name for name, overrides in self.jobs.items() if name not in jobs and overrides in jobs.values()]

    def write(self, sweep: Path) -> None:
        write_atomically(sweep / NAME, json.dumps(asdict(self), indent=1) + "\n")

    def resume_command(self, sweep: Path) -> str:
        """What a user types to run what is not `ok` in the folder `sweep`."""
        resume = f"hydra.launcher.resume={hydra_quoted(shown(sweep))}"
        kept = [a for a in self.arguments if not a.lstrip("+").startswith("hydra.launcher.resume=")]
        return shlex.join([*self.command, *kept, resume])


_PLAIN = re.compile(r"[A-Za-z_.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*|(/[A-Za-z0-9_.-]+)+")
_WORDS = {"null", "true", "false", "inf", "nan"}


def hydra_quoted(text: str) -> str:
    """`text` as the value of an override that Hydra reads as just this text: quoted where its grammar asks for it."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    # OmegaConf takes ${ for the beginning of an interpolation, unless an odd number of backslashes stands before it.
    literal = re.sub(r"(\\*)\$\{", lambda found: 2 * found.group(1) + r"\${", text)
    return str(QuotedString(text=literal, quote=Quote.single).with_quotes())


def check_path(sweep: Path) -> None:
    """Refuse a folder whose path holds a pattern that submitit replaces by numbers wherever it finds it."""
    pattern = next((pattern for pattern in ("%j", "%t", "%A", "%a") if pattern in str(sweep.absolute())), None)
    if pattern:
        problem = f"its path holds {pattern}, which submitit replaces by a job's number; choose a folder without"
        raise ConfigError("hydra.sweep.dir", sweep, problem)
