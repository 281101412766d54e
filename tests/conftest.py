"""What tests share: the command line in this process, ranks that live across examples, and the GPU marks."""

from __future__ import annotations

import atexit
import copy
import functools
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import omegaconf._utils
import omegaconf.base
import pytest
import torch
from hypothesis import HealthCheck, settings

from blockshock.cli.main import main
from blockshock.ranks import start_forking_server
from blockshock.ranks.forking import PHASES_OF_STEPS
from blockshock.ranks.pool import RankPool
from tests.import_graph import PACKAGES, ROOT

# A slow example on a busy machine is no failure, and the same examples in each run: a commit passes or it does not.
# `pytest --hypothesis-profile=fresh` looks further.
settings.register_profile("fresh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same_everywhere", settings.get_profile("fresh"), derandomize=True)
settings.load_profile("same_everywhere")


# OmegaConf parses the same interpolations of conf/ anew for each command line: a quarter of the time until a wrong one
# is rejected. What it makes of a text depends on nothing else.
omegaconf.base.parse = omegaconf._utils.parse = functools.cache(omegaconf.base.parse)


def _copied(metadata: omegaconf.base.Metadata, memo: dict[int, Any]) -> omegaconf.base.Metadata:
    """A copy of what OmegaConf keeps beside each value: types, names and numbers, but for two dicts. By itself
    `copy.deepcopy` takes it apart, which is a fifth of the time in which a sweep's jobs are composed."""
    found = object.__new__(type(metadata))
    found.__dict__.update(vars(metadata), flags=dict(metadata.flags or {}))
    found.resolver_cache = (
        copy.deepcopy(metadata.resolver_cache, memo) if metadata.resolver_cache else defaultdict(dict)
    )
    return found


omegaconf.base.Metadata.__deepcopy__ = _copied


# What inductor generates on a CPU is scalar here, in whatever process, and compiled by tests/g++: a kernel takes 0.32
# CPU seconds, with vectors 0.7, and no process builds programs to find out which vectors there are. No test is about
# them.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "0"
if sys.platform == "linux" and shutil.which("g++"):
    os.environ.setdefault("CXX", str(Path(__file__).with_name("g++")))


atexit.register(gc.unfreeze)  # Triton's library prints pages about objects of its own that are left at the end


@pytest.fixture(autouse=True)
def same_look() -> Iterator[None]:
    """Whatever is drawn, the settings of Matplotlib are the user's, and stay."""

    def look() -> dict[str, Any]:
        found = dict(sys.modules["matplotlib"].rcParams.copy())
        return {key: value for key, value in found.items() if not key.startswith("backend")}

    before = look() if "matplotlib" in sys.modules else None
    yield
    assert before is None or before == look()


# Python looks for cycles after every 700 objects: 2,900 times while three architectures compile, a tenth of their time.
gc.set_threshold(100_000)


# What `make quick` leaves out beside the tests that are marked themselves: these files start sweeps, ranks, SLURM or a
# browser, train, solve or draw, each for longer than about six seconds.
SLOW = {
    *("test_benchmark", "test_checkpoint_phase", "test_cli", "test_correctness", "test_methods", "test_peers"),
    *("test_profile_phase", "test_ranks", "test_torch_compile", "test_trace_phase", "test_triton_kernels"),
    *("test_planners", "test_proof", "test_rewrite", "test_rewritten_step_equals_eager"),
    *("test_budgets_and_files", "test_kernel_traces", "test_odd_records", "test_packed"),
    *("test_forecast", "test_memory_model", "test_profile", "test_recompute", "test_traced_step_equals_eager"),
    *("test_traces_docs", "test_browser", "test_launch", "test_report", "test_slurm"),
    *("test_any_application", "test_hydra_launcher_suite", "test_recompute_compiled"),
    *(
        "test_models_over_ranks",
        "test_windows",
        "test_row_kernel",
        "test_collectives",
        "test_findings",
        "test_benchmarks",
    ),
    *("test_architectures", "test_chunks", "test_obstacles", "test_by_kernel", "test_contrast", "test_long_report"),
    *("test_attention_over_ranks", "test_pairs", "test_compiled_plan", "test_add_rows", "test_aligned_matmuls"),
    *("test_clocks_in_reports", "test_kernels_compile", "test_generated_code", "test_verdicts"),
    *("test_artifact", "test_steps_over_ranks", "test_compiled_proof", "test_choice", "test_surroundings"),
    *("test_regions_and_modules", "test_what_the_step_reaches", "test_schedules", "test_chunked_loss"),
    *("test_loss_region", "test_replan", "test_wrapper_memory", "test_exports", "test_targets"),
}


# These come first, the longest of them first, so that both workers end together.
LONGEST = (
    *("test_slurm", "test_launch", "test_steps_over_ranks", "test_backend", "test_architectures", "test_cli"),
    *("test_by_kernel", "test_optimizers", "test_choice", "test_compiled_proof", "test_report", "test_chunked_loss"),
    *("test_loops", "test_models_over_ranks", "test_hooks_and_shapes", "test_planners", "test_chunks", "test_ranks"),
    *("test_four_and_eight_ranks", "test_examples", "test_full_size_plans", "test_largest_batch", "test_trainers"),
    *("test_largest_batch_phase", "test_odd_records", "test_torch_compile", "test_hydra_launcher_suite", "test_pairs"),
    *("test_browser", "test_triton_kernels", "test_checkpoint_phase", "test_benchmark", "test_recompute_compiled"),
    *("test_kernels_compile", "test_trace_phase", "test_any_application", "test_windows", "test_processes"),
    *("test_attention_over_ranks", "test_obstacles", "test_repeats", "test_artifact", "test_profile_phase"),
    *("test_gradients", "test_slide_sparse"),
)


class _SayFailuresAtOnce:
    """The whole suite takes many minutes, and pytest names what failed at its end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            why = [line for line in report.longreprtext.splitlines() if line.startswith("E  ")]
            terminal.write_line(f"\nFAILED {report.nodeid} {why[0] if why else ''}")


def pytest_configure(config: pytest.Config) -> None:
    """Each of pytest-xdist's workers has cores of its own, and so have the jobs that it starts. A job runs a thread for
    each of its cores: where two jobs share them, threads wait for each other, and a step took twice the CPU's time.

    What a shell starts in the background ignores SIGINT, and so does all that it starts: no test could interrupt it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = getattr(config, "workerinput", None)
    if not worker:
        config.pluginmanager.register(_SayFailuresAtOnce(config), "say_failures_at_once")
    if worker:
        cores, number = sorted(os.sched_getaffinity(0)), int(worker["workerid"].removeprefix("gw"))
        os.sched_setaffinity(0, cores[number :: worker["workercount"]] or {cores[number % len(cores)]})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    found = torch.cuda.device_count()
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
        need = 2 if item.get_closest_marker("gpus") else 1 if item.get_closest_marker("gpu") else 0
        if need > found:
            item.add_marker(pytest.mark.skip(reason=f"needs {need} CUDA GPU(s), this machine has {found}"))
    if hasattr(config, "workerinput"):
        # `make test` hands whole files to two workers (pytest-xdist).
        place = {name: index for index, name in enumerate(LONGEST)}
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (place.get(item.path.stem, len(place)), item.path not in slow))


_file: list[Path] = []  # of the test that ran last


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests' tensors are small: threads that wait for each other take three times as long on two busy cores. Each time,
    since a job in this process sets its own number. What a test draws is the same whatever ran before it.

    Before each file, what is there by now (a million objects of modules and of tests) leaves the garbage collector: it,
    and the search for optimizers that each compilation makes, look at what tests make."""
    if _file != [item.path]:
        _file[:] = [item.path]
        gc.collect()
        gc.freeze()
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def forking_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The ranks of this process's jobs are forked from a server that has imported once what any phase needs, as for a
    sweep of many jobs: no test's job waits for transformers or the compiler. They have the server's environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # as `cli` sets it
        patch.setenv("PYTHONSAFEPATH", "1")
        start_forking_server(many_jobs=True, phases=PHASES_OF_STEPS)


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, forking_server: None
) -> Iterator[Callable[..., Result]]:
    """`cli("model.N=256", ...)`: run blockshock in this process, in a folder of its own; status, stdout, stderr."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["blockshock", *arguments])
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # main sets this and the next: put back afterwards
        monkeypatch.setenv("PYTHONSAFEPATH", "1")
        code: int | str | None = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
            if isinstance(code, str):  # what sys.exit(message) prints, and the status it exits with
                print(code, file=sys.stderr)
                code = 1
        captured = capfd.readouterr()
        return Result(int(code or 0), captured.out, captured.err)

    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root = logging.getLogger()
    level = root.level
    yield run
    for number, heard_by in handlers.items():  # main's would meet the end of the process that runs the tests
        signal.signal(number, heard_by)
    for handler in root.handlers[:]:
        if type(handler) in (logging.StreamHandler, logging.FileHandler):  # Hydra's: their streams end with this
            root.removeHandler(handler)  # test, and each would print seventy lines for what the next one logs
    root.setLevel(level)
    for name, module in list(sys.modules.items()):  # the next test's method may have the same name
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}/"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def pools(forking_server: None) -> Iterator[Callable[[int], RankPool]]:
    """`pools(2)`: a pool of two ranks, started once and kept for all examples; replaced when a job has broken it."""
    kept: dict[int, RankPool] = {}

    def get(world_size: int) -> RankPool:
        if world_size not in kept or not kept[world_size].alive:
            kept[world_size] = RankPool(world_size)
        return kept[world_size]

    yield get
    for pool in kept.values():
        pool.close()


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which an installer would put our wheel, built without a network.

    Of a copy: a build leaves a folder behind, and takes from it what the sources no longer have.
    """
    sources, built, site = (tmp_path_factory.mktemp(name) for name in ("sources", "wheel", "site-packages"))
    for package in (*PACKAGES, "conf"):
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources)
    build = "import sys, hatchling.build as backend; backend.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, built], cwd=sources, check=True, capture_output=True, timeout=240)
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site
