"""Architectures of transformers and timm by name: what is built, its batch and loss, and what is rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from profiler.architectures import build, empty, names
from profiler.models import TrainingTask
from tests.checkpointing.compiled.architectures import has_timm

SMALL: dict[str, dict[str, Any]] = {
    "transformers/t5": {"num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "vocab_size": 40},
    "transformers/gpt_neox": {
        **{"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32},
        **{"num_attention_heads": 2, "vocab_size": 40},
    },
    "transformers/distilbert": {"n_layers": 1, "dim": 16, "hidden_dim": 32, "n_heads": 2, "vocab_size": 40},
    "transformers/beit": {  # whose configuration has a vocabulary
        **{"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
        **{"image_size": 32, "num_labels": 7, "vocab_size": 40},
    },
    "transformers/regnet": {  # whose convolutions have biases that transformers leaves to PyTorch
        **{"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8, "groups_width": 4, "num_labels": 7},
    },
    "transformers/convnext": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 16], "image_size": 32, "num_labels": 7},
}


def small(name: str, **changed: Any) -> TrainingTask:
    return build(name, 3, 6, options=SMALL[name], **changed)


@pytest.mark.parametrize(
    ("name", "shapes", "classes"),
    [
        ("transformers/t5", [(3, 6), (3, 6), (3, 6)], 40),  # ids of the encoder, of the decoder, labels
        ("transformers/gpt_neox", [(3, 6), (3, 6)], 40),
        ("transformers/distilbert", [(3, 6), (3, 6)], 40),
        ("transformers/convnext", [(3, 3, 32, 32), (3,)], 7),
        ("transformers/beit", [(3, 3, 32, 32), (3,)], 7),
        ("transformers/regnet", [(3, 3, 224, 224), (3,)], 7),
    ],
)
def test_the_loss_is_that_of_all_logits(name: str, shapes: list[tuple[int, ...]], classes: int) -> None:
    task = small(name)
    assert [tuple(value.shape) for value in task.batch] == shapes
    assert task.model.training
    task.model.eval()  # no dropout
    *inputs, labels = task.batch
    keys = ("input_ids", "decoder_input_ids") if len(inputs) == 2 else (task.model.main_input_name,)
    logits = task.model(**dict(zip(keys, inputs, strict=True))).logits
    assert logits.shape == (*labels.shape, classes)
    own = cross_entropy(logits.reshape(-1, classes), labels.reshape(-1))
    assert torch.equal(task.loss_fn(task.model, *task.batch), own)
    assert torch.isfinite(own)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_weights_and_batch(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = small(name), small(name), small(name, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    for ours, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.isnan().any()
    assert all(torch.equal(*pair) for pair in zip(first.batch, again.batch, strict=True))
    assert not torch.equal(first.batch[0], other.batch[0])


def test_weights_and_images_have_the_dtype_that_is_asked_for() -> None:
    task = small("transformers/convnext", dtype=torch.bfloat16)
    assert {value.dtype for value in (*task.model.parameters(), task.batch[0])} == {torch.bfloat16}


def test_the_size_is_the_configurations_own() -> None:
    assert sum(parameter.numel() for parameter in empty("transformers/bert").parameters()) == 109_514_298
    assert {"bert", "t5", "convnext"} <= set(names("transformers"))


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("bert", {}, "write transformers/<model type> or timm/<model name>"),
        ("keras/bert", {}, "write transformers/<model type> or timm/<model name>"),
        ("transformers/bart_", {}, "transformers has no model type 'bart_'"),
        ("transformers/bert", {"layers": 2}, "the configuration of bert has no 'layers'"),
        ("transformers/encodec", {}, "encodec has no head for language modelling or images"),
        ("transformers/imagegpt", {}, "imagegpt has no head for language modelling or images"),  # classifies tokens
        ("transformers/esm", {}, "the configuration of esm leaves its vocab_size open: set it in the options"),
    ],
)
def test_what_cannot_be_built_is_an_error_that_says_why(name: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        empty(name, options)


@pytest.mark.skipif(not has_timm(), reason="needs timm")
def test_models_of_timm_have_their_own_image_size_and_number_of_classes() -> None:
    task = build("timm/test_vit", 2, options={"num_classes": 5})
    side = task.model.pretrained_cfg["input_size"][-1]
    assert task.batch[0].shape == (2, 3, side, side)
    assert torch.isfinite(task.loss_fn(task.model, *task.batch))
    with pytest.raises(ValueError, match="doesn't take these options"):
        build("timm/test_vit", 2, options={"layers": 5})
    with pytest.raises(ValueError, match="timm has no model 'test_cit'"):
        build("timm/test_cit", 2)
