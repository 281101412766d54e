"""Any architecture of transformers or timm at the size that its configuration has, with random weights.

    problem = build("transformers/t5", 8, seq_len=512, options={"num_layers": 12}, dtype=torch.bfloat16, device="cuda")
    problem = build("timm/convnext_base", 64, dtype=torch.bfloat16, device="cuda")

Nothing is downloaded. Of transformers, a type of model with a head for language modelling or for images; `options` are
keys of its configuration. Of timm, a model's name; `options` are arguments of `timm.create_model`. The loss is the mean
cross entropy of all logits, computed outside of the model, and the batch random, as in `profiler.models`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from profiler.errors import MissingPackageError
from profiler.models import LossFn, TrainingTask, classification_loss, drawn_once, token_loss, undrawn

LIBRARIES = ("transformers", "timm")
SEQ_LEN = 512
CLASSES = 1000
IMAGE_SIDE = 224  # where a configuration has none
TOKENS, IMAGES = "input_ids", "pixel_values"  # names of a model's first input in transformers
# Heads of transformers, in the order of choice → what they must take: an ImageGPT, say, is a classifier of tokens.
HEADS = {"MaskedLM": TOKENS, "CausalLM": TOKENS, "ImageClassification": IMAGES}
Options = Mapping[str, Any]


def build(
    name: str,
    batch_size: int = 2,
    seq_len: int = SEQ_LEN,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    options: Options | None = None,
) -> TrainingTask:
    """The architecture in train mode with weights and one batch from `seed`, both made on the CPU.

    Text: ids and labels [batch_size, seq_len]; an encoder and decoder gets ids for both. Images: [batch_size, 3, side,
    side] in `dtype`, and labels. Raises ValueError for a name or an option that its library doesn't have, and
    MissingPackageError without the library.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = empty(name, options, "cpu")
        batch, loss_fn = _batch_and_loss(model, batch_size, seq_len, dtype)
    model = model.to(device=device, dtype=dtype).train()
    return TrainingTask(model, loss_fn, tuple(value.to(device) for value in batch))


def empty(name: str, options: Options | None = None, device: str = "meta") -> nn.Module:
    """The model alone; on "meta" without memory for its weights. Raises as `build` does."""
    library, _, own = name.partition("/")
    if library not in LIBRARIES or not own:
        raise ValueError(f"no architecture {name!r}: write transformers/<model type> or timm/<model name>")
    _need(library)
    make = _of_transformers if library == "transformers" else _of_timm
    with torch.device(device):
        return make(own, dict(options or {}))


def names(library: str) -> list[str]:
    """Of all that it has, whether it can be trained here or not. Raises MissingPackageError without it."""
    _need(library)
    if library == "timm":
        import timm

        return list(timm.list_models())
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(CONFIG_MAPPING_NAMES)


def _need(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise MissingPackageError(f"needs {library}: pip install {library}")


def _of_transformers(kind: str, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig

    if kind not in names("transformers"):
        raise ValueError(f"transformers has no model type {kind!r}")
    default = AutoConfig.for_model(kind)
    for key in options:
        if not hasattr(default, key):
            raise ValueError(f"the configuration of {kind} has no {key!r}")
    given = {"use_cache": False} if hasattr(default, "use_cache") else {}
    config = AutoConfig.for_model(kind, **(given | {"num_labels": CLASSES} | options))
    head, takes = _head(config)
    if takes == TOKENS:
        _vocabulary(config)
    try:
        with drawn_once():
            model: nn.Module = head.from_config(config)
        return head.from_config(config) if undrawn(model) else model
    except ImportError as error:
        raise MissingPackageError(str(error).splitlines()[0]) from error


def _head(config: Any) -> tuple[Any, str]:
    """The automatic class of the first head that the architecture has, and what it takes."""
    import transformers

    heads = {"Seq2SeqLM": TOKENS} if getattr(config, "is_encoder_decoder", False) else HEADS
    for head, takes in heads.items():
        automatic = getattr(transformers, f"AutoModelFor{head}")
        if type(config) in automatic._model_mapping:
            models = automatic._model_mapping[type(config)]
            first = models[0] if isinstance(models, tuple) else models
            if first.main_input_name == takes:
                config.architectures = [first.__name__]  # of several (DeiT, also with a teacher), the one to build
                return automatic, takes
    raise ValueError(f"{config.model_type} has no head for language modelling or images in transformers")


def _of_timm(kind: str, options: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(kind):
        raise ValueError(f"timm has no model {kind!r}")
    try:
        model: Any = timm.create_model(kind, **({"num_classes": CLASSES} | options))
    except TypeError as error:
        raise ValueError(f"{kind} of timm doesn't take these options: {error}") from error
    model.image_side = options.get("img_size") or model.pretrained_cfg["input_size"][-1]
    return cast(nn.Module, model)


def _batch_and_loss(model: Any, count: int, length: int, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], LossFn]:
    config = getattr(model, "config", None)
    if config is None:  # of timm
        return _images(count, model.image_side, model.num_classes, dtype), image_loss
    if model.main_input_name == IMAGES:  # whose configurations may have a vocabulary too
        side = getattr(getattr(config, "vision_config", config), "image_size", None) or IMAGE_SIDE
        return _images(count, side, config.num_labels, dtype), classification_loss
    vocabulary = _vocabulary(config)
    ids, labels = torch.randint(vocabulary, (2, count, length))
    if getattr(config, "is_encoder_decoder", False):
        return (ids, torch.randint(vocabulary, (count, length)), labels), decoder_loss
    return (ids, labels), token_loss


def _vocabulary(config: Any) -> int:
    size: int | None = getattr(config, "vocab_size", None) or getattr(config.get_text_config(), "vocab_size", None)
    if not size:
        raise ValueError(f"the configuration of {config.model_type} leaves its vocab_size open: set it in the options")
    return size


def _images(count: int, side: Any, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images of `side`, or of sides (height, width), and their labels."""
    sides = (side, side) if isinstance(side, int) else tuple(side)
    return torch.randn(count, 3, *sides).to(dtype), torch.randint(classes, (count,))


def decoder_loss(model: nn.Module, ids: Tensor, decoder_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the decoder's logits [B, S, V] against `labels` [B, S]."""
    logits = model(input_ids=ids, decoder_input_ids=decoder_ids).logits
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def image_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of what the model returns: logits [B, classes]."""
    return cross_entropy(model(images), labels)


__all__ = ["LIBRARIES", "build", "empty", "names"]
