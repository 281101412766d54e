"""Models to profile, built from `transformers` configurations with random weights: nothing is downloaded.

Needs `pip install 'block-shock[models]'`; the rest of the library works without.

    problem = build("gpt2", batch_size=8, seq_len=1024, dtype=torch.bfloat16, device="cuda", seed=0)
    step = trace_train_step(problem.model, problem.loss_fn, optimizer, problem.batch)

`resnet152 bert gpt2 llama vit` have the size that their names promise, and `tiny_*` of each the same layers
with a few thousand parameters, for tests. Models return logits, and `loss_fn` computes the loss outside of
the model, so that forward and loss are two regions of the step.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from profiler.errors import MissingPackageError

LossFn = Callable[..., Tensor]


@dataclass(frozen=True)
class TrainingTask:
    """A model in train mode, its loss and one batch: `problem.loss_fn(problem.model, *problem.batch)`."""

    model: nn.Module
    loss_fn: LossFn
    batch: tuple[Tensor, ...]
    autocast: torch.dtype | None = None  # the one that `loss_fn` enters, if it does
    within: LossFn | None = None  # within(loss, *batch) is loss(*batch) inside of the hooks of DDP or FSDP2


def resnet152(tiny: bool = False, dropout: float | None = None) -> nn.Module:
    """ResNet-152 (He et al. 2015): 60.2 million parameters, 229.6 MiB in fp32. Input: [B, 3, S, S]."""
    from transformers import ResNetConfig, ResNetForImageClassification

    _no_dropout(dropout, "resnet152")
    size = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 2, 2, 1]} if tiny else {}
    config = ResNetConfig(**{"depths": [3, 8, 36, 3], "layer_type": "bottleneck", "num_labels": 1000, **size})
    return ResNetForImageClassification(config)


def bert(tiny: bool = False, dropout: float | None = None) -> nn.Module:
    """BERT base (Devlin et al. 2018), masked-language head: 109.5 million parameters. Input: ids [B, S]."""
    from transformers import BertConfig, BertForMaskedLM

    size = _TINY_TEXT | {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64} if tiny else {}
    if tiny:
        size["num_attention_heads"] = 4
    if dropout is not None:
        size |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForMaskedLM(BertConfig(**size))


def gpt2(tiny: bool = False, dropout: float | None = None) -> nn.Module:
    """GPT-2 small (Radford et al. 2019), tied: 124.4 million parameters. Input: ids [B, S], S <= 1024."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size: dict[str, Any] = (
        {"vocab_size": 128, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4} | _NO_TOKENS if tiny else {}
    )
    if dropout is not None:
        size |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(use_cache=False, attn_implementation=_causal_attention(), **size))


def llama(tiny: bool = False, dropout: float | None = None) -> nn.Module:
    """A Llama 3 of 1B shape (16 layers of 2048, grouped-query attention, tied): 1.24 billion parameters.

    Input: ids [B, S]. Dropout, if any, is on the attention weights: Llama has no other.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    size: dict[str, Any] = {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    if tiny:
        size |= (
            _TINY_TEXT
            | _NO_TOKENS
            | {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            }
        )
    size |= {"use_cache": False, "attn_implementation": _causal_attention()}
    return LlamaForCausalLM(LlamaConfig(attention_dropout=dropout or 0.0, **size))


def vit(tiny: bool = False, dropout: float | None = None) -> nn.Module:
    """ViT-B/16 (Dosovitskiy et al. 2020): 86.6 million parameters. Input: [B, 3, 224, 224] (tiny: 32)."""
    from transformers import ViTConfig, ViTForImageClassification

    size: dict[str, Any] = {"num_labels": 1000}
    if tiny:
        size |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        size |= {"image_size": 32, "patch_size": 8, "num_labels": 10}
    if dropout is not None:
        size |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return ViTForImageClassification(ViTConfig(**size))


def _causal_attention() -> str:
    """Scaled dot product attention with `is_causal` and no mask tensor, whether traced or not.

    The stock "sdpa" looks at the values of the position ids to see that it needs no mask. Under tracing there
    are no values, so it would build one, and the traced step would run other kernels than the eager one.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("sdpa_is_causal", sdpa_attention_forward)
    return "sdpa_is_causal"


_TINY_TEXT: dict[str, Any] = {"vocab_size": 128, "max_position_embeddings": 64}
_NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}  # the stock ids lie outside of 128

TEXT: dict[str, Callable[..., nn.Module]] = {"bert": bert, "gpt2": gpt2, "llama": llama}
VISION: dict[str, Callable[..., nn.Module]] = {"resnet152": resnet152, "vit": vit}
NAMES = [f"{prefix}{name}" for prefix in ("", "tiny_") for name in (*TEXT, *VISION)]


def build(
    name: str,
    batch_size: int = 2,
    seq_len: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    dropout: float | None = None,
) -> TrainingTask:
    """The model `name` in train mode with weights and one batch from `seed`.

    Text models get ids [batch_size, seq_len] and labels of that shape, vision models images [batch_size, 3,
    side, side] in `dtype` and labels [batch_size]. `dropout` None leaves the configuration's own (0.1 in BERT
    and GPT-2, 0 in the others). The same seed gives the same numbers on every device: weights and batch are
    made on the CPU. Raises ValueError for another name, and for dropout where the model has none;
    MissingPackageError without transformers.
    """
    tiny, kind = name.startswith("tiny_"), name.removeprefix("tiny_")
    if name not in NAMES:
        raise ValueError(f"no model {name!r}: choose one of {', '.join(NAMES)}")
    if importlib.util.find_spec("transformers") is None:
        raise MissingPackageError(f"model {name!r} needs transformers: pip install 'block-shock[models]'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with drawn_once():
            model = (TEXT | VISION)[kind](tiny=tiny, dropout=dropout)
        config: Any = model.config
        if kind in TEXT:
            vocabulary = config.vocab_size
            batch: tuple[Tensor, ...] = (
                torch.randint(vocabulary, (batch_size, seq_len)),
                torch.randint(vocabulary, (batch_size, seq_len)),
            )
        else:
            side, classes = (32 if tiny else 224), config.num_labels
            images = torch.randn(batch_size, 3, side, side).to(dtype)
            batch = (images, torch.randint(classes, (batch_size,)))
    first = next(model.parameters())
    if first.dtype != dtype or first.device.type != torch.device(device).type:  # fake parameters cannot be moved
        model = model.to(device=device, dtype=dtype)
    return TrainingTask(model.train(), _LOSSES[kind], tuple(t.to(device) for t in batch))


@contextmanager
def drawn_once() -> Iterator[None]:
    """PyTorch's layers draw no weights meanwhile: transformers draws them afterwards, and one draw of Llama's takes a
    core twenty seconds. What it leaves to the layers (the biases of RegNet's convolutions) is `undrawn`."""
    layers: tuple[Any, ...] = (nn.Linear, nn.Embedding, nn.Conv2d)
    own = [vars(layer).get("reset_parameters") for layer in layers]
    for layer in layers:
        layer.reset_parameters = _draw_later
    try:
        yield
    finally:
        for layer, method in zip(layers, own, strict=True):
            if method is None:  # its base class's
                del layer.reset_parameters
            else:
                layer.reset_parameters = method


def _draw_later(layer: nn.Module) -> None:
    """In place of `reset_parameters`."""
    for parameter in layer.parameters(recurse=False):
        nn.init.constant_(parameter, math.nan)


def undrawn(model: nn.Module) -> bool:
    """Whether a weight still has no value after `drawn_once`."""
    return any(bool(parameter.isnan().any()) for parameter in model.parameters() if not parameter.is_meta)


def _no_dropout(dropout: float | None, name: str) -> None:
    if dropout:
        raise ValueError(f"{name} has no dropout: leave dropout out")


def classification_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the logits [B, classes]."""
    return cross_entropy(model(images).logits, labels)


def token_loss(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of every position's logits [B, S, V] against `labels` [B, S] (already shifted)."""
    logits = model(ids).logits
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


_LOSSES: dict[str, LossFn] = {
    "bert": token_loss,
    "gpt2": token_loss,
    "llama": token_loss,
    "resnet152": classification_loss,
    "vit": classification_loss,
}
