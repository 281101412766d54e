"""The command that resumes a sweep: a shell and Hydra's parser read from it the folder that was meant."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from blockshock.errors import ConfigError
from sweeps.launchers.sweep.manifest import Manifest, check_path

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(names.filter(lambda name: name not in (".", "..")))
@example("'\",=( ü")
@example("null")
@example("1e3")
@example("a\\")
@example("\\'")
@example("${oc.env:HOME}")
@example("\\${x}")
@example("a,b=[1]{c:d}#%$*?~ \n")
def test_a_resume_command_names_the_sweeps_folder_whatever_that_is_called(name):
    command = Manifest(["-m", "model.N=8,16"], []).resume_command(Path("/sweeps") / name)
    *start, override = shlex.split(command)
    assert start == ["blockshock", "-m", "model.N=8,16"]
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert parsed.key_or_group == "hydra.launcher.resume"
    config = OmegaConf.create({"resume": None})
    OmegaConf.update(config, "resume", parsed.value())
    assert config.resume == f"/sweeps/{name}"
    assert isinstance(config.resume, str)


@pytest.mark.parametrize("name", ["%j", "x%ta", "%A_%a"])
def test_a_path_that_submitit_would_rewrite_is_refused(name):
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir=.*choose a folder without"):
        check_path(Path("/sweeps") / name / "x")


def test_any_other_percent_sign_is_fine():
    check_path(Path("/sweeps") / "100% 5%x")
