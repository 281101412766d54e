"""A plain loop under a memory budget: schedule, clipping, accumulation over micro-batches, a smaller last batch.

python docs/examples/plain.py
"""

import torch
from torch import nn

import checkpointing

# On a GPU, inductor and a larger batch, and a budget such as "8GB".
DEVICE, ROWS, EXECUTION = ("cuda", 8192, "inductor") if torch.cuda.is_available() else ("cpu", 1024, "eager")
WIDTH, CLASSES = 64, 10


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))
            for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return nn.functional.cross_entropy(self.head(x), labels)


torch.manual_seed(0)
inputs = torch.randn(3 * ROWS + ROWS // 2, WIDTH, device=DEVICE)
labels = inputs[:, :CLASSES].argmax(1)
model = Classifier().to(DEVICE)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
checkpointing.fit(model, memory_budget=0.8, execution=EXECUTION)  # the only new line

for epoch in range(6):
    for number, (x, y) in enumerate(zip(inputs.split(ROWS), labels.split(ROWS), strict=True)):
        loss = model(x, y)
        (loss / 2).backward()
        if number % 2:  # each second micro-batch
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")

for plan in checkpointing.plans_of(model):  # one for the full batch, one for the smaller last one
    print(plan.summary(), end="\n\n")
