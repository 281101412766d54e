"""Other people's trainers: Hugging Face's Trainer, Accelerate, adapters of peft."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from checkpointing import PrintPlan, plan_of, plans_of
from tests.checkpointing.loops.loop import assert_trains_as_unplanned, backend, batches, model_of, train

pytestmark = pytest.mark.slow


def losses_of_trainer(
    folder: Path, by: Any, steps: int, callbacks: Any = None, rows: int = 0, **options: Any
) -> tuple[nn.Module, list[float]]:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch._dynamo.reset()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    if by is not None:
        model.compile(backend=by, dynamic=False)
    draw = torch.Generator().manual_seed(0)
    words = [torch.randint(100, (32,), generator=draw) for _ in range(rows or 8 * steps)]
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
    data = [{"input_ids": w, "labels": w} for w in words]
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=callbacks)
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_hugging_faces_trainer_with_the_model_compiled_in_place_has_the_loss_curve_of_eager(tmp_path: Path) -> None:
    # GPT-2's loss function warns, and a warning in the step would break the graph
    ignored: Any = {logging.Logger.warning_once}  # type: ignore[attr-defined]
    printed: list[str] = []
    with torch._dynamo.config.patch(ignore_logging_functions=ignored):
        model, found = losses_of_trainer(tmp_path, backend(0.9), steps=50, callbacks=[PrintPlan(printed.append)])
    _, expected = losses_of_trainer(tmp_path, None, steps=50)
    assert found == expected
    assert len(found) == 50
    assert not plan_of(model).is_empty
    assert printed == [plan_of(model).summary()]


def test_the_callback_prints_a_plan_per_shape_and_says_if_there_is_none(tmp_path: Path) -> None:
    ignored: Any = {logging.Logger.warning_once}  # type: ignore[attr-defined]
    printed: list[str] = []
    with torch._dynamo.config.patch(ignore_logging_functions=ignored):
        options = {"rows": 8 + 5, "callbacks": [PrintPlan(printed.append)]}  # the last batch of an epoch has five
        model, _ = losses_of_trainer(tmp_path, backend(0.9), steps=5, **options)
    assert printed == [plan.summary() for plan in plans_of(model)]
    assert len(printed) == 2
    printed.clear()
    losses_of_trainer(tmp_path, None, steps=1, callbacks=[PrintPlan(printed.append)])
    assert printed == ["no step of this model was compiled under a memory budget: compile it before Trainer gets it"]


def test_hugging_faces_trainer_knows_no_backends_but_accelerates_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a valid DynamoBackend"):
        losses_of_trainer(tmp_path, None, steps=1, torch_compile_backend="recompute")


def test_accelerate_prepares_a_model_that_is_compiled_in_place() -> None:
    import accelerate

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

    assert not plan_of(assert_trains_as_unplanned(loop, model_of(), planned=backend(solver="greedy"))).is_empty


def test_low_rank_adapters_of_peft() -> None:
    import peft

    torch.manual_seed(0)
    options = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=r".*layers\.\d\.[02]")
    adapted = peft.get_peft_model(model_of(), options)
    trained = assert_trains_as_unplanned(train, adapted, planned=backend(solver="greedy"))
    moved = [n for n, v in trained.named_parameters() if not torch.equal(v, adapted.get_parameter(n))]
    assert moved
    assert all("lora_" in name for name in moved)
    assert not plan_of(trained).is_empty
    assert {m for m in plan_of(trained).table().module if m} <= {name for name, _ in trained.named_modules()}
