"""Tiny architectures of transformers and timm under a budget: proved bitwise, or rejected with a reason.

    python -m tests.checkpointing.compiled.architectures [--write] [NAME...]    # --write: into docs/architectures.md

Each is compiled with `backend(budget, execution="eager")` at the first of `BUDGETS` that is not below its minimum, so
that something is recomputed, and `prove_compiled` compares loss, gradients and buffers with torch.compile's aot_eager.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from checkpointing import BudgetError, CheckpointingError, ProofError, prove_compiled
from tests import architectures as whole_step
from tests.architectures import names_in
from tests.profiler.eager_steps import assert_equal

BUDGETS = (0.85, 0.92, 0.97)  # fractions of the unplanned step's peak
ROWS, LAYERS, LENGTH = 8, 2, 16
BEGIN = "<!-- table: made by python -m tests.checkpointing.compiled.architectures --write -->"
END = "<!-- end of the compiled table -->"

TRANSFORMERS = names_in(
    """
    albert bert big_bird bloom convbert deberta-v2 distilbert esm fnet gpt2 gpt_neo gpt_neox mpt nystromformer roformer
    squeezebert xlnet modernbert llama qwen3 gemma2 phi falcon olmo2 cohere mamba mamba2 mixtral qwen2_moe gpt_oss bart
    t5 resnet bit regnet poolformer segformer swinv2 vit beit dinov2
    """
)
RECURRENT = ("mamba", "mamba2", "recurrent_gemma")  # their scan is unrolled: half as many tokens
# What the suite leaves to the table → what it proves in its place: the same operators in other sizes or another order.
RELATIVES = {
    **{"esm": "roformer", "distilbert": "bert", "gpt_neo": "gpt2", "mpt": "bloom"},
    **{"olmo2": "qwen3", "cohere": "phi", "qwen2_moe": "mixtral"},
    **dict.fromkeys(("hubert", "unispeech", "data2vec-audio"), "wav2vec2"),
    **{"flaubert": "xlm", "test_vit2": "test_vit", "deit_tiny_patch16_224": "vit", "test_resnet": "resnet"},
    **{"beit_base_patch16_224": "beit", "swin_tiny_patch4_window7_224": "swinv2", "resnetv2_50": "bit"},
}
# More of them, for the table only: most are relatives of those.
MORE = names_in(
    """
    biogpt camembert codegen deberta deit electra ernie glm gpt_bigcode gptj marian mistral mpnet openai-gpt opt pegasus
    persimmon phi3 recurrent_gemma roberta stablelm starcoder2 swin xglm gemma gpt_neox_japanese granite granitemoe
    helium ijepa m2m_100 mbart mt5 nemotron olmo olmoe plbart qwen2 qwen3_moe roberta-prelayernorm roc_bert smollm3
    vit_msn xlm-roberta xlm-roberta-xl data2vec-vision blenderbot cvt deepseek_v3 mobilebert sew vit_mae
    """
)
# What removes the graph break of an architecture, as its error message says; as they are, they are rejected.
FREEZE = "freeze_feature_encoder"
REMEDIED = {
    **dict.fromkeys(("xlm", "flaubert"), "capture_scalar_outputs"),
    **dict.fromkeys(("hubert", "unispeech", "wav2vec2", "wavlm", "data2vec-audio"), FREEZE),
}
REJECTED = {
    "ctrl": "modeling_ctrl.py",
    "ibert": "use torch.where in place of the condition",
    "xmod": "use a mask or torch.where",
    "yoso": "duplicate tensor input",
    "switch_transformers": "the step breaks into several graphs",
    "xlm": "set torch._dynamo.config.capture_scalar_outputs = True",
    "wav2vec2": "set requires_grad outside of the step",
}
SMALL_VIT = {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 4}
TIMM: dict[str, dict[str, Any]] = {
    **{name: {"img_size": 64} for name in ("test_vit", "test_vit2", "test_vit_relpos")},
    **{
        name: {}
        for name in names_in("test_resnet test_convnext test_efficientnet test_mambaout test_nfnet test_byobnet")
    },
    **dict.fromkeys(names_in("deit_tiny_patch16_224 cait_xxs24_224 beit_base_patch16_224"), SMALL_VIT),
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 4,
        "depths": (1, 1),
        "embed_dim": 16,
        "num_heads": (2, 2),
    },
    "inception_next_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32)},
    "densenet121": {"growth_rate": 4, "block_config": (2, 2, 2, 2)},
    "resnetv2_50": {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 32), "stem_chs": 8},
}


@dataclass(frozen=True)
class Row:
    """`reason` is why the architecture is rejected, "" if it is proved with `recomputed` values recomputed."""

    name: str
    budget: float = 0.0
    recomputed: int = 0
    reason: str = ""
    seconds: float = 0.0


def loss_fn(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Mean square of the first output, or of the only one."""
    outputs = model(**inputs)
    return (outputs if isinstance(outputs, Tensor) else outputs[0]).square().mean()


def built(name: str, layers: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model in training mode, of so many layers if it has layers, and a batch."""
    if name in TIMM:
        import timm

        torch.manual_seed(0)
        size = TIMM[name].get("img_size", 64)
        images = torch.randn(ROWS, 3, size, size, generator=torch.Generator().manual_seed(0))
        return timm.create_model(name, num_classes=10, **TIMM[name]).train(), {"x": images}
    return whole_step.tiny(name, layers), whole_step.inputs_of(name, ROWS, LENGTH // (1 + (name in RECURRENT)))


def prove(name: str, remedy: str = "", layers: int = LAYERS, budgets: Sequence[float] = BUDGETS) -> Row:
    """Prove one architecture, after `remedy`: a flag of Dynamo, or `FREEZE`, a method of speech models."""
    started = time.perf_counter()
    model, batch = built(name, layers)
    if remedy == FREEZE:
        model.feature_extractor._freeze_parameters()
    flags = {remedy: True} if hasattr(torch._dynamo.config, remedy) else {}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch._dynamo.config.patch(flags):
        row = _proved(name, model, batch, budgets)
    assert_equal(model.state_dict(), before, "")
    assert all(parameter.grad is None for parameter in model.parameters())
    return Row(row.name, row.budget, row.recomputed, row.reason, time.perf_counter() - started)


def _proved(name: str, model: nn.Module, batch: dict[str, Tensor], budgets: Sequence[float]) -> Row:
    for budget in budgets:
        torch._dynamo.reset()
        try:
            proof = prove_compiled(loss_fn, model, (batch,), budget, execution="eager", solver="greedy")
        except BudgetError as error:
            reason = str(error)
        except ProofError:
            raise
        except CheckpointingError as error:
            return Row(name, budget, reason=str(error))
        else:
            assert proof.identical
            return Row(name, budget, len(proof.plan.plan.recomputed))
    return Row(name, budgets[-1], reason=reason)


def has_timm() -> bool:
    return importlib.util.find_spec("timm") is not None


def prove_all(cases: Iterable[tuple[str, str]]) -> Iterator[Row]:
    """(architecture, remedy) → their rows, in order; many in each of two processes."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=quiet) as pool:
        yield from pool.map(_case, cases)


def _case(case: tuple[str, str]) -> Row:
    return prove(*case)


def quiet() -> None:
    """No download, one thread, no warnings of other libraries' code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def table(rows: list[Row]) -> str:
    """In Markdown: how many are proved, their names, and why the others are rejected."""
    good = [row for row in rows if not row.reason]
    lines = [f"{len(good)} of {len(rows)} are proved: {', '.join(sorted({row.name for row in good}))}.", ""]
    lines += ["| rejected | reason |", "|---|---|"]
    lines += [f"| {row.name} | {_short(row.reason).replace('|', '/')} |" for row in rows if row.reason]
    return "\n".join(lines)


def _short(reason: str) -> str:
    """Without the path of the folder in which packages are installed."""
    before, found, after = reason.partition("/site-packages/")
    return before.rsplit(" ", 1)[0] + " " + after if found else reason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=[*TRANSFORMERS, *MORE, *REMEDIED, *REJECTED, *TIMM])
    parser.add_argument("--write", action="store_true", help="put the table into docs/architectures.md")
    arguments = parser.parse_args()
    rows = []
    for row in prove_all((name, REMEDIED.get(name, "")) for name in dict.fromkeys(arguments.names)):
        rows.append(row)
        said = row.reason or f"proved, {row.recomputed} values recomputed at {row.budget}"
        print(f"{row.name:28} {row.seconds:6.1f} s  {said}", flush=True)
    if arguments.write:
        text = whole_step.PAGE.read_text()
        start, end = text.index(BEGIN), text.index(END)
        whole_step.PAGE.write_text(f"{text[:start]}{BEGIN}\n{table(rows)}\n{text[end:]}")


if __name__ == "__main__":
    main()
