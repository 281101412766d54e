"""The report's figures, in its order. Each selects from what was measured and draws from its selection alone.

for spec in FIGURES:
    selected = spec.select(data)        # also what the report links to as the figure's data
    if not selected.empty:
        figure = spec.draw(selected)

To add one, write the two functions and list it here.
"""

from sweeps.report.figures.accuracy import DRIFT, ERRORS, LOSSES
from sweeps.report.figures.all_reduce import ALLREDUCE
from sweeps.report.figures.benchmarks.benchmark_maps import BENCHMARK_MAPS
from sweeps.report.figures.benchmarks.benchmark_times import BENCHMARK_ALL_REDUCE, BENCHMARK_HOST, BENCHMARK_LAW
from sweeps.report.figures.benchmarks.phase_diagram import PHASE_DIAGRAM
from sweeps.report.figures.hypotheses import HYPOTHESES
from sweeps.report.figures.law import LAW
from sweeps.report.figures.recomputation import RECOMPUTATION_FIGURES
from sweeps.report.figures.roofline import FLOOR
from sweeps.report.figures.scaling import SCALING, SPEEDUP_OVER_DENSE, SPEEDUP_OVER_ROW, STEP_SCALING
from sweeps.report.figures.shared.figure import FigureSpec
from sweeps.report.figures.throughput import THROUGHPUT
from sweeps.report.figures.traced_steps import TRACED_STEPS
from sweeps.report.figures.training_step import TRAINING_STEP
from sweeps.report.tables.report_data import ReportData

BENCHMARK_FIGURES = (PHASE_DIAGRAM, *BENCHMARK_MAPS, BENCHMARK_ALL_REDUCE, BENCHMARK_LAW, BENCHMARK_HOST)
FIGURES = (
    HYPOTHESES,
    THROUGHPUT,
    SPEEDUP_OVER_ROW,
    SPEEDUP_OVER_DENSE,
    TRAINING_STEP,
    SCALING,
    STEP_SCALING,
    LAW,
    FLOOR,
    ALLREDUCE,
    ERRORS,
    DRIFT,
    LOSSES,
    *RECOMPUTATION_FIGURES,
    TRACED_STEPS,
    *BENCHMARK_FIGURES,
)

__all__ = ["BENCHMARK_FIGURES", "FIGURES", "FigureSpec", "ReportData"]
