"""`blockshock-tune`: what was measured on this machine and what was chosen for it; measures ahead, or forgets.

    blockshock-tune                                            # show
    blockshock-tune --n 4096 --batch 16,64 --mask checkerboard # choose kernels for these shapes now, then show
    blockshock-tune --forget                                   # delete the file; jobs will measure again

Kernels are tuned on one GPU (or the CPU); collectives and rates by the jobs that use them.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from blockshock.errors import REFUSED, ConfigError, one_of
from blockshock.kernels import make
from blockshock.main import CONF
from blockshock.masks import halves
from blockshock.measured import cache_path, load
from blockshock.problem import DTYPES


def main(argv: list[str] | None = None) -> None:
    """Do as `argv` says; exit status 2 for what can't be done."""
    options = _parser().parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = cache_path(device)
    console = Console()
    try:
        if options.forget:
            path.unlink(missing_ok=True)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "blockshock-tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", help="sizes N = K of the weight, separated by commas")
    parser.add_argument("--batch", help="rows B of X, separated by commas")
    parser.add_argument("--mask", default="complement_1100_0011,checkerboard,random_2of4", help="masks by name")
    parser.add_argument("--dtype", default="bf16", choices=sorted(DTYPES))
    parser.add_argument("--forget", action="store_true", help="delete what was measured on this device")
    return parser


def _tune(options: argparse.Namespace, device: torch.device, console: Console) -> None:
    if not (options.n and options.batch):
        raise ConfigError("--n" if options.batch else "--batch", None, "give both --n and --batch")
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


def whole_numbers(name: str, text: str) -> list[int]:
    """`4096,8192` as numbers; ConfigError for anything else."""
    if not all(word.isdecimal() and int(word) for word in text.split(",")):
        raise ConfigError(name, text, "must be positive whole numbers, separated by commas")
    return [int(word) for word in text.split(",")]


def _table(section: str, entries: dict[str, Any]) -> Table:
    table = Table("for", "chosen", "µs" if section != "rates" else "", title=section, title_justify="left")
    for key, found in sorted(entries.items()):
        chosen, time = _chosen(found)
        table.add_row(key, chosen, time)
    return table


def _chosen(found: dict[str, Any]) -> tuple[str, str]:
    """What was chosen and how long it takes, from any section's entry."""
    if "ms" in found:  # one best of many: tiles, an algorithm
        what = next(value for name, value in found.items() if name not in ("ms", "tried"))
        return f"{_words(what)} (of {found['tried']})", f"{1e3 * found['ms']:.1f}"
    if any(name.endswith(("_gbs", "_tflops")) for name in found):
        return _words({name: f"{value:.1f}" for name, value in found.items()}), ""
    best = min(found, key=lambda name: found[name])  # times by name
    rest = ", ".join(f"{name} {1e3 * ms:.1f}" for name, ms in sorted(found.items(), key=lambda i: i[1]) if name != best)
    return f"{best}, not {rest}", f"{1e3 * found[best]:.1f}"


def _words(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())
