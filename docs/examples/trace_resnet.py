# trace_resnet.py: a small residual network on random images, on one device or data-parallel
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from profiler import plots
from profiler.traces import (
    MEMCPY_KIND_STR,
    KernelDataCollector,
    ModuleProfile,
    StacktraceCollector,
    count_flops,
    measure_peak_tflops,
    memory_snapshot,
    read_steps,
)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))))


class ResidualNet(nn.Module):
    def __init__(self, channels=32, blocks=4, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(channels) for _ in range(blocks)])
        self.head = nn.Linear(channels, classes)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


def main():
    world_size, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank = dist.get_rank() if world_size > 1 else 0
    out = Path(os.environ.get("OUT", "trace_out"))
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    net = ResidualNet().to(device)
    model = DistributedDataParallel(net) if world_size > 1 else net
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    size = 256 if device.type == "cuda" else 8
    images, labels = torch.randn(size, 3, 32, 32), torch.randint(10, (size,))

    def train_step():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()

    for _ in range(3):  # the first steps allocate, and choose algorithms
        train_step()

    collector = KernelDataCollector(net)  # its modules are told apart; net, not DDP around it, for short names
    with collector:
        train_step()  # the profiler's own first step: not marked, so not counted
        for _ in range(5):
            with collector.step():
                train_step()
    profile = ModuleProfile(collector, flops=count_flops(net, train_step), peak_tflops=measure_peak_tflops(device))
    profile.save(out, world_size)  # kernels.csv memcpy.csv modules.csv steps.csv trace.json, a set a rank

    stacks, seen = StacktraceCollector(), KernelDataCollector(net)  # once more, with the Python stack: this takes time
    with seen:
        train_step()
        with stacks, seen.step():
            train_step()
            seen.synchronize()

    if device.type == "cuda":
        with memory_snapshot(out / f"memory.rank{rank}.pickle"):  # for pytorch.org/memory_viz
            train_step()

    if world_size > 1:
        dist.barrier()  # the other ranks' tables are written
    if rank == 0:
        plots.plot_bottleneck_analysis(collector, top_n=20, path=out / "bottlenecks.png")
        plots.plot_stacktrace_with_kernels(stacks, seen, path=out / "stacks_and_kernels.png")
        plots.plot_layer_runtime_stats(profile, path=out / "layer_runtime.png")
        plots.plot_throughput_analysis(profile, path=out / "throughput.png")
        plots.plot_timeline_memcpy_and_passes(
            collector.copies, profile, MEMCPY_KIND_STR, path=out / "memcpy_and_passes.png"
        )
        plots.plot_step_breakdown(read_steps(out), path=out / "step_breakdown.png")
        print(profile.steps[["step", "step_ns", "forward_ns", "backward_ns", "optimizer_ns", "idle_ns"]])
        print(f"{profile.attributed:.1%} of the device time is attributed to a module; see {out}")
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
