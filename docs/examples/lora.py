"""Low-rank adapters (peft) under a memory budget: compile the model that get_peft_model returns.

python docs/examples/lora.py             # needs transformers and peft; downloads nothing
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import checkpointing

DEVICE, EXECUTION = ("cuda", "inductor") if torch.cuda.is_available() else ("cpu", "eager")
ROWS, LENGTH, VOCABULARY = 4, 32, 64

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
)
adapters = LoraConfig(r=8, lora_alpha=64, lora_dropout=0.05, target_modules=["q_proj", "v_proj", "down_proj"])
model = get_peft_model(LlamaForCausalLM(config), adapters).to(DEVICE)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
checkpointing.fit(model, memory_budget=0.9, execution=EXECUTION)
words = ((torch.arange(LENGTH) + torch.randint(VOCABULARY, (ROWS, 1))) % VOCABULARY).to(DEVICE)
for step in range(10):
    loss = model(input_ids=words, labels=words).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
print(checkpointing.plan_of(model).summary())
