"""Puts a fake in the place of every tensor of the user's, wherever the step reaches it.

    with StandIns(fakes, {id(parameter): fake, ...}, tracer):
        loss_fn(model, x).backward()       # sees the user's own objects; operators get the fakes

The model, the optimizer and every closure keep their own tensors, so that code which saved a parameter in a list, or
compares it by identity, finds what it saved. A torch function mode exchanges the tensors as PyTorch's functions are
called, before autograd sees them. A tensor that is no parameter, buffer or optimizer state (a constant of the model, a
teacher's weight) gets a fake when it is first reached, and becomes an input of the graph like the others.

Not everything calls a torch function: C++ that is handed a tensor directly does not. What comes through that way is
seen by the tracer (`argument`), and is an error where autograd has already recorded the user's own tensor.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, track_tensor_tree
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from profiler.errors import TraceError
from profiler.graph.capture.decisions import Decision
from profiler.graph.fake_tensors import Fakes

_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
# Methods that ask for a tensor's values, and how their answer is made of the tensor's `tolist()`
_VALUES: dict[Any, Callable[[Any], Any]] = {
    Tensor.__bool__: lambda value: bool(_only(value)),
    Tensor.__contains__: bool,
    Tensor.__int__: lambda value: int(_only(value)),
    Tensor.__index__: lambda value: int(_only(value)),
    Tensor.__float__: lambda value: float(_only(value)),
    Tensor.item: lambda value: _only(value),
    Tensor.tolist: lambda value: value,
}
UNKNOWN_NUMBER = "<unknown while tracing>"


@dataclass(frozen=True)
class Captured:
    """A tensor that the step reached and that is no parameter, buffer or optimizer state."""

    tensor: Tensor
    fake: Tensor
    node: fx.Node


class StandIns(TorchFunctionMode):
    """Exchanges the tensors of the user's for fakes in every call of a torch function. `captured` fills as it goes."""

    def __init__(
        self,
        fakes: Fakes,
        known: Mapping[int, Tensor],
        tracer: Any,
        fake_model: bool,
        decide: Callable[[Tensor], Decision | None],
    ) -> None:
        super().__init__()
        self.captured: dict[int, Captured] = {}
        self.generators: list[torch.Generator] = []
        self.moved: list[tuple[Tensor, Tensor]] = []  # a fake whose `.data` was set, and what it was before
        self._fakes, self._tracer, self._fake_model = fakes, tracer, fake_model
        self._known = dict(known)
        self._decide = decide
        self.decisions: list[Decision] = []
        self._create_arg: Callable[[Any], Any] = tracer.create_arg
        self._depth = torch._C._len_torch_dispatch_stack()
        self._fresh = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._len_torch_dispatch_stack() < self._depth:  # PyTorch's own work below a dispatch mode
            return func(*args, **(kwargs or {}))
        args = tuple(self._exchanged(argument) for argument in args)
        kwargs = {key: self._exchanged(value) for key, value in (kwargs or {}).items()}
        if func == _SET_DATA:
            return self._set_data(*args)
        if func in _VALUES:
            decision = self._decide((args[0] == args[1]).any() if func is Tensor.__contains__ else args[0])
            # a number of the batch stays one: item() gives a symbol, with which the graph computes
            if decision is not None and not (
                func is Tensor.item and decision.reads and args[0].dtype is not torch.bool
            ):
                self.decisions.append(decision)
                return _VALUES[func](decision.answer)
        if func is Tensor.__format__:
            return UNKNOWN_NUMBER
        return func(*args, **kwargs)

    def of(self, tensor: Tensor) -> Tensor:
        """The fake of `tensor`; itself if it belongs to the trace."""
        known = self._known.get(id(tensor))
        if known is not None:
            return known
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self._fakes.mode:
            return tensor
        if is_functorch_wrapped_tensor(tensor):
            return tensor
        return self._capture(tensor).fake

    def stands_in(self, fake: Tensor) -> bool:
        """Whether `fake` stands for a tensor of the user's."""
        return any(fake is known for known in self._known.values())

    @contextmanager
    def active(self) -> Iterator[None]:
        """Exchange tensors, here and in the tracer, until the end."""
        with ExitStack() as stack:
            tracer = self._tracer
            create_proxy = tracer.create_proxy

            def noting_fresh(kind: str, target: Any, *args: Any, **kwargs: Any) -> Any:
                self._fresh = target is torch.ops.aten.lift_fresh_copy.default
                try:
                    return create_proxy(kind, _SAYABLE.get(target, target), *args, **kwargs)
                finally:
                    self._fresh = False

            tracer.create_arg, tracer.create_proxy = self.argument, noting_fresh
            stack.callback(tracer.__dict__.pop, "create_arg")
            stack.callback(tracer.__dict__.pop, "create_proxy")
            stack.enter_context(_handed_to_cpp(self._exchanged))
            stack.enter_context(self._in_the_backward())
            stack.enter_context(self)
            yield

    @contextmanager
    def _in_the_backward(self) -> Iterator[None]:
        """Be active in the autograd engine too, where hooks and checkpoints run Python."""
        autograd: Any = torch.autograd
        run = autograd._engine_run_backward

        def run_inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return run(*args, **kwargs)

        autograd._engine_run_backward = run_inside
        try:
            yield
        finally:
            autograd._engine_run_backward = run

    def argument(self, value: Any) -> Any:
        """The graph's argument for a value that the tracer does not know: a tensor of the user's, a generator."""
        if isinstance(value, torch.Generator):
            return self._generator(value)
        if not isinstance(value, Tensor) or self._fresh:
            return self._create_arg(value)
        if isinstance(value, FakeTensor) and value.fake_mode is self._fakes.mode:
            raise TraceError(
                f"{describe(value)} is read that no operator of this step has made (a copy.deepcopy in the step, or a "
                "tensor that an earlier step has kept)"
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise TraceError(
                f"{describe(value)} reaches an operator by a way that cannot be traced (compiled or scripted code, "
                "torch.func): reach it as an attribute of the model, in plain PyTorch"
            )
        fake = self.of(value)
        return self._tracer.tensor_tracker[fake].proxy.node

    def _exchanged(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of(value)
        kind = type(value)
        if kind is list or kind is tuple:
            changed = [self._exchanged(item) for item in value]
            return value if all(a is b for a, b in zip(changed, value, strict=True)) else kind(changed)
        if kind is dict:
            return {key: self._exchanged(item) for key, item in value.items()}
        return value

    def _capture(self, tensor: Tensor) -> Captured:
        with torch._C.DisableTorchFunction():
            return self._captured(tensor)

    def _captured(self, tensor: Tensor) -> Captured:
        self._check(tensor)
        with disable_proxy_modes_tracing():
            fake = self._fakes.of(tensor)
        name = f"_captured_{len(self.captured)}"
        setattr(self._tracer.root, name, tensor)
        node = self._tracer.create_node("get_attr", name, (), {})
        track_tensor_tree(fake, fx.Proxy(node, self._tracer), constant=None, tracer=self._tracer)
        self.captured[id(tensor)] = Captured(tensor, fake, node)
        self._known[id(tensor)] = fake
        return self.captured[id(tensor)]

    def _check(self, tensor: Tensor) -> None:
        if isinstance(tensor, FakeTensor) and not self._fake_model:
            raise TraceError(
                f"{describe(tensor)} is a fake tensor, left in a cache by another trace: empty it, and trace again"
            )
        obstacle = unsupported(tensor)
        if obstacle:
            raise TraceError(f"{describe(tensor)} {obstacle}")
        if tensor.requires_grad and not tensor.is_leaf:
            raise TraceError(
                f"{describe(tensor)} was computed before the step and needs a gradient: compute it in the step, "
                "or detach it"
            )

    def _generator(self, generator: torch.Generator) -> fx.Node:
        if all(generator is not known for known in self.generators):
            self.generators.append(generator)
        index = next(i for i, known in enumerate(self.generators) if known is generator)
        name = f"_generator_{index}"
        setattr(self._tracer.root, name, generator)
        node: fx.Node = self._tracer.create_node("get_attr", name, (), {})
        return node

    def _set_data(self, tensor: Tensor, value: Tensor) -> None:
        """`tensor.data = value`: from here on the tensor's node is the value's; `moved` remembers the old one."""
        tracker = self._tracer.tensor_tracker
        if tensor not in tracker:
            raise TraceError(f"the .data of {describe(tensor)} is set: assign a new tensor to the attribute instead")
        before, value = tensor.detach(), value.detach()
        _SET_DATA(tensor, value)
        tracker[tensor] = tracker[value]
        if all(tensor is not known for known, _ in self.moved):
            self.moved.append((tensor, before))


def _only(value: Any) -> Any:
    """The one number in lists of one element."""
    while isinstance(value, list):
        (value,) = value
    return value


def unsupported(tensor: Tensor) -> str | None:
    """Why a tensor cannot be an input of the graph, with the remedy; None if it can."""
    if tensor.layout is not torch.strided:
        return (
            f"is of layout {tensor.layout}, which has no storage to plan: give it dense (.to_dense()), or as index and "
            "value tensors that the step scatters with index_add"
        )
    if is_lazy(tensor):
        return "is not yet initialized: run one forward of the model first"
    if is_traceable_wrapper_subclass(tensor):
        return (
            f"is a {type(tensor).__name__}: the graph of a whole step is for one process and plain tensors (of a "
            "distributed model, trace a plain copy to analyse it)"
        )
    if tensor.is_quantized:
        return f"is quantized ({tensor.dtype}): dequantize it"
    return None


_OPERATORS = torch.library.Library("profiler", "FRAGMENT")
_OPERATORS.define(
    "random_between_(Tensor(a!) self, int low, int? high, *, Generator? generator=None) -> Tensor(a!)",
    tags=(torch.Tag.nondeterministic_seeded,),
)


def _random_between_(self: Tensor, low: int, high: int | None, *, generator: torch.Generator | None = None) -> Tensor:
    return self.random_(low, high, generator=generator)


_OPERATORS.impl("random_between_", _random_between_, "CompositeExplicitAutograd")

# Operators whose overload is a word of Python's, which generated code cannot say, and the same under another name.
_SAYABLE = {getattr(torch.ops.aten.random_, "from"): torch.ops.profiler.random_between_.default}


def describe(tensor: Tensor) -> str:
    """A tensor in words, for a message that cannot give its name."""
    what = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
    return f"a {what} of shape {tuple(tensor.shape)} and {tensor.dtype} on {tensor.device}"


@contextmanager
def _handed_to_cpp(exchange: Callable[[Any], Any]) -> Iterator[None]:
    """Exchange the arguments of two calls that are no torch functions, and of which autograd would see the originals.

    Inside, numbers that depend on values can be formatted, as in f"{loss.item():.3f}".
    """
    function, script = torch.autograd.Function, torch._C.ScriptFunction
    apply, call = function.__dict__["apply"], script.__call__
    formats = {symbol: symbol.__dict__.get("__format__") for symbol in _SYMBOLS}  # None: inherited

    def exchanged_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return apply.__func__(cls, *exchange(args), **exchange(kwargs))

    def exchanged_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, *exchange(args), **exchange(kwargs))

    function.apply = classmethod(exchanged_apply)  # type: ignore[assignment, method-assign]
    script.__call__ = exchanged_call  # type: ignore[method-assign]
    for symbol in _SYMBOLS:
        symbol.__format__ = lambda self, spec: UNKNOWN_NUMBER  # type: ignore[method-assign]
    try:
        yield
    finally:
        function.apply = apply  # type: ignore[method-assign]
        script.__call__ = call  # type: ignore[method-assign]
        for symbol, own in formats.items():
            if own is None:
                del symbol.__format__
            else:
                symbol.__format__ = own  # type: ignore[method-assign]
