"""What the code that inductor generated for one graph takes on the device: its own allocations, reuse and deletes.

    forward = wrapper_timeline(compiled_forward.source_code, inputs)
    forward.peak, forward.end, forward.peak_operator
    backward = wrapper_timeline(compiled_backward.source_code, inputs_of_backward, freed={0, 3, 4})

The wrapper's `call` runs on fake tensors, with kernels that do nothing: what it deletes is freed as in a real call,
and storages are counted, so that views and reused buffers cost nothing.
"""

import re
import traceback
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from checkpointing.compiled.memory.operator_memory import InternalBytes, known_bytes
from checkpointing.compiled.memory.wrapper_module import FILENAME, load_wrapper
from checkpointing.compiled.memory.wrapper_names import fake_device, wrapper_names
from checkpointing.errors import CheckpointingError
from profiler.costs.memory import default_rounding, rounded

_MATMUL = re.compile(r"\..*(mm(_|\.|$)|matmul)")  # of an operator's name: a generated kernel's has no point


# what a statement that is not known raises: of ours, of fake tensors, and of inductor's own checks
_NOT_FOLLOWED = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class WrapperError(CheckpointingError):
    """The generated wrapper does something whose memory is not known."""


@dataclass(frozen=True)
class Step:
    """One statement of the wrapper: `text` is its first line, `bytes` what is allocated once it ran."""

    line: int
    text: str
    bytes: int
    operator: str | None  # the kernel or operator that the statement runs


@dataclass(frozen=True)
class WrapperTimeline:
    """Bytes on the device above what was there before the call; freed inputs count as there at the start."""

    start: int  # the freed inputs
    peak: int
    end: int  # what is alive after the return: outputs, and freed inputs among them
    steps: tuple[Step, ...]
    peak_step: int  # index into `steps`
    outputs: tuple[Any, ...]  # fake tensors; outputs that are views of each other share a storage
    events: tuple[tuple[int, int], ...]  # (storage, bytes asked for), in order; negative bytes: freed
    output_storages: tuple[int | None, ...]  # per output: its storage in `events`; input i's is -1 - i
    first_matmul: int | None = None  # the number of events before it; None without one

    @property
    def output_inputs(self) -> tuple[int | None, ...]:
        """Per output: the position of an input whose storage it lies in, or None."""
        return tuple(-1 - x if x is not None and x < 0 else None for x in self.output_storages)

    @property
    def peak_operator(self) -> str:
        """The kernel or operator for which the peak's last buffer was allocated."""
        return next((step.operator for step in self.steps[self.peak_step :] if step.operator), "the return")


def wrapper_timeline(
    source_code: str,
    inputs: Sequence[Any],
    freed: Collection[int] = (),
    internal_bytes: InternalBytes = known_bytes,
) -> WrapperTimeline:
    """Memory over one call of the wrapper `source_code` (`CompiledFxGraph.source_code`).

    `inputs` are the graph's inputs, real or fake. Of tensors, only the layout counts and which of them share a
    storage; give a backward the `outputs` of its forward's timeline, and views that were saved share one. `freed`
    are the positions of inputs to which the caller keeps no reference: saved activations in a backward. A storage
    that another input keeps alive is not freed. `internal_bytes(operator, args, kwargs)` says what an operator takes
    inside, on CUDA; `MeasuredBytes` knows more than the default. Bytes are rounded as the device's allocator
    counts requests; its blocks may be up to 1 MiB larger, which is what `caching_allocator` is for.
    Raises WrapperError, with the line, on what it does not know.
    """
    device_type = next((x.device.type for x in inputs if isinstance(x, torch.Tensor) and x.device.type != "cpu"), "cpu")
    if device_type == "cpu" and "= empty_strided_cuda(" in source_code:
        device_type = "cuda"
    lines = source_code.splitlines()
    ledger = _Ledger(device_type, lines, internal_bytes)
    with torch.no_grad(), FakeTensorMode():
        try:
            args, kept = _fake_inputs(inputs, freed, ledger)
            start = ledger.now
            ledger.events.clear()
            call = load_wrapper(source_code, wrapper_names(source_code, ledger.ran), ledger.after_statement)
            with ledger:
                outputs = tuple(call(args))
        except WrapperError:
            raise
        except _NOT_FOLLOWED as error:
            raise _explained(error, lines) from error
        del args
    output_storages = tuple(ledger.known.get(_key(x)) if isinstance(x, torch.Tensor) else None for x in outputs)
    del kept
    return WrapperTimeline(
        start=start,
        peak=ledger.peak,
        end=ledger.now,
        steps=tuple(ledger.steps),
        peak_step=ledger.peak_step,
        outputs=outputs,
        events=tuple(ledger.events),
        output_storages=output_storages,
        first_matmul=ledger.first_matmul,
    )


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _explained(error: Exception, lines: list[str]) -> WrapperError:
    where = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILENAME]
    line = where[-1] if where and where[-1] else 0
    text = lines[line - 1].strip()[:200] if line else "its arguments"
    return WrapperError(
        f"line {line} of the code that inductor generated cannot be followed: {text!r}: "
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    )


def _nothing(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """A CPU's operators take what they need without a count of it."""
    return 0


class _Ledger(TorchDispatchMode):
    """Counts the storages on one device type, from the operator that makes them to their end."""

    def __init__(self, device_type: str, lines: list[str], internal_bytes: InternalBytes) -> None:
        super().__init__()
        self.internal_bytes = internal_bytes if device_type == "cuda" else _nothing
        self.device_type, self.lines = device_type, lines
        self.rounding = default_rounding(torch.device(device_type))
        self.known: dict[int, int] = {}  # address of a living storage -> its number
        self.events: list[tuple[int, int]] = []
        self.count = 0
        self.now = self.peak = self.peak_step = 0
        self.steps: list[Step] = []
        self.operator: str | None = None
        self.first_matmul: int | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "resize" in func.__name__:
            raise NotImplementedError(f"{func.__name__} changes the size of a storage")
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device_type:
                self.add(tensor)
        return result

    def add(self, tensor: torch.Tensor, number: int | None = None) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self.known:
            return
        if number is None:
            number, self.count = self.count, self.count + 1
        self.known[address] = number
        self._change(number, size)
        weakref.finalize(storage, self._gone, address, size).atexit = False

    def _gone(self, address: int, size: int) -> None:
        self._change(self.known.pop(address), -size)

    def _change(self, number: int, size: int) -> None:
        self.events.append((number, size))
        self.now += rounded(size, self.rounding) if size > 0 else -rounded(-size, self.rounding)
        self.reach(self.now)

    def ran(self, operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.operator = operator
        if self.first_matmul is None and _MATMUL.search(operator):
            self.first_matmul = len(self.events)
        inside = self.internal_bytes(operator, args, kwargs)
        if inside:
            self.count += 1
            self._change(self.count - 1, inside)
            self._change(self.count - 1, -inside)

    def reach(self, bytes_: int) -> None:
        if bytes_ > self.peak:
            self.peak, self.peak_step = bytes_, len(self.steps)

    def after_statement(self, line: int) -> None:
        self.steps.append(Step(line, self.lines[line - 1].strip(), self.now, self.operator))
        self.operator = None


def _fake_inputs(
    inputs: Sequence[Any], freed: Collection[int], ledger: _Ledger
) -> tuple[list[Any], list[torch.Tensor]]:
    """Arguments with the inputs' layouts and sharing, and the storages that stay alive."""
    wrong = [position for position in freed if not 0 <= position < len(inputs)]
    if wrong:
        raise WrapperError(f"freed={sorted(wrong)}: there are {len(inputs)} inputs")
    args = [_number(value) for value in inputs]
    groups: dict[int, list[int]] = {}
    for position, value in enumerate(inputs):
        if isinstance(value, torch.Tensor):
            groups.setdefault(_key(value), []).append(position)
    kept: list[torch.Tensor] = []
    for positions in groups.values():
        views = [_View.of(inputs[position]) for position in positions]
        whole = _whole(views)
        for position, view in zip(positions, views, strict=True):
            args[position] = view.on(whole)
        if whole.device.type == ledger.device_type and all(position in freed for position in positions):
            ledger.add(whole, -1 - positions[0])
        else:
            ledger.known[_key(whole)] = -1 - positions[0]
            kept.append(whole)
    return args, kept


@dataclass(frozen=True)
class _View:
    """Where a tensor lies in its storage; `bytes` is the storage's size."""

    device: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    bytes: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "_View":
        shape, stride = tuple(map(_number, tensor.shape)), tuple(map(_number, tensor.stride()))
        offset = _number(tensor.storage_offset())
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        needed = 0 if 0 in shape else (last + 1) * tensor.element_size()
        size = max(needed, _number(tensor.untyped_storage().nbytes()))
        return cls(tensor.device.type, tensor.dtype, shape, stride, offset, size)

    def on(self, whole: torch.Tensor) -> torch.Tensor:
        return whole.view(self.dtype).as_strided(self.shape, self.stride, self.offset)


def _whole(views: list[_View]) -> torch.Tensor:
    """A flat tensor over the storage that `views` share."""
    dtype, size = views[0].dtype, max(view.bytes for view in views)
    step = max(view.dtype.itemsize for view in views)  # .view(dtype) wants whole elements of each
    if len({view.dtype for view in views}) > 1:
        size = rounded(size, step)
    return torch.empty(-(-size // dtype.itemsize), dtype=dtype, device=fake_device(views[0].device))


def _number(value: Any) -> Any:
    """An input that is a symbolic size, as the number it stands for at compilation; anything else as it is."""
    if not isinstance(value, torch.SymInt):
        return value
    if value.node.hint is None:
        raise WrapperError(f"an input's size {value} depends on data: its memory is not known")
    return int(value.node.hint)
