"""How the two halves of a step run: compiled by inductor, or operator by operator.

    halves = compile_halves("inductor", graph_module, inputs, partition)
    halves.run(*inputs)

`partition(joint, joint_inputs, num_fwd_outputs=..., static_lifetime_input_indices=...)` returns forward and backward.

Inductor does not free a buffer that a later one of the same size can replace: it holds the memory until then, up to the
peak that it estimates for the graph. Its estimate knows nothing of the step's budget, nor of what libraries take, so
the code of a plan frees at once, which costs the caching allocator a microsecond. (On GPT-2's lowest plan, inductor
held 62 MiB more in the backward of attention than what was alive.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch._inductor.custom_graph_pass import CustomPartitionerFn

from checkpointing.compiled.loss.ordered_matmuls import WRITTEN
from checkpointing.compiled.partition import copied, module_of_graph
from checkpointing.errors import CheckpointingError

EXECUTIONS = ("inductor", "eager")

PartitionFn = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]


@dataclass(frozen=True)
class Half:
    """A compiled half: the code that inductor generated for it, its example inputs, and the names of its values."""

    source_code: str
    inputs: tuple[Any, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


@dataclass
class CompiledHalves:
    """The compiled step. `forward` and `backward` are those of a step that inductor compiled along with its backward,
    else None; `recorded` are the halves that are CUDA graphs, in the order of their calls."""

    run: Callable[..., Any] = field(repr=False, default=lambda: None)
    forward: Half | None = None
    backward: Half | None = None
    recorded: list[RunOnceBeforeRecording] = field(repr=False, default_factory=list)

    def reserve(self, first_block: int) -> None:
        """Have the pool of the CUDA graphs begin with one block of so many bytes. Without graphs, nothing."""
        if self.recorded:
            self.recorded[0].in_pool.first_block = first_block


def compile_halves(
    execution: str,
    module: fx.GraphModule,
    inputs: Sequence[Any],
    partition: PartitionFn,
    frees_at_once: Callable[[], bool] = lambda: False,
    cuda_graphs: bool = False,
) -> CompiledHalves:
    """Trace forward and backward of `module`, split them by `partition`, and compile both. `module` stays as it is.

    `frees_at_once`, asked after the partition, says whether no buffer may wait for one that could replace it. With
    `cuda_graphs`, inductor's halves are recorded in their first calls, and replayed. Raises CheckpointingError where
    inductor does not record one.
    """
    own = module_of_graph(module, copied(module.graph))
    if cuda_graphs:
        _tell_static_inputs(module, own)
    if execution == "inductor":
        return _inductor(own, inputs, partition, frees_at_once, cuda_graphs)
    return _eager(own, inputs, partition)


def _inductor(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    partition: PartitionFn,
    frees_at_once: Callable[[], bool],
    cuda_graphs: bool,
) -> CompiledHalves:
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    halves = CompiledHalves()

    def record(graph: fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Any:
        [output] = graph.graph.find_nodes(op="output")
        names = tuple(node.name for node in graph.graph.find_nodes(op="placeholder"))
        results = tuple(str(getattr(node, "name", node)) for node in output.args[0])
        reuse = inductor_config.allow_buffer_reuse and not frees_at_once()
        with inductor_config.patch(allow_buffer_reuse=reuse), run_once_before_recording() as recorded:
            compiled: Any = compile_fx_inner(graph, example_inputs, **options)
        for half in recorded:
            half.inputs_to_check = compiled.inputs_to_check
        if cuda_graphs and not options["cudagraphs"]:
            raise CheckpointingError(
                f'mode="reduce-overhead": inductor puts this step in no CUDA graph ({_why_no_graph(compiled)}): leave '
                "mode out"
            )
        code = Half(compiled.source_code, tuple(example_inputs), names, results)
        if options.get("is_backward"):
            halves.backward = code
            halves.recorded = [*halves.recorded, *recorded]
        else:
            halves.forward = code
            halves.recorded = [*recorded, *halves.recorded]
        return compiled

    # The cache of AOTAutograd would skip the planning; inductor's cache of each half stays on. The backward is compiled
    # along with the forward, so that its memory is known before the first step. A half is one CUDA graph or none: of
    # several, each with code between them, the memory would not be known.
    graphs = {"triton.cudagraphs": True, "graph_partition": False} if cuda_graphs else {}
    with (
        inductor_config.patch({"custom_partitioner_fn": _Partitioner(partition), **graphs}),
        functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
    ):
        compiled: Any = compile_fx(module, list(inputs), inner_compile=record)
    halves.run = compiled
    return halves


class RunOnceBeforeRecording:
    """A half that is to be a CUDA graph, which runs as it is in its first call.

    In its first call, Triton times kernels against each other, with buffers as large as the device's cache and copies
    of what they write. Of a graph that is warmed up then, the pool would keep all of them.

    `cudagraphify` is inductor's: it makes a graph of the code that it is given.
    """

    def __init__(self, code: Callable[[list[Any]], Any], cudagraphify: Callable[[Any], Any], mutated: Any) -> None:
        self.code, self.mutated = code, mutated
        self.in_pool = InPool(code)
        self.graph = cudagraphify(self.in_pool)
        self.inputs_to_check: Sequence[int] = ()  # whose alignment the code relies on
        self.has_run = False

    def __call__(self, inputs: list[Any]) -> Any:
        from torch._inductor.utils import align_inputs_from_check_idxs
        from torch.utils._ordered_set import OrderedSet

        if self.has_run:
            return self.graph(inputs)
        self.has_run = True
        return align_inputs_from_check_idxs(self.code, self.inputs_to_check, OrderedSet(self.mutated))(inputs)


class InPool:
    """A half's code as a CUDA graph runs it, in the graphs' own memory: to warm up, and to record.

    The first such run of a step allocates and frees `first_block` bytes, from which the requests that follow are cut.
    """

    def __init__(self, code: Callable[[list[Any]], Any]) -> None:
        self.code, self.first_block = code, 0

    def __call__(self, inputs: list[Any]) -> Any:
        if self.first_block:
            torch.empty(self.first_block, dtype=torch.uint8, device="cuda")
            self.first_block = 0
        return self.code(inputs)


@contextmanager
def run_once_before_recording() -> Iterator[list[RunOnceBeforeRecording]]:
    """Meanwhile, what inductor puts in CUDA graphs runs once before it is recorded. Yields these halves."""
    import torch._inductor.compile_fx as inductor

    made: list[RunOnceBeforeRecording] = []
    original = inductor.cudagraphify

    def cudagraphify(model: Callable[[list[Any]], Any], *args: Any, **options: Any) -> RunOnceBeforeRecording:
        mutated = options.get("mutated_input_idxs", ())
        made.append(RunOnceBeforeRecording(model, lambda code: original(code, *args, **options), mutated))
        return made[-1]

    inductor.cudagraphify = cudagraphify
    try:
        yield made
    finally:
        inductor.cudagraphify = original


def _tell_static_inputs(module: fx.GraphModule, own: fx.GraphModule) -> None:
    """Hand over Dynamo's own notes, from which AOTAutograd learns which inputs stay where they are: parameters and
    buffers. A CUDA graph reads these in place, and has the others copied in each step."""
    own.meta = dict(module.meta)
    if hasattr(module, "_param_name_to_source"):
        own._param_name_to_source = module._param_name_to_source
    for given, ours in zip(*(m.graph.find_nodes(op="placeholder") for m in (module, own)), strict=True):
        if hasattr(given, "_dynamo_source"):
            ours._dynamo_source = given._dynamo_source


def _why_no_graph(compiled: Any) -> str:
    failed = compiled.cudagraph_info.cudagraph_fail_reasons if compiled.cudagraph_info else []
    return str(compiled.disabled_cudagraphs_reason or ", ".join(failed) or "no reason given").splitlines()[0]


class _Partitioner(CustomPartitionerFn):
    def __init__(self, partition: PartitionFn) -> None:
        self.partition = partition

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        kwargs.pop("compiler", None)
        return self.partition(gm, joint_inputs, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Partitioner:
        return self  # inductor copies its configuration for the key of its cache

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (_OWN_HASH,)  # and pickles it

    def uuid(self) -> str:
        """Part of the key of inductor's cache, which holds compiled halves: they are keyed by their own graphs."""
        return _OWN_HASH


_OWN_HASH = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _eager(module: fx.GraphModule, inputs: Sequence[Any], partition: PartitionFn) -> CompiledHalves:
    from torch._dynamo.backends.common import aot_autograd

    compiler = aot_autograd(fw_compiler=_interpreted, bw_compiler=_interpreted, partition_fn=partition)
    return CompiledHalves(compiler(module, list(inputs)))


def _interpreted(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Runs the graph node by node. It takes its arguments in a list that it empties, and lets go of every value after
    its last use, so that its peak is that of the values alive."""

    def run(arguments: list[Any]) -> Any:
        with torch.no_grad():
            return _Interpreter(module).boxed_run(arguments)

    run._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd then hands over the list, not its elements
    return run


class _Interpreter(fx.Interpreter):
    """Adds to a sum where it is, as inductor's code does: nothing reads it before the addition."""

    def call_function(self, target: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if target is not auto_functionalized or args[0] not in WRITTEN:
            return super().call_function(target, args, kwargs)
        return args[0](**kwargs), kwargs[WRITTEN[args[0]]]
