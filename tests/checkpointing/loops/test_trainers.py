"""Other people's trainers, where they are installed: Hugging Face's Trainer, Accelerate, adapters of peft."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from checkpointing import plan_of
from tests.checkpointing.loops.loop import assert_trains_as_unplanned, backend, batches, model_of, train

pytestmark = pytest.mark.slow


def losses_of_trainer(folder: Path, by: Any, steps: int, **options: Any) -> tuple[nn.Module, list[float]]:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch._dynamo.reset()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    if by is not None:
        model.compile(backend=by, dynamic=False)
    draw = torch.Generator().manual_seed(0)
    words = [torch.randint(100, (32,), generator=draw) for _ in range(8 * steps)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": w, "labels": w} for w in words])
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_hugging_faces_trainer_with_the_model_compiled_in_place_has_the_loss_curve_of_eager(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    # GPT-2's loss function warns, and a warning in the step would break the graph
    ignored: Any = {logging.Logger.warning_once}  # type: ignore[attr-defined]
    with torch._dynamo.config.patch(ignore_logging_functions=ignored):
        model, found = losses_of_trainer(tmp_path, backend(0.9), steps=50)
    _, expected = losses_of_trainer(tmp_path, None, steps=50)
    assert found == expected
    assert len(found) == 50
    assert not plan_of(model).is_empty


def test_hugging_faces_trainer_knows_no_backends_but_accelerates_own(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="not a valid DynamoBackend"):
        losses_of_trainer(tmp_path, None, steps=1, torch_compile_backend="recompute")


def test_accelerate_prepares_a_model_that_is_compiled_in_place() -> None:
    accelerate = pytest.importorskip("accelerate")

    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16")
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        model.compile(backend=by, dynamic=False)
        prepared, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
        losses = []
        for x, labels in batches(6):
            with accelerator.accumulate(prepared):
                loss = cross_entropy(prepared(x).float(), labels)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        return losses

    assert not plan_of(assert_trains_as_unplanned(loop, model_of())).is_empty


def test_low_rank_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    options = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=r".*layers\.\d\.[02]")
    adapted = peft.get_peft_model(model_of(), options)
    trained = assert_trains_as_unplanned(train, adapted)
    moved = [n for n, v in trained.named_parameters() if not torch.equal(v, adapted.get_parameter(n))]
    assert moved
    assert all("lora_" in name for name in moved)
    assert not plan_of(trained).is_empty
