"""For Hugging Face's Trainer: prints the plan of the compiled model when its first step has made it.

model.compile(backend=checkpointing.backend("8GB"), dynamic=False)
Trainer(model=model, args=arguments, train_dataset=data, callbacks=[checkpointing.PrintPlan()]).train()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from checkpointing.compiled.compiled_plan import CompiledPlan, plans_of
from checkpointing.errors import CheckpointingError

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise CheckpointingError("PrintPlan is a callback of transformers: pip install transformers") from error


class PrintPlan(TrainerCallback):
    """Passes the summary of each new plan to `show`, on the first rank: one after the first step, and one for each
    further shape (a smaller last batch)."""

    def __init__(self, show: Callable[[str], object] = print) -> None:
        self.show = show
        self.shown: list[CompiledPlan] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        for plan in plans_of(model):
            if not any(plan is other for other in self.shown):
                self.shown.append(plan)
                self.show(plan.summary())

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.shown and state.is_world_process_zero:
            self.show("no step of this model was compiled under a memory budget: compile it before Trainer gets it")
