"""The front door: profile a traced step, look at its numbers, save them.

prof = GraphProfiler(step)
prof.peak_breakdown()                        # a forecast, before anything has run
prof.run(*batch, warmup_iters=1, profile_iters=3)
prof.print_stats(); prof.save_stats_to_csv(folder); prof.plot(folder)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from profiler.costs import stats
from profiler.costs.export_chrome_trace import save_chrome_trace
from profiler.costs.memory import MemoryCurve, simulate
from profiler.costs.profile import Profile, measure
from profiler.costs.signoff import Check, sign_off
from profiler.costs.storage import StorageAnalysis, analyse
from profiler.costs.text import report
from profiler.errors import NotProfiledError
from profiler.flops import uncounted
from profiler.graph.step import TracedStep

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "profiler_summary.json"
CHROME_TRACE = "profiler_trace.json"


class GraphProfiler:
    """What every node of a traced step costs. Without `run`, what its graph alone says."""

    def __init__(self, step: TracedStep) -> None:
        self.step = step
        self.analysis: StorageAnalysis = analyse(step)
        self._profile: Profile | None = None

    @property
    def profile(self) -> Profile:
        """The measurements. Raises NotProfiledError before `run`."""
        if self._profile is None:
            raise NotProfiledError("nothing has been measured: call run(*batch) first")
        return self._profile

    @property
    def measured_ranks(self) -> np.ndarray:
        """Ranks of the nodes that run something, which is all but the placeholders."""
        return np.array([r for r, node in enumerate(self.analysis.nodes) if node.op != "placeholder"])

    def run(self, *batch: Any, warmup_iters: int = 1, profile_iters: int = 3) -> None:
        """Measure the step on `batch`. These are training steps: the model is trained by them.

        Runs `warmup_iters` plain steps and then `profile_iters` each of: plain steps on the clock, and steps
        with every node measured (on the CPU one for time and one for memory; on CUDA one for both and one for
        the gaps between kernels).
        """
        self._profile = measure(self.step, self.analysis, batch, warmup_iters, profile_iters)

    def node_stats(self) -> pd.DataFrame:
        """One row a node; see `stats.node_stats`. Needs `run`."""
        return stats.node_stats(self.analysis, self.profile)

    def activation_stats(self) -> pd.DataFrame:
        """One row an activation; see `stats.activation_stats`. Needs `run`."""
        return stats.activation_stats(self.analysis, self.profile)

    def memory(self, rounding: int | None = None) -> MemoryCurve:
        """Memory against rank; a forecast from the graph alone if nothing has been measured.

        `rounding` in bytes is the allocator's; 512 on a CPU's trace forecasts the same graph on CUDA.
        """
        return simulate(self.analysis, self._profile.memory if self._profile else None, rounding)

    def peak_breakdown(self) -> dict[str, int]:
        """Category → bytes at the simulated peak. They add up to `memory().peak_bytes` exactly."""
        return self.memory().breakdown()

    def summary(self) -> dict[str, Any]:
        """The step in a few numbers, in seconds and bytes. Needs `run`."""
        curve, profile = self.memory(), self.profile
        return {
            "nodes": len(self.analysis.nodes),
            "activations": len(self.analysis.activations),
            "activation_bytes": sum(a.storage.bytes for a in self.analysis.activations),
            "device": str(self.step.device),
            "uncounted_operators": sorted({str(node.target) for node in self.step.nodes if uncounted(node.target)}),
            "trace_s": self.step.trace_seconds,
            "profile_s": profile.seconds,
            "step_time_s": profile.step_time_s,
            "node_time_s": float(profile.run_time_s.sum()),
            "idle_s": profile.idle_s,
            "unattributed_s": profile.lost_s,
            "simulated_peak_bytes": curve.peak_bytes,
            "measured_peak_bytes": profile.step_peak_bytes,
            "peak_node": curve.peak_node,
            "peak_rank": curve.peak_rank,
            "peak_region": curve.peak_region,
            "peak_breakdown": curve.breakdown(),
        }

    def print_stats(self, rows: int = 10) -> None:
        """Print the summary, the time by region, and the `rows` most expensive nodes and activations."""
        print(report(self.node_stats(), self.activation_stats(), self.summary(), rows))

    def save_stats_to_csv(self, folder: str | Path) -> list[Path]:
        """Write the node, activation and memory tables, a summary and a Chrome trace. Returns the files."""
        target, nodes, curve = Path(folder), self.node_stats(), self.memory()
        paths = list(stats.save_csv(target, nodes, self.activation_stats(), curve))
        save_chrome_trace(target / CHROME_TRACE, nodes, curve)
        (target / SUMMARY).write_text(json.dumps(self.summary(), indent=2) + "\n")
        return [*paths, target / CHROME_TRACE, target / SUMMARY]

    def plot(self, folder: str | Path) -> list[Path]:
        """Draw the five figures `profiler_plots_*.png` into `folder`. Returns the files."""
        from profiler import plots

        return plots.plot_all(Path(folder), self.node_stats(), self.activation_stats(), self.memory(), self.step.device)

    def sign_off(self, folder: str | Path) -> list[Check]:
        """Check the profile and the files in `folder`; see `signoff.sign_off_table` to print it."""
        return sign_off(self, Path(folder))
