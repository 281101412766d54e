"""How long a chunk of logits takes: the kernel, by tiles, and what inductor generates for the same chunk, by turns.

    python -m tests.checkpointing.compiled.loss.row_kernel_speed [--quick]

Each contender computes loss and gradient of every row of logits that are padded to whole 128 bytes, and is compared
with float64 first. Chunks take turns in memory so that no cache holds them when they are read. The floors are what a
copy on this device takes for the chunk's bytes: read once and written once, and read twice and written once.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from checkpointing.compiled.loss.row_kernel.kernel import Gradient, Tile, launch
from tests.checkpointing.compiled.loss.logits import Chunk, Drawn, check, draw

CHUNKS = [
    Chunk(1024, 50257, 50304),  # GPT-2, 8192 rows in 8 chunks
    Chunk(256, 50257, 50304),  # in 32
    Chunk(4096, 50257, 50304),
    Chunk(512, 128256, 128256),  # Llama 3, 4096 rows in 8 chunks
    Chunk(128, 128256, 128256),
    Chunk(1024, 30522, 30528),  # BERT
    Chunk(1024, 32000, 32000),
    Chunk(1024, 8192, 8192),  # one tile: read once
    Chunk(512, 262144, 262144),
    Chunk(1024, 50257, 50304, dtype=torch.float32),
    Chunk(1024, 50257, 50257, dtype=torch.float32),
]
TILES = [
    Tile(),
    *(Tile(8192, 16, stages) for stages in (2, 3)),
    *(Tile(4096, 16, stages) for stages in (1, 2, 3)),
    *(Tile(4096, 8, stages) for stages in (1, 2, 3)),
    *(Tile(8192, 32, stages) for stages in (1, 2)),
    *(Tile(16384, 32, stages) for stages in (1, 2)),
    Tile(2048, 8, 3),
    Tile(16384, 16),
]
ROUNDS, BATCH_S, COPIES_IN_CACHES = 7, 4e-3, 3
Call = Callable[[Drawn], object]


def generated(logits: Tensor, labels: Tensor, factor: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The loss of each row and its gradient, padded, as inductor decomposes a cross entropy."""
    x = logits[:, :vocabulary].float()
    shifted = x - x.amax(1, keepdim=True)
    log_softmax = shifted - shifted.exp().sum(1, keepdim=True).log()
    loss = -log_softmax.gather(1, labels[:, None])[:, 0]
    at_label = torch.arange(vocabulary, device=x.device) == labels[:, None]
    given = torch.where(at_label, -1.0, 0.0) * factor[:, None]
    gradient = given - log_softmax.exp() * given.sum(1, keepdim=True)
    behind = (0, logits.shape[1] - vocabulary)
    return loss, torch.nn.functional.pad(gradient.to(logits.dtype), behind)


def microseconds(calls: Sequence[Call], chunks: Sequence[Drawn]) -> list[float]:
    """The median over rounds of each call, alone on the device between launches that are queued ahead."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call(chunks[0])  # compiles
    for round_ in range(1 + ROUNDS):
        for call, found in zip(calls, times, strict=True):
            runs = 30 if not round_ else max(5, min(200, int(BATCH_S / (1e-6 * found[0]))))
            torch.cuda._sleep(int(2e6 + runs * 2.5e5))  # cycles: until the host has queued the batch
            start.record()
            for run in range(runs):
                call(chunks[run % len(chunks)])
            end.record()
            end.synchronize()
            found.append(1e3 * start.elapsed_time(end) / runs)
    return [statistics.median(found[1:]) for found in times]


def bytes_per_us() -> float:
    source = torch.empty(2**28, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    chunk = draw(Chunk(1, 8, 8), "cuda")
    [time] = microseconds([lambda _: target.copy_(source)], [chunk])
    return 2 * source.nbytes / time


def factors(drawn: Drawn) -> Gradient:
    return Gradient(drawn.of_softmax, -drawn.of_softmax)


def checked(chunk: Chunk, compiled: Callable[..., tuple[Tensor, Tensor]], tiles: Sequence[Tile]) -> None:
    """Every contender's first rows against float64."""
    few = Chunk(**{**vars(chunk), "rows": 32})
    for tile in tiles:
        drawn, before = draw(few, "cuda"), draw(few, "cuda")
        drawn.of_label = before.of_label = -drawn.of_softmax
        check(drawn, launch(drawn.logits, few.vocabulary, drawn.labels, factors(drawn), tile=tile), before)
    drawn, before = draw(few, "cuda"), draw(few, "cuda")
    before.of_label = -before.of_softmax
    loss, gradient = compiled(drawn.logits, drawn.labels, drawn.of_softmax, few.vocabulary)
    x = before.logits[:, : few.vocabulary].double()
    at_label = x.gather(1, before.labels[:, None])[:, 0]
    lse = (loss.double() + at_label).float()
    drawn.logits.copy_(gradient)
    check(drawn, torch.stack([lse, at_label.float(), torch.zeros_like(lse)]), before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three chunks, and the default tile alone")
    quick = parser.parse_args().quick
    compiled = torch.compile(generated, dynamic=False, fullgraph=True)
    torch._dynamo.config.recompile_limit = 4 * len(CHUNKS)
    rate, cache = bytes_per_us(), torch.cuda.get_device_properties(0).L2_cache_size
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: a copy moves {rate / 1e6:.2f} TB/s")
    print("us per chunk; x: inductor's time over the kernel's, default tile | floors: 1 read + 1 write, 2 + 1")
    for chunk in [CHUNKS[0], CHUNKS[3], CHUNKS[7]] if quick else CHUNKS:
        tiles = TILES[:1] if quick else list(dict.fromkeys(tile.of(chunk.width) for tile in TILES))
        checked(chunk, compiled, tiles)
        size = chunk.rows * chunk.width * chunk.dtype.itemsize
        copies = max(1, -(-COPIES_IN_CACHES * cache // size))
        chunks = [draw(Chunk(**{**vars(chunk), "seed": seed}), "cuda") for seed in range(copies)]

        def inductor(drawn: Drawn, vocabulary: int = chunk.vocabulary) -> None:
            compiled(drawn.logits, drawn.labels, drawn.of_softmax, vocabulary)

        def by(tile: Tile, vocabulary: int = chunk.vocabulary) -> Call:
            return lambda drawn: launch(drawn.logits, vocabulary, drawn.labels, factors(drawn), tile=tile)

        theirs, *ours = microseconds([inductor, *map(by, tiles)], chunks)
        print(
            f"{chunk.rows:5} x {chunk.vocabulary:6} {str(chunk.dtype).removeprefix('torch.'):8}: "
            f"inductor {theirs:7.1f}, kernel {ours[0]:7.1f}, {theirs / ours[0]:.2f}x | "
            f"floors {2 * size / rate:6.1f}, {3 * size / rate:6.1f}"
        )
        if len(tiles) > 1:
            ranked = sorted(zip(ours, tiles, strict=True), key=lambda entry: entry[0])
            print("      " + ", ".join(f"{t.columns}/{t.warps}/{t.stages} {time:.1f}" for time, t in ranked))


if __name__ == "__main__":
    main()
