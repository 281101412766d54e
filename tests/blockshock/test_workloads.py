"""Inputs are what they imitate, and come from seeds that share nothing."""

import sys

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from blockshock.cli.main import CONF
from blockshock.workloads.model import ModelWorkload
from profiler.errors import MissingPackageError
from profiler.models import build as build_model
from tests.blockshock.rank_tasks import problem_of

NAMES = ["gaussian", "uniform", "activation_like", "transformer_mlp", "attention_like", "vision_conv"]
SPEC = {"mask": "random_2of4", "N": 128, "K": 128, "B": 128, "seed": 7, "dtype": "float32"}


def make(name: str, batch: int = 256, features: int = 512, seed: int = 0) -> torch.Tensor:
    workload = instantiate(OmegaConf.load(CONF / "workload" / f"{name}.yaml"))
    return workload.make(batch, features, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_inputs_and_another_seed_others(name):
    x = make(name)
    assert x.shape == (256, 512)
    assert x.dtype == torch.float32
    assert torch.equal(x, make(name))
    assert not torch.equal(x, make(name, seed=1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("batch", "features"), [(1, 4), (3, 20), (130, 100)])
def test_odd_sizes_work(name, batch, features):
    x = make(name, batch, features)
    assert x.shape == (batch, features)
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_mean_square_is_about_one(name):
    assert float(make(name).square().mean()) == pytest.approx(1, rel=0.1)


def test_activations_are_mostly_small_with_a_heavy_tail():
    x = make("activation_like", 1024, 1024)
    assert float((x.abs() < 0.25).float().mean()) > 0.5
    kurtosis = float(((x - x.mean()) / x.std()).pow(4).mean())
    assert kurtosis > 9  # a normal distribution has 3


def test_hidden_states_have_few_large_features_in_every_token_and_normalised_rows():
    x = make("transformer_mlp", 512, 2048)
    assert torch.allclose(x.mean(1), torch.zeros(512), atol=1e-4)
    assert torch.allclose(x.var(1, unbiased=False), torch.ones(512), atol=1e-2)
    scale = x.std(0)
    assert int((scale > 10 * scale.median()).sum()) == round(0.001 * 2048)


def test_attention_outputs_resemble_one_another_more_than_independent_rows():
    x = make("attention_like")
    normalized = torch.nn.functional.normalize(x, dim=1)
    cosine = normalized @ normalized.t()
    off_diagonal = cosine[~torch.eye(len(x), dtype=torch.bool)]
    independent = make("gaussian")
    independent = torch.nn.functional.normalize(independent, dim=1)
    reference = (independent @ independent.t())[~torch.eye(len(x), dtype=torch.bool)]
    assert float(off_diagonal.abs().mean()) > 3 * float(reference.abs().mean())


def test_convolution_patches_are_non_negative_and_share_pixels_with_their_neighbours():
    x = make("vision_conv", batch=256, features=9 * 8)  # 16 x 16 pixels, 8 channels
    assert bool((x >= 0).all())
    image = x.view(16, 16, 8, 3, 3)
    # the right neighbour in one patch is the centre of the next pixel's patch
    assert torch.equal(image[:, :-1, :, 1, 2], image[:, 1:, :, 1, 1])


def test_inputs_weight_target_and_gradient_are_independent():
    problem = problem_of(SPEC)
    tensors = [problem.inputs(), problem.weight() * 128**0.5, problem.target(), problem.upstream_gradient()]
    for i, a in enumerate(tensors):
        for b in tensors[:i]:
            correlation = float((a * b).mean())
            assert abs(correlation) < 5 / 128  # five standard deviations of independent normals


def test_every_step_has_a_batch_of_its_own_and_the_seed_decides_all():
    problem, again, other = problem_of(SPEC), problem_of(SPEC), problem_of({**SPEC, "seed": 8})
    assert torch.equal(problem.inputs(3), again.inputs(3))
    assert not torch.equal(problem.inputs(3), problem.inputs(4))
    assert torch.equal(problem.weight(), again.weight())
    assert not torch.equal(problem.weight(), other.weight())
    assert torch.equal(problem.halves(problem.weight())[0], again.halves(again.weight())[0])


def test_a_model_without_transformers_names_the_extra_that_brings_it(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    with pytest.raises(MissingPackageError, match=r"pip install 'block-shock\[models\]'"):
        build_model("tiny_gpt2")
    done = cli("phase=profile", "workload=tiny_gpt2", "hardware=cpu")
    assert done.code == 2
    assert done.err == "blockshock: workload=tiny_gpt2: needs transformers: pip install 'block-shock[models]'\n"


def test_under_autocast_weights_stay_wide_and_matmuls_are_narrow():
    task = ModelWorkload("tiny_gpt2", batch_size=2, autocast="bf16").build(torch.float32, torch.device("cpu"), seed=0)
    dtypes = []
    qkv = next(module for name, module in task.model.named_modules() if name.endswith("c_attn"))
    qkv.register_forward_hook(lambda module, args, result: dtypes.append(result.dtype))
    loss = task.loss_fn(task.model, *task.batch)
    loss.backward()
    assert dtypes == [torch.bfloat16]
    assert {parameter.grad.dtype for parameter in task.model.parameters()} == {torch.float32}
