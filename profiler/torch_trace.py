"""One recording by torch.profiler, after which the process is as fast as before.

with torch_trace(device, cpu=True) as recorded:
    step()
recorded.profiler.kineto_results.events()
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

CLOSE_CUPTI = "TEARDOWN_CUPTI"  # read by Kineto when a recording ends


@contextmanager
def torch_trace(device: torch.device, cpu: bool = True, **options: Any) -> Iterator[profile]:
    """Record what runs inside: the device's kernels and copies and, with `cpu`, operators. Waits for the device.

    Left to itself, torch.profiler keeps CUPTI in the process, and later launches take longer (pytorch issue 144455).
    It is closed here, unless TEARDOWN_CUPTI=0 is set, as inductor does for its CUDA graphs. Kineto closes it in the
    next call of CUDA, whatever that is, and a recording that has begun by then sees no kernel: so there is a call after
    each recording, and one before it, for what another has left.
    """
    os.environ.setdefault(CLOSE_CUPTI, "1")
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] * cpu + [ProfilerActivity.CUDA] * on_gpu
    recorder = profile(activities=activities, acc_events=False, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Profiler clears events")  # of one cycle, which is all there is
        if on_gpu:
            torch.cuda.synchronize(device)
        recorder.start()
    try:
        yield recorder
        if on_gpu:
            torch.cuda.synchronize(device)
    finally:
        recorder.stop()
        if on_gpu:
            torch.cuda.synchronize(device)
