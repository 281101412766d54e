"""What the traced step is compared with: plain PyTorch steps, and a count of the storages alive in them."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from profiler import TracedStep, trace_train_step

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


def eager_step(model: nn.Module, loss_fn: Callable[..., Tensor], optimizer: Optimizer, batch: Sequence[Any]) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss = loss_fn(model, *batch)
    loss.backward()
    optimizer.step()
    return loss.detach()


def one_group(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters())}]


def assert_same_as_eager(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    make_optimizer: MakeOptimizer,
    batches: Sequence[Sequence[Any]],
    groups: Callable[[nn.Module], list[dict[str, Any]]] = one_group,
    eager_steps_before: int = 0,
) -> TracedStep:
    """Train two copies on `batches`, by the traced step and in eager: all must be bitwise equal."""
    twin = copy.deepcopy(model)
    optimizer, twin_optimizer = make_optimizer(groups(model)), make_optimizer(groups(twin))
    for _ in range(eager_steps_before):
        for m, o in ((model, optimizer), (twin, twin_optimizer)):
            torch.manual_seed(7)
            eager_step(m, loss_fn, o, batches[0])
    before = copy.deepcopy(model.state_dict())
    step = trace_train_step(model, loss_fn, optimizer, batches[0])
    assert_equal(model.state_dict(), before, "tracing changed the model: ")
    torch.manual_seed(11)
    losses = [step(*batch) for batch in batches]
    torch.manual_seed(11)
    expected = [eager_step(twin, loss_fn, twin_optimizer, batch) for batch in batches]
    for traced, eager in zip(losses, expected, strict=True):
        assert torch.equal(traced, eager), (traced.item(), eager.item())
    assert_equal(model.state_dict(), twin.state_dict(), "")
    assert_equal(state_by_name(model, optimizer), state_by_name(twin, twin_optimizer), "optimizer ")
    return step


def state_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, f"{what}{name}"
        assert torch.equal(found[name], value), f"{what}{name} differs"


class LiveBytes(TorchDispatchMode):
    """Counts, at each operator that runs inside, the bytes of all storages that are alive when it has run.

    Knows nothing of graphs: it sees tensors go by, remembers their storages by weak reference, and lets
    Python say which are still there. `held` are tensors that are alive throughout.
    """

    supports_higher_order_operators = True  # random operators that start from a saved state

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()
        self.alive: dict[int, tuple[Any, int]] = {}
        self.counts: list[int] = []
        for tensor in held:
            self._see(tensor)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive or self.alive[key][0].expired():
            self.alive[key] = (torch.multiprocessing.reductions.StorageWeakRef(storage), storage.nbytes())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        self.counts.append(sum(size for _, size in self.alive.values()))
        return result
