"""A trace as torch.profiler writes it on a GPU, made by hand: two steps of two linear layers, DDP's way.

Times are microseconds here. Each step: an input copy, forward of `a` and `b`, a loss, the backward on autograd's own
thread (b first), an all-reduce on a stream of its own that overlaps the backward of `a`, a fused optimizer, and a
copy back of the loss. Every number of it is known.
"""

import json
from pathlib import Path
from typing import Any

from profiler.traces.attribution import STEP, range_name

BASE = 1_790_000_000_000_000_000  # ns since 1970
MAIN, ENGINE = 100, 101  # threads of the host
ELEMENTWISE = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul> >"
    "(int, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>)"
)
GEMM = "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT"
NCCL = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
ADAM = (
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
    "FusedOptimizerTensorListMetadata<4>, at::native::(anonymous namespace)::FusedAdamMathFunctor<float, 4, "
    "(at::native::ADAM_MODE)1, false>, float const*>(at::native::(anonymous namespace)::"
    "FusedOptimizerTensorListMetadata<4>, float const*)"
)


class GpuTrace:
    """`host` adds a range, `launch` a kernel or a copy with the call that launches it. Times in µs from the start."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.correlation = 0

    def host(self, name: str, start: float, end: float, thread: int = MAIN, kind: str = "cpu_op", **args: Any) -> None:
        self._add(kind, name, start, end, thread, args)

    def launch(self, name: str, called: float, start: float, end: float, thread: int = MAIN, **args: Any) -> None:
        self.correlation += 1
        kind = "gpu_memcpy" if name.startswith("Memcpy") else "gpu_memset" if name.startswith("Memset") else "kernel"
        call = "cudaLaunchKernel" if kind == "kernel" else "cudaMemcpyAsync"
        self._add("cuda_runtime", call, called, called + 1, thread, {"correlation": self.correlation})
        self.on_device(name, start, end, self.correlation, kind, **args)

    def on_device(
        self, name: str, start: float, end: float, correlation: int, kind: str = "kernel", stream: int = 7, **args: Any
    ) -> None:
        extra = {"device": 0, "context": 1, "stream": stream, "correlation": correlation}
        extra |= {"grid": [8, 4, 1], "block": [128, 1, 1]} if kind == "kernel" else {}
        self._add(kind, name, start, end, stream, extra | args, process=0)

    def flow(self, number: int, forward: float, backward: float) -> None:
        shared = {"id": number, "pid": MAIN, "cat": "fwdbwd", "name": "fwdbwd"}
        self.events.append({"ph": "s", "tid": MAIN, "ts": forward, **shared})
        self.events.append({"ph": "f", "tid": ENGINE, "ts": backward, "bp": "e", **shared})

    def _add(
        self, kind: str, name: str, start: float, end: float, thread: int, args: dict[str, Any], process: int = MAIN
    ) -> None:
        where = {"pid": process, "tid": thread, "ts": start, "dur": round(end - start, 3)}
        self.events.append({"ph": "X", "cat": kind, "name": name, **where, "args": args})

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps({"baseTimeNanoseconds": BASE, "traceEvents": self.events}))
        return path


def two_steps() -> GpuTrace:
    """As the module says. A step takes 400 µs on the device."""
    trace = GpuTrace()
    for step in range(2):
        t, n = 1000.0 * step, 10 * step
        trace.host(STEP, t, t + 400)
        trace.host("aten::to", t + 2, t + 8)
        trace.launch("Memcpy HtoD (Pinned -> Device)", t + 4, t + 6, t + 16, bytes=4096)
        trace.host(range_name("forward", "(model)"), t + 10, t + 60)
        for place, module in enumerate("ab"):
            start = t + 12 + 20 * place
            trace.host(range_name("forward", module), start, start + 18)
            trace.host("aten::linear", start + 1, start + 17, **{"Sequence number": n + place, "Fwd thread id": 0})
            trace.host("aten::addmm", start + 2, start + 16, **{"Sequence number": n + place, "Fwd thread id": 0})
            trace.launch(GEMM, start + 4, start + 10, start + 30)
        trace.host("aten::mse_loss", t + 62, t + 70, **{"Sequence number": n + 2, "Fwd thread id": 0})
        trace.launch(ELEMENTWISE, t + 64, t + 70, t + 74)
        for place, (number, name, start) in enumerate([(2, "MseLoss", 80), (1, "Addmm", 90), (0, "Addmm", 120)]):
            made_by = {"Sequence number": n + number, "Fwd thread id": 1}
            evaluate = f"autograd::engine::evaluate_function: {name}Backward0"
            long = 8 if number == 2 else 20
            trace.host(evaluate, t + start, t + start + long, ENGINE, **made_by)
            trace.host(f"{name}Backward0", t + start + 0.5, t + start + long - 1, ENGINE, **made_by)
            trace.flow(n + place + 1, t + {2: 62, 1: 34, 0: 14}[number], t + start + 0.5)
            if number == 2:
                trace.host("aten::mul", t + start + 1, t + start + 6, ENGINE)
                trace.launch(ELEMENTWISE, t + start + 2, t + start + 4, t + start + 8, ENGINE)
                continue
            for half in range(2):
                trace.host("aten::mm", t + start + 2 + 6 * half, t + start + 7 + 6 * half, ENGINE)
                device = t + (95 if number == 1 else 140) + 20 * half
                trace.launch(GEMM, t + start + 3 + 6 * half, device, device + 20, ENGINE)
        accumulate = "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad"
        trace.host(accumulate, t + 111, t + 118, ENGINE)  # of b's weight: DDP reduces its bucket here
        trace.host("c10d::allreduce_", t + 112, t + 117, ENGINE)
        trace.launch(NCCL, t + 114, t + 135, t + 215, ENGINE, stream=20)
        trace.host("Optimizer.step#AdamW.step", t + 220, t + 260, kind="user_annotation")
        trace.host("aten::_fused_adamw_", t + 225, t + 255)
        trace.launch(ADAM, t + 230, t + 240, t + 300)
        trace.host("aten::item", t + 270, t + 395)
        trace.launch("Memcpy DtoH (Device -> Pageable)", t + 275, t + 300, t + 320, bytes=4)
        trace.host("cudaDeviceSynchronize", t + 280, t + 395, kind="cuda_runtime")
    return trace
