"""The text of docs/reference/columns.md, for docs/make_reference.py: the tables' columns as the code has them, and what
each means. A column without a meaning, or a meaning without a column, is an error."""

from __future__ import annotations

import sys

from profiler.costs.stats import ACTIVATION_STATS, COLUMNS, MEMORY_CURVE, NODE_STATS
from profiler.traces.modules import COPY_COLUMNS, KERNEL_COLUMNS, MODULE_COLUMNS
from profiler.traces.steps import STEP_COLUMNS

HEAD = """# Columns of the profiler's and the traces' tables

Look up what a column of a CSV file means. Names end in their unit.

<!-- made by `python docs/make_reference.py` from the code and docs/make_columns.py: change them there -->

"""
TABLES = {
    f"`{NODE_STATS}`: a profile, one row per node": COLUMNS[NODE_STATS],
    f"`{ACTIVATION_STATS}`: a profile, one row per activation": COLUMNS[ACTIVATION_STATS],
    f"`{MEMORY_CURVE}`: a profile, simulated bytes at each node": COLUMNS[MEMORY_CURVE],
    "`kernels.csv`: a trace, one row per kernel (on a CPU: per outermost operator)": KERNEL_COLUMNS,
    "`memcpy.csv`: a trace, one row per copy or memory set": COPY_COLUMNS,
    "`modules.csv`: a trace, one row per module, region and step": MODULE_COLUMNS,
    "`steps.csv`: a trace, one row per step": STEP_COLUMNS,
}
# By the first words of a heading, where a name means different things: "`steps.csv` rank".
MEANINGS = {
    "node_name": "name of the node in the graph",
    "target": "the operator",
    "node_type": "type of the storage; of a node's several outputs, that of the largest that is not OTHER",
    "region": "part of the step",
    "module": "the path of the module; `(outside)` of all modules, or in the `(optimizer)`",
    "median_run_time_s": "run time",
    "median_peak_mem_bytes": "most memory in use while it runs; of a placeholder, before the step",
    "median_active_mem_bytes": "memory in use when it starts",
    "output_bytes": "storages that it makes, unrounded; 0 for a view; of a placeholder, its own",
    "workspace_bytes": "peak − active − outputs, as the allocator rounds",
    "flops": "2 × multiply-adds of matmuls, convolutions and attention; complex numbers count four times",
    "device": "device of its output",
    "activation_name": "the node whose value it is",
    "creation_rank": "order of that node",
    "last_fw_use_rank": "order of its last use in the forward; the creation if there is none",
    "first_bw_use_rank": "order of its first use in the backward; taking a view is no use",
    "last_bw_use_rank": "order of its last use in the backward",
    "median_mem_size_bytes": "size",
    "inactive_time_s": "run time of the nodes between last forward and first backward use",
    "recomp_time_s": "time to recompute it when all other activations are kept",
    "recomp_memory_bytes": "most memory that this takes",
    "parameters": "parameters",
    "buffers": "buffers",
    "inputs": "the batch",
    "gradients": "gradients of parameters",
    "optimizer_state": "optimizer state",
    "activations": "made by the forward or loss, read by the backward",
    "temporaries": "other values, such as gradients of activations",
    "workspace": "scratch memory of operators, and what libraries and the allocator hold",
    "live_bytes": "sum without workspace",
    "total_bytes": "sum of all categories",
    "start_ns": "start, nanoseconds since 1970 on the clock of time.time_ns()",
    "end_ns": "end",
    "duration_ns": "end − start",
    "stream": "CUDA stream; on a CPU the thread",
    "grid_x": "grid of the launch",
    "grid_y": "grid of the launch",
    "grid_z": "grid of the launch",
    "correlation": "id of the launch",
    "communication": "whether it is NCCL's, symmetric memory's, or on a CPU c10d:: or gloo:",
    "step": "number of the marked step; −1: outside",
    "operator": "the operator that launched it",
    "name": "name",
    "bytes": "bytes moved",
    "kind": "CUPTI's number: 1 host to device, 2 device to host, 8 device to device, 9 host to host, 10 peer to peer; "
    "−1 memory set (MEMCPY_KIND_STR has all)",
    "type": "class of the module",
    "depth": "0: the model",
    "calls": "calls; in the backward, autograd nodes",
    "kernels": "how many kernels",
    "device_self_ns": "device time without submodules",
    "device_total_ns": "device time with submodules",
    "communication_self_ns": "of it communication, without submodules",
    "communication_total_ns": "of it communication, with submodules",
    "exposed_communication_self_ns": "communication while no compute kernel runs, without submodules",
    "exposed_communication_total_ns": "communication while no compute kernel runs, with submodules",
    "wall_self_ns": "host time without submodules",
    "wall_total_ns": "host time with submodules",
    "flops_self": "FLOPs without submodules",
    "flops_total": "FLOPs with submodules",
    "tflops_self": "TFLOP/s without submodules",
    "tflops_total": "TFLOP/s with submodules",
    "step_ns": "end − start",
    "forward_ns": "compute and exposed copies of the forward",
    "backward_ns": "… of the backward",
    "optimizer_ns": "… of the optimizer",
    "other_ns": "… of the rest: clipping, logging, compression",
    "compute_ns": "a kernel runs that is not communication",
    "communication_ns": "communication runs",
    "exposed_communication_ns": "… and nothing computes",
    "overlapped_communication_ns": "… and something computes",
    "copies_ns": "a copy runs",
    "exposed_copies_ns": "… and no kernel",
    "idle_ns": "nothing runs",
    "copies": "how many copies",
    "kernel_ns": "sum of the durations of kernels and copies",
    "attributed_ns": "of it attributed to a module, the loss or the optimizer",
    "on_cpu": "whether kernels are CPU operators",
    "rank": "the process",
}
BY_TABLE = {
    (NODE_STATS, "rank"): "order in the graph",
    (MEMORY_CURVE, "rank"): "order in the graph",
    ("kernels.csv", "device"): "index of the GPU; −1 on a CPU",
    ("memcpy.csv", "device"): "index of the GPU; −1 on a CPU",
}


def page() -> str:
    used, parts = set(), []
    for title, columns in TABLES.items():
        rows = []
        for column in columns:
            meaning = BY_TABLE.get((title.split("`")[1], column)) or MEANINGS.get(column)
            if meaning is None:
                sys.exit(f"docs/make_columns.py: {column} of {title} has no meaning")
            used.add(column)
            rows.append(f"| `{column}` | {meaning} |\n")
        parts.append(f"## {title}\n\n| column | meaning |\n|---|---|\n{''.join(rows)}")
    if set(MEANINGS) != used:
        sys.exit(f"docs/make_columns.py: no table has {sorted(set(MEANINGS) - used)}")
    return HEAD + "\n".join(parts)
