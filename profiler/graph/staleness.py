"""What the graph takes for granted about the user's modules, and whether it still holds.

    assumptions = Assumptions.of(modules, lifted, constants)
    assumptions.check()      # StaleStepError if something has changed; some tens of microseconds for a hundred modules

The graph has read modes, dropout probabilities, the list of submodules and which parameters require a gradient, and
has no hooks in it. A step that ran on after one of them changed would train another model than the user sees.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from profiler.errors import StaleStepError
from profiler.graph.lift import Lifted, NodeType

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, type(None))

Read = dict[tuple[int, str], tuple[nn.Module, str, Any]]


@dataclass(frozen=True)
class Assumptions:
    """The state of the modules of one trace."""

    modules: list[tuple[str, dict[str, Any], bool, tuple[Any, ...], tuple[Any, ...]]]
    parameters: list[tuple[str, Any, bool, int]]
    constants: list[tuple[str, dict[str, Any], str, Any]]  # plain attributes that the step has read

    @classmethod
    def of(cls, names: dict[nn.Module, str], lifted: Sequence[Lifted], read: Read) -> "Assumptions":
        """Of the modules with these names, the lifted parameters, and the attributes that the step has read."""
        return cls(
            [
                (name, vars(module), module.training, tuple(module._modules.values()), _hooks(vars(module)))
                for module, name in names.items()
            ],
            [
                (item.name, item.tensor, item.tensor.requires_grad, _hooks_of_parameter(item.tensor))
                for item in lifted
                if item.kind is NodeType.PARAM
            ],
            [
                (f"{names[module]}.{key}", vars(module), key, value)
                for module, key, value in read.values()
                if module in names
            ],
        )

    def check(self) -> None:
        """Raise StaleStepError, with the module's name, for the first assumption that no longer holds."""
        for name, attributes, training, children, hooks in self.modules:
            if attributes["training"] != training:
                was = "train" if training else "eval"
                raise StaleStepError(
                    f"module {name} was traced in {was} mode and is now in the other: set the mode back, or trace again"
                )
            if tuple(attributes["_modules"].values()) != children:
                raise StaleStepError(f"the submodules of {name} are others than when the step was traced: trace again")
            if _hooks(attributes) != hooks:
                raise StaleStepError(
                    f"a hook of module {name} was added or removed since the trace: remove it, or trace again"
                )
        for name, parameter, requires_grad, hooked in self.parameters:
            if parameter.requires_grad != requires_grad:
                raise StaleStepError(
                    f"requires_grad of parameter {name} was {requires_grad} when the step was traced and is now "
                    f"{parameter.requires_grad}: set it back, or trace again"
                )
            if _hooks_of_parameter(parameter) != hooked:
                raise StaleStepError(
                    f"parameter {name} has a gradient hook, which the traced graph does not call: remove it"
                )
        for name, attributes, key, value in self.constants:
            now = attributes.get(key)
            if now is not value and (type(now) is not type(value) or now != value):
                raise StaleStepError(
                    f"{name} was {value!r} when the step was traced and is now {now!r}: set it back, or trace again"
                )


def _hooks(attributes: dict[str, Any]) -> tuple[Any, ...]:
    """The user's hooks: those of `profiler.traces` only mark when a forward runs."""
    return tuple(
        key
        for kind in _HOOKS
        if attributes[kind]
        for key, hook in attributes[kind].items()
        if not str(getattr(hook, "__module__", "")).startswith("profiler.traces.")
    )


def _hooks_of_parameter(parameter: Any) -> int:
    return len(parameter._backward_hooks or ()) + len(getattr(parameter, "_post_accumulate_grad_hooks", None) or ())


@contextmanager
def noting_attributes(read: Read) -> Iterator[None]:
    """Note in `read` each plain attribute of a module that is read inside (a dropout probability, an epsilon)."""
    original, own = nn.Module.__getattribute__, nn.Module.__dict__.get("__getattribute__")  # own: somebody else's patch

    def noting(self: nn.Module, key: str) -> Any:
        value = original(self, key)
        if type(value) in _PLAIN and key in original(self, "__dict__"):
            read.setdefault((id(self), key), (self, key, value))
        return value

    nn.Module.__getattribute__ = noting  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        if own is None:
            del nn.Module.__getattribute__
        else:
            nn.Module.__getattribute__ = own  # type: ignore[method-assign]
