"""DistributedDataParallel under a memory budget: rank 0 plans for all ranks.

torchrun --nproc-per-node 2 docs/examples/ddp.py
"""

import os
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import checkpointing

ON_GPU = torch.cuda.is_available()
WIDTH = 256


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH, 4 * WIDTH, 2 * WIDTH, 4 * WIDTH, WIDTH]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x
        for layer in self.layers:
            hidden = nn.functional.gelu(layer(hidden))
        return (hidden - x).square().mean()


dist.init_process_group("nccl" if ON_GPU else "gloo")
rank = dist.get_rank()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if ON_GPU else torch.device("cpu")
torch.manual_seed(0)
model = Autoencoder().to(device)
checkpointing.fit(model, memory_budget=0.9, execution="inductor" if ON_GPU else "eager")  # before it is wrapped
parallel = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
torch.manual_seed(1 + rank)
batch = torch.rand(4096, WIDTH, device=device)
for step in range(10):
    loss = parallel(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if rank == 0:
        print(f"step {step}: loss {loss.item():.4f}")
plan = checkpointing.plan_of(model)
if rank == 0:
    print(plan.summary())
dist.destroy_process_group()
