"""The command: measure cells on the ranks and keep their records."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console

from blockshock import SCHEMA, bench
from blockshock.bench.all_reduce import SIZES, all_reduce
from blockshock.bench.cells import Cell, Row
from blockshock.bench.layers import CONTENDERS, forward, law, train
from blockshock.bench.products import backward, product
from blockshock.cli import resolvers
from blockshock.cli.main import CONF
from blockshock.config import load_job, plain
from blockshock.dtypes import DTYPES
from blockshock.errors import REFUSED, ConfigError, at_least, one_of, whole_numbers, writable
from blockshock.jobs.execution import device_name
from blockshock.measure import environment
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from blockshock.ranks.pool import RankPool
from blockshock.run_folder.folder import RunFolder

ALONE: dict[str, Callable[..., Iterator[Row]]] = {"product": product, "backward": backward, "all_reduce": all_reduce}
LAYERS: dict[str, Callable[..., Iterator[Row]]] = {"forward": forward, "train": train, "law": law}
PARTS = (*ALONE, *LAYERS)
MASKS = ("complement_1100_0011", "complement_1010_0101", "complement_1001_0110", "checkerboard", "random_2of4")


def main(argv: list[str] | None = None) -> int:
    """Measure what `argv` asks for; 0, or 1 if something failed on the way, with what was measured kept."""
    options = _options(argv)
    resolvers.register()
    try:
        spec = _plan(options)
        writable("--out", options.out)
    except ConfigError as error:
        print(f"blockshock.bench: {error}", file=sys.stderr)
        return REFUSED
    console = Console()
    folder = RunFolder(options.out)
    folder.reopen({"phase": {"name": "bench"}, "experiment": {"name": folder.path.name}, "bench": spec}, spec["run_id"])
    outcome = Outcome("failed", "interrupted; cells that had finished are kept")
    try:
        with suppress(KeyboardInterrupt), RankPool(options.ranks) as pool:
            outcome = pool.run(measure_cells, spec, on_message=lambda text: console.print(text, highlight=False))
    finally:
        folder.finish(outcome.status, outcome.reason)
    if spec["device"] == "cpu":
        console.print("The targets are for GPUs: a CPU's times show that everything works, and nothing else.")
    if outcome.status != "ok":
        print(f"blockshock.bench: {outcome.status}: {outcome.reason}", file=sys.stderr)
    print(f"records: {folder.path / 'metrics.jsonl'}")
    return int(outcome.status != "ok")


def _options(argv: list[str] | None) -> argparse.Namespace:
    gpu = torch.cuda.device_count() > 0
    sizes = ("4096,8192,16384", "16,64,256,1024,4096,8192") if gpu else ("512,1024", "16,256")
    parser = argparse.ArgumentParser(
        "python -m blockshock.bench", description=bench.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="product", help=f"what to compare, of {', '.join(PARTS)} (default: product)")
    parser.add_argument("--ranks", type=int, default=1, help="GPUs, or processes on a CPU (default: 1)")
    parser.add_argument("--n", default=sizes[0], help="sizes N = K of the weight (default: %(default)s)")
    parser.add_argument("--batch", default=sizes[1], help="rows B of X (default: %(default)s)")
    parser.add_argument("--masks", default=",".join(MASKS), help="of parts product and backward (default: %(default)s)")
    parser.add_argument("--dtype", default="bf16" if gpu else "fp32", choices=sorted(DTYPES))
    parser.add_argument("--iters", type=int, default=10, help="iterations of a captured loop (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="replays of each loop, in turn (default: 5)")
    parser.add_argument("--no-eager", action="store_true", help="do not time without CUDA graphs as well")
    parser.add_argument(
        "--out", help="folder; cells that it has are not measured again (default: outputs/bench/xRANKS)"
    )
    options = parser.parse_args(argv)
    options.out = options.out or f"outputs/bench/x{options.ranks}"
    return options


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    """What every rank does. Raises ConfigError for what can't be."""
    parts = options.parts.split(",")
    for part in parts:
        one_of("--parts", part, PARTS)
        if part in LAYERS or part == "all_reduce":
            if options.ranks < 2 or options.ranks % 2:
                raise ConfigError("--ranks", options.ranks, f"part {part} needs an even number: two halves each")
            if part == "law" and options.ranks != 2:
                raise ConfigError("--ranks", options.ranks, "part law is about two ranks")
        elif options.ranks != 1:
            raise ConfigError("--ranks", options.ranks, f"part {part} is one rank's work")
    gpus = torch.cuda.device_count()
    if gpus and options.ranks > gpus:
        raise ConfigError("--ranks", options.ranks, f"this machine has {gpus} GPUs, one a rank")
    if "all_reduce" in parts and not gpus:
        raise ConfigError("--parts", "all_reduce", "compares NCCL with sums through peers' memory: needs GPUs")
    if "law" in parts and not gpus:
        raise ConfigError("--parts", "law", "is about cuSPARSELt's products and NCCL's sums: needs GPUs")
    for name, count in (("--iters", options.iters), ("--rounds", options.rounds)):
        at_least(name, count, 1)
    for N in whole_numbers("--n", options.n):
        if N % 4:
            raise ConfigError("--n", N, "must be multiples of 4, for 2:4 groups")
    for mask in options.masks.split(","):
        one_of("--masks", mask, sorted(path.stem for path in (CONF / "mask").iterdir()))
    cells = []
    for part in parts:
        if part == "all_reduce":
            cells += [(part, 4096, size // (4096 * DTYPES[options.dtype].itemsize)) for size in SIZES]
            continue
        sizes = itertools.product(whole_numbers("--n", options.n), whole_numbers("--batch", options.batch))
        cells += [(part, N, B) for N, B in sizes]
    about = {"dtype": options.dtype, "masks": options.masks.split(","), "device": "cuda" if gpus else "cpu"}
    done = _done(options.out, about)
    spec = {
        "cells": [cell for cell in cells if (*cell, options.ranks) not in done],
        "out": options.out,
        "run_id": resolvers.run_id(),
        **about,
        "ranks": options.ranks,
        "iters": options.iters,
        "rounds": options.rounds,
        "eager": not options.no_eager,
    }
    for part, N, B in spec["cells"]:
        if part == "law":  # it relates all of its contenders
            _configs(part, spec, N, B, partial(_refuse_law, N, B))
    return spec


def _refuse_law(N: int, B: int, problem: str) -> None:
    raise ConfigError("--parts", "law", f"N={N} B={B} would be {problem.strip()}")


def _done(out: str, about: dict[str, Any]) -> set[tuple[str, int, int, int]]:
    """The cells that the folder has. Raises ConfigError where it holds something else."""
    folder = RunFolder(out)
    if (folder.path / "sweep.json").exists() or next(folder.path.glob("*/status.json"), None):
        raise ConfigError("--out", out, "holds other runs; choose a folder of its own")
    known = folder.records()
    if any(row.get("phase") != "bench" for row in known):
        raise ConfigError("--out", out, "holds another job's records; choose another folder")
    if known:
        before = OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml"))
        assert isinstance(before, dict)
        differs = [name for name in about if before["bench"].get(name) != about[name]]
        if differs:
            name = differs[0]
            problem = f"was measured with {name}={before['bench'].get(name)}; choose another folder"
            raise ConfigError("--out", out, problem)
    return {(row["part"], row["N"], row["B"], row["world_size"]) for row in known}


def measure_cells(info: RankInfo, spec: dict[str, Any], say: Callable[[str], None]) -> Outcome:
    """One rank's side of all cells. Rank 0 appends a cell's rows as soon as it is measured."""
    resolvers.register()
    backend = "nccl" if spec["device"] == "cuda" else "gloo"
    threads = max(1, len(os.sched_getaffinity(0)) // info.local_world_size)
    device = distributed.initialize(info, spec["device"], backend, threads, timeout_s=1800)
    masks = tuple(instantiate(OmegaConf.load(CONF / "mask" / f"{name}.yaml")) for name in spec["masks"])
    folder = RunFolder(spec["out"])
    if info.rank == 0:
        folder.write_json("env.json", environment.describe(device))
    for number, (part, N, B) in enumerate(spec["cells"], 1):
        if info.rank == 0:
            say(f"{number}/{len(spec['cells'])} {part} N={N} B={B} on {info.world_size}")
        cell = Cell(N, N, B, DTYPES[spec["dtype"]], device, masks, 0, spec["iters"], spec["rounds"], spec["eager"])
        heard = say if info.rank == 0 else None
        work = ALONE[part] if part in ALONE else partial(LAYERS[part], configs=_configs(part, spec, N, B, heard))
        rows = list(work(cell))
        common = {"schema": SCHEMA, "run_id": spec["run_id"], "timestamp_unix": time.time(), "phase": "bench"}
        if info.rank == 0:
            folder.append(
                *(common | row | {"device": device_name(device)} for row in rows)
            )  # a cell is whole or absent
    distributed.barrier()
    return Outcome()


def _configs(
    part: str, spec: dict[str, Any], N: int, B: int, say: Callable[[str], None] | None
) -> dict[str, dict[str, Any]]:
    """The configurations of a part's contenders that can run here; `say` hears which can't."""
    found = {}
    common = [f"model.N={N}", f"model.B={B}", f"model.dtype={spec['dtype']}", f"hardware.device={spec['device']}"]
    common += [f"hardware.world_size={spec['ranks']}", "phase=phase1_forward"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name, overrides in CONTENDERS[part].items():
            if spec["ranks"] == 2 and "method.shard=outputs" in overrides:
                continue  # the same as sharding inputs
            config = plain(compose("config", overrides=[*common, *overrides]))
            try:
                load_job(config)
            except ConfigError as error:
                if say:
                    say(f"  without {name}: {error}")
                continue
            found[name] = config
    return found
