"""Runs architectures of transformers (tiny, random weights, no download) through trace, eager, one plan and verify.

    python -m tests.architectures [--write] [NAME...]      # a table; --write puts it into docs/architectures.md

A row is an architecture: nodes of its graph, and `equal` where two traced steps end with the loss, the parameters and
the buffers of two eager steps, bit for bit, a plan of half the activation memory was made, and `verify` passed; or the
words with which it is rejected.
"""

import argparse
import copy
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpointing import BudgetError, CheckpointedStep, CheckpointingError, apply_activation_checkpointing
from profiler import ProfilerError, trace_train_step
from tests.profiler.eager_steps import eager_step

BUDGETS = (0.5, 0.75, 1.0)  # fractions of the activation memory
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
BEGIN, END = "<!-- table: made by python -m tests.architectures --write -->", "<!-- end of the table -->"

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
DEPTHS += ("num_decoder_layers", "decoder_num_hidden_layers")
# What the default configuration says of these keys is replaced, so that every architecture is tiny.
SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "decoder_hidden_size"), 32
    ),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_dim", "hidden_dim"), 64),
    **dict.fromkeys(DEPTHS, 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_key_value_heads", "decoder_num_attention_heads"), 4),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "decoder_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "type_vocab_size"), 64),
    "head_dim": 8,
    "d_kv": 8,
    "image_size": 32,
    "patch_size": 8,
    "num_experts_per_tok": 2,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "drop_path_rate": 0.2,
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}


def names_in(text: str) -> list[str]:
    """Words of a text as a list."""
    return text.split()


TEXT = names_in(
    """
    albert bert big_bird biogpt bloom camembert codegen convbert ctrl deberta deberta-v2 distilbert electra ernie esm
    flaubert fnet gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj ibert mobilebert mpnet mpt nystromformer
    openai-gpt opt rembert roberta roberta-prelayernorm roc_bert roformer squeezebert xglm xlm xlm-roberta
    xlm-roberta-xl xlnet xmod yoso modernbert llama mistral qwen2 qwen3 gemma gemma2 phi phi3 stablelm starcoder2 olmo
    olmo2 cohere falcon granite helium glm nemotron persimmon smollm3 mamba mamba2 recurrent_gemma falcon_mamba
    mixtral qwen2_moe qwen3_moe olmoe granitemoe deepseek_v3 gpt_oss jamba
    """
)
SEQUENCE_TO_SEQUENCE = names_in(
    """
    bart bigbird_pegasus blenderbot fsmt led m2m_100 marian mbart mt5 mvp pegasus plbart prophetnet t5 umt5
    switch_transformers
    """
)
IMAGES = names_in(
    """
    beit bit convnext convnextv2 cvt data2vec-vision deit dinov2 dinov2_with_registers focalnet ijepa mobilenet_v1
    mobilenet_v2 mobilevit poolformer pvt pvt_v2 regnet resnet segformer swiftformer swin swinv2 vit vit_mae vit_msn
    vitdet
    """
)
AUDIO = names_in(
    """
    hubert sew unispeech wav2vec2 wavlm data2vec-audio
    """
)
STAGES: dict[str, Any] = {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}
WINDOWS: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4}
EXTRA: dict[str, dict[str, Any]] = {
    **{name: {"attention_type": "original_full"} for name in ("big_bird", "bigbird_pegasus")},  # set by the first step
    "roc_bert": {f"{part}_{size}": 32 for part in ("pronunciation", "shape") for size in ("embed_dim", "vocab_size")},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global"], 4]], "num_layers": 4},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "deepseek_v3": {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1},
    "convnext": STAGES | {"hidden_sizes": [16, 16, 16, 32], "image_size": 64},
    "convnextv2": STAGES | {"hidden_sizes": [16, 16, 16, 32], "image_size": 64},
    "resnet": STAGES | {"embedding_size": 16},
    "regnet": STAGES | {"embedding_size": 16, "groups_width": 8},
    "bit": STAGES | {"embedding_size": 16, "num_groups": 4},
    "cvt": {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "poolformer": STAGES,
    "segformer": STAGES | {"num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16},
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    **{name: {"apply_spec_augment": False, **({"conv_dim": [4] * 7} if name != "sew" else {})} for name in AUDIO},
}


@dataclass
class Row:
    """One line of the table."""

    name: str
    nodes: int
    result: str
    seconds: float


def tiny(name: str, layers: int = 4) -> nn.Module:
    """The architecture `name` at a tiny size, in training mode, with random weights.

    `layers` has no effect where `EXTRA` gives the depths.
    """
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    default = CONFIG_MAPPING[name]()
    known = default.to_dict()
    mapped = {**{alias: known.get(key) for alias, key in default.attribute_map.items()}, **known}
    small = SMALL | dict.fromkeys(() if {"depths", "num_layers"} & EXTRA.get(name, {}).keys() else DEPTHS, layers)
    sizes = {key: value for key, value in small.items() if key in mapped and not isinstance(mapped[key], list | tuple)}
    config = CONFIG_MAPPING[name](**{**sizes, **EXTRA.get(name, {})})
    torch.manual_seed(0)
    model: nn.Module = AutoModel.from_config(config)
    if any(type(module).__name__.endswith("Experts") for module in model.modules()):
        model.set_experts_implementation("batched_mm")
    return model.train()


def inputs_of(name: str, rows: int = 2, length: int = 16) -> dict[str, Tensor]:
    """A batch for the architecture: images, waves, or `length` tokens per row."""
    generator = torch.Generator().manual_seed(0)
    if name in IMAGES:
        size = EXTRA.get(name, {}).get("image_size", 32)
        return {"pixel_values": torch.randn(rows, 3, size, size, generator=generator)}
    if name in AUDIO:
        return {"input_values": torch.randn(rows, 2000, generator=generator)}
    ids = torch.randint(3, 60, (rows, length), generator=generator)
    return {"input_ids": ids, "decoder_input_ids": ids} if name in SEQUENCE_TO_SEQUENCE else {"input_ids": ids}


def loss_fn(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Mean square of the first output."""
    return model(**inputs)[0].square().mean()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def equal_to_eager(model: nn.Module, batch: Sequence[Any]) -> str:
    """ "equal", or what differs from two eager steps of a twin."""
    twin = copy.deepcopy(model)
    optimizer = sgd(twin)
    step = trace_train_step(model, loss_fn, sgd(model), batch)
    torch.manual_seed(1)
    traced = [step(*batch) for _ in range(2)]
    torch.manual_seed(1)
    eager = [eager_step(twin, loss_fn, optimizer, batch) for _ in range(2)]
    if not all(torch.equal(a, b) for a, b in zip(traced, eager, strict=True)):
        return f"DIFFERS: losses {[t.item() for t in traced]}, in eager {[t.item() for t in eager]}"
    ends = zip(model.state_dict().items(), twin.state_dict().values(), strict=True)
    different = [name for (name, a), b in ends if not torch.equal(a, b)]
    return f"DIFFERS: {different[0]}" if different else "equal"


def planned(model: nn.Module, batch: Sequence[Any]) -> tuple[CheckpointedStep, float]:
    """The step with a plan of the first of `BUDGETS` that is not below the least that the architecture needs."""
    for fraction in BUDGETS:
        try:
            step = apply_activation_checkpointing(
                model, loss_fn, sgd(model), batch, fraction, solver="greedy", profile_iters=1
            )
            return step, fraction
        except BudgetError:
            if fraction == BUDGETS[-1]:
                raise
    raise AssertionError("BUDGETS is empty")


def run(name: str) -> Row:
    """Trace, compare with eager, plan and verify one architecture."""
    started = time.perf_counter()
    nodes = 0
    try:
        model, batch = tiny(name), (inputs_of(name),)
        result = equal_to_eager(model, batch)
        step, fraction = planned(model, batch)
        result += "" if fraction == BUDGETS[0] else f" (plan of {fraction}: less is below its minimum)"
        nodes = len(step.baseline.nodes)
        proof = step.verify(batch)
        if not proof.passed:
            result = f"{result}; verify FAILED: {proof.summary().splitlines()[-1]}"
    except (ProfilerError, CheckpointingError) as error:
        result = f"{type(error).__name__}: {error}"
    except Exception as error:  # a table of everything goes on with the next architecture
        result = f"RAISED {type(error).__name__}: {error}".splitlines()[0]
    return Row(name, nodes, result, time.perf_counter() - started)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, and how many there are of each kind."""
    equal = sum(row.result.startswith("equal") and "FAILED" not in row.result for row in rows)
    lines = [f"{equal} of {len(rows)} architectures are equal to eager.", ""]
    lines += ["| architecture | nodes | result | seconds |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {r.nodes or ''} | {r.result.replace('|', '/')} | {r.seconds:.1f} |" for r in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=[*TEXT, *SEQUENCE_TO_SEQUENCE, *IMAGES, *AUDIO])
    parser.add_argument("--write", action="store_true", help="put the table into docs/architectures.md")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in arguments.names:
        rows.append(run(name))
        print(f"{name:24} {rows[-1].nodes:6} {rows[-1].seconds:7.1f} s  {rows[-1].result}", flush=True)
    if arguments.write:
        text = PAGE.read_text()
        start, end = text.index(BEGIN), text.index(END)
        PAGE.write_text(f"{text[:start]}{BEGIN}\n{table(rows)}\n{text[end:]}")


if __name__ == "__main__":
    main()
