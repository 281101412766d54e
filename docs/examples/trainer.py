"""Hugging Face's Trainer under a memory budget: two lines more, and a callback that prints the plan.

python docs/examples/trainer.py          # needs transformers and accelerate; downloads nothing
"""

import logging
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import checkpointing

ON_GPU = torch.cuda.is_available()
STEPS, ROWS, LENGTH, VOCABULARY = 6, 8, 32, 64

torch.manual_seed(0)
words = (torch.arange(LENGTH) + torch.randint(VOCABULARY, (STEPS * ROWS, 1))) % VOCABULARY  # each counts upwards
model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
)
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    max_steps=STEPS,
    per_device_train_batch_size=ROWS,
    learning_rate=3e-3,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    use_cpu=not ON_GPU,
)

# GPT-2 of transformers 5 warns in its loss, and a warning would break the graph.
torch._dynamo.config.ignore_logging_functions.add(logging.Logger.warning_once)
checkpointing.fit(model, memory_budget=0.9, execution="inductor" if ON_GPU else "eager")
Trainer(
    model=model,
    args=arguments,
    train_dataset=[{"input_ids": row, "labels": row} for row in words],
    callbacks=[checkpointing.PrintPlan()],
).train()
