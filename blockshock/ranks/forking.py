"""The server that ranks are forked from: it has imported torch already, so a rank starts in a tenth of a second.

start_forking_server()                     # it imports torch while its user does something else
with interrupts_wait(): context().Process(target=...).start()
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.context
import os
import signal
from collections.abc import Collection, Iterator
from multiprocessing import forkserver, resource_tracker

from blockshock.ranks.process import INTERRUPTS

PRELOAD = ["blockshock.jobs.rank", "blockshock.jobs.job"]  # what the server that forks ranks imports, once
PRELOAD_FOR_MANY = ["torch._dynamo"]  # what autograd functions and optimizers import at first use, a second or two
PRELOAD_FOR_STEPS = [  # what a phase of whole models imports, ten seconds on some machines
    "checkpointing.compiled.backend",
    "profiler.models",
    "torch._inductor.compile_fx",
    "transformers.modeling_utils",
]
LAST = ["blockshock.ranks.freeze"]
PHASES_OF_STEPS = {"checkpoint", "largest_batch", "profile"}

# Inductor's import asks whether there is a GPU. The CUDA runtime may not be asked: no process that is forked afterwards
# could use a GPU. NVML may.
_ASK_NVML = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

_preloaded = PRELOAD + LAST


def start_forking_server(many_jobs: bool = False, phases: Collection[str] = ()) -> None:
    """Start the server that forks ranks now: it imports torch while its user does something else.

    For `many_jobs`, of these `phases`, it imports what each of them would at first use.
    """
    global _preloaded
    steps = not PHASES_OF_STEPS.isdisjoint(phases)
    _preloaded = PRELOAD + (PRELOAD_FOR_MANY + PRELOAD_FOR_STEPS * steps) * many_jobs + LAST
    context()
    with interrupts_wait():
        forkserver.ensure_running()


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Hold interrupts back meanwhile: one halfway through a request would make the server that forks ranks stumble.

    What is started here inherits the mask. So a Ctrl-C does not stop the server in the middle of its imports either; it
    ends with this process.
    """
    resource_tracker.ensure_running()  # to start it, multiprocessing unblocks SIGINT and SIGTERM whatever the mask was
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def context() -> multiprocessing.context.ForkServerContext:
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # A worker of joblib's has a method of its own ("loky"), whose name a new process is told and does not know.
        multiprocessing.set_start_method("forkserver", force=True)
    os.environ.update(_ASK_NVML)
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_preloaded)
    return found
