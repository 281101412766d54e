"""Triton compiles our kernels for GPUs, where none is there: what its interpreter runs it may fail to compile.

With another Triton, such as the oldest that is supported:

    pip install --target FOLDER --no-deps triton==3.6.0
    PYTHONPATH=FOLDER pytest tests/test_kernels_compile.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, is_dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from blockshock.dtypes import short_name
from blockshock.kernels.gpu.block_gemm import GemmTiles
from blockshock.kernels.gpu.strided import StridedTiles
from blockshock.kernels.triton import BLOCK_GEMM, DECOMPRESS, STRIDED
from checkpointing.compiled.embedding import kernel as embedding
from checkpointing.compiled.loss.row_kernel import kernel as row_kernel
from checkpointing.compiled.loss.row_kernel.kernel import Gradient
from tests.compiling import AMPERE, HOPPER, Compiled, kernels_of_a_gpu_machine, launches_compile, statements_of_kernels

SHARED_MEMORY = 227 * 1024  # bytes that a block of threads can have on Hopper (CUDA programming guide, compute 9.0)
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
BLOCKS = {  # of every four, the columns and the rows of each block of a mask
    "1100": (((0, 1),), ((0, 1, 2, 3),)),
    "checkerboard": (((0, 1), (2, 3)), ((0, 1), (2, 3))),
    "interleaved": (((0, 2), (1, 3)), ((0, 2), (1, 3))),
}
ROWS, FEATURES = 512, 3072


def halves(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Packed values and flags of a weight (rows, FEATURES) that is 2:4."""
    values = torch.zeros(rows, FEATURES // 2, dtype=dtype)
    return values, torch.zeros(rows, FEATURES // 32, dtype=torch.int32)


def take_and_put(dtype: torch.dtype, batch: int, features: int, mask: str) -> None:
    columns, places = kernels_of_a_gpu_machine()["columns"], BLOCKS[mask][0]
    columns.put(columns.take(torch.zeros(batch, features, dtype=dtype), places), places)


def lift(dtype: torch.dtype, block: int) -> None:
    kernels_of_a_gpu_machine()["lift"].lift(torch.zeros(7, 10 * block, dtype=dtype), block)


def unpack_and_pack(dtype: torch.dtype, rows: int, windows: int) -> None:
    values, flags = halves(rows, dtype)
    decompress = kernels_of_a_gpu_machine()["decompress"]
    decompress.pack(decompress.unpack(values, flags, windows), flags, windows)


def multiply_blocks(dtype: torch.dtype, batch: int, tiles: StridedTiles | GemmTiles, mask: str) -> None:
    kernels, (columns, block_rows) = kernels_of_a_gpu_machine(), BLOCKS[mask]
    values, _ = halves(ROWS, dtype)
    x, out = torch.zeros(batch, FEATURES, dtype=dtype), torch.zeros(batch, ROWS, dtype=dtype)
    if isinstance(tiles, GemmTiles):
        assert tiles.fits(ROWS, FEATURES, columns)
        kernels["block_gemm"].matmul(x, values, columns, block_rows, out, tiles)
    else:
        assert tiles.fits(ROWS, FEATURES, len(columns))
        work = kernels["strided"].Workspace(tiles, ROWS, batch, x.device)
        kernels["strided"].matmul(x, values, columns, block_rows, out, tiles, work)


def decompress_and_multiply(dtype: torch.dtype, batch: int, tiles: StridedTiles) -> None:
    kernels = kernels_of_a_gpu_machine()
    assert tiles.fits(ROWS, FEATURES, 1)
    x, out = torch.zeros(batch, FEATURES, dtype=dtype), torch.zeros(batch, ROWS, dtype=dtype)
    work = kernels["strided"].Workspace(tiles, ROWS, batch, x.device)
    kernels["decompress"].matmul(x, *halves(ROWS, dtype), out, tiles, work)


def add_rows(dtype: torch.dtype, count: int, width: int) -> None:
    ids = torch.zeros(count, dtype=torch.long)
    exact = torch.promote_types(dtype, FP32)
    embedding.launch(torch.zeros(7, width, dtype=dtype), ids, ids, torch.zeros(count, width), exact)


def loss_statistics(dtype: torch.dtype, width: int, sums: bool) -> None:
    row_kernel.launch(torch.zeros(2, width, dtype=dtype), width, torch.zeros(2, dtype=torch.long), sums=sums)


def loss_gradient(dtype: torch.dtype, rows: int, width: int, everything: bool = False) -> None:
    more: list[Tensor] = [torch.ones(rows)] * 2 if everything else []
    gradient = Gradient(torch.ones(rows), torch.ones(rows), *more)
    classes = torch.ones(width) if everything else None
    logits, labels = torch.zeros(rows, width, dtype=dtype), torch.zeros(rows, dtype=torch.long)
    row_kernel.launch(logits, width, labels, gradient, classes, everything)


def extremes(choices: Sequence[Any]) -> list[Any]:
    """The first of these tiles, and others until the least and the most of everything are among them."""
    every = {each for tiles in choices for each in asdict(tiles).items()}
    wanted = {least(each for each in every if each[0] == name) for name in asdict(choices[0]) for least in (min, max)}
    found = [choices[0]]
    while missing := wanted.difference(*(asdict(tiles).items() for tiles in found)):
        found.append(max(choices, key=lambda tiles: len(missing & asdict(tiles).items())))
    return found


def launches() -> Iterator[partial[None]]:
    """The launchers with what they are given: both dtypes, whole and odd sizes, one of everything (a constant then)."""
    yield partial(take_and_put, BF16, 64, 1024, "1100")
    yield partial(take_and_put, FP16, 7, 1024, "checkerboard")
    yield partial(take_and_put, BF16, 1, 4, "interleaved")
    yield from (partial(lift, BF16, 6), partial(lift, FP16, 8))
    yield from (partial(unpack_and_pack, *given) for given in ((BF16, ROWS, 0), (FP16, ROWS, 2), (BF16, 1, 3)))
    for number, tiles in enumerate((*extremes(STRIDED), *extremes(BLOCK_GEMM), GemmTiles())):
        two = getattr(tiles, "both", False) or number % 2
        batch = 19 if number % 3 else tiles.batch
        yield partial(multiply_blocks, (BF16, FP16)[number // 2 % 2], batch, tiles, "checkerboard" if two else "1100")
    yield from (partial(multiply_blocks, BF16, 1, tiles[0], "interleaved") for tiles in (STRIDED, BLOCK_GEMM))
    for number, tiles in enumerate(extremes(DECOMPRESS)):
        yield partial(decompress_and_multiply, (BF16, FP16)[number % 2], (tiles.batch, 1, 19)[number % 3], tiles)
    yield from (partial(add_rows, *given) for given in ((BF16, 100, 5), (FP32, 100, 768), (FP64, 100, 768)))
    yield from (partial(add_rows, FP16, 1, 1), partial(add_rows, FP16, 17, 1))
    yield from (partial(loss_statistics, FP16, 50304, False), partial(loss_statistics, FP32, 128, True))
    yield from (partial(loss_gradient, *given) for given in (
        (BF16, 2, 128),  # in one tile
        (BF16, 2, 50264, True),  # in several
        (BF16, 2, 50257),  # rows that don't begin at a vector
        (FP32, 2, 50257, True),
        (FP16, 1, 1),
    ))  # fmt: skip


def shown(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return short_name(value)
    return "-".join(map(str, astuple(value))) if is_dataclass(value) else str(value)


LAUNCHES = {" ".join([each.func.__name__, *map(shown, each.args)]): each for each in launches()}


@cache
def compiled(name: str, architecture: int) -> Compiled:
    with launches_compile(architecture) as result:
        LAUNCHES[name]()
    return result


@pytest.fixture(scope="module", autouse=True)
def no_cache_of_compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("architecture", [AMPERE, HOPPER])
@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_compiles_and_a_hopper_gpu_has_room_for_it(name: str, architecture: int) -> None:
    codes = compiled(name, architecture).codes
    assert codes
    for code in codes:
        assert code.asm["cubin"]
        assert code.metadata.shared <= SHARED_MEMORY


def test_every_statement_of_every_kernel_is_compiled_by_a_launch() -> None:
    """So a kernel can't be forgotten, nor a branch."""
    done = set().union(*(compiled(name, sm).statements for name in LAUNCHES for sm in (AMPERE, HOPPER)))
    missing = sorted(f"{file}:{line}" for file, line in statements_of_kernels() - done)
    assert missing == [], "a launch of these kernels, or one that takes these branches, is missing in `launches`"
