"""Shows the kernels, collectives and rates that were measured and chosen on this machine. Can also choose ahead.

    blockshock-tune                                             # show them
    blockshock-tune --n 4096 --batch 16,64 --mask checkerboard  # choose kernels for these sizes now, and show them
    blockshock-tune --forget                                    # delete them; jobs will measure again

Kernels are timed here, on one GPU or the CPU. Collectives and rates are timed by the jobs that need them.
Exit status: 0, or 2 for wrong values.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from blockshock.cli.pipes import closed_pipe_ends_quietly
from blockshock.cli.startup import check_packages, end_at_once, versions
from blockshock.config import CONF
from blockshock.dtypes import DTYPES
from blockshock.errors import REFUSED, ConfigError, one_of, whole_numbers
from blockshock.kernels.choice import make
from blockshock.masks import halves
from blockshock.measure.arrays import kept_arrays
from blockshock.measure.cache import cache_path, load

UNITS = {"gbs": "GB/s", "tflops": "TFLOP/s"}  # by the ends of the rates' names


@closed_pipe_ends_quietly()
def main(argv: list[str] | None = None) -> None:
    """Do as `argv` says; exit status 2 for what can't be done."""
    options = _parser().parse_args(argv)
    check_packages("blockshock-tune")
    end_at_once()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = cache_path(device)
    console = Console()
    try:
        if options.forget:
            for each in (path, *kept_arrays()):
                _forget(each)
            console.print(f"forgotten: {path}", highlight=False, soft_wrap=True)
            return
        if options.n or options.batch:
            _tune(options, device, console)
    except ConfigError as error:
        print(f"blockshock-tune: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    known = load(path)
    console.print(f"{path}" if known else f"nothing is known yet ({path})", highlight=False, soft_wrap=True)
    for section, entries in sorted(known.items()):
        console.print(_table(section, entries))


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError("--forget", path, f"{error.strerror}; take it away by hand") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockshock-tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=versions())
    parser.add_argument("--n", metavar="N,N", help="sizes N = K of the weight")
    parser.add_argument("--batch", metavar="B,B", help="numbers of rows of X; needs --n")
    parser.add_argument(
        "--mask",
        metavar="NAME,NAME",
        default="complement_1100_0011,checkerboard,random_2of4",
        help="masks of the weight (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="bf16", choices=sorted(DTYPES), help="of X and the weight (default: bf16)")
    parser.add_argument(
        "--forget", action="store_true", help="delete what was measured on this device, and kept training runs"
    )
    return parser


def _tune(options: argparse.Namespace, device: torch.device, console: Console) -> None:
    if not (options.n and options.batch):
        given, missing = ("--batch", "--n") if options.batch else ("--n", "--batch")
        raise ConfigError(given, options.batch or options.n, f"needs {missing} too: a kernel is chosen for both")
    sizes = list(itertools.product(whole_numbers("--n", options.n), whole_numbers("--batch", options.batch)))
    for name in options.mask.split(","):
        one_of("--mask", name, sorted(path.stem for path in (CONF / "mask").iterdir()))
    for N, _ in sizes:
        if N % 4:
            raise ConfigError("--n", N, "must be multiples of 4: 2:4 masks group four columns")
    for (N, B), name in itertools.product(sizes, options.mask.split(",")):
        mask = instantiate(OmegaConf.load(CONF / "mask" / f"{name}.yaml"))
        generator = torch.Generator(device).manual_seed(0)
        half, _ = halves(mask, torch.randn(N, N, device=device, generator=generator), generator)
        kernel = make("auto", half, mask.period, B, DTYPES[options.dtype])
        console.print(f"N={N} B={B} {name}: {kernel.describe()}", highlight=False, soft_wrap=True)


def _table(section: str, entries: dict[str, Any]) -> Table:
    if section == "rates":
        table = Table("for", "measured", title=section, title_justify="left")
        for key, found in sorted(entries.items()):
            table.add_row(key, _rates(found) if _numbers(found) else f"not readable: {found}")
        return table
    table = Table("for", "chosen", "µs", title=section, title_justify="left")
    for key, found in sorted(entries.items()):
        readable = _numbers(found) or (isinstance(found, dict) and found.keys() >= {"ms", "tried"})
        table.add_row(key, *(_chosen(found) if readable else (f"not readable: {found}", "")))
    return table


def _numbers(found: Any) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(value, int | float) for value in found.values())


def _rates(found: dict[str, float]) -> str:
    """Rates as far as they were measured: one rank has no link."""
    said = []
    for name, value in found.items():
        what, _, unit = name.rpartition("_")
        if value:
            said.append(f"{what} {value:.4g} {UNITS.get(unit, unit)}")
    return ", ".join(said)


def _chosen(found: dict[str, Any]) -> tuple[str, str]:
    """What was chosen and how long it takes, from any section's entry."""
    if "ms" in found:  # one best of many: tiles, an algorithm
        what = next(value for name, value in found.items() if name not in ("ms", "tried"))
        return f"{_words(what)} (of {found['tried']})", f"{1e3 * found['ms']:.1f}"
    best = min(found, key=lambda name: found[name])  # times by name
    rest = ", ".join(f"{name} {1e3 * ms:.1f}" for name, ms in sorted(found.items(), key=lambda i: i[1]) if name != best)
    return f"{best}, not {rest}", f"{1e3 * found[best]:.1f}"


def _words(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


if __name__ == "__main__":
    main()
