"""The memory of inductor's generated code, foretold without running it, is what a real run takes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from checkpointing import CheckpointingError
from checkpointing.compiled.costs.cost_file import OperatorCost, append_cost
from checkpointing.compiled.costs.costs import Costs
from checkpointing.compiled.costs.operator_call import call_of
from checkpointing.compiled.execution import Half as CompiledHalf
from checkpointing.compiled.memory.generated_memory import memory_of_code
from checkpointing.compiled.memory.operator_memory import known_bytes, measured_bytes
from checkpointing.compiled.memory.wrapper_memory import WrapperTimeline, wrapper_timeline
from profiler.costs.memory import rounded


@dataclass(frozen=True)
class Half:
    """One call of a compiled forward or backward: foretold, and what the CPU's allocator did."""

    predicted: WrapperTimeline
    start: int
    peak: int
    end: int


def allocations(events: list) -> Iterator[tuple[int, int]]:
    """(time, bytes) of each allocation, negative where memory is freed."""
    for event in events:
        if event.tag == torch._C._profiler._EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.alloc_size
        yield from allocations(event.children)


def bytes_by_storage(tensors: list) -> dict[int, int]:
    storages = [x.untyped_storage() for x in tensors if isinstance(x, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def measured_halves(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[Half]:
    """Forward and backward of `function`, compiled by inductor and run for real; `inputs` are the caller's."""
    halves: list[Half] = []
    users = bytes_by_storage([*inputs])

    def compile_half(graph: torch.fx.GraphModule, examples: list, **options: object) -> object:
        compiled = compile_fx_inner(graph, examples, **options)
        call = compiled.current_callable

        def recorded(args: list) -> object:
            freed = {i for i, x in enumerate(args) if x.untyped_storage().data_ptr() not in users}
            freed = freed - {len(args) - 1} if options.get("is_backward") else set()  # autograd keeps the tangent
            start = sum(bytes_by_storage([args[i] for i in freed]).values())
            predicted = wrapper_timeline(compiled.source_code, args, freed)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
                result = call(args)
            now = peak = start
            for _, size in sorted(allocations(run.profiler.kineto_results.experimental_event_tree())):
                now += size
                peak = max(peak, now)
            halves.append(Half(predicted, start, peak, now))
            return result

        compiled.current_callable = recorded
        return compiled

    torch._dynamo.reset()
    backend = lambda graph, examples: compile_fx(graph, examples, inner_compile=compile_half)  # noqa: E731
    with torch._functorch.config.patch(enable_autograd_cache=False):  # a cached graph would not be compiled
        torch.compile(function, backend=backend, dynamic=False)(*inputs).backward()
    return halves


def perceptron() -> tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]:
    weights = [torch.randn(n, m, requires_grad=True) for n, m in ((64, 128), (128, 128), (128, 8))]

    def loss(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        hidden = torch.sin(torch.tanh(x @ a) @ b)
        return F.cross_entropy(F.dropout(hidden, 0.5) @ c, torch.arange(32) % 8)

    return loss, (torch.randn(32, 64), *weights)


def attention() -> tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    norm, project, out = nn.LayerNorm(32), nn.Linear(32, 96, bias=False), nn.Linear(32, 32)

    def loss(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:  # x: [2, 16, 32]
        q, k, v = project(norm(x)).unflatten(-1, (4, 3, 8)).permute(3, 0, 2, 1, 4)
        scores = (q @ k.mT).softmax(-1)
        return out((scores @ v).transpose(1, 2).flatten(2)).square().mean()

    weights = [p for module in (norm, project, out) for p in module.parameters()]
    return loss, (torch.randn(2, 16, 32, requires_grad=True), *weights)


@pytest.mark.parametrize("model", [perceptron, attention])
def test_start_peak_and_end_are_those_of_a_real_run(model: Callable) -> None:
    function, inputs = model()
    forward, backward = measured_halves(function, *inputs)
    for half in (forward, backward):
        predicted = half.predicted
        assert (predicted.start, predicted.peak, predicted.end) == (half.start, half.peak, half.end)
    assert forward.start == 0
    assert backward.start > 0
    gradients = sum(x.nbytes for x in inputs if x.requires_grad)
    assert backward.end == gradients


# What torch 2.11 generates for a CUDA graph, in small: a Triton kernel, a workspace, operators of other libraries.
HEADER = '''
import torch
from torch._C import _cuda_getCurrentRawStream as get_raw_stream
import triton
aten = torch.ops.aten
empty_strided_cuda = torch._C._dynamo.guards._empty_strided_cuda
async_compile = AsyncCompile()
_tensor_constant0 = None  # device(type='cuda', index=0) torch.int64 (3,) (1,) 7f00
triton_poi_fused_0 = async_compile.triton('triton_poi_fused_0', """
def triton_poi_fused_0(): ...
""", device_str='cuda')
async_compile.wait(globals())
del async_compile

class Runner:
    def __init__(self, partitions):
        self.partitions = partitions

    def call(self, args):
        primals_1, saved_1, saved_2 = args
        args.clear()
        assert_size_stride(primals_1, (256, 4), (4, 1))
        with torch.cuda._DeviceGuard(0):
            torch.cuda.set_device(0)
'''
FOOTER = """
runner = Runner(partitions=[])
call = runner.call
"""


def small(*body: str) -> str:
    return HEADER + "".join(f"            {line}\n" for line in body) + FOOTER


def graph_inputs() -> list[torch.Tensor]:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        parameter = torch.empty(256, 4, device="cuda:0")  # 4096 bytes
        saved = torch.empty(2, 1000, device="cuda:0")  # 8000 bytes, 8192 in the allocator
    return [parameter, saved.as_strided((1000,), (1,)), saved.as_strided((1000,), (1,), 1000)]


def after(timeline: WrapperTimeline, text: str) -> int:
    return next(step.bytes for step in timeline.steps if step.text.startswith(text))


def test_cuda_code_is_followed_without_a_gpu() -> None:
    source = small(
        "buf0 = empty_strided_cuda((100, ), (1, ), torch.float32)",
        "stream0 = get_raw_stream(0)",
        "triton_poi_fused_0.run(primals_1, saved_1, _tensor_constant0, buf0, 100, stream=stream0)",
        "del saved_1",
        "buf1 = reinterpret_tensor(buf0, (10, 10), (10, 1), 0); del buf0  # reuse",
        "workspace_0 = empty_strided_cuda((4096, ), (1, ), torch.float32)",
        "workspace_0.zero_()",
        "buf2 = workspace_0[0 * 256 * 4 : (0 + 2) * 256 * 4].view(512, 4).sum(dim=0).to(torch.bfloat16)",
        "del workspace_0",
        "buf3 = empty_strided_cuda((256, 256), (256, 1), torch.float32)",
        "extern_kernels.mm(primals_1, reinterpret_tensor(primals_1, (4, 256), (1, 4), 0), out=buf3)",
        "del primals_1",
        "del saved_2",
        "buf4 = torch.ops.aten.sort.stable(buf3, stable=False, dim=1, descending=False)",
        "buf5 = buf4[0]",
        "del buf4",
        "return (buf1, buf2, buf5, reinterpret_tensor(buf5, (256, ), (256, ), 0), )",
    )
    timeline = wrapper_timeline(source, graph_inputs(), freed={1, 2})
    matrix, indices = 256 * 256 * 4, 256 * 256 * 8
    assert timeline.start == 8192
    assert after(timeline, "buf0 =") == 8192 + 512
    assert after(timeline, "del saved_1") == 8192 + 512  # saved_2 lies in the same storage
    assert after(timeline, "buf1 =") == 8192 + 512
    assert after(timeline, "workspace_0 =") == 8192 + 512 + 16384
    assert after(timeline, "del workspace_0") == 8192 + 512 + 512
    assert after(timeline, "del primals_1") == 8192 + 1024 + matrix  # a parameter stays
    assert after(timeline, "del saved_2") == 1024 + matrix
    assert timeline.peak == 1024 + 2 * matrix + indices
    assert timeline.peak_operator == "aten.sort.stable"
    assert after(timeline, "return") == 1024 + 2 * matrix
    assert timeline.end == 1024 + matrix  # buf3 goes with the call, and the indices went with buf4
    assert timeline.output_inputs == (None, None, None, None)


def test_a_storage_is_freed_only_if_the_caller_gives_away_every_view_of_it() -> None:
    source = small("del saved_1", "del saved_2", "return (reinterpret_tensor(primals_1, (4, 256), (1, 4), 0), )")
    assert wrapper_timeline(source, graph_inputs(), freed={1}).start == 0
    timeline = wrapper_timeline(source, graph_inputs(), freed={1, 2})
    assert (timeline.start, timeline.peak, timeline.end) == (8192, 8192, 0)
    assert timeline.output_inputs == (0,)


def test_the_outputs_of_a_forward_are_the_saved_inputs_of_its_backward() -> None:
    forward = wrapper_timeline(
        small(
            "buf0 = empty_strided_cuda((3, 512), (512, 1), torch.float32)",
            "return (reinterpret_tensor(buf0, (512, ), (1, ), 0), reinterpret_tensor(buf0, (512, ), (1, ), 1024), )",
        ),
        graph_inputs(),
    )
    backward = wrapper_timeline(
        small("del saved_1", "buf1 = empty_strided_cuda((512, ), (1, ), torch.float32)", "return (buf1, )"),
        [graph_inputs()[0], *forward.outputs],
        freed={1, 2},
    )
    assert forward.end == backward.start == 3 * 512 * 4
    assert (backward.peak, backward.end) == (4 * 512 * 4, 512 * 4)


@pytest.mark.parametrize(("strides", "is_copied"), [((36, 9, 3, 1), False), ((36, 1, 12, 4), True)])
def test_beside_a_cuda_graphs_pool_are_the_gradients_of_another_layout_than_their_parameters(
    strides: tuple[int, ...], is_copied: bool
) -> None:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        weight = torch.empty(1000, 4, 3, 3, device="cuda:0")
        other = torch.empty(8, 4, 1, 1, device="cuda:0")  # its gradient's strides are others where they do not matter
    forward = small("return (saved_1, )")
    backward = small(
        f"buf0 = empty_strided_cuda((1000, 4, 3, 3), {strides}, torch.float32)",
        "buf1 = empty_strided_cuda((8, 4, 1, 1), (4, 1, 4, 4), torch.float32)",
        "return (None, buf0, buf1, )",
    )
    names = ("primals_1", "saved_1", "saved_2")
    halves = (
        CompiledHalf(forward, tuple(graph_inputs()), names, ("saved_1",)),
        CompiledHalf(backward, tuple(graph_inputs()), names, ("None", "buf0", "buf1")),
    )

    def peak(parameters: list[torch.Tensor | None]) -> int:
        return memory_of_code(*halves, names, (), [], [], copied=[], parameters=parameters).peak

    assert peak([None, weight, other]) - peak([]) == (rounded(weight.nbytes, 512) if is_copied else 0)


def test_a_module_level_call_of_older_torch_is_followed() -> None:
    body = ("arg0_1, = args", "args.clear()", "buf0 = empty_strided_cpu((5, ), (1, ), torch.int8)", "return (buf0, )")
    source = "def call(args):\n" + "".join(f"    {line}\n" for line in body)
    timeline = wrapper_timeline(source, [torch.ones(3)])
    assert (timeline.start, timeline.peak, timeline.end) == (0, 5, 5)  # not rounded on a CPU


@pytest.mark.parametrize(
    ("statement", "events"),
    [
        ("extern_kernels.mm(x, x, out=buf1)", 2),
        ("extern_kernels.addmm(x, x, x, alpha=1, beta=1, out=buf1)", 2),
        ("buf3 = torch.ops.aten.bmm.default(x.unsqueeze(0), x.unsqueeze(0))", 3),
        ("triton_poi_fused_mm_0.run(x, buf1, 64, stream=0)", None),
    ],
)
def test_the_first_call_of_a_matmul_library_is_known(statement: str, events: int | None) -> None:
    source = f"""
import torch
from torch._inductor.select_algorithm import extern_kernels
triton_poi_fused_mm_0 = async_compile.triton('triton_poi_fused_mm_0', '', device_str='cpu')

def call(args):
    x, = args
    args.clear()
    buf0 = empty_strided_cpu((8, 8), (8, 1), torch.float32)
    buf1 = empty_strided_cpu((8, 8), (8, 1), torch.float32)
    {statement}
    return (buf1, )
"""
    assert wrapper_timeline(source, [torch.ones(8, 8)]).first_matmul == events


def test_the_partitions_of_a_graph_for_cuda_graphs_are_followed() -> None:
    partition = """
def partition_0(args):
    arg0_1, = args
    args.clear()
    buf0 = empty_strided_cuda((256, ), (1, ), torch.float32)
    buf1 = empty_strided_cuda((128, ), (1, ), torch.float32)
    del arg0_1
    del buf0
    return (buf1, )
"""
    whole = small(
        "partition0_args = [saved_1]", "del saved_1", "del saved_2", "(buf1,) = self.partitions[0](partition0_args)",
        "del partition0_args", "return (buf1, )",
    )  # fmt: skip
    source = partition + whole.replace("partitions=[]", "partitions=[partition_0,]")
    timeline = wrapper_timeline(source, graph_inputs(), freed={1, 2})
    assert (timeline.peak, timeline.end) == (8192 + 1024 + 512, 512)
    assert after(timeline, "del arg0_1") == 1024 + 512


def test_an_operator_runs_with_a_random_generator_and_its_workspace_counts_at_the_peak_only() -> None:
    source = small(
        "buf0 = torch.ops.higher_order.graphsafe_run_with_rng_state("
        "torch.ops.aten.native_dropout.default, saved_1, 0.5, True, rng_state=None)",
        "buf1 = buf0[0]",
        "buf2 = buf0[1]",
        "del buf0",
        "return (buf1, buf2, )",
    )
    workspace = {"aten.native_dropout.default": 10_000}
    timeline = wrapper_timeline(source, graph_inputs(), internal_bytes=lambda operator, *_: workspace[operator])
    assert timeline.end == 4096 + 1024  # 1000 values in float32 and their mask
    assert timeline.peak == timeline.end + 20 * 512
    assert timeline.peak_operator == "aten.native_dropout.default"


def test_a_buffer_in_the_place_of_a_freed_input_is_not_that_input() -> None:
    source = small(
        "del saved_1",
        "del saved_2",
        *(f"buf{i} = empty_strided_cuda((2000, ), (1, ), torch.float32)" for i in range(8)),
        "return (" + "".join(f"buf{i}, " for i in range(8)) + ")",
    )
    timeline = wrapper_timeline(source, graph_inputs(), freed={1, 2})
    assert timeline.output_inputs == (None,) * 8
    assert timeline.peak == 8 * 8192


@pytest.mark.parametrize(("offset", "copied"), [(0, 0), (4, 0), (1, 4096)])
def test_an_input_that_is_not_aligned_is_copied(offset: int, copied: int) -> None:
    parameter, *_ = graph_inputs()
    with torch._subclasses.fake_tensor.FakeTensorMode():
        inputs = [parameter, torch.empty(1100, device="cuda:0").as_strided((1000,), (1,), offset), parameter]
    source = small("saved_1 = copy_if_misaligned(saved_1)", "return (saved_1, )")
    assert wrapper_timeline(source, inputs).peak == copied


def test_a_tensor_on_the_host_does_not_count_on_the_gpu() -> None:
    source = small("del saved_1", "buf0 = empty_strided_cpu((4, ), (1, ), torch.int64)", "return (buf0, )")
    timeline = wrapper_timeline(source, [graph_inputs()[0], torch.ones(5), 3], freed={1})
    assert (timeline.start, timeline.peak, timeline.end) == (0, 0, 0)


def test_the_backward_of_cudnn_attention_takes_what_was_recorded() -> None:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        query = torch.empty(8, 12, 1024, 64, dtype=torch.bfloat16, device="cuda:0")
        grouped = torch.empty(4, 8, 1024, 64, dtype=torch.bfloat16, device="cuda:0")
        many = torch.empty(4, 32, 1024, 64, dtype=torch.bfloat16, device="cuda:0")
    backward = "aten._scaled_dot_product_cudnn_attention_backward.default"
    assert known_bytes(backward, (query, query, query)) == 25559296 + 256  # recorded 25559296, in blocks of 512
    assert known_bytes(backward, (many, many, grouped)) == 67633408 + 256
    assert known_bytes("aten.mm.default", (query, query)) == 0


def test_what_a_convolution_takes_inside_is_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x, weight = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    given = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    given |= {"transposed": False, "output_padding": (0, 0), "groups": 1, "bias": None}
    graph = make_fx(lambda x, w: F.conv2d(x, w, padding=1), tracing_mode="fake")(x, weight).graph
    [node] = [node for node in graph.nodes if node.op == "call_function"]
    costs = Costs(torch.device("cpu"))
    append_cost(costs.path, costs.where, str(call_of(node)), OperatorCost(1e-3, 4096))
    inside = measured_bytes(torch.device("cpu"))
    assert inside("extern_kernels.convolution", (x, weight), given) == 4096
    assert inside("extern_kernels.mm", (x[0, 0], x[0, 0]), {"out": x[0, 0]}) == 0
    assert inside("triton_poi_fused_0", (x, weight, 100), {}) == 0
    assert len(costs.path.read_text().splitlines()) == 1  # nothing was measured for these
    backward = (
        x[:, :1].expand(2, 4, 8, 8),
        x,
        weight,
        [0],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, False],
    )
    assert inside("aten.convolution_backward.default", backward, {}) == 0  # on a CPU
    assert len(costs.path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("buf0 = alloc_from_pool(pool, 0, torch.float32, (8, ), (1, ))", "alloc_from_pool"),
        ("u0 = saved_1[0].item()", "item"),
        ("buf0 = torch.ops.higher_order.unheard_of(saved_1)", "unheard_of"),
        ("buf0 = torch.cuda.Stream()", "Stream"),
        ("inductor_ops.resize_storage_bytes_(saved_1, 0)", "size of a storage"),
    ],
)
def test_an_unknown_statement_is_an_error_that_names_the_line(line: str, words: str) -> None:
    source = small(line, "return (buf0, )")
    number = source.splitlines().index(f"            {line}") + 1
    with pytest.raises(CheckpointingError, match=rf"line {number} .*{words}"):
        wrapper_timeline(source, graph_inputs())


def test_a_position_that_is_no_input_is_rejected() -> None:
    with pytest.raises(CheckpointingError, match=r"freed=\[3\]: there are 3 inputs"):
        wrapper_timeline(small("return ()"), graph_inputs(), freed={3})
